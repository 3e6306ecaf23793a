"""The meaning of the YAML files: benchmarks, models, the text of a question, the sources of data and weights."""
