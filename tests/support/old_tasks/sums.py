"""Sums, written out by the model and compared exactly; written for lm-eval 0.3."""

from lm_eval.base import Task, rf
from lm_eval.metrics import mean


class Sums(Task):
    VERSION = 0
    DATASET_PATH = None

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.docs = [{"sum": f"{a} + {b}", "result": str(a + b)} for a, b in ((1, 2), (3, 4), (5, 6))]

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        yield from self.docs

    def doc_to_text(self, doc):
        return f"Sum: {doc['sum']} ="

    def doc_to_target(self, doc):
        return " " + doc["result"]

    def construct_requests(self, doc, ctx):
        return rf.greedy_until(ctx, {"until": ["\n", " and"], "max_length": 6})

    def process_results(self, doc, results):
        (answer,) = results
        return {"em": answer.strip() == doc["result"], "length": len(answer)}

    def aggregation(self):
        return {"em": mean, "length": mean}

    def higher_is_better(self):
        return {"em": True, "length": False}
