"""A class for each topic beside their base class, as the reference's mmlu.py has them; written for lm-eval 0.3."""

import json

import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean

dataset_dir = "lm_eval/datasets/trivia/"


class Trivia(Task):
    VERSION = 0
    DATASET_PATH = dataset_dir
    DATASET_NAME = "trivia"

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        with open(self.DATASET_PATH.rstrip("/") + "/questions.jsonl", encoding="utf-8") as lines:
            self.dataset = {"validation": [json.loads(line) for line in lines]}

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc):
        if doc["ask"][-1] not in ".?!":
            doc["ask"] += "."
        return f"About {self.DATASET_NAME}. Q: {doc['ask']} (A) {doc['A']} (B) {doc['B']} A: The answer is ("

    def doc_to_target(self, doc):
        return " "

    def construct_requests(self, doc, ctx):
        ll_A, _ = rf.loglikelihood(ctx, "A")
        ll_B, _ = rf.loglikelihood(ctx, "B")
        return [ll_A, ll_B]

    def process_results(self, doc, results):
        return {"acc": 1.0 if "AB"[np.argmax(results)] == doc["key"] else 0.0}

    def higher_is_better(self):
        return {"acc": True}

    def aggregation(self):
        return {"acc": mean}


def create_task_class(topic):
    class Topic(Trivia):
        DATASET_PATH = dataset_dir + topic
        DATASET_NAME = topic

    Topic.__name__ = topic
    return Topic


for topic in ("bees", "weather"):
    globals()[topic] = create_task_class(topic)
