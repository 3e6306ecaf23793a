"""train.py as people call it: interrupted and resumed, two workers and one, sharded, and what it refuses."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.atlas_models import (
    make_questions,
    make_small_atlas,
    run_script,
    several_workers,
)
from support.files import read_lines
from support.programs import ROOT, only_error, warm_python

TRAIN = ROOT / "atlas" / "train.py"
STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    questions = {"train": make_questions(9), "valid": make_questions(3, seed=5)}
    return make_small_atlas(tmp_path_factory.mktemp("atlas"), 40, dropout=0.1, **questions)


def words(place: Path, output: Path, *more: object) -> list[str]:
    flags = {
        "--reader_model_type": place / "t5",
        "--retriever_model_path": place / "bert",
        "--checkpoint_dir": output,
        "--name": "run",
        "--train_data": place / "train.jsonl",
        "--eval_data": place / "valid.jsonl",
        "--passages": place / "passages.jsonl",
        "--text_maxlength": 96,
        "--target_maxlength": 16,
        "--n_context": 2,
        "--retriever_n_context": 3,
        "--generation_max_length": 4,
        "--per_gpu_batch_size": 2,
        "--total_steps": STEPS,
        "--warmup_steps": 2,
        "--lr": 1e-3,
        "--lr_retriever": 1e-3,
        "--log_freq": 2,
        "--eval_freq": 4,
        "--temperature_gold": 0.1,
        "--temperature_score": 0.1,
        "--multiple_choice_train_permutations": "all",
    }
    flags = [str(word) for flag, value in flags.items() for word in (flag, value)]
    return [*flags, "--train_retriever", "--shuffle", "--write_results", *map(str, more)]


def train(place: Path, output: Path, *more: object, workers: int = 1) -> subprocess.CompletedProcess:
    environment = {"TEACHERLM_CACHE": str(place / "cache")}
    return run_script(TRAIN, words(place, output, *more), environment, workers)


def begin(command: list[str], place: Path, until_step: int) -> subprocess.Popen:
    """A running process that has written the log line of a step."""
    environment = os.environ | {"TEACHERLM_CACHE": str(place / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if f"'step': {until_step}," in line:
            break
    return process


def curve(output: Path) -> list[dict[str, float]]:
    kept = ("step", "reader_loss", "retriever_loss")
    return [{name: line[name] for name in kept if name in line} for line in read_lines(output / "run" / "log.jsonl")]


def weights(output: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = output / "run" / "checkpoint" / f"step-{step}"
    files = sorted(folder.rglob("model.safetensors"))
    return {f"{file.parent.name}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(output: Path, other: Path, tolerance: float, step: int = STEPS) -> None:
    found, expected = curve(output), curve(other)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, before in zip(found, expected):
        assert line == pytest.approx(before, abs=tolerance)
    ours, theirs = weights(output, step), weights(other, step)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance * 100, rtol=0)


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one worker, in which the index is made again every three steps."""
    output = tmp_path_factory.mktemp("alone")
    done = train(place, output, "--refresh_index", 3)
    assert done.returncode == 0, done.stderr
    return output


def test_a_run_leaves_checkpoint_log_and_predictions(place: Path, alone: Path) -> None:
    assert [line["step"] for line in curve(alone)] == [2, 4, 6, 8]
    assert all({"reader_loss", "retriever_loss"} <= line.keys() for line in curve(alone))
    for step in (4, 8):
        assert len(read_lines(alone / "run" / f"valid-step-{step}.jsonl")) == 3
    before = load_file(place / "t5" / "model.safetensors")["shared.weight"]
    after = weights(alone)
    assert not torch.equal(after["reader.shared.weight"], before)
    assert (alone / "run" / "manifest.json").is_file()
    again = train(place, alone, "--refresh_index", 3)
    assert "done already" in again.stdout


def test_interrupted_twice_and_resumed_it_is_the_uninterrupted_run(place: Path, alone: Path, tmp_path: Path) -> None:
    """Slurm's warning interrupts it between two lines of the log. It has dropout, shuffling and index refreshes."""
    command = [warm_python(), str(TRAIN), *words(place, tmp_path, "--refresh_index", 3)]
    for wanted in (2, 6):
        process = begin(command, place, until_step=wanted)
        process.send_signal(signal.SIGUSR1)
        output, errors = process.communicate()
        assert process.returncode == 75, errors
        assert "interrupted after step" in output
        assert len(list((tmp_path / "run" / "checkpoint").glob("state-*"))) == 1
    done = train(place, tmp_path, "--refresh_index", 3)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert_same(tmp_path, alone, 1e-6)


def test_two_workers_learn_what_one_does(place: Path, tmp_path: Path) -> None:
    plain = ["--dropout", 0, "--refresh_index", 3]
    one = train(place, tmp_path / "one", *plain, "--per_gpu_batch_size", 4)
    assert one.returncode == 0, one.stderr
    two = train(place, tmp_path / "two", *plain, workers=2)
    assert two.returncode == 0, two.stderr[-3000:]
    assert_same(tmp_path / "two", tmp_path / "one", 1e-4)


def test_shared_out_states_are_those_of_one_worker_and_go_on(place: Path, tmp_path: Path) -> None:
    """Each worker saves its shard after Slurm's warning and loads it again. The retriever learns from step 3 on."""
    plain = ["--dropout", 0, "--refresh_index", 3, "--freeze_retriever_steps", 3]
    one = train(place, tmp_path / "one", *plain, "--per_gpu_batch_size", 4)
    assert one.returncode == 0, one.stderr
    plain += ["--shard_optim", "--shard_grads", "--save_optimizer"]
    process = begin(several_workers(TRAIN, words(place, tmp_path / "two", *plain), 2), place, until_step=4)
    workers = [
        one
        for one in psutil.process_iter(["cmdline"])
        if (one.info["cmdline"] or [])[3:5] == ["-u", str(TRAIN)] and str(tmp_path / "two") in one.info["cmdline"]
    ]
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGUSR1)
    output, errors = process.communicate()
    assert "interrupted after step" in output, errors[-3000:]
    done = train(place, tmp_path / "two", *plain, workers=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout
    state = tmp_path / "two" / "run" / "checkpoint" / f"state-{STEPS}" / "all"
    shares = [torch.load(file, weights_only=False) for file in state.glob("*zero_pp_rank_*_optim_states.pt")]
    assert [share["optimizer_state_dict"]["zero_stage"] for share in shares] == [2, 2]
    assert_same(tmp_path / "two", tmp_path / "one", 1e-4)


def test_shared_out_states_in_bfloat16(place: Path, tmp_path: Path) -> None:
    """The weights stay in float32, like those of workers without shards."""
    plain = ["--dropout", 0, "--precision", "bf16", "--total_steps", 4]
    for name, more in (("all", []), ("shared", ["--shard_optim"])):
        done = train(place, tmp_path / name, *plain, *more, workers=2)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "shared", tmp_path / "all", 1e-5, step=4)


def test_query_side_training_leaves_the_passage_encoder_alone(place: Path, tmp_path: Path) -> None:
    done = train(place, tmp_path, "--query_side_retriever_training", "--refresh_index", 2)
    assert done.returncode == 0, done.stderr
    before = load_file(place / "bert" / "model.safetensors")
    after = weights(tmp_path)
    for name, tensor in before.items():
        assert torch.equal(after[f"passage_encoder.{name}"], tensor)
    assert not all(torch.equal(after[f"query_encoder.{name}"], tensor) for name, tensor in before.items())


def test_a_frozen_retriever_and_gradient_checkpoints(place: Path, tmp_path: Path) -> None:
    """Gradient checkpoints change nothing but memory; until --freeze_retriever_steps the retriever stays."""
    plain = ["--freeze_retriever_steps", 100, "--dropout", 0]
    assert train(place, tmp_path / "a", *plain).returncode == 0
    saved = ["--use_gradient_checkpoint_reader", "--use_gradient_checkpoint_retriever"]
    done = train(place, tmp_path / "b", *plain, *saved)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "b", tmp_path / "a", 1e-6)
    before = load_file(place / "bert" / "model.safetensors")
    after = weights(tmp_path / "a")
    assert all(torch.equal(after[f"query_encoder.{name}"], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("mode", ["loop", "emdr", "evalnormsum"])
def test_the_other_losses_run(place: Path, tmp_path: Path, mode: str) -> None:
    done = train(place, tmp_path, "--gold_score_mode", mode, "--total_steps", 2)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path)[0]["retriever_loss"] > 0


def test_closed_book_trains_a_t5(place: Path, tmp_path: Path) -> None:
    """As in the reference, --train_retriever is switched off, and a line says so. Flags without effect are listed."""
    more = ["--query_side_retriever_training", "--alpha", 0.5, "--local_rank", 0, "--compute_crossattention_stats"]
    done = train(place, tmp_path, "--closed_book", *more)
    assert done.returncode == 0, done.stderr
    off = "--closed_book uses no retriever: --train_retriever, --query_side_retriever_training"
    assert f"train: switched off, because {off}" in done.stdout
    for flag in ("alpha", "local_rank", "compute_crossattention_stats"):
        assert done.stdout.count(f"train: --{flag} is not used: ") == 1
    assert all("retriever_loss" not in line for line in curve(tmp_path))


def test_contradictions_are_one_line(place: Path, alone: Path, tmp_path: Path) -> None:
    wrong = {
        "give --shard_optim too": ["--shard_grads"],
        "at least 9 was expected": ["--n_context", 9],
        "--refresh_index often": ["--refresh_index", "often"],
        "--total_steps: a positive number": ["--total_steps", 0],
        "unrecognized arguments: --learning": ["--learning", 1],
        "no such file (--train_data)": ["--train_data", tmp_path / "nowhere.jsonl"],
        "--decoder_prompt_format: {text} is unknown": ["--decoder_prompt_format", "{text}"],
        "it must contain {target}": ["--decoder_format", "the answer"],
        "cuts the letter off the target": [
            "--decoder_format",
            "the king of the city {target}",
            "--target_maxlength",
            6,
        ],
        "--target_maxlength cuts the letter": [
            *("--decoder_prompt_format", "{query}", "--target_maxlength", 6, "--name", "prompted"),
        ],
    }
    for message, more in wrong.items():
        assert message in only_error(train(place, tmp_path, *more)), message
    message = only_error(train(place, alone, "--lr", 5))
    assert "begun with other settings: lr was 0.001, is 5.0" in message
    assert json.loads((alone / "run" / "run.json").read_text())["lr"] == 0.001
