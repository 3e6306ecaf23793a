"""lm-eval's own task for written answers beside ours: the same questions, real weights, the same texts and score."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.files import read_lines

from teacherlm.catalog.models import find_model, local_folder
from teacherlm.core.records import Record, write_records
from teacherlm.core.results import read_result

QUESTIONS, TOKENS = 10, 24
STOP = ["\nQ:", " Q: "]


def problem(number: int) -> Record:
    return {
        "question": f"Ann has {number + 2} apples and buys no more. How many apples does Ann have now?",
        "answer": f"She has them all.\n#### {number + 2 + number % 2}",  # every second one is wrong on purpose
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_records(folder / "train.jsonl", map(problem, range(QUESTIONS, QUESTIONS + 4)))
    write_records(folder / "test.jsonl", map(problem, range(QUESTIONS)))
    return folder


def test_the_texts_and_the_score_are_those_of_lm_eval(data: Path, tmp_path: Path, inside: Callable) -> None:
    places = ["--data", data, "--output_dir", tmp_path, "--test_dir", tmp_path / "tests"]
    assert inside("data_prepare", "--benchmark", "gsm8k", *places).returncode == 0
    command = ["--model_args", "pretrained=smollm2-135m", "--tasks", "gsm8k", "--datasets", tmp_path / "tests"]
    done = inside("evaluate", *command, "--output_path", tmp_path / "out", "--num_tokens", TOKENS)
    assert done.returncode == 0, done.stderr
    ours = read_lines(tmp_path / "out" / "smollm2-135m" / "gsm8k@generate_samples.jsonl")
    result = read_result(tmp_path / "out" / "smollm2-135m" / "gsm8k@generate.json")
    theirs = by_lm_eval(data, tmp_path, {one["doc_id"]: one["prompt"] for one in ours})
    samples = {one["doc_id"]: one for one in theirs["samples"]["apples"]}
    assert [one["answers"] for one in ours] == [samples[one["doc_id"]]["resps"][0] for one in ours]
    assert [one["acc"] for one in ours] == [samples[one["doc_id"]]["exact_match"] for one in ours]
    assert result["value"] == theirs["results"]["apples"]["exact_match,number"]
    assert 0 < result["value"] < 1  # both kinds of answers are compared


def by_lm_eval(data: Path, folder: Path, prompts: dict[int, str]) -> dict:
    """The results of lm-eval's own model and task. Its filters take the last number of a text."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    write_records(
        folder / "apples.jsonl", ({"prompt": prompts[n], "gold": str(n + 2 + n % 2)} for n in range(QUESTIONS))
    )
    numbers = [
        {"function": "regex", "regex_pattern": "(-?[0-9][0-9,]*)", "group_select": -1},
        {"function": "take_first"},
    ]
    task = {
        "task": "apples",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "apples.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": STOP, "max_gen_toks": TOKENS, "do_sample": False},
        "filter_list": [{"name": "number", "filter": numbers}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "apples.yaml").write_text(yaml.safe_dump(task))
    model = str(local_folder(find_model("smollm2-135m")))
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=["apples"],
        device="cpu",
        batch_size=4,
        task_manager=manager,
        log_samples=True,
    )
