"""Keys, tokens and passwords stay in the environment: no file and no message repeats them."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.finetuning import flags
from support.programs import only_error

from teacherlm.core import manifests
from teacherlm.core.lock import OutputLock, lock_file
from teacherlm.core.redaction import (
    HIDDEN,
    is_secret,
    known_secrets,
    redacted,
    redacted_command,
    secret_settings,
    without_named,
)

SECRET = "hf_aB3-not-for-others"


@pytest.mark.parametrize(
    "name",
    [
        "hub_token",
        "--hub-token",
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "api_key",
        "apiKey",
        "password",
        "AWS_SECRET_ACCESS_KEY",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["num_tokens", "--tokenization", "TOKENIZERS_PARALLELISM", "monkey", "keyboard", "tokenizer", "keys"]
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--hub_token", SECRET, "--seed", "1"], ["--hub_token", HIDDEN, "--seed", "1"]),
        ([f"--hub-token={SECRET}"], [f"--hub-token={HIDDEN}"]),
        (["--token", "--seed", "1"], ["--token", "--seed", "1"]),
        (["--x_password", "a"], ["--x_password", HIDDEN]),
        ([f"http://h/m?api_key={SECRET}&b=1"], [f"http://h/m?api_key={HIDDEN}&b=1"]),
        ([f"https://me:{SECRET}@h/m"], [f"https://{HIDDEN}@h/m"]),
        ([f'{{"api_key": "{SECRET}", "n": 1}}'], [f'{{"api_key": "{HIDDEN}", "n": 1}}']),
        ([f"OPENAI_API_KEY={SECRET}"], [f"OPENAI_API_KEY={HIDDEN}"]),
        (["--num_tokens", "24", "--tokenization=auto"], ["--num_tokens", "24", "--tokenization=auto"]),
        (["pretrained=/models/a,dtype=float32"], ["pretrained=/models/a,dtype=float32"]),
        ([f"token={HIDDEN}"], [f"token={HIDDEN}"]),
        (["x" * 100_000 + "key"], ["x" * 100_000 + "key"]),
    ],
)
def test_a_command_is_shown_without_its_secrets(words: list[str], shown: list[str]) -> None:
    assert redacted_command(words) == shown


def test_a_secret_is_hidden_by_its_value_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_KEY", "true")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-password@proxy:3128")
    monkeypatch.setattr(sys, "argv", ["x.py", "--hub_token", "another-secret"])
    assert {SECRET, "proxy-password", "another-secret"} <= known_secrets()
    text = f"true: {SECRET}{SECRET} another-secret proxy-password"
    assert redacted(text) == f"true: {HIDDEN}{HIDDEN} {HIDDEN} {HIDDEN}"
    assert redacted_command(["--note", f"it is {SECRET}"]) == ["--note", f"it is {HIDDEN}"]


def test_settings_are_recorded_without_the_secrets_that_they_name() -> None:
    settings = {"comet": {"api_key": SECRET, "enabled": True}, "token": 3, "list": [f"key={SECRET}"]}
    assert without_named(settings) == {
        "comet": {"api_key": HIDDEN, "enabled": True},
        "token": 3,
        "list": [f"key={HIDDEN}"],
    }
    assert list(secret_settings(settings)) == ["comet.api_key"]


def test_manifests_and_locks_do_not_repeat_a_secret_of_the_command(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 2), tmp_path / "out.jsonl"
    words = ["--name", "field:sentence", "--input", records, "--output", output, "--task_type", "cot_text"]
    assert inside("enhance", *words, "--stop", f"end {SECRET}", "--stop", "token=of-the-text").returncode == 0
    command = manifests.read_manifest(manifests.manifest_of(output))["command"]
    assert command[-4:] == ["--stop", f"end {HIDDEN}", "--stop", f"token={HIDDEN}"]
    monkeypatch.setattr(sys, "argv", ["x.py", "--hub_token", "another-secret"])
    lock = OutputLock(output)
    lock.acquire()
    try:
        assert "another-secret" not in lock_file(output).read_text()
        assert f"x.py --hub_token {HIDDEN}" in lock.holder()
    finally:
        lock.release()


@pytest.mark.parametrize(
    "more",
    [
        ["--hub_token", SECRET],
        [f"--hub-token={SECRET}"],
        ["--push_to_hub_token", SECRET],
        ["--use_auth_token", SECRET],
        ["--api_key", SECRET],
        [f"--wandb_key={SECRET}"],
    ],
)
def test_a_secret_among_the_flags_is_refused_and_not_repeated(
    more: list[str], tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    result = inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), *more)
    assert more[0].split("=")[0].replace("-", "_").strip("_") in only_error(result).replace("-", "_")
    assert SECRET not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


def test_a_secret_in_a_deepspeed_configuration_is_refused(tmp_path: Path) -> None:
    from teacherlm.finetune.this_machine import deepspeed_config

    file = tmp_path / "own.json"
    file.write_text(json.dumps({"comet": {"enabled": True, "api_key": SECRET}}))
    from teacherlm.core.errors import UserError

    with pytest.raises(UserError, match=r"own\.json: comet\.api_key: a secret does not belong there") as raised:
        deepspeed_config(str(file), None, 2)
    assert SECRET not in str(raised.value)
    for text in ("[1]", "{", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError, match="a JSON object was expected"):
            deepspeed_config(str(file), None, 2)


def test_what_a_training_writes_has_no_secret_of_the_environment(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    words = [*flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), "--num_train_epochs", 1]
    result = inside("finetune", *words, "--optim_args", f"api_key={SECRET}")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written or result.returncode == 2
    for file in written:
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in result.stdout + result.stderr
    assert os.environ["HF_TOKEN"]
