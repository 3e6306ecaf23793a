"""A loading script's data, detokenized; words are counted in the page as it came. Written for lm-eval 0.3."""

import inspect
import re

import lm_eval.datasets.pages.pages
from lm_eval.base import PerplexityTask
from lm_eval.utils import general_detokenize


class Pages(PerplexityTask):
    VERSION = 1
    DATASET_PATH = inspect.getfile(lm_eval.datasets.pages.pages)
    DATASET_NAME = "pages-raw"

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return map(self._process_doc, self.dataset["validation"])

    def _process_doc(self, doc):
        return doc["page"]

    def doc_to_target(self, doc):
        return general_detokenize(doc)

    def count_words(self, doc):
        return len(re.split(r"\s+", doc))
