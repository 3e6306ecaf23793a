"""Single-token choices, from samples in memory; written for lm-eval 0.3."""

from lm_eval.base import Task, rf
from lm_eval.metrics import f1_score, mean

SKIES = [("The sky is grey", 1), ("The sun shines", 0), ("Drops are on the window", 1), ("Stars are out", 0)]


class Weather(Task):
    VERSION = 1
    DATASET_PATH = ""
    DATASET_NAME = None

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = {"validation": [{"sky": sky, "label": label} for sky, label in SKIES]}

    def should_decontaminate(self):
        return False

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc):
        return f"{doc['sky']}.\nQuestion: Will it rain?\nAnswer:"

    def doc_to_target(self, doc):
        return " yes" if doc["label"] else " no"

    def construct_requests(self, doc, ctx):
        ll_yes, _ = rf.loglikelihood(ctx, " yes")
        ll_no, _ = rf.loglikelihood(ctx, " no")
        return ll_yes, ll_no

    def process_results(self, doc, results):
        ll_yes, ll_no = results
        pred = int(ll_yes > ll_no)
        return {"acc": pred == doc["label"], "f1": (doc["label"], pred)}

    def higher_is_better(self):
        return {"acc": True, "f1": True}

    def aggregation(self):
        return {"acc": mean, "f1": f1_score}
