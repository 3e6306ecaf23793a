"""StrategyQA: yes or no, given the facts (Geva et al. 2021, arXiv 2101.02235)."""

from .creak import CREAK


class StrategyQA(CREAK):
    DATASET_PATH = "lm_eval/datasets/strategy_qa"
