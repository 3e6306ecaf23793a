"""Finetuning with what cannot work: one line that says what to do, and earlier checkpoints as they were."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from support.files import contents
from support.finetuning import STEPS, flags
from support.programs import ROOT, only_error, warm_python

from teacherlm.core.records import read_records


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    words = flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run")
    assert inside("finetune", *words, "--num_train_epochs", 1).returncode == 0
    checkpoint = tmp_path / "run" / f"checkpoint-{STEPS}"
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    states["state"][0]["exp_avg"].fill_(torch.nan)  # the next step spoils the weights
    torch.save(states, checkpoint / "optimizer.pt")
    before = contents(checkpoint)
    error = only_error(inside("finetune", *words))
    assert f"the loss became nan at step {STEPS + 2}, in a batch with the samples " in error
    assert contents(checkpoint) == before
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [checkpoint.name]


def test_weights_that_are_no_numbers_are_not_saved(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    words = [*flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), "--per_device_train_batch_size", 24]
    assert inside("finetune", *words, "--num_train_epochs", 1).returncode == 0
    path = tmp_path / "run" / "checkpoint-1" / "optimizer.pt"
    states = torch.load(path, weights_only=True)
    states["state"][0]["exp_avg"].fill_(torch.nan)
    torch.save(states, path)
    error = only_error(inside("finetune", *words, "--num_train_epochs", 2))  # one step: its own loss is a number still
    assert "after step 2 the weights " in error
    assert "are not finite; they are not saved" in error
    assert not (tmp_path / "run" / "checkpoint-2").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": 1}', "step is missing"),
        ('{"step": "x"}', "step: a whole number was expected"),
        ("[1]", "one JSON object"),
    ],
)
def test_a_log_of_odd_lines_is_refused_before_training_goes_on(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, line: str, said: str
) -> None:
    words = [*flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), "--num_train_epochs", 1]
    assert inside("finetune", *words).returncode == 0
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "log.jsonl").write_text(line + "\n")
    error = only_error(inside("finetune", *words))
    assert "log.jsonl, line 1: " in error and said in error
    assert (tmp_path / "run" / "log.jsonl").read_text() == line + "\n"


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_pickled_weights_with_code_in_them_are_refused(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    error = only_error(inside("finetune", *flags(folder, prepared / "SAMPLE", tmp_path / "run")))
    assert f"the model in {folder} cannot be loaded" in error
    assert not (tmp_path / "evil").exists()


def test_damaged_weights_are_named(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    os.truncate(folder / "model.safetensors", 1000)
    error = only_error(inside("finetune", *flags(folder, prepared / "SAMPLE", tmp_path / "run")))
    assert f"the model in {folder} cannot be loaded" in error


def test_a_model_without_a_tokenizer_is_named(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    error = only_error(inside("finetune", *flags(folder, prepared / "SAMPLE", tmp_path / "run")))
    assert f"no model at {folder}: no tokenizer" in error


def test_an_empty_dataset_is_named(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    nothing = Dataset.from_dict({"cot_text": []}, features=Features({"cot_text": Value("string")}))
    nothing.save_to_disk(str(tmp_path / "empty"))
    error = only_error(inside("finetune", *flags(tiny_llama, tmp_path / "empty", tmp_path / "run")))
    assert f"{tmp_path / 'empty'}: empty; at least one sample was expected" in error


def test_samples_that_are_cut_are_listed(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    words = [*flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), "--max_source_length", 100]
    result = inside("finetune", *words, "--num_train_epochs", 1)
    assert result.returncode == 0, result.stderr
    listed = [record for _, record in read_records(tmp_path / "run" / "cut.jsonl")]
    assert f"{len(listed)} of 24 samples had more than 100 tokens" in result.stdout
    assert 0 < len(listed) < 24
    assert all(record["tokens"] > 100 and record["field"] == "cot_text" for record in listed)


@pytest.fixture(scope="module")
def long_samples(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that takes long samples, and 64 of them."""
    folder = tmp_path_factory.mktemp("long")
    model = Path(shutil.copytree(tiny_llama, folder / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    text = "Q: is the moon a planet? " * 60
    Dataset.from_dict({"text": [text] * 64}).save_to_disk(str(folder / "samples"))
    return model, folder / "samples"


@pytest.mark.parametrize("automatic", ["0", "1"])
def test_out_of_memory(automatic: str, long_samples: tuple[Path, Path], tmp_path: Path) -> None:
    """The memory really runs out: in addition to the libraries, the process may use 1.2 GB. 64 long samples take 2.4
    GB, and two take 0.4 GB."""
    libraries = subprocess.check_output([warm_python(), "-c", "print(open('/proc/self/statm').read().split()[0])"])
    limit = int(libraries) * os.sysconf("SC_PAGE_SIZE") // 1024 + 1_200_000
    positional = [*long_samples, 64, 1, 1e-3, 1, "text", "run", tmp_path, "test"]
    options = ["--gradient_checkpointing", "false", "--attention", "eager"]
    command = ["bash", ROOT / "finetune" / "finetune.sh", *positional, *options]
    limited = ["bash", "-c", 'ulimit -v "$0" && exec "$@"', limit, *command]
    environment = {**os.environ, "PYTHON": warm_python(), "AUTO_BATCH": automatic}
    result = subprocess.run(list(map(str, limited)), env=environment, capture_output=True, text=True)
    advice = (
        "out of memory with 64 samples at a time; a batch of 32 with 2 accumulated batches keeps 64 samples per step"
    )
    assert advice in result.stderr
    if automatic == "1":
        assert result.returncode == 0, result.stderr
        assert "trying again with a batch of 32 and 2 accumulated" in result.stdout
        assert (tmp_path / "run" / "checkpoint-1").is_dir()
    else:
        assert result.returncode == 76
