"""Named pipes and devices in the place of files: nothing waits for them or reads them without end."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.new_benchmarks import written

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.sources import read_split
from teacherlm.core import limits, manifests
from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_json, require_object
from teacherlm.core.opening import open_ordinary
from teacherlm.core.progress_file import peek
from teacherlm.core.records import open_bytes
from teacherlm.core.yaml_files import load_yaml
from teacherlm.report.run_folder import read_run_folder

MADE: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.fixture(params=MADE)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "odd.json"
    MADE[request.param](path)
    return path


def test_readers_of_whole_files(odd: Path) -> None:
    assert manifests.read_manifest(odd) is None
    assert peek(odd, {}) == {}
    for read in (load_json, require_object, open_ordinary, manifests.sha256, load_yaml):
        with pytest.raises(UserError, match="a named pipe or a device"):
            read(odd)
    with pytest.raises(UserError, match="a named pipe or a device"), open_bytes(odd):
        pass


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_ordinary(tmp_path)


def test_a_manifest_beyond_the_limits_is_none(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    manifest = {"stage": "x", "outputs": {}}
    path.write_text(json.dumps(manifest))
    assert manifests.read_manifest(path) == manifest
    path.write_text(json.dumps({**manifest, "counts": {"a": [[]] * limits.JSON_VALUES}}))
    assert manifests.read_manifest(path) is None


@pytest.mark.parametrize("name", ["train.csv", "train.json", "train.csv.gz"])
def test_a_benchmark_of_pipes(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "{{ question }}", "{{ question }}")
    os.mkfifo(tmp_path / name)
    benchmark = load_benchmark(path)
    object.__setattr__(benchmark, "files", {"train": name.removesuffix(".gz")})
    object.__setattr__(benchmark, "local", str(tmp_path))
    with pytest.raises(UserError, match="a named pipe or a device"):
        list(read_split(benchmark, "train"))


def test_a_report_of_pipes(tmp_path: Path) -> None:
    """Each pipe is in a folder whose files the report lists."""
    places = (
        "evaluate/student/task.json",
        "evaluate/student/task.manifest.json",
        "enhance/teacher/.X_cot.jsonl.progress",
        "chains/one/states/finetune-0",
        "chains/two/jobs.tsv",
    )
    (tmp_path / "chains" / "one").mkdir(parents=True)
    (tmp_path / "chains" / "one" / "jobs.tsv").write_text("finetune\t1\t0\t-\tw\t/x/logs/finetune.log\n")
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / place)
    missing = read_run_folder(tmp_path).missing
    for place in (places[0], *places[2:]):
        assert any(place in said and "a named pipe or a device" in said for said in missing), place
