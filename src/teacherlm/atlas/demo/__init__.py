"""A small world of made-up facts for a demonstration of ATLAS."""
