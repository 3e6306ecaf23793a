"""ECQA: commonsense questions with five choices (Aggarwal et al. 2021)."""

from .creak import CREAK


class ECQA(CREAK):
    DATASET_PATH = "lm_eval/datasets/ecqa"
    CHOICES = 5
