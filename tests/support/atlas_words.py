"""The words of an ATLAS evaluation."""

from pathlib import Path

import pytest

from support.atlas_models import (
    make_passages,
    make_questions,
    make_tiny_bert,
    make_tiny_t5,
    write_lines,
)

QUESTIONS = 13  # no multiple of two workers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    make_tiny_t5(folder / "t5")
    make_tiny_bert(folder / "bert")
    write_lines(folder / "passages.jsonl", make_passages(60))
    write_lines(folder / "test.jsonl", make_questions(QUESTIONS))
    write_lines(folder / "valid.jsonl", make_questions(3, seed=5))
    return folder


def words(place: Path, output: Path, *more: object) -> list[str]:
    flags = {
        "--reader_model_type": place / "t5",
        "--retriever_model_path": place / "bert",
        "--checkpoint_dir": output,
        "--name": "run",
        "--text_maxlength": 96,
        "--target_maxlength": 16,
        "--n_context": 3,
        "--generation_max_length": 4,
        "--per_gpu_batch_size": 2,
        "--multiple_choice_eval_permutations": "cyclic",
    }
    flags = [word for flag, value in flags.items() for word in (flag, value)]
    return [str(word) for word in [*flags, "--eval_data", place / "test.jsonl", "--write_results", *more]]
