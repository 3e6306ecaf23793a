"""A task for each subject from create_all_tasks(), with a description before the examples; written for lm-eval 0.3."""

from lm_eval.base import MultipleChoiceTask

QUESTIONS = {
    "anatomy": [
        ("Which organ pumps blood?", ["heart", "liver", "left lung"], 0),
        ("What do we hear with?", ["ears", "elbows"], 0),
    ],
    "us_history": [("Who came first?", ["Washington", "Lincoln"], 0)],
}
SUBJECTS = list(QUESTIONS)


def create_all_tasks():
    """{task name: task}, for example exams-anatomy."""
    return {f"examsTest-{subject}": create_task(subject) for subject in SUBJECTS}


def create_task(subject):
    class ExamsTest(GeneralExamsTest):
        def __init__(self):
            super().__init__(subject)

    return ExamsTest


class GeneralExamsTest(MultipleChoiceTask):
    VERSION = 0
    DATASET_PATH = "exams_test"
    DATASET_NAME = None

    def __init__(self, subject):
        self.DATASET_NAME = subject
        super().__init__()

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = {
            "test": [dict(zip(("question", "choices", "answer"), one)) for one in QUESTIONS[self.DATASET_NAME]]
        }

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return map(self._process_doc, self.dataset["test"])

    def _process_doc(self, doc):
        return {"query": "Q: " + doc["question"] + "\nA:", "choices": doc["choices"], "gold": doc["answer"]}

    def fewshot_context(self, doc, num_fewshot, **kwargs):
        kwargs["description"] = f"These questions are about {self.DATASET_NAME.replace('_', ' ')}."
        return super().fewshot_context(doc=doc, num_fewshot=num_fewshot, **kwargs)

    def doc_to_text(self, doc):
        return doc["query"]

    def should_decontaminate(self):
        return True

    def doc_to_decontamination_query(self, doc):
        return doc["query"]
