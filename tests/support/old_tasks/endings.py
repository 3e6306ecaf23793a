"""Choices of several tokens with normalisation by length; written for lm-eval 0.3."""

from lm_eval.base import MultipleChoiceTask


class Endings(MultipleChoiceTask):
    VERSION = 0
    DATASET_PATH = ""
    DATASET_NAME = None

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = [
            {"start": "Bees live in", "endings": ["hives.", "very deep and salty water."], "label": "0"},
            {"start": "Rain falls from", "endings": ["old shoes that nobody wears.", "clouds."], "label": "1"},
            {"start": "At night we see", "endings": ["stars.", "suns.", "the inside of the earth."], "label": "0"},
        ]

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return map(self._convert, self.dataset)

    def _convert(self, doc):
        return {"query": doc["start"], "choices": doc["endings"], "gold": int(doc["label"])}

    def doc_to_text(self, doc):
        return doc["query"]
