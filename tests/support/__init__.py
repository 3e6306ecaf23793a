"""What tests share: models, servers, users and clusters that are real, and how the programs are run."""
