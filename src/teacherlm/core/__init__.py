"""Reading and writing, whatever is read and written: records, files that appear whole, locks, manifests, errors, tables."""
