"""Yes or no to JSON lines in a folder that DATASET_PATH names, scored by correlation; written for lm-eval 0.3."""

from lm_eval.base import Task, rf
from lm_eval.metrics import f1_score, matthews_corrcoef, mean, yesno


class Judged(Task):
    VERSION = 0
    DATASET_PATH = "lm_eval/datasets/judged"
    DATASET_NAME = None

    def has_training_docs(self):
        return True

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def training_docs(self):
        if self._training_docs is None:
            self._training_docs = list(self.dataset["train"])
        return self._training_docs

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc):
        return "{}\nQuestion: Does this make sense?\nAnswer:".format(doc["claim"])

    def doc_to_target(self, doc):
        return " {}".format(yesno(doc["truth"]))

    def construct_requests(self, doc, ctx):
        ll_yes, _ = rf.loglikelihood(ctx, " yes")
        ll_no, _ = rf.loglikelihood(ctx, " no")
        return ll_yes, ll_no

    def process_results(self, doc, results):
        pred = results[0] > results[1]
        gold = doc["truth"]
        return {"acc": pred == gold, "mcc": (gold, pred), "f1": (gold, pred)}

    def higher_is_better(self):
        return {"acc": True, "mcc": True, "f1": True}

    def aggregation(self):
        return {"acc": mean, "mcc": matthews_corrcoef, "f1": f1_score}
