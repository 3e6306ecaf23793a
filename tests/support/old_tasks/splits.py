"""The splits of a data set, as they are there; written for lm-eval 0.2."""

from lm_eval.base import MultipleChoiceTask
from lm_eval.tasks.common import HFTask


class Splits(HFTask, MultipleChoiceTask):
    VERSION = 0
    DATASET_PATH = "lm_eval/datasets/splits"
    DATASET_NAME = None

    def _convert_standard(self, doc):
        return {
            "query": "Goal: " + doc["goal"] + "\nAnswer:",
            "choices": [doc["sol1"], doc["sol2"]],
            "gold": doc["label"],
        }

    def doc_to_text(self, doc):
        return doc["query"]
