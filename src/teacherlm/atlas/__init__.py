"""ATLAS, the second system: retrieval-augmented question answering on MMLU (Izacard et al. 2022, arXiv 2208.03299)."""
