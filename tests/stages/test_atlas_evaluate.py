"""evaluate.py as people call it: one worker and two, interrupted, closed book, retrieval only, and bad input."""

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.atlas_models import (
    make_passages,
    make_questions,
    make_small_atlas,
    make_tiny_bert,
    run_script,
    write_lines,
)
from support.atlas_words import words
from support.files import read_lines
from support.programs import ROOT, only_error, warm_python
from support.warm_python import kill

EVALUATE = ROOT / "atlas" / "evaluate.py"
QUESTIONS = 13  # no multiple of two workers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    questions = {"test": make_questions(QUESTIONS), "valid": make_questions(3, seed=5)}
    return make_small_atlas(tmp_path_factory.mktemp("atlas"), 60, **questions)


def evaluate(place: Path, output: Path, *more: object, workers: int = 1) -> subprocess.CompletedProcess:
    environment = {"TEACHERLM_CACHE": str(place / "cache")}
    return run_script(EVALUATE, words(place, output, *more), environment, workers)


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    more = ["--passages", place / "passages.jsonl", "--save_index_path", output / "index", "--save_index_n_shards", 5]
    done = evaluate(place, output, *more)
    assert done.returncode == 0, done.stderr
    assert "Dataset: test.jsonl | " in done.stdout and "debiased_accuracy" in done.stdout
    return output


def predictions(output: Path, file: str = "test") -> list[dict]:
    return read_lines(output / "run" / f"{file}-step-0.jsonl")


def assert_alike(found: list[dict], expected: list[dict]) -> None:
    """Check that questions, passages and choices are equal, and that logits differ at most by the order of sums."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one["metadata"] == other["metadata"] and one["generation"] == other["generation"]
        for asked, before in zip(one["permutations"], other["permutations"]):
            assert asked["passages"] == before["passages"] and asked["generation"] == before["generation"]
            assert asked["choice_logits"] == pytest.approx(before["choice_logits"], abs=1e-4)


def test_a_prediction_has_what_the_reference_writes(place: Path, alone: Path) -> None:
    found = predictions(alone)
    assert [line["metadata"]["question"] for line in found] == [q["question"] for q in read_lines(place / "test.jsonl")]
    fields = "query answers passages metadata generation choice_logits choice_probs all_probs permutations"
    assert set(found[0]) == set(fields.split())
    assert len(found[0]["permutations"]) == 4 and len(found[0]["passages"]) == 3
    assert sum(found[0]["choice_probs"].values()) == pytest.approx(1)
    assert not list((alone / "run").glob(".*"))  # nothing is left of the work


def test_the_passages_are_the_best_of_all(place: Path, alone: Path) -> None:
    """The expected passages come from embedding everything again and sorting."""
    import torch

    from teacherlm.atlas import retriever

    made, tokenizer = retriever.load_retriever(place / "bert", untied=False)
    passages = [{"title": "", **p} for p in make_passages(60)]
    for passage in passages:
        passage["title"] += f": {passage['section']}" if "section" in passage else ""
    asked = [permutation for line in predictions(alone) for permutation in line["permutations"]]

    def embed(texts: list[str], of_passages: bool) -> torch.Tensor:
        vectors = torch.empty(len(texts), 32)
        for numbers, batch in retriever.embed(made.eval(), tokenizer, texts, 96, 8, of_passages):
            vectors[numbers] = batch
        return vectors

    texts = embed([f"{passage['title']} {passage['text']}" for passage in passages], True).half().float()
    best = torch.topk(embed([line["query"] for line in asked], False) @ texts.T, 3).indices.tolist()
    for line, rows in zip(asked, best):
        assert [passage["id"] for passage in line["passages"]] == [str(row) for row in rows]


def test_two_workers_predict_what_one_does(place: Path, alone: Path, tmp_path: Path) -> None:
    more = ["--passages", place / "passages.jsonl", "--save_index_path", tmp_path / "index", "--save_index_n_shards", 4]
    done = evaluate(place, tmp_path, *more, workers=2)
    assert done.returncode == 0, done.stderr
    assert_alike(predictions(tmp_path), predictions(alone))
    # Two workers load what one worker saved in 5 shards; one worker loads what two workers saved in 4 shards.
    loaded = evaluate(place, tmp_path / "a", "--load_index_path", alone / "index", workers=2)
    assert loaded.returncode == 0, loaded.stderr
    assert_alike(predictions(tmp_path / "a"), predictions(alone))
    loaded = evaluate(place, tmp_path / "b", "--load_index_path", tmp_path / "index")
    assert loaded.returncode == 0, loaded.stderr
    assert_alike(predictions(tmp_path / "b"), predictions(alone))


def test_more_workers_than_passages_or_questions(place: Path, tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", make_questions(1))
    few = write_lines(tmp_path / "few.jsonl", make_passages(2))
    done = evaluate(place, tmp_path, "--eval_data", one, "--passages", few, workers=3)
    assert done.returncode == 0, done.stderr
    (line,) = predictions(tmp_path, "one")
    assert len(line["passages"]) == 2  # there are no three


def test_killed_and_started_again_it_predicts_what_was_missing(place: Path, alone: Path, tmp_path: Path) -> None:
    more = ["--load_index_path", alone / "index"]
    draw = random.Random(0)
    own = tmp_path / "run" / ".test-step-0.worker-0.progress"
    seen = 0
    for _ in range(3):
        command = [warm_python(), str(EVALUATE), *words(place, tmp_path, *more)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=os.environ | {"TEACHERLM_CACHE": str(place / "cache")}, **quiet)
        wanted = seen + draw.randint(1, 3)
        while process.poll() is None and not (own.exists() and own.read_bytes().count(b"\n") > wanted):
            time.sleep(0.01)
        kill(process)
        seen = own.read_bytes().count(b"\n") - 1 if own.exists() else QUESTIONS
    assert seen >= 3
    done = evaluate(place, tmp_path, *more, workers=2)
    assert done.returncode == 0, done.stderr
    assert_alike(predictions(tmp_path), predictions(alone))
    again = evaluate(place, tmp_path, *more)
    assert "done already" in again.stdout


def test_a_signal_ends_it_with_75(place: Path, alone: Path, tmp_path: Path) -> None:
    more = ["--load_index_path", alone / "index"]
    process = subprocess.Popen(
        [warm_python(), str(EVALUATE), *words(place, tmp_path, *more)],
        env=os.environ | {"TEACHERLM_CACHE": str(place / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "questions" in line:
            break
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate()
    assert process.returncode == 75 and "interrupted" in output
    assert evaluate(place, tmp_path, *more).returncode == 0
    assert_alike(predictions(tmp_path), predictions(alone))


def test_closed_book_reads_the_question_alone(place: Path, tmp_path: Path) -> None:
    done = evaluate(
        place, tmp_path, "--closed_book", "--retriever_model_path", "nowhere/at-all", "--dont_write_passages"
    )
    assert done.returncode == 0, done.stderr
    line = predictions(tmp_path)[0]
    assert "passages" not in line and "passages" not in line["permutations"][0]

    import torch
    from support.plain_models import PlainT5

    from teacherlm.atlas import reader
    from teacherlm.runtime.loading import load_tokenizer

    t5 = reader.Reader(reader.load_reader(place / "t5").eval(), load_tokenizer(place / "t5"), 96)
    plain = PlainT5(t5.model)
    letters = [t5.tokenizer(letter)["input_ids"][0] for letter in "ABCD"]
    with torch.no_grad():
        states = plain.encode(t5.tokenizer(line["query"], truncation=True, max_length=96)["input_ids"])
        expected = plain.decode(states, [0, t5.tokenizer.convert_tokens_to_ids("<extra_id_0>")])[1, letters]
    assert list(line["choice_logits"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_passages_of_the_file(place: Path, alone: Path, tmp_path: Path) -> None:
    """With the retrieved passages given in the file, the reader writes the same."""
    single = ["--multiple_choice_eval_permutations", "single"]
    lines = [{**line["metadata"], "passages": line["passages"]} for line in predictions(alone)]
    file = write_lines(tmp_path / "given.jsonl", lines)
    done = evaluate(place, tmp_path, "--eval_data", file, "--use_file_passages", *single)
    assert done.returncode == 0, done.stderr
    for line, before in zip(predictions(tmp_path, "given"), predictions(alone)):
        assert line["choice_logits"] == pytest.approx(before["choice_logits"], abs=1e-4)
    without = evaluate(place, tmp_path / "x", "--use_file_passages")
    assert "question 1: --use_file_passages needs the field passages" in only_error(without)


def test_retrieval_only_needs_no_reader(place: Path, alone: Path, tmp_path: Path) -> None:
    more = ["--load_index_path", alone / "index", "--retrieve_only"]
    done = evaluate(place, tmp_path, *more, "--multiple_choice_eval_permutations", "single")
    assert done.returncode == 0, done.stderr
    for line, before in zip(predictions(tmp_path), predictions(alone)):
        assert line["passages"] == before["passages"]
        assert "generation" not in line


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions(place: Path, alone: Path, tmp_path: Path, precision: str) -> None:
    done = evaluate(place, tmp_path, "--precision", precision, "--load_index_path", alone / "index")
    assert done.returncode == 0, done.stderr
    assert len(predictions(tmp_path)) == QUESTIONS


def test_several_files_and_a_compressed_index(place: Path, tmp_path: Path) -> None:
    more = ["--eval_data", place / "valid.jsonl", place / "test.jsonl", "--passages", place / "passages.jsonl"]
    faiss = ["--index_mode", "faiss", "--faiss_index_type", "ivfflat", "--save_index_path", tmp_path / "index"]
    done = evaluate(place, tmp_path, *more, *faiss, workers=2)
    assert done.returncode == 0, done.stderr
    assert (len(predictions(tmp_path, "valid")), len(predictions(tmp_path))) == (3, QUESTIONS)
    assert len(list((tmp_path / "index").glob("faiss.ivfflat.*.index"))) == 2
    loaded = evaluate(place, tmp_path / "a", "--load_index_path", tmp_path / "index", *faiss[:4])
    assert loaded.returncode == 0, loaded.stderr
    assert_alike(predictions(tmp_path / "a"), predictions(tmp_path))


def test_flags_of_training_are_ignored_and_those_of_the_reference_accepted(
    place: Path, alone: Path, tmp_path: Path
) -> None:
    """The same list of flags works for both commands. Reranking a larger part of the index gives the same passages."""
    of_training = [
        "--train_data",
        place / "test.jsonl",
        "--lr",
        5e-5,
        "--refresh_index",
        -1,
        "--shuffle",
        "--shard_optim",
    ]
    of_reference = ["--alpha", 1.0, "--filtering_overretrieve_ratio", 2, "--retrieve_with_rerank"]
    of_reference += ["--n_to_rerank_with_retrieve_with_rerank", 60, "--decoder_format", "the answer {target}"]
    done = evaluate(place, tmp_path, "--load_index_path", alone / "index", *of_training, *of_reference)
    assert done.returncode == 0, done.stderr
    ignored = "--train_data, --shuffle, --lr, --shard_optim, --refresh_index"
    assert done.stdout.count(f"evaluate: these flags of train.py are ignored: {ignored}\n") == 1
    assert done.stdout.count("evaluate: --alpha is not used: ") == 1
    for found, before in zip(predictions(tmp_path), predictions(alone)):
        for asked, other in zip(found["permutations"], before["permutations"]):
            assert asked["passages"] == other["passages"]
            assert asked["choice_logits"] != other["choice_logits"]  # the decoder has `the answer` before the letter


def test_the_decoder_begins_with_its_prompt(place: Path, alone: Path, tmp_path: Path) -> None:
    """The logits of the letters and the generated text come after the prompt. Each order of options has a prompt."""
    words = ["--load_index_path", alone / "index", "--decoder_prompt_format", "{query} "]
    assert "cuts the letter off" in only_error(evaluate(place, tmp_path, *words))  # the prompt's tokens count
    done = evaluate(place, tmp_path, *words, "--target_maxlength", 400)
    assert done.returncode == 0, done.stderr
    for found, before in zip(predictions(tmp_path), predictions(alone), strict=True):
        assert found["query"] == before["query"]
        for asked, other in zip(found["permutations"], before["permutations"], strict=True):
            assert asked["choice_logits"] != other["choice_logits"]
            assert not asked["generation"].startswith(asked["query"][:12])


def test_ranking_anew_is_by_the_encoder_as_it_is_now(place: Path, alone: Path, tmp_path: Path) -> None:
    """The index has other vectors. When all its passages are reranked, the best ones are those of the encoder."""
    import json
    import shutil

    import numpy as np

    shutil.copytree(alone / "index", tmp_path / "index")
    described = json.loads((tmp_path / "index" / "index.json").read_text())
    for shard in described["shards"]:
        file = tmp_path / "index" / shard["file"]
        np.save(file, np.load(file)[:, ::-1].copy())
        shard["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "index" / "index.json").write_text(json.dumps(described))
    index = ["--load_index_path", tmp_path / "index", "--retrieve_only"]
    more = ["--retrieve_with_rerank", "--n_to_rerank_with_retrieve_with_rerank"]
    expected = [line["permutations"][0]["passages"] for line in predictions(alone)]
    for extra, same in (([], False), ([*more, 3], False), ([*more, 60], True)):
        output = tmp_path / str(len(extra)) / str(same)
        assert evaluate(place, output, *index, *extra).returncode == 0
        assert ([line["passages"] for line in predictions(output)] == expected) == same
    message = only_error(evaluate(place, tmp_path / "x", *index, *more, 2))
    assert "--n_to_rerank_with_retrieve_with_rerank 2: at least --n_context 3 was expected" in message


def test_a_file_of_the_documentation_s_mistake_is_named(place: Path, tmp_path: Path) -> None:
    there = write_lines(tmp_path / "individual_test" / "virology.test.jsonl", make_questions(1))
    missing = tmp_path / "individual_valid" / "virology.test.jsonl"
    message = only_error(evaluate(place, tmp_path, "--closed_book", "--eval_data", missing))
    assert f"{missing}: no such file (--eval_data); {there} exists" in message


def test_no_predictions_are_written_from_logits_that_are_not_finite(place: Path, tmp_path: Path) -> None:
    """All weights are finite, but some products of them are not."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(place / "t5", tmp_path / "t5")
    weights = load_file(place / "t5" / "model.safetensors")
    weights["lm_head.weight"] *= 1e38
    save_file(weights, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    message = only_error(evaluate(place, tmp_path, "--closed_book", "--reader_model_type", tmp_path / "t5"))
    assert "the reader's logits for 'question: " in message and "are not finite" in message
    assert not (tmp_path / "run" / "test-step-0.jsonl").exists()


def test_bad_input_is_one_line(place: Path, alone: Path, tmp_path: Path) -> None:
    index = ["--load_index_path", alone / "index"]
    make_tiny_bert(tmp_path / "other", seed=3)
    make_tiny_bert(tmp_path / "wider", dimension=64)
    wrong = {
        "there are no passages to retrieve from": [],
        "no such file; JSON lines of passages": ["--passages", tmp_path / "nowhere.jsonl"],
        "made by another passage encoder": [*index, "--retriever_model_path", tmp_path / "other"],
        "32 dimensions, but the retriever's have 64": [*index, "--retriever_model_path", tmp_path / "wider"],
        "the reader in": [*index, "--reader_model_type", place / "bert"],
        "no checkpoint there": [*index, "--model_path", tmp_path],
        "{nothing} is unknown": [*index, "--encoder_format", "{query} {nothing}"],
        "a positive number was expected": [*index, "--n_context", 0],
    }
    for message, more in wrong.items():
        assert message in only_error(evaluate(place, tmp_path, *more)), message
