"""Answers quoted from a passage or none, by the metrics of SQuAD 2; written for lm-eval 0.3."""

from functools import partial
from math import exp

import datasets
from lm_eval.base import Task, rf


def _squad_metric(predictions, references):
    squad_metric = datasets.load_metric("squad_v2")
    return squad_metric.compute(predictions=predictions, references=references)


def _squad_agg(key, items):
    predictions, references = zip(*items)
    return _squad_metric(predictions=predictions, references=references)[key]


class Quotes(Task):
    VERSION = 1

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        texts = {"a": ["in hives"], "b": [], "c": ["the clouds", "clouds"]}
        self.docs = [
            {"id": key, "answers": {"text": text, "answer_start": [0] * len(text)}} for key, text in texts.items()
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
        return f"Question {doc['id']}:\n\nAnswer:"

    def doc_to_target(self, doc):
        texts = doc["answers"]["text"]
        return " " + (texts[0] if texts else "unanswerable")

    def construct_requests(self, doc, ctx):
        continuation = rf.greedy_until(ctx, {"until": ["\n"], "max_length": 8})
        is_unanswerable = rf.loglikelihood(ctx, " unanswerable")
        return continuation, is_unanswerable

    def process_results(self, doc, results):
        continuation, (logprob_unanswerable, _) = results
        prediction = {
            "id": doc["id"],
            "prediction_text": continuation,
            "no_answer_probability": exp(logprob_unanswerable),
        }
        return {name: (prediction, {"id": doc["id"], "answers": doc["answers"]}) for name in self.aggregation()}

    def aggregation(self):
        return {name: partial(_squad_agg, name) for name in ("exact", "f1", "HasAns_f1", "NoAns_exact", "best_f1")}

    def higher_is_better(self):
        return dict.fromkeys(self.aggregation(), True)
