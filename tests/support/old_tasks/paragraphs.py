"""Several answers to a question, all of which must be judged rightly; written for lm-eval 0.3."""

from lm_eval.base import Task, rf
from lm_eval.metrics import acc_all, metric_max_over_ground_truths

DOCS = [(0, 0, "hive", 1), (0, 0, "sea", 0), (0, 1, "honey", 1), (1, 0, "cloud", 1), (1, 0, "stone", 0)]


class Paragraphs(Task):
    VERSION = 1

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        keys = ("paragraph", "question", "answer")
        self.docs = [
            {"idx": dict(zip(keys, (*doc[:2], row))), "answer": doc[2], "label": doc[3]} for row, doc in enumerate(DOCS)
        ]

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return self.docs

    def doc_to_text(self, doc):
        return f"Question {doc['idx']['question']}. Answer:"

    def doc_to_target(self, doc):
        return self.format_answer(doc["answer"], doc["label"])

    @staticmethod
    def format_answer(answer, label):
        return f" {answer}\nIs the answer correct? " + ("yes" if label else "no")

    def construct_requests(self, doc, ctx):
        ll_true, _ = rf.loglikelihood(ctx, self.format_answer(doc["answer"], True))
        ll_false, _ = rf.loglikelihood(ctx, self.format_answer(doc["answer"], False))
        return ll_true, ll_false

    def process_results(self, doc, results):
        ll_true, ll_false = results
        return {"acc": (ll_true > ll_false, doc), "best": metric_max_over_ground_truths(max, ll_true, [ll_false])}

    def higher_is_better(self):
        return {"acc": True, "best": True}

    def aggregation(self):
        return {"acc": acc_all, "best": max}
