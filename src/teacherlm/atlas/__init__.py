"""Retrieval-augmented question answering on MMLU: the second system (Izacard et al. 2022, arXiv 2208.03299)."""
