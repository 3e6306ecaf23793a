"""Folders from save_to_disk, and Parquet files, which data_prepare.py, finetune.py and evaluate/main.py read."""

from pathlib import Path

import datasets
from support.files import sample_claims
from support.fuzz.harness import Subject, changed_folders, files_in
from support.fuzz.mutation import Files

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.test_sets import load_test_set
from teacherlm.dataset.main import prepare
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.samples import load_split
from teacherlm.scoring.task_api import Task

CREAK, PROMPTS = load_benchmark("creak"), load_prompts()
EXAMPLE: Files = {}


def example(folder: Path) -> None:
    """A dataset of each kind. One file of one of them is damaged."""
    claims = [claim for _, claim in zip(range(6), sample_claims())]
    whole = datasets.Dataset.from_list(claims)
    datasets.DatasetDict({"train": whole, "validation": whole}).save_to_disk(str(folder / "source"))
    trained = [CREAK.prepare(claim, "here", PROMPTS) for claim in claims]
    datasets.Dataset.from_list(trained).save_to_disk(str(folder / "training"))
    datasets.Dataset.from_list([CREAK.test_sample(claim, "here") for claim in claims]).save_to_disk(
        str(folder / "test")
    )
    (folder / "parquet").mkdir()
    whole.to_parquet(str(folder / "parquet" / "test.parquet"))
    EXAMPLE.update(files_in(folder))


def asked(folder: Path) -> type[Task]:
    """The class of a task file whose samples are in a folder. Only its samples are read here."""
    members = dict.fromkeys(Task.__abstractmethods__) | {"VERSION": 0, "DATASET_PATH": str(folder)}
    members |= {"has_test_docs": lambda self: True, "test_docs": lambda self: self.dataset["test"]}
    return type("Asked", (Task,), members)


READERS = {
    "source": lambda place: prepare(CREAK, PROMPTS, place / "source", place / "output", place / "output/tests", None),
    "training": lambda place: list(load_split(place / "training", parse_fields("text"), train=True)["text"]),
    "test": lambda place: list(load_test_set(place / "test", "creak", 2)),
    "parquet": lambda place: list(asked(place / "parquet")().eval_docs),
}


def read(place: Path) -> None:
    for folder in changed_folders(place, EXAMPLE):
        READERS[folder](place)


SUBJECT = Subject("saved_folders", example, read)
