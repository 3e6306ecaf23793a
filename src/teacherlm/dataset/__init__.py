"""Preparing a benchmark's prompts, joining the teacher's texts to a dataset, and measuring the texts' quality."""
