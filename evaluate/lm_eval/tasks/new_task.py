"""TODO: the benchmark's name, its paper, its licence.

To add a task, copy this file to lm_eval/tasks/NAME.py, work through the TODOs, and run

    bash run_hf.sh MODEL NAME

(A multiple-choice benchmark whose choices are letters needs no task file. A YAML file in benchmarks/ is enough.)
"""

import datasets
import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean


class NewTask(Task):
    VERSION = 0  # increase this number whenever a change gives different results
    DATASET_PATH = "lm_eval/datasets/new_task"  # TODO: a folder of `datasets` (save_to_disk), or a name on the hub
    DATASET_NAME = None  # TODO: the configuration on the hub, if there are several

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        # This runs once, before anything else. For the hub: datasets.load_dataset(self.DATASET_PATH, self.DATASET_NAME)
        self.dataset = datasets.load_from_disk(self.DATASET_PATH)

    def has_training_docs(self):
        return False  # if True, few-shot examples are drawn from training_docs()

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset  # any iterable of samples; each sample is passed to the methods below as `doc`

    def doc_to_text(self, doc):
        # The prompt. It must not end in a space, because most tokenizers make the space a part of the next token.
        return f"Q: {doc['question']} A: The answer is ("

    def doc_to_target(self, doc):
        # The text that follows the prompt in a few-shot example.
        return doc["answer"].removeprefix("(") + "."

    def construct_requests(self, doc, ctx):
        # `ctx` is doc_to_text(doc) after the few-shot examples. Return one request or a list of requests:
        #   rf.loglikelihood(ctx, text): unpacks into (log-likelihood, whether greedy decoding would give the text)
        #   rf.loglikelihood_rolling(text): the log-likelihood of a whole text
        #   rf.greedy_until(ctx, {"until": ["."]}): the text that the model writes until one of these texts
        ll_A, _ = rf.loglikelihood(ctx, "A")
        ll_B, _ = rf.loglikelihood(ctx, "B")
        return ll_A, ll_B

    def process_results(self, doc, results):
        # `results` has the answers in the order of the requests. Return a number for each metric.
        chosen = "AB"[int(np.argmax(results))]
        return {"acc": float(f"({chosen})" == doc["answer"])}

    def aggregation(self):
        return {"acc": mean}  # the function that makes one number from the values of all samples, for each metric

    def higher_is_better(self):
        return {"acc": True}
