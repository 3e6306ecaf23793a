"""The page of a run: its numbers are those of the files, and it says what is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.pages import RUNS, missing, page_of, table, write
from support.programs import only_error
from support.report_runs import write_result, write_run

from teacherlm.catalog.prompts import split_question


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with a page."""
    texts = [f"Sentence {number} explains it. So the answer is ({'AB'[number % 2]})." for number in range(12)]
    return write_run(tmp_path_factory.mktemp("runs") / "creak" / "all", {"cot": texts}, RUNS)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "creak" / "all"))


def test_the_numbers_are_those_of_the_results_and_of_the_log(inside: Callable, run: Path) -> None:
    page = page_of(inside, run)
    assert missing(page) == []
    rows = table(page, "accuracy-creak")
    names = ["tiny (untrained)", *(f"{name}, checkpoint-{step}" for name in RUNS for step in (3, 6))]
    assert [row[0] for row in rows] == names
    paths = ["tiny", *(f"{name}/checkpoint-{step}" for name in RUNS for step in (3, 6))]
    for row, path in zip(rows, paths):
        result = json.loads((run / "evaluate" / path / "creak.json").read_text())
        assert row[2:5] == [[result["n"]], [result["value"]], result["interval_95"]]
    assert [row[1] for row in rows] == ["0", "1", "2", "1", "2"]
    losses = [3 - step / 10 for step in range(1, 7)]
    assert rows[1][5] == pytest.approx([sum(losses[:3]) / 3]) and rows[2][5] == pytest.approx([sum(losses[3:]) / 3])
    shown = page.xpath("//table[@id='accuracy-creak']//data")
    assert all(float(element.text) == pytest.approx(float(element.get("value")), abs=5e-5) for element in shown)


def test_the_stages_are_those_of_the_manifests(inside: Callable, run: Path) -> None:
    page = page_of(inside, run)
    rows = [[cell.text_content() for cell in row] for row in page.xpath("//section[@id='stages']//tbody/tr")]
    found = [json.loads(path.read_text()) for path in run.rglob("*manifest.json") if path.parent.name != "report"]
    assert sorted(row[0] for row in rows) == sorted(manifest["stage"] for manifest in found)
    finetuning = next(row for row in rows if row[0] == "finetune")
    assert finetuning[4:7] == ["36.0", "2", "0.0200"]
    assert next(row for row in rows if row[0] == "enhance")[3] == "400"
    told = page.xpath("//section[@id='stages']//pre")[0].text_content()
    for manifest in found:
        assert " ".join(manifest["command"]) in told
        assert all(output["sha256"] in told for output in manifest["outputs"].values())


def test_stages_behind_linked_folders_are_there(inside: Callable, run: Path) -> None:
    before = page_of(inside, run).xpath("//section[@id='stages']//pre")[0].text_content()
    for place in (run / "enhance" / "teacher_seed0", run / "finetune", run / "evaluate" / RUNS[0] / "checkpoint-6"):
        place.rename(run.parent / place.name)
        place.symlink_to(run.parent / place.name)
    assert page_of(inside, run).xpath("//section[@id='stages']//pre")[0].text_content() == before


def test_a_result_behind_a_linked_folder_makes_the_page_again(inside: Callable, run: Path) -> None:
    place = run / "evaluate" / RUNS[0] / "checkpoint-6"
    place.rename(run.parent / "checkpoint-6")
    place.symlink_to(run.parent / "checkpoint-6")
    page_of(inside, run)
    write_result(run, f"{RUNS[0]}/checkpoint-6/creak", seed=77)
    result = json.loads((place / "creak.json").read_text())
    row = next(row for row in table(page_of(inside, run), "accuracy-creak") if row[0] == f"{RUNS[0]}, checkpoint-6")
    assert row[3] == [result["value"]]


def test_secrets_in_earlier_manifests_are_not_shown(inside: Callable, run: Path) -> None:
    path = run / "finetune" / RUNS[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["command"] += ["--hub_token", "hf_a1b2c3d4e5", "--api_key=sk-a1b2c3d4e5"]
    manifest["arguments"] = {"hub_token": "hf_a1b2c3d4e5", "per_device": 2}
    path.write_text(json.dumps(manifest))
    told = page_of(inside, run).xpath("//section[@id='stages']//pre")[0].text_content()
    assert "--hub_token [hidden] --api_key=[hidden]" in told and "hub_token=[hidden], per_device=2" in told
    assert "a1b2c3d4e5" not in (run / "report" / "index.html").read_text(encoding="utf-8")


def test_the_quality_is_that_of_the_manifest(inside: Callable, run: Path) -> None:
    page = page_of(inside, run)
    counts = json.loads((run / "enhance/teacher_seed0/CREAK_quality.manifest.json").read_text())["counts"]
    assert counts["cot"]["contradicts"] > 0
    shown = {row[0]: row[1] for row in table(page, "quality-teacher_seed0")}
    assert shown == {flag: [float(count)] for flag, count in counts["cot"].items()}


def test_nothing_is_done_twice_and_the_same_files_give_the_same_page(inside: Callable, run: Path) -> None:
    page_of(inside, run)
    before = contents(run)
    again = inside("report", run)
    assert "done already, nothing to do" in again.stdout
    assert contents(run) == before
    (run / "report" / "manifest.json").unlink()
    page_of(inside, run)
    assert contents(run)["report/index.html"][0] == before["report/index.html"][0]
    write_result(run, f"{RUNS[0]}/checkpoint-6/creak", seed=99)
    assert "report: " in inside("report", run).stdout
    assert contents(run)["report/index.html"][0] != before["report/index.html"][0]


def remove(*names: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def fail_a_job(run: Path) -> None:
    """The last job of finetuning failed. Another one had failed before, and a later one did its work."""
    row = "{}\t{}\t0\t-\tw\t/x/logs/{}.log\n"
    rows = [row.format(stage, job, stage) for stage, job in (("merge", 16), ("finetune", 17), ("merge", 18))]
    write("chains/mine/jobs.tsv", "".join(rows))(run)
    for note, said in (("finetune-0", "failed with 2\t17"), ("merge-0", "failed with 2\t16")):
        write(f"chains/mine/states/{note}", f"{said}\tnode1\t1795286496\n")(run)


RESULT = f"evaluate/{RUNS[0]}/checkpoint-6/creak.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("prepare"), "prepare: not done"),
        (remove("enhance/teacher_seed0/CREAK_quality.manifest.json"), "quality: not measured for teacher_seed0"),
        (remove("finetune", "evaluate"), "finetune: no student was finetuned yet"),
        (remove("evaluate"), "evaluate: no model was scored yet"),
        (remove("enhance/teacher_seed0/CREAK"), "post-process: not done for teacher_seed0"),
        (remove(f"finetune/{RUNS[0]}/manifest.json"), f"finetune: {RUNS[0]} is not finished: it reached step 6"),
        (remove(f"evaluate/{RUNS[0]}/checkpoint-6"), f"evaluate: checkpoint-6 of {RUNS[0]} is not scored"),
        (remove("evaluate/tiny"), f"evaluate: the untrained student of {RUNS[1]} is not scored"),
        (write(RESULT, '{"task": "cre'), f"{RESULT} cannot be read as a result"),
        (
            write("enhance/other_seed0/.CREAK_cot.jsonl.progress", '{"teacher": 1}\n{"text": "a"}\n{"text": "b"}\n'),
            "enhance: other_seed0/CREAK_cot.jsonl is not finished: 2 texts so far",
        ),
        (
            write("enhance/teacher_seed0/CREAK_cot.failures.jsonl", '{"record": 3, "line": 4, "reason": "too long"}\n'),
            "enhance: 1 records have no text in teacher_seed0/CREAK_cot.jsonl; the first is that of line 4: too long",
        ),
        (
            fail_a_job,
            "finetune: task 0 of mine failed with 2",
        ),
        (
            write("chains/mine/jobs.tsv", "finetune\t17\n"),
            "chains/mine/jobs.tsv, line 1: 6 columns were expected",
        ),
        (
            write(
                f"finetune/{RUNS[0]}/log.jsonl", '{"step": 1, "steps": 1, "epoch": 0.3, "loss": 2.5}\n{"step": 2, "lo'
            ),
            "log.jsonl, line 2: one JSON object",
        ),
    ],
)
def test_a_page_says_what_is_missing(inside: Callable, run: Path, change: Callable[[Path], None], said: str) -> None:
    change(run)
    listed = missing(page_of(inside, run))
    assert any(said in one for one in listed), listed


def test_a_folder_with_nothing_in_it_has_a_page_that_says_so(inside: Callable, tmp_path: Path) -> None:
    page = page_of(inside, tmp_path)
    assert missing(page) == ["everything: no stage has written a file here"]
    assert not page.xpath("//table")


def test_runs_are_found_by_their_benchmark_and_samples(inside: Callable, run: Path) -> None:
    (run.parent / "limit-5" / "prepare").mkdir(parents=True)
    (run.parent / "notes").mkdir()
    runs = run.parent.parent
    result = inside("report", "--runs", runs)
    assert [line.split("; ")[0] for line in result.stdout.splitlines()] == [
        f"report: {run}/report/index.html",
        f"report: {run.parent}/limit-5/report/index.html",
    ]
    shutil.rmtree(run / "report")
    result = inside("report", "--runs", runs, "--benchmark", "creak", "--samples", "all")
    assert result.stdout == f"report: {run}/report/index.html\n"
    assert "there is no run's folder; make one with" in only_error(
        inside("report", "--runs", runs, "--benchmark", "ecqa")
    )
    assert "no such folder" in only_error(inside("report", runs / "ecqa"))


def test_subjects_and_categories(inside: Callable, run: Path) -> None:
    path = run / "evaluate" / "tiny" / "mmlu.json"
    subjects = [{"task": f"mmlu_{name}", "value": value, "n": 4} for name, value in (("anatomy", 0.25), ("law", 0.75))]
    groups = {"other": {"value": 0.25, "n": 4}, "humanities": {"value": 0.75, "n": 4}}
    result = {"task": "mmlu", "metric": "acc", "value": 0.5, "n": 8, "interval_95": [0.2, 0.8]}
    path.write_text(json.dumps({**result, "groups": groups, "tasks": subjects}))
    page = page_of(inside, run)
    assert table(page, "groups-mmlu") == [["other", [0.25]], ["humanities", [0.75]]]
    assert table(page, "tasks-mmlu") == [["mmlu_anatomy", [0.25]], ["mmlu_law", [0.75]]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q: Is it so? (A) True (B) False A: The answer is (B). Let's", ("Is it so?", ("True", "False"))),
        ("About law. Q: Why (A)? (A) x (B) y (C) z A: The answer is (", ("Why (A)?", ("x", "y", "z"))),
        ("Q: Is (A) or (B) it? (A) x (B) y A: The answer is (", ("Is (A) or (B) it?", ("x", "y"))),
        ("Q: Why? (A) x (B) y (C)  (A) and (B) A: The answer is (", ("Why?", ("x", "y", " (A) and (B)"))),
        ("Q: 1? (A) a (B) b A: The answer is (A). Q: 2? (A) c (B) d A: The answer is (", ("2?", ("c", "d"))),
        ("Something else", ("Something else", ())),
    ],
)
def test_a_prompt_is_taken_apart(text: str, expected: tuple) -> None:
    assert split_question(text) == expected
