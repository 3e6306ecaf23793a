"""What the YAML files mean: benchmarks, models, how a question becomes text, where data and weights come from."""
