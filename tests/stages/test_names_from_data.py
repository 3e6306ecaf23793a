"""A name that was read from a file becomes a part of a path only where it is one plain name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.new_benchmarks import mistake, written
from support.report_runs import STUDENT, write_run

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.models import find_model
from teacherlm.core.names import file_name, plain_name

LEADING_ELSEWHERE = [
    "../../victim",
    "/tmp/victim",
    "..",
    ".",
    "",
    ".hidden",
    "a/b",
    "a\nb",
    "a\x00b",
    "\udcff",
    "x" * 201,
]


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert mistake(lambda: plain_name(name, "file.yaml: title")).startswith(
        "file.yaml: title: a plain name was expected"
    )


@pytest.mark.parametrize("name", ["CREAK", "opt-1.3b_seed0", "名前", "a b", "x" * 200])
def test_a_plain_name_stays(name: str) -> None:
    assert plain_name(name, "") == name


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
def test_any_name_becomes_one_name_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{file_name(name)[:200]}.csv"
    path.write_text("")
    assert [file.parent for file in tmp_path.iterdir()] == [tmp_path]
    assert all(file_name(other) != file_name(name) for other in LEADING_ELSEWHERE if other != name)


@pytest.mark.parametrize("title", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "a\\u00a0b"])
def test_a_benchmarks_title_is_a_plain_name(tmp_path: Path, title: str) -> None:
    path = written(tmp_path, "title: CommonsenseQA", f'title: "{title}"')
    assert f"{path}: title: a plain name was expected" in mistake(lambda: load_benchmark(path))


@pytest.mark.parametrize(
    "pattern",
    [
        *("/etc/passwd", "../../etc/passwd", "a/../../b", "", "a**b"),
        *(".", "./", "**", "a/**", "x" * 256, "*/" * 600 + "x"),
    ],
)
def test_a_benchmarks_files_lie_in_its_folder(tmp_path: Path, pattern: str) -> None:
    path = written(tmp_path, "train: train.jsonl", f'train: "{pattern}"')
    said = mistake(lambda: load_benchmark(path))
    assert said.startswith(f"{path}: files: train: a pattern inside the data's folder was expected")


@pytest.mark.parametrize("name", ["owner/..", "http://127.0.0.1:9/v1/..", "http://127.0.0.1:9/.x"])
def test_a_models_name_is_a_plain_name(name: str) -> None:
    said = mistake(lambda: find_model(name))
    assert "a plain name was expected" in said or "http://host:port/model was expected" in said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "creak" / "all", None, ("tiny_text_seed0",))


TASKS = ["/../../../victim/README", "../x", "creak/..", "=cmd()", "a\nb", "x" * 300]


@pytest.mark.parametrize("task", TASKS)
def test_compare_writes_nothing_where_a_result_points(inside: Callable, whole: Path, tmp_path: Path, task: str) -> None:
    victim = tmp_path / "victim" / "README.md"
    victim.parent.mkdir()
    victim.write_text("mine")
    folder = Path(shutil.copytree(whole, tmp_path / "runs" / "creak" / "all"))
    path = folder / "evaluate" / STUDENT / "creak.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task": task}))
    before = contents(tmp_path)
    done = inside(
        "compare", folder, "--runs", tmp_path / "runs", "--output", tmp_path / "runs" / "a" / "b" / "compared"
    )
    assert done.returncode == 0, done.stderr
    added = contents(tmp_path).keys() - before.keys()
    assert added and all(name.startswith("runs/a/b/compared/") for name in added)
    assert {name: contents(tmp_path)[name] for name in before} == before
    page = (tmp_path / "runs" / "a" / "b" / "compared" / "index.html").read_text()
    assert "creak.json cannot be read as a result (task: " in page


@pytest.mark.parametrize("task", ["math/algebra", "wmt14 en-fr", "..", "a%2Fb"])
def test_a_task_of_any_name_has_its_tables(inside: Callable, whole: Path, tmp_path: Path, task: str) -> None:
    """The result of such a task is in the file that evaluate/main.py writes for its name."""
    folder = Path(shutil.copytree(whole, tmp_path / "runs" / "creak" / "all"))
    path = folder / "evaluate" / STUDENT / "creak.json"
    (path.parent / f"{file_name(task)}.json").write_text(json.dumps({**json.loads(path.read_text()), "task": task}))
    assert inside("compare", folder, "--output", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / f"{file_name(f'accuracy-{task}')}.csv").is_file()
    assert all(file.parent == tmp_path / "out" for file in (tmp_path / "out").rglob("*"))
