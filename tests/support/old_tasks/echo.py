"""Free text with exact match, and few-shot examples from training samples; written for lm-eval 0.2."""

import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean


class Echo(Task):
    VERSION = 0
    DATASET_PATH = ""
    DATASET_NAME = None

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.words = ["moon", "bee", "rain", "star", "hive", "cloud"]

    def has_training_docs(self):
        return True

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def training_docs(self):
        return self.words[:3]

    def test_docs(self):
        return self.words[3:]

    def doc_to_text(self, doc):
        return f"Say: {doc}\nSaid:"

    def doc_to_target(self, doc):
        return f" {doc}"

    def construct_requests(self, doc, ctx):
        continuation = rf.greedy_until(ctx, ["\n"])
        is_greedy = rf.loglikelihood(ctx, self.doc_to_target(doc))[1]
        return continuation, is_greedy

    def process_results(self, doc, results):
        continuation, is_greedy = results
        return {"em": float(continuation.strip() == doc), "greedy": float(np.bool_(is_greedy))}

    def aggregation(self):
        return {"em": mean, "greedy": mean}

    def higher_is_better(self):
        return {"em": True, "greedy": True}
