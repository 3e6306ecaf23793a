"""TODO: the benchmark's name, its paper, its licence.

A task of your own: copy this file to lm_eval/tasks/NAME.py, go through the TODOs, and run

    bash run_hf.sh MODEL NAME

(A multiple-choice benchmark whose choices are letters needs no task file: one YAML in benchmarks/ is enough.)
"""

import datasets
import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean


class NewTask(Task):
    VERSION = 0  # to be raised whenever a change gives other numbers
    DATASET_PATH = "lm_eval/datasets/new_task"  # TODO: a folder of `datasets` (save_to_disk), or a name on the hub
    DATASET_NAME = None  # TODO: the hub's configuration, if there are several

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        # Runs once, before anything else. From the hub: datasets.load_dataset(self.DATASET_PATH, self.DATASET_NAME)
        self.dataset = datasets.load_from_disk(self.DATASET_PATH)

    def has_training_docs(self):
        return False  # True: few-shot examples are drawn from training_docs()

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset  # anything that can be gone through: what comes out is the `doc` below

    def doc_to_text(self, doc):
        # What the model reads. It must not end in a blank: most tokenizers put the blank before the next word's token.
        return f"Q: {doc['question']} A: The answer is ("

    def doc_to_target(self, doc):
        # What follows in a few-shot example.
        return doc["answer"].removeprefix("(") + "."

    def construct_requests(self, doc, ctx):
        # `ctx` is doc_to_text with the few-shot examples before it. A list, or a single request, of
        #   rf.loglikelihood(ctx, text): unpacks into (log-likelihood, whether the model would write it by itself)
        #   rf.loglikelihood_rolling(text): log-likelihood of a whole text
        #   rf.greedy_until(ctx, {"until": ["."]}): what the model writes until one of these texts
        ll_A, _ = rf.loglikelihood(ctx, "A")
        ll_B, _ = rf.loglikelihood(ctx, "B")
        return ll_A, ll_B

    def process_results(self, doc, results):
        # `results` has the answers to the requests in their order; returns a number for each metric.
        chosen = "AB"[int(np.argmax(results))]
        return {"acc": float(f"({chosen})" == doc["answer"])}

    def aggregation(self):
        return {"acc": mean}  # how each metric becomes one number

    def higher_is_better(self):
        return {"acc": True}
