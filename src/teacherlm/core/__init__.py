"""Reading and writing: records, files that appear complete, locks, manifests, errors, tables."""
