"""A chain with a teacher for each kind of explanation, and with further flags of its stages."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents, read_lines
from support.programs import ROOT, only_error, warm_python
from support.tiny_models import make_teachers

KINDS = ("cot", "error", "fundamental")
Chain = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def teachers(tiny_llama: Path, place: Path) -> dict[str, Path]:
    return make_teachers(tiny_llama, place / "models", KINDS)


@pytest.fixture(scope="module")
def chain(tiny_llama: Path, place: Path, teachers: dict[str, Path]) -> Chain:
    small = {"STUDENT": tiny_llama, "TASK": "full_tail", "LIMIT": 8, "EPOCHS": 1, "NUM_TOKENS": 8, "BATCH": 4}

    def run(**variables: object) -> subprocess.CompletedProcess:
        chosen = {
            name: str(value) for name, value in {**small, **teachers, "RUNS": place / "runs", **variables}.items()
        }
        environment = {**os.environ, "PYTHON": warm_python(), "LAUNCHER": "local", **chosen}
        command = ["bash", str(ROOT / "slurm" / "chain.sh"), "sample"]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def done(chain: Chain) -> subprocess.CompletedProcess:
    result = chain()
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def run(done: subprocess.CompletedProcess, place: Path) -> Path:
    return place / "runs" / "sample" / "limit-8"


def test_each_kind_is_by_its_own_teacher(run: Path, teachers: dict[str, Path]) -> None:
    digests = set()
    for kind in KINDS:
        manifest = json.loads((run / "enhance" / f"of-{kind}_seed0" / f"SAMPLE_{kind}.manifest.json").read_text())
        assert manifest["arguments"]["task_type"] == f"{kind}_text"
        assert manifest["inputs"]["teacher"]["path"] == str(teachers[f"TEACHER_{kind.upper()}"])
        digests.add(manifest["inputs"]["teacher"]["sha256"])
        assert [path.name for path in run.glob(f"enhance/*/SAMPLE_{kind}.jsonl")] == [f"SAMPLE_{kind}.jsonl"]
    assert len(digests) == 3


def test_the_student_reads_the_texts_of_all_teachers(run: Path) -> None:
    from datasets import load_from_disk

    [joined] = run.glob("enhance/cot-of-cot+error-of-error+fundamental-of-fundamental_*_seed0")
    dataset = load_from_disk(joined / "SAMPLE")
    for kind in KINDS:
        records = read_lines(run / "enhance" / f"of-{kind}_seed0" / f"SAMPLE_{kind}.jsonl")
        assert dataset[kind] == [record[kind] for record in records]
        assert all(record[kind] in text for record, text in zip(records, dataset["full_tail"], strict=True))


def test_the_page_has_all_texts_with_their_quality_and_nothing_is_missing(
    run: Path, done: subprocess.CompletedProcess
) -> None:
    from teacherlm.report.run_folder import read_run_folder
    from teacherlm.report.sample_browser import browse

    found = read_run_folder(run)
    assert found.missing == []
    data = browse(found)
    texts = [text for sample in data["samples"] if sample["set"] == "train" for text in sample["t"]]
    assert len(texts) == 3 * 8
    assert any(flags for _, _, flags in texts)  # the tiny models' texts are cut
    assert "teachers of-cot (cot), of-error (error), of-fundamental (fundamental)" in done.stdout


def test_the_same_call_again_does_nothing(run: Path, chain: Chain, place: Path) -> None:
    before = contents(place)
    again = chain()
    assert again.returncode == 0, again.stderr
    assert contents(place) == before
    assert again.stdout.count("enhance: done already, nothing to do") == 3


def test_flags_of_the_evaluation_score_the_same_student_again(run: Path, chain: Chain) -> None:
    trained = contents(run / "finetune")
    asked = chain(EVALUATE_FLAGS="--limit 4")
    assert asked.returncode == 0, asked.stderr
    assert contents(run / "finetune") == trained
    [scored] = run.glob("evaluate-*/tiny/sample.json")
    assert json.loads(scored.read_text())["limit"] == 4
    assert json.loads((run / "evaluate" / "tiny" / "sample.json").read_text())["limit"] is None
    page = (run / "report" / "index.html").read_text()
    assert f"checkpoint-2, {scored.parent.parent.name}" in page


def test_two_teachers_of_a_kind_are_mixed(run: Path, chain: Chain, teachers: dict[str, Path], place: Path) -> None:
    from datasets import load_from_disk

    mixed = {"TASK": "cot_tail", "TEACHER_COT": f"{teachers['TEACHER_COT']},{teachers['TEACHER_ERROR']}"}
    done = chain(**mixed)
    assert done.returncode == 0, done.stderr
    assert "teachers of-cot (cot), of-error (cot)" in done.stdout
    [folder] = run.glob("enhance/of-cot+of-error_*_seed0")
    own = [read_lines(run / "enhance" / f"{name}_seed0" / "SAMPLE_cot.jsonl") for name in ("of-cot", "of-error")]
    records = read_lines(folder / "SAMPLE_cot.jsonl")
    assert len(records) == 8
    for record, *parts in zip(records, *own, strict=True):
        said = [(text["text"], text["teacher"]) for text in record["cot_completions"]]
        assert said == [(part["cot"], name) for part, name in zip(parts, ("of-cot", "of-error"))]
        assert record["cot"] == parts[0]["cot"]
    dataset = load_from_disk(folder / "SAMPLE_all")
    texts = [[part["cot"] for part in parts] for parts in zip(*own)]
    assert dataset["cot"] == [text for of_sample in texts for text in of_sample]
    from teacherlm.report.run_folder import read_run_folder
    from teacherlm.report.sample_browser import browse

    found = read_run_folder(run)
    texts = [text for sample in browse(found)["samples"] if sample["set"] == "train" for text in sample["t"]]
    assert found.missing == []
    files = [file for kind in KINDS for file in run.glob(f"enhance/*/SAMPLE_{kind}.jsonl") if "+" not in str(file)]
    assert len(texts) == 8 * len(files)  # each text once, although the mixed file has it too
    before = contents(place)
    assert chain(**mixed).returncode == 0
    assert contents(place) == before


def test_a_mistake_is_one_line_before_any_work(chain: Chain, place: Path) -> None:
    for variables, said in (
        ({"TEACHER_COTT": "x"}, "TEACHER_COTT: the prompts teacherlm have no such kind"),
        ({"FINETUNE_FLAGS": "--output_dir x"}, "FINETUNE_FLAGS: --output_dir: the chain sets this flag itself"),
        ({"TEACHER_ERROR": "no-such-model"}, "no-such-model"),
    ):
        result = chain(RUNS=place / "none", **variables)
        assert result.returncode == 2
        assert said in only_error(result)
    assert not (place / "none").exists()
