"""wandb: offline without a key, sent later; online with one; and never a reason for a training to fail."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT, only_error, warm_python
from support.wandb_stand_in import WandbServer

KEY = {"WANDB_API_KEY": "a" * 40}


def run(command: list[object], cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": warm_python(), "HOME": "/nonexistent", **variables}
    if "WANDB_MODE" not in variables:
        del environment["WANDB_MODE"]
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120, cwd=cwd
    )


def finetune(model: Path, dataset: Path, store: Path, **variables: Any) -> subprocess.CompletedProcess:
    positional = [model, dataset, 4, 1, 1e-3, 1, "cot_text", "run", store, "a-project", "--logging_steps", 2]
    return run(["bash", ROOT / "finetune" / "finetune.sh", *positional], **variables)


def sync(store: Path, **variables: Any) -> subprocess.CompletedProcess:
    return run([warm_python(), ROOT / "finetune" / "sync_wandb.py", store], **variables)


def log_losses(store: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (store / "run" / "log.jsonl").read_text().splitlines()]


def sent_losses(server: WandbServer) -> list[float]:
    ((name, files),) = server.runs.items()
    assert name.startswith("a-project/")
    return [line["train/loss"] for line in files["wandb-history.jsonl"] if "train/loss" in line]


@pytest.fixture(scope="module")
def offline(tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The STORE_DIR of a run without a key."""
    store = tmp_path_factory.mktemp("store")
    result = finetune(tiny_llama, prepared / "SAMPLE", store)
    assert result.returncode == 0, result.stderr
    assert f"wandb: offline, in {store}/wandb; sync_wandb.py sends it later" in result.stdout
    return store


def test_an_unreachable_server_keeps_the_run_for_later(offline: Path) -> None:
    result = sync(offline, WANDB_BASE_URL="http://127.0.0.1:9", **KEY)
    assert result.returncode == 2
    assert result.stderr.startswith("sync_wandb.py: error: http://127.0.0.1:9 cannot be reached from here")
    assert not list(offline.glob("wandb/offline-run-*/*.synced"))


def test_an_offline_run_is_sent_once(offline: Path) -> None:
    with WandbServer() as server:
        first = sync(offline, WANDB_BASE_URL=server.url, **KEY)
        assert first.returncode == 0, first.stderr
        assert sent_losses(server) == pytest.approx(log_losses(offline))
        count = len(sent_losses(server))
        assert "0 to be sent" in sync(offline, WANDB_BASE_URL=server.url, **KEY).stdout
        assert len(sent_losses(server)) == count


def test_with_a_key_it_is_sent_while_it_trains(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    with WandbServer() as server:
        result = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, WANDB_BASE_URL=server.url, **KEY)
        assert result.returncode == 0, result.stderr
        assert sent_losses(server) == pytest.approx(log_losses(tmp_path))
        assert KEY["WANDB_API_KEY"] not in result.stdout + result.stderr


def test_without_a_network_training_goes_on(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    variables = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "3", **KEY}
    result = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    assert "wandb cannot be reached" in result.stdout
    assert log_losses(tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_disabled_leaves_nothing(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    assert finetune(tiny_llama, prepared / "SAMPLE", tmp_path, WANDB_MODE="disabled").returncode == 0
    assert not (tmp_path / "wandb").exists()


def planted(folder: Path, address: str) -> Path:
    """A folder with somebody else's settings, which wandb would read if it were the current folder."""
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "settings").write_text(f"[default]\nbase_url = {address}\n")
    return folder


@pytest.mark.parametrize("said", ["by a variable", "by wandb login"])
def test_settings_in_the_current_folder_get_no_key(
    offline: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, said: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(offline, store, symlinks=True)
    for mark in store.rglob("*.synced"):
        mark.unlink()
    with WandbServer() as server, WandbServer() as stranger:
        here = planted(tmp_path / "here", stranger.url)
        planted(store / "of_the_store", stranger.url)
        variables = {"WANDB_BASE_URL": server.url}
        if said == "by wandb login":
            (tmp_path / "config").mkdir()
            (tmp_path / "config" / "settings").write_text(f"[default]\nbase_url = {server.url}\n")
            variables = {"WANDB_CONFIG_DIR": str(tmp_path / "config")}
        done = sync(store, cwd=here, **variables, **KEY)
        assert done.returncode == 0, done.stderr
        assert sent_losses(server) == pytest.approx(log_losses(store))
        server.runs.clear()
        done = finetune(tiny_llama, prepared / "SAMPLE", tmp_path / "online", cwd=here, **variables, **KEY)
        assert done.returncode == 0, done.stderr
        assert sent_losses(server) == pytest.approx(log_losses(tmp_path / "online"))
        assert stranger.asked == 0


def test_a_key_does_not_go_to_another_machine_unencrypted(
    offline: Path, tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    address = {"WANDB_BASE_URL": "http://wandb.example"}
    error = only_error(sync(offline, **address, **KEY))
    assert "WANDB_BASE_URL: the key would go to wandb.example unencrypted (http://)" in error
    assert "WANDB_BASE_URL: https://host was expected" in only_error(sync(offline, WANDB_BASE_URL="file:///x", **KEY))
    done = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, **address, **KEY)
    assert done.returncode == 0, done.stderr
    assert "wandb cannot be reached (WANDB_BASE_URL: the key would go to wandb.example unencrypted" in done.stdout
    assert list(tmp_path.glob("wandb/offline-run-*"))
