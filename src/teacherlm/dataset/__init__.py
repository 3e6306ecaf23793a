"""Benchmarks become prompts, and the teacher's texts become a dataset: preparing, joining, measuring their quality."""
