"""A task reads its samples in its own way; what is wrong with them, or with its code, is one line that names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from support.files import contents, read_lines
from support.programs import ROOT, only_error
from support.scoring import words

from teacherlm.core.records import write_records

NEW_TASK = ROOT / "evaluate" / "lm_eval" / "tasks" / "new_task.py"

DOCS = [{"claim": "Bees hum", "truth": "yes"}, {"claim": "Stones sing", "truth": "no"}]

TASK = """
import json
from pathlib import Path

import datasets
from lm_eval.base import Task, rf
from lm_eval.metrics import mean


class Claims(Task):
    DATASET_PATH = "lm_eval/datasets/claims"
    DATASET_NAME = None

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset["test"]

    def doc_to_text(self, doc):
        return doc["claim"] + "?"

    def doc_to_target(self, doc):
        return " " + doc["truth"]

    def construct_requests(self, doc, ctx):
        yes, _ = rf.loglikelihood(ctx, " yes")
        no, _ = rf.loglikelihood(ctx, " no")
        return yes, no

    def process_results(self, doc, results):
        return {"acc": (results[0] > results[1]) == (doc["truth"] == "yes")}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}
"""

FROM_DISK = """
    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = datasets.load_from_disk(self.DATASET_PATH)
"""
FROM_LINES = """
    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        lines = (Path(self.DATASET_PATH) / "all.txt").read_text().splitlines()
        self.dataset = {"test": [json.loads(line) for line in lines]}
"""


def save_dict(folder: Path) -> None:
    DatasetDict({"train": Dataset.from_list(DOCS[:1]), "test": Dataset.from_list(DOCS)}).save_to_disk(str(folder))


def save_lines(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_records(folder / "test.jsonl", DOCS)


def save_text(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "all.txt").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, inside: Callable) -> Callable:
    """Score a task file with this text as the task `claims`."""

    def run(source: str, *more: object) -> object:
        (tmp_path / "claims.py").write_text(source)
        command = words(tiny_llama, "claims", tmp_path / "sets", tmp_path / "out", "--include_path", tmp_path, *more)
        return inside("evaluate", *command)

    return run


@pytest.mark.parametrize(
    ("save", "download"),
    [(save_dict, FROM_DISK), (save_text, FROM_LINES), (save_dict, ""), (save_lines, "")],
    ids=["DatasetDict", "own JSON lines", "DatasetDict by default", "JSON lines by default"],
)
def test_what_a_task_loads_itself_is_scored(save: Callable, download: str, tmp_path: Path, run: Callable) -> None:
    save(tmp_path / "sets" / "claims")
    done = run(TASK + download)
    assert done.returncode == 0, done.stderr
    samples = read_lines(tmp_path / "out" / "tiny" / "claims_samples.jsonl")
    assert [sample["prompt"] for sample in samples] == ["Bees hum?", "Stones sing?"]
    for sample, doc in zip(samples, DOCS, strict=True):
        assert sample["acc"] == (sample["choice"] == f" {doc['truth']}")
    assert "done already" in run(TASK + download).stdout


def test_a_change_of_a_test_set_that_a_task_loads_itself_makes_its_result_stale(tmp_path: Path, run: Callable) -> None:
    folder = tmp_path / "sets" / "claims"
    save_text(folder)
    assert run(TASK + FROM_LINES).returncode == 0
    with open(folder / "all.txt", "a") as lines:
        lines.write(json.dumps({"claim": "Ice is cold", "truth": "yes"}) + "\n")
    assert "done already" not in run(TASK + FROM_LINES).stdout
    assert json.loads((tmp_path / "out" / "tiny" / "claims.json").read_text())["n"] == 3


def test_a_data_set_that_a_name_was_computed_for_is_watched_too(tmp_path: Path, run: Callable) -> None:
    save_lines(tmp_path / "sets" / "claims")
    source = TASK.replace('"lm_eval/datasets/claims"', '"lm_eval/datasets/" + "claims"').replace("= None", '= "any"')
    assert run(source).returncode == 0
    write_records(tmp_path / "sets" / "claims" / "test.jsonl", DOCS[:1])
    assert run(source).returncode == 0
    assert json.loads((tmp_path / "out" / "tiny" / "claims.json").read_text())["n"] == 1


MISTAKES = {
    "missing": (FROM_DISK, "claims.py, line 47: the task claims (its test set is missing: there is no {sets}/claims, "),
    "missing by default": (
        "",
        "claims.py: its samples (DATASET_PATH '{sets}/claims', DATASET_NAME None) cannot be loaded",
    ),
    "no path": (
        "    DATASET_PATH = ''\n",
        "cannot be loaded: DATASET_PATH is empty: set it to a folder, or to the name",
    ),
    "nothing to score": (
        "    def download(self, *_): pass\n    def has_test_docs(self): return False\n",
        "the class Claims has no samples to score: has_test_docs() or has_validation_docs() must return True",
    ),
    "no samples": ("    def download(self, *_): self.dataset = {'test': []}\n", "test_docs() returned no samples"),
    "none": (
        "    def download(self, *_): self.dataset = {'test': None}\n",
        "returned a NoneType where samples were expec",
    ),
    "splits": (
        "    def download(self, *_): self.dataset = {'test': {'train': [], 'dev': []}}\n",
        "returned a dict of train, dev where samples were expected",
    ),
    "own mistake": (
        "    def download(self, *_): self.dataset = {'test': [{'claims': 'x'}]}\n",
        "claims.py, line 27: sample 0 of claims: KeyError: 'claim'",
    ),
    "no request": (
        "    def download(self, *_): self.dataset = {'test': [{'claim': 'x'}]}\n"
        "    def construct_requests(self, doc, ctx): return []\n",
        "sample 0 of claims: construct_requests() returned no request",
    ),
    "no aggregation": (
        "    def download(self, *_): self.dataset = {'test': [{'claim': 'x', 'truth': 'yes'}]}\n"
        "    def aggregation(self): return {}\n",
        "the task claims: process_results() returns acc, and aggregation() has none; ",
    ),
    "unknown metric": (
        "    import datasets\n    rare = datasets.load_metric('nonesuch')\n",
        "datasets.load_metric('nonesuch'): there are accuracy, exact_match, f1, ",
    ),
    "unknown name": (
        "    from lm_eval.metrics import nonesuch\n",
        "cannot be imported: ImportError: cannot import name 'nonesuch' from 'lm_eval.metrics'",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_task_s_mistake_is_one_line_and_earlier_results_stay(
    kind: str, tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    more, expected = MISTAKES[kind]
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    (tmp_path / "out" / "tiny" / "claims.json").write_text("{}")
    before = contents(tmp_path / "out")
    error = only_error(run(TASK + more))
    assert str(tmp_path / "claims.py") in error or kind in ("no aggregation", "unknown metric")
    assert expected.format(sets=tmp_path / "sets") in error
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_the_unedited_template_says_what_is_to_be_done(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    shutil.copyfile(NEW_TASK, tmp_path / "mine.py")
    more = ("--include_path", tmp_path)
    error = only_error(inside("evaluate", *words(tiny_llama, "mine", tmp_path / "sets", tmp_path / "out", *more)))
    assert f"{tmp_path / 'mine.py'}, line " in error
    assert f"its test set is missing: there is no {tmp_path / 'sets' / 'new_task'}, which DATASET_PATH names" in error
    error = only_error(inside("evaluate", *words(tiny_llama, "new_task", tmp_path / "sets", tmp_path / "out", *more)))
    assert "new_task.py is a template; copy it (cp lm_eval/tasks/new_task.py lm_eval/tasks/NAME.py)" in error
