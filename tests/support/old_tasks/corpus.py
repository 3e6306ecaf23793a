"""Whole texts are scored, with a method of the task that counts words; written for lm-eval 0.3."""

from lm_eval.base import PerplexityTask


class Corpus(PerplexityTask):
    VERSION = 0

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.texts = ["Bees live in hives, and hives hum. ", " Rain falls\n\nfrom clouds."]

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return map(self._process_doc, self.texts)


class CorpusByVowels(Corpus):
    def count_words(self, doc):
        return sum(doc.count(vowel) for vowel in "aeiou")

    @classmethod
    def count_bytes(cls, doc):
        return 2 * len(doc)
