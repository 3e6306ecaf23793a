"""CREAK: is a claim about an entity true? (Onoe et al. 2021, arXiv 2109.01653)

The test set is made by `python3 data_prepare.py` in enhance/.
"""

import random
from pathlib import Path

import numpy as np
from lm_eval.base import Task, rf
from lm_eval.metrics import mean

from teacherlm.catalog.prompts import LETTERS, test_context
from teacherlm.catalog.test_sets import load_test_set
from teacherlm.core.saved_datasets import load_saved


class CREAK(Task):
    VERSION = 0
    DATASET_PATH = "lm_eval/datasets/creak"
    DATASET_NAME = None
    CHOICES = 2
    PART = None  # (field, value): only the samples that have it
    SEED = 0

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        benchmark = Path(self.DATASET_PATH).name
        self.dataset = self.part_of(load_test_set(Path(self.DATASET_PATH), benchmark, self.CHOICES))
        examples = Path(self.DATASET_PATH) / "fewshot"
        self.examples = self.part_of(load_saved(examples)) if examples.is_dir() else None

    def part_of(self, dataset):
        if self.PART is None:
            return dataset
        field, value = self.PART
        return dataset.select([row for row, found in enumerate(dataset[field]) if found == value])

    def has_training_docs(self):
        return self.examples is not None

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def training_docs(self):
        return self.examples

    def test_docs(self):
        return self.dataset

    def fewshot_examples(self, k, rnd):
        # the same for all questions, so that they are computed once; MMLU's five in their order
        numbers = range(k) if self.SEED == 0 else random.Random(self.SEED).sample(range(len(self.examples)), k)
        return [self.examples[number] for number in numbers]

    def doc_to_text(self, doc):
        return test_context(doc["question"], doc.get("preamble", ""))

    def doc_to_target(self, doc):
        return doc["answer"].removeprefix("(") + "."

    def construct_requests(self, doc, ctx):
        requests = []
        for letter in LETTERS[: self.CHOICES]:
            likelihood, _ = rf.loglikelihood(ctx, letter)
            requests.append(likelihood)
        return requests

    def process_results(self, doc, results):
        chosen = LETTERS[int(np.argmax(results))]
        return {"acc": float(f"({chosen})" == doc["answer"])}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}
