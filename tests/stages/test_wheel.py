"""The wheel contains the whole package, and the installed package finds its data without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.programs import ROOT, warm_python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", ".", "-w", folder]
    done = subprocess.run([*map(str, command)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_every_module_and_every_yaml_is_in_it(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    code = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name and ".egg-info" not in name}
    folders = ("benchmarks", "models", "prompts", "finetune/deepspeed", "evaluate/lm_eval/tasks")
    data = {f"teacherlm/data/{path.relative_to(ROOT)}" for folder in folders for path in tracked_files(folder)}
    assert packed >= code | data, sorted((code | data) - packed)
    assert not [name for name in packed if name.endswith("site.env")]


def tracked_files(folder: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split()]


def test_unpacked_elsewhere_it_finds_its_benchmarks_and_models(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from teacherlm.catalog import benchmarks, models\n"
        "from teacherlm.core import places\n"
        "from teacherlm.scoring import task_files\n"
        "from teacherlm.finetune.this_machine import CONFIGS\n"
        "print(places.ROOT)\n"
        "print(benchmarks.load_benchmark('sample').title, models.find_model('bloomz-7b1').hub)\n"
        "print(*task_files.task_files(task_files.TASKS), *sorted(path.stem for path in CONFIGS.iterdir()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [warm_python(), "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    root, names, files = done.stdout.splitlines()
    assert root == str(tmp_path / "site" / "teacherlm" / "data")
    assert names == "SAMPLE bigscience/bloomz-7b1"
    assert files.split() == ["creak", "ecqa", "strategy_qa", "zero1", "zero2", "zero3", "zero3_offload"]
