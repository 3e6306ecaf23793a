"""Reading and writing of whatever it is: records, files that appear whole, locks, manifests, errors, tables."""
