"""The report of files from anybody: what cannot be read becomes a line on the page, and the page stays intact."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from support.bounded import bounded
from support.compared import read_csv
from support.pages import RUNS, missing, page_of, table, write
from support.programs import program
from support.report_runs import STUDENT, result_of, write_run

from teacherlm.catalog.prompts import test_context as context
from teacherlm.core import limits
from teacherlm.core.records import write_records

Change = Callable[[Path], None]


def changed(name: str, **fields: Any) -> Change:
    """A function that changes fields of a JSON file. A field with the value `...` is removed."""

    def change(folder: Path) -> None:
        value = {**json.loads((folder / name).read_text()), **fields}
        (folder / name).write_text(json.dumps({key: part for key, part in value.items() if part is not ...}))

    return change


def line(name: str, number: int, **fields: Any) -> Change:
    """A function that changes fields of a record in a JSON lines file in the same way."""

    def change(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        value = {**json.loads(lines[number]), **fields}
        lines[number] = json.dumps({key: part for key, part in value.items() if part is not ...})
        (folder / name).write_text("\n".join(lines) + "\n")

    return change


RESULT, SAMPLES, OF_RESULT = "creak.json", "creak_samples.jsonl", "creak.manifest.json"
MANIFEST, ABOUT, LOG = "manifest.json", "run.json", "log.jsonl"
COT, QUALITY, OF_QUALITY = "CREAK_cot.jsonl", "CREAK_quality.jsonl", "CREAK_quality.manifest.json"
FAILURES = "CREAK_cot.failures.jsonl"
FOLDERS = {
    f"evaluate/{STUDENT}": (RESULT, SAMPLES, OF_RESULT),
    f"finetune/{RUNS[0]}": (MANIFEST, ABOUT, LOG),
    "enhance/teacher_seed0": (COT, QUALITY, OF_QUALITY, FAILURES),
}
"""The folders of a run in which these files are."""


def hurt(run: Path, name: str, change: Change, case: int) -> None:
    """Copy the folder of a file to a neighbouring folder, and change the file in the copy."""
    folder = next(folder for folder, names in FOLDERS.items() if name in names)
    copy = (run / folder).with_name(f"case{case}")
    shutil.copytree(run / folder, copy)
    change(copy)


DEEP = "[" * 100_000
UNREADABLE = [
    (RESULT, changed(RESULT, value="0.5"), "cannot be read as a result (value: a number was expected, found '0.5')"),
    (RESULT, changed(RESULT, value=[0.5]), "cannot be read as a result (value: "),
    (RESULT, changed(RESULT, value=True), "cannot be read as a result (value: "),
    (RESULT, changed(RESULT, value=10**400), "cannot be read as a result (value: "),
    (RESULT, changed(RESULT, value=float("nan")), "cannot be read as a result (value: "),
    (RESULT, changed(RESULT, value=float("inf")), "cannot be read as a result (value: "),
    (RESULT, changed(RESULT, n="60"), "cannot be read as a result (n: a whole number was expected, found '60')"),
    (RESULT, changed(RESULT, n=...), "cannot be read as a result (n is missing)"),
    (RESULT, changed(RESULT, task=5), "cannot be read as a result (task: a text was expected, found '5')"),
    (
        RESULT,
        changed(RESULT, task="other"),
        "cannot be read as a result (task: the task in the file's name was expected",
    ),
    (RESULT, changed(RESULT, metric=["acc"]), "cannot be read as a result (metric: "),
    (RESULT, changed(RESULT, metric="m" * 10**6), "cannot be read as a result (metric: "),
    (RESULT, changed(RESULT, interval_95=[0.1]), "cannot be read as a result (interval_95: "),
    (RESULT, changed(RESULT, interval_95={"low": 0}), "cannot be read as a result (interval_95: "),
    (RESULT, changed(RESULT, interval_95=["0", "1"]), "cannot be read as a result (interval_95"),
    (RESULT, changed(RESULT, value=None), "cannot be read as a result (interval_95: "),
    (RESULT, changed(RESULT, tasks={"a": 1}), "cannot be read as a result (tasks: a list was expected"),
    (RESULT, changed(RESULT, tasks=[{"task": "a"}]), "cannot be read as a result (tasks[0].value is missing)"),
    (RESULT, changed(RESULT, groups=[1]), "cannot be read as a result (groups: an object was expected"),
    (RESULT, changed(RESULT, groups={"a": {"value": "x"}}), "cannot be read as a result (groups.a.value: "),
    (RESULT, write(RESULT, DEEP), "cannot be read as a result (it is nested more than"),
    (RESULT, write(RESULT, "[1, 2]"), "cannot be read as a result (a JSON object was expected)"),
    (
        SAMPLES,
        line(SAMPLES, 3, prompt=5),
        "creak_samples.jsonl, line 4: this is not a sample of an evaluation: prompt: a text",
    ),
    (
        SAMPLES,
        line(SAMPLES, 3, doc_id=[1]),
        "creak_samples.jsonl, line 4: this is not a sample of an evaluation: doc_id: ",
    ),
    (
        SAMPLES,
        line(SAMPLES, 3, choice={"A": 1}),
        "creak_samples.jsonl, line 4: this is not a sample of an evaluation: choice: ",
    ),
    (
        SAMPLES,
        line(SAMPLES, 3, loglikelihoods=[1]),
        "creak_samples.jsonl, line 4: this is not a sample of an evaluation: loglike",
    ),
    (
        SAMPLES,
        line(SAMPLES, 3, task=["x"]),
        "creak_samples.jsonl, line 4: this is not a sample of an evaluation: task: ",
    ),
    (SAMPLES, write(SAMPLES, DEEP + "\n"), "creak_samples.jsonl, line 1: "),
    (MANIFEST, changed(MANIFEST, outputs=[1]), "/manifest.json: outputs: an object was expected"),
    (MANIFEST, changed(MANIFEST, outputs={"x": "y"}), "/manifest.json: outputs.x: an object was expected"),
    (MANIFEST, changed(MANIFEST, outputs={"x": {"path": 5, "sha256": "y"}}), "/manifest.json: outputs.x.path: a text"),
    (MANIFEST, changed(MANIFEST, stage=["finetune"]), "/manifest.json: stage: a text was expected"),
    (MANIFEST, changed(MANIFEST, stage=...), "/manifest.json: stage is missing"),
    (MANIFEST, changed(MANIFEST, counts=[1]), "/manifest.json: counts: an object was expected"),
    (MANIFEST, changed(MANIFEST, counts={"seconds": "36"}), "/manifest.json: counts.seconds: a number was expected"),
    (
        MANIFEST,
        changed(MANIFEST, counts={"processes": None}),
        "/manifest.json: counts.processes: a whole number was expected",
    ),
    (MANIFEST, changed(MANIFEST, counts={"dropped": "5"}), "/manifest.json: counts.dropped: "),
    (MANIFEST, changed(MANIFEST, command="python"), "/manifest.json: command: a list was expected"),
    (MANIFEST, changed(MANIFEST, command=[1]), "/manifest.json: command[0]: a text was expected"),
    (MANIFEST, changed(MANIFEST, started=5), "/manifest.json: started: a text was expected"),
    (MANIFEST, changed(MANIFEST, arguments=[1]), "/manifest.json: arguments: an object was expected"),
    (MANIFEST, changed(MANIFEST, versions=[1]), "/manifest.json: versions: an object was expected"),
    (MANIFEST, changed(MANIFEST, inputs={"student": "x"}), "/manifest.json: inputs.student: an object was expected"),
    (
        MANIFEST,
        changed(MANIFEST, inputs={"student": {"path": "x"}}),
        "/manifest.json: inputs.student.sha256 is missing",
    ),
    (MANIFEST, write(MANIFEST, "{"), "/manifest.json: Expecting property name"),
    (MANIFEST, write(MANIFEST, DEEP), "/manifest.json: it is nested more than"),
    (OF_RESULT, changed(OF_RESULT, inputs=[1]), "/creak.manifest.json: inputs: an object was expected"),
    (OF_QUALITY, changed(OF_QUALITY, counts=...), "/CREAK_quality.manifest.json: counts: an object was expected"),
    (OF_QUALITY, changed(OF_QUALITY, counts={"records": "x"}), "/CREAK_quality.manifest.json: counts.records: "),
    (
        OF_QUALITY,
        changed(OF_QUALITY, counts={"records": 1, "cot": {"cut": "x"}}),
        "/CREAK_quality.manifest.json: counts.cot",
    ),
    (ABOUT, changed(ABOUT, arguments=[1]), "/run.json: arguments: an object was expected"),
    (ABOUT, changed(ABOUT, arguments={"task_type": 5}), "/run.json: arguments.task_type: a text was expected"),
    (ABOUT, changed(ABOUT, inputs={"student": []}), "/run.json: inputs.student: an object was expected"),
    (ABOUT, write(ABOUT, "[]"), "/run.json: a JSON object was expected"),
    (ABOUT, write(ABOUT, DEEP), "/run.json: it is nested more than"),
    (LOG, line(LOG, 1, step="2"), "log.jsonl, line 2: this is not a line of a training log: step: a whole number"),
    (LOG, line(LOG, 1, loss="2"), "log.jsonl, line 2: this is not a line of a training log: loss: a number"),
    (LOG, line(LOG, 1, epoch=[1]), "log.jsonl, line 2: this is not a line of a training log: epoch: a number"),
    (LOG, line(LOG, 1, steps=None), "log.jsonl, line 2: this is not a line of a training log: steps: a number"),
    (COT, line(COT, 1, cot=5), "CREAK_cot.jsonl, line 2: the field 'cot' is missing or is not a text"),
    (COT, line(COT, 1, text=...), "CREAK_cot.jsonl, line 2: the field 'text' is missing or is not a text"),
    (
        QUALITY,
        line(QUALITY, 1, flags=["cut"]),
        "CREAK_quality.jsonl, line 2: this is not a line of post-processing: flags: an object",
    ),
    (
        QUALITY,
        line(QUALITY, 1, flags={"cot": "cut"}),
        "CREAK_quality.jsonl, line 2: this is not a line of post-processing: flags.cot",
    ),
    (
        QUALITY,
        line(QUALITY, 1, evidence={"a": 1}),
        "CREAK_quality.jsonl, line 2: this is not a line of post-processing: evidence",
    ),
    (
        QUALITY,
        line(QUALITY, 1, evidence=[1]),
        "CREAK_quality.jsonl, line 2: this is not a line of post-processing: evidence[0]",
    ),
    (FAILURES, write(FAILURES, "nothing\n"), "CREAK_cot.failures.jsonl, line 1: one JSON object"),
    (FAILURES, write(FAILURES, ""), "CREAK_cot.failures.jsonl: empty"),
    (FAILURES, write(FAILURES, '{"line": 7, "reason": "\\u001b[2J\\ud83d\\ude00"}\n'), "the first is that of line 7: "),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[html.HtmlElement, list[str]]:
    """The page of a run with a folder for each of these cases, and its list of what is missing."""
    run = write_run(tmp_path_factory.mktemp("runs") / "creak" / "all", {"cot": ["Because."] * 12}, RUNS[:1])
    for case, (name, change, _) in enumerate(UNREADABLE):
        hurt(run, name, change, case)
    done = subprocess.run([sys.executable, *program("report"), run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = html.fromstring((run / "report" / "index.html").read_text(encoding="utf-8"))
    return page, missing(page)


@pytest.mark.parametrize("case", range(len(UNREADABLE)))
def test_what_cannot_be_read_is_a_line_on_the_page(broken: tuple[html.HtmlElement, list[str]], case: int) -> None:
    _, listed = broken
    said = UNREADABLE[case][2]
    of_case = [one for one in listed if f"/case{case}/" in one or f" case{case}/" in one]
    assert any(said in one for one in of_case), of_case
    assert all(len(one) < 3000 for one in listed)


def test_the_rest_of_the_run_is_on_the_page(broken: tuple[html.HtmlElement, list[str]]) -> None:
    page, _ = broken
    rows = {row[0]: row for row in table(page, "accuracy-creak")}
    assert f"{RUNS[0]}, checkpoint-6" in rows and f"{STUDENT} (untrained)" in rows
    assert len(page.xpath("//svg")) == 3


ODD = [
    (LOG, line(LOG, 1, steps=...)),
    (LOG, line(LOG, 1, epoch=...)),
    (LOG, line(LOG, 1, step=-5)),
    (LOG, line(LOG, 1, loss=1e308)),
    (LOG, line(LOG, 1, loss=-1e308, epoch=1e308)),
    (LOG, line(LOG, 1, step=2**62)),
    (RESULT, changed(RESULT, interval_95=...)),
    (RESULT, changed(RESULT, interval_95=[0.99, 0.1])),
    (RESULT, changed(RESULT, value=1e308)),
    (RESULT, changed(RESULT, metric="95 % interval")),
    (RESULT, changed(RESULT, metric="$\\frac{x}$ \x1b[2J\x00")),
    (RESULT, changed(RESULT, tasks=[{"task": "a", "value": None}] * 3, groups={"": {"value": None}})),
    (MANIFEST, changed(MANIFEST, started="2026-01-01T00:00:00", finished="2026-01-01T00:00:00Z")),
    (MANIFEST, changed(MANIFEST, started="x" * 5000, counts={})),
    (MANIFEST, changed(MANIFEST, arguments={"a": {"b": [1] * 100_000}, "\x1b": "\ud800"})),
    (MANIFEST, changed(MANIFEST, command=["\ud800", "\x1b[2J"])),
    (OF_QUALITY, changed(OF_QUALITY, counts={"records": 1, "\udcff": {"\x1b": 5}, "unchecked": 4.5})),
    (SAMPLES, line(SAMPLES, 3, gold=...)),
    (SAMPLES, line(SAMPLES, 3, gold=["A"])),
    (SAMPLES, line(SAMPLES, 3, acc="1")),
    (SAMPLES, line(SAMPLES, 3, acc={})),
    (SAMPLES, line(SAMPLES, 3, loglikelihoods={})),
]


def test_odd_values_that_can_be_read(inside: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "creak" / "all", {"cot": ["Because."] * 12}, RUNS[:1])
    for case, (name, change) in enumerate(ODD):
        hurt(run, name, change, case)
    for step, odd in ((3, {"interval_95": [0.99, 0.1]}), (6, {"value": 1e308})):  # these are in a picture
        changed(RESULT, **odd)(run / "evaluate" / RUNS[0] / f"checkpoint-{step}")
    page = page_of(inside, run)
    assert not [said for said in missing(page) if "cannot be read" in said]
    assert len(table(page, "accuracy-creak")) > 10
    done = inside("compare", run, "--output", tmp_path / "compared")
    assert done.returncode == 0, done.stderr


def test_names_that_are_no_utf_8(inside: Callable, tmp_path: Path) -> None:
    """Such a name is shown with its bytes written out, on the page, in pictures and in the tables."""
    odd = os.fsdecode(b"tiny_\xff\x1b[2J_seed0")
    folder = write_run(tmp_path / "creak" / "all\x1b[2J", {"cot": ["Because."] * 4}, ("renamed", RUNS[0]))
    for made in [path for path in folder.glob("*/renamed*")]:
        made.rename(made.with_name(made.name.replace("renamed", odd)))
    done = inside("report", folder)
    assert done.returncode == 0, done.stderr
    page = html.fromstring((folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.xpath("//h1")[0].text_content() == "creak/all\x1b[2J"
    assert "\x1b" not in done.stdout and "\\x1b[2J" in done.stdout
    assert len(page.xpath("//svg//*[contains(text(), 'tiny_\\udcff\\x1b[2J_seed0')]")) >= 3
    assert any("tiny_\\udcff" in row[0] for row in table(page, "accuracy-creak"))
    assert odd in page_names(page)
    assert inside("compare", folder, "--output", tmp_path / "compared").returncode == 0
    assert any("\\udcff\\x1b" in row[0] for row in read_csv(tmp_path / "compared" / "accuracy-creak.csv"))


def page_names(page: html.HtmlElement) -> list[str]:
    return [student["name"] for student in json.loads(page.xpath("//script[@id='data']/text()")[0])["students"]]


# ------------------------------------------------------------------------------------------------------------ tables

NAMES = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "a|b\\|c", "<script>alert(1)</script>", "`x`", "a\nb\r\tc"]


def test_names_in_tables_stay_names(inside: Callable, tmp_path: Path) -> None:
    """A name is no formula in a spreadsheet, one cell in Markdown, and no escape sequence on a terminal."""
    names = [name if number % 2 else f"{name}_seed0" for number, name in enumerate(NAMES)]
    folder = write_run(tmp_path / "creak" / "all", None, names)
    result = {**result_of("creak", [{"acc": 1}]), "task": "parts", "metric": "=1+1"}
    parts = [{"task": name, "value": 0.5} for name in [*names, "\t=1", "＝1", "-0.5"]]
    (folder / "evaluate" / STUDENT / "parts.json").write_text(json.dumps({**result, "tasks": parts}))
    assert inside("compare", folder, "--output", tmp_path / "out").returncode == 0
    for file in (tmp_path / "out").glob("*.csv"):
        for row in [file.read_text().splitlines()[0].split(","), *read_csv(file)]:
            for cell in row:
                assert cell[:1] not in "=+@\t\r＝" or not cell
                assert cell[:1] != "-" or cell == "-" or float(cell) <= 0
    cells = [row[0] for row in read_csv(tmp_path / "out" / "tasks-parts.csv")]
    assert cells[:4] == ["'=cmd|' /C calc'!A0_seed0", "'+1+1", "'-2+3_seed0", "'@SUM(1)"]
    assert cells[-3:] == ["'=1", "'＝1", "'-0.5"]
    for file in (tmp_path / "out").glob("*.md"):
        rows = file.read_text().splitlines()
        columns = {len(row.replace("\\\\", "").replace("\\|", "").strip("|").split("|")) for row in rows}
        assert len(columns) == 1, file
        assert "<script" not in file.read_text().replace("\\<script", "")
    assert "a\\|b\\\\\\|c" in (tmp_path / "out" / "tasks-parts.md").read_text()


# ------------------------------------------------------------------------------------------------------- a small page


def write_large_run(folder: Path, samples: int, characters: int) -> Path:
    """Write a run with long questions, each with a short and a long text, and a tenth as many long test questions."""
    own = folder / "enhance" / "teacher_seed0"
    own.mkdir(parents=True)
    for kind, size in (("cot", 1), ("error", characters)):
        write_records(
            own / f"CREAK_{kind}.jsonl",
            ({"text": f"{context(f'{n} ' + 'q' * characters)}A).", kind: "<" * size} for n in range(samples)),
        )
    scored = folder / "evaluate" / STUDENT
    scored.mkdir(parents=True)
    (scored / "creak.json").write_text(json.dumps(result_of("creak", [{"acc": 1}])))
    write_records(
        scored / "creak_samples.jsonl",
        (
            {"doc_id": n, "prompt": context(f"{n} " + "p" * characters), "gold": "A", "choice": "A", "acc": 1.0}
            for n in range(samples // 10)
        ),
    )
    return folder


def test_a_page_has_a_size_at_most(tmp_path: Path) -> None:
    """20,000 samples of 20,000 characters made a page of 384 MiB and took 2.5 GB: their questions were not counted."""
    folder = write_large_run(tmp_path / "creak" / "all", 3500, 20_000)
    done = bounded([*program("report"), folder], 120, 800)
    assert done.returncode == 0, done.stderr
    page = folder / "report" / "index.html"
    assert 0.9 * limits.PAGE_BYTES < page.stat().st_size < 1.1 * limits.PAGE_BYTES
    tree = html.parse(str(page), html.HTMLParser(huge_tree=True)).getroot()
    shown = json.loads(tree.xpath("//script[@id='data']")[0].text)
    assert len(shown["samples"]) + shown["left_out"] == 3850
    words = tree.xpath("//section[@id='samples']")[0].text_content()
    assert f"{shown['left_out']} samples are not on this page" in words
    assert f"{shown['texts_left_out']} texts of the samples below are not on this page" in words
    assert shown["texts_left_out"] > 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "creak" / "all", None, RUNS[:1])


def test_long_tables_and_lists_are_cut_and_say_so(inside: Callable, run: Path) -> None:
    parts = [{"task": f"part {n}", "value": 0.5} for n in range(limits.PAGE_ROWS + 7)]
    changed(RESULT, tasks=parts)(run / "evaluate" / STUDENT)
    for n in range(limits.PAGE_MISSING + 20):
        (run / "evaluate" / STUDENT / f"broken{n}.json").write_text("{")
    page = page_of(inside, run)
    assert len(table(page, "tasks-creak")) == limits.PAGE_ROWS
    assert "7 more rows of this table are not on this page." in page.text_content()
    assert len(missing(page)) == limits.PAGE_MISSING + 1
    assert missing(page)[-1] == "20 more such lines are not on this page."


def test_a_long_log_is_thinned_out(inside: Callable, run: Path) -> None:
    steps = 3 * limits.PAGE_POINTS
    write_records(
        run / "finetune" / RUNS[0] / LOG, ({"step": n, "steps": 1, "loss": 1.0 + n % 7} for n in range(1, steps + 1))
    )
    page_of(inside, run)
    assert (run / "report" / "index.html").stat().st_size < 2_000_000


@pytest.mark.parametrize("kind", ["settings", "bytes", "pipe"])
def test_a_file_of_matplotlib_s_settings_in_the_current_folder_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "matplotlibrc"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"text.usetex: True\nlines.linewidth: 30\n" if kind == "settings" else b"\xff\xfe")
    code = "from teacherlm.report.figures import Line, draw; print(draw([Line('a', [1, 2], [3, 4])], 'x', 'y'))"
    (tmp_path / "empty").mkdir()
    drawn = [
        subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
        for cwd in (tmp_path / "empty", tmp_path)
    ]
    assert drawn[0].stdout == drawn[1].stdout != ""
