"""Translations by BLEU, chrF and TER; written for lm-eval 0.3."""

from lm_eval import metrics
from lm_eval.base import Task, rf


class Translated(Task):
    VERSION = 0

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        pairs = (("Bienen summen", "Bees hum in the warm sun."), ("Regen fällt", "Rain falls on the old roof."))
        self.docs = [{"src": source, "ref": reference} for source, reference in pairs]

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.docs

    def doc_to_text(self, doc):
        return f"German phrase: {doc['src']}\nEnglish phrase:"

    def doc_to_target(self, doc):
        return " " + doc["ref"]

    def construct_requests(self, doc, ctx):
        return rf.greedy_until(ctx, "\n")

    def process_results(self, doc, results):
        ref_pred = (doc["ref"], results)
        return {"bleu": ref_pred, "chrf": ref_pred, "ter": ref_pred}

    def aggregation(self):
        return {"bleu": metrics.bleu, "chrf": metrics.chrf, "ter": metrics.ter}

    def higher_is_better(self):
        return {"bleu": True, "chrf": True, "ter": False}
