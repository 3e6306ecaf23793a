"""CREAK: is a claim about an entity true? (Onoe et al. 2021, arXiv 2109.01653)

The test set is made by `python3 data_prepare.py` in enhance/. Copy this file to write a task of your own.
"""

import datasets
import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean

from teacherlm.prompts import LETTERS, test_context


class CREAK(Task):
    VERSION = 0
    DATASET_PATH = "lm_eval/datasets/creak"
    DATASET_NAME = None
    CHOICES = 2

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = datasets.load_from_disk(self.DATASET_PATH)

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset

    def doc_to_text(self, doc):
        return test_context(doc["question"], doc.get("preamble", ""))

    def doc_to_target(self, doc):
        return doc["answer"].removeprefix("(")

    def construct_requests(self, doc, ctx):
        requests = []
        for letter in LETTERS[: self.CHOICES]:
            likelihood, _ = rf.loglikelihood(ctx, letter)
            requests.append(likelihood)
        return requests

    def process_results(self, doc, results):
        chosen = LETTERS[int(np.argmax(results))]
        return {"acc": float(f"({chosen})" == doc["answer"])}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}
