"""What the YAML files mean: benchmarks and models, how a question becomes text, and where data and weights come from."""
