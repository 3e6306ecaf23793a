"""Runs side by side: the significance is scipy's and statsmodels', the tables are those of the files."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lxml import html
from scipy.stats import bootstrap as scipy_bootstrap
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from support.atlas_models import write_lines
from support.compared import read_csv
from support.programs import ROOT, only_error, warm_python
from support.report_runs import finish, write_run

from teacherlm.report.significance import Pair, bootstrap, compare, mcnemar, with_holm

RUNS = ("tiny_cot_tail_teacher_seed0", "tiny_text_seed0")
SCORER = ROOT / "atlas" / "evaluation_scripts" / "evaluate_mmlu_predictions.py"


@pytest.mark.parametrize("seed", range(20))
def test_mcnemar_is_that_of_statsmodels(seed: int) -> None:
    both, only_a, only_b, neither = map(int, np.random.default_rng(seed).integers(0, [500, 60, 60, 500]))
    expected = statsmodels_mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_models_that_never_differ() -> None:
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize(("n", "only_first", "only_second"), [(80, 11, 10), (1371, 75, 103), (500, 2, 40)])
def test_the_bootstrap_is_that_of_scipy(n: int, only_first: int, only_second: int) -> None:
    """Both are percentiles of random resamples, and they agree within the error of 10,000 resamples."""
    differences = np.array([-1] * only_first + [1] * only_second + [0] * (n - only_first - only_second))
    options = {"n_resamples": 10_000, "method": "percentile", "batch": 100, "rng": np.random.default_rng(1)}
    expected = scipy_bootstrap((differences,), np.mean, **options).confidence_interval
    width = expected.high - expected.low
    assert bootstrap(n, only_first, only_second) == pytest.approx(tuple(expected), abs=0.05 * width)


def test_holm_is_that_of_statsmodels() -> None:
    p = [0.04, 0.001, 0.5, 0.012, 0.04, 0.9]
    pairs = with_holm([Pair("a", "b", 10, 1, 2, 0.1, (0, 1), value) for value in p])
    assert [pair.p for pair in pairs] == p
    assert [pair.p_holm for pair in pairs] == pytest.approx(multipletests(p, method="holm")[1])


def test_only_questions_that_both_were_asked_count() -> None:
    pair = compare("a", {1: True, 2: True, 3: False}, "b", {2: False, 3: True, 4: True})
    assert (pair.n, pair.only_first, pair.only_second, pair.difference) == (2, 1, 1, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "creak" / "all", {"cot": ["Because."] * 4}, RUNS)
    write_run(folder / "creak" / "limit-5", None, RUNS[1:])
    return folder


def right(folder: Path) -> list[bool]:
    return [json.loads(line)["acc"] == 1 for line in (folder / "creak_samples.jsonl").read_text().splitlines()]


def test_tables_of_the_students_of_a_folder(inside: Callable, runs: Path, tmp_path: Path) -> None:
    result = inside("compare", "creak/all", "--runs", runs, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    evaluated = runs / "creak" / "all" / "evaluate"
    folders = {"tiny (untrained)": "tiny", **{f"{run}, checkpoint-6": f"{run}/checkpoint-6" for run in RUNS}}
    answers = {name: right(evaluated / folder) for name, folder in folders.items()}
    rows = read_csv(tmp_path / "pairs-creak.csv")
    names = list(folders)
    assert [tuple(row[:2]) for row in rows] == [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]
    for row in rows:
        a, b = answers[row[0]], answers[row[1]]
        table = [[sum(x and y for x, y in zip(a, b)), sum(x and not y for x, y in zip(a, b))]]
        table += [[sum(y and not x for x, y in zip(a, b)), sum(not x and not y for x, y in zip(a, b))]]
        assert [int(cell) for cell in row[2:5]] == [60, table[0][1], table[1][0]]
        assert float(row[5]) == pytest.approx((sum(b) - sum(a)) / 60)
        assert float(row[6]) <= float(row[5]) <= float(row[7])
        assert float(row[8]) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    accuracies = {row[0]: float(row[3]) for row in read_csv(tmp_path / "accuracy-creak.csv")}
    assert {name: accuracies[name] for name in names} == {name: sum(a) / 60 for name, a in answers.items()}


def test_the_page_and_markdown_show_what_the_csv_has(inside: Callable, runs: Path, tmp_path: Path) -> None:
    assert inside("compare", "creak", "--runs", runs, "--output", tmp_path).returncode == 0
    exact = read_csv(tmp_path / "pairs-creak.csv")
    assert len(exact) == 10  # five models of two folders
    assert {row[0].split(": ")[0] for row in exact} == {"creak/all", "creak/limit-5"}
    lines = (tmp_path / "pairs-creak.md").read_text().splitlines()[2:]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    for row, cells in zip(exact, shown, strict=True):
        assert cells[:5] == row[:5]
        assert cells[5] == f"{float(row[5]):.4f}"
    page = html.fromstring((tmp_path / "index.html").read_text())
    values = [
        [float(value) for value in row.xpath(".//data/@value")]
        for row in page.xpath("//table[@id='pairs-creak']/tbody/tr")
    ]
    assert values == [[float(cell) for cell in row[2:]] for row in exact]


@pytest.mark.parametrize("name", [RUNS[0], "{runs}/creak/all"])
def test_a_run_is_named_by_its_finetuning_or_folder(inside: Callable, runs: Path, tmp_path: Path, name: str) -> None:
    result = inside("compare", name.format(runs=runs), "--runs", runs, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(read_csv(tmp_path / "accuracy-creak.csv")) == (3 if name == RUNS[0] else 5)


def test_a_name_that_means_nothing_is_one_line(inside: Callable, runs: Path) -> None:
    assert "nowhere: no such run under" in only_error(inside("compare", "creak/all", "nowhere", "--runs", runs))


# -------------------------------------------------------------------------------------------------------------- ATLAS


def prediction(domain: str, number: int, right: bool, debiased: bool) -> dict:
    options = {letter: f"{letter} of {number}" for letter in "ABCD"}
    asked = {"question": f"{domain} {number}", "options": options, "answer": "B", "dataset": f"{domain}_test"}
    original = {"metadata": {**asked, "is_original": True}, "choice_logits": {"A": 0.0, "B": 1.0 if right else -1.0}}
    return {"generation": "B" if debiased else "A", "permutations": [original], "metadata": asked}


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Zero-shot, and a trained experiment whose step 2 is the best on validation questions."""
    folder = tmp_path / "experiments"
    draw = np.random.default_rng(0)
    for name, steps in (("zeroshot", (0,)), ("full", (2, 4))):
        for split in ("test", "valid") if name == "full" else ("test",):
            for step in steps:
                share = 0.9 if (split, step) == ("valid", 2) else 0.5
                marks = draw.random((40, 2)) < share
                lines = [prediction(("law", "virology", "philosophy")[n % 3], n, *mark) for n, mark in enumerate(marks)]
                path = write_lines(folder / name / f"combined_{split}-step-{step}.jsonl", lines)
                finish(path, "atlas evaluate", {"questions": 40, "seconds": 3.0})
    log = [
        {"step": s, "reader_loss": 2.0 / s, "retriever_loss": 1.0 / s, "learning_rates": [1e-4, 1e-5]} for s in (1, 2)
    ]
    write_lines(folder / "full" / "log.jsonl", log)
    return folder


def test_accuracies_of_experiments_are_those_of_the_scorer(inside: Callable, experiments: Path, tmp_path: Path) -> None:
    assert inside("report", experiments).returncode == 0
    page = html.fromstring((experiments / "report" / "index.html").read_text())
    rows = {row[0].text_content(): row for row in page.xpath("//table[@id='atlas']/tbody/tr")}
    for name, step in (("zeroshot", 0), ("full", 2)):
        file = experiments / name / f"combined_test-step-{step}.jsonl"
        questions = [json.loads(line)["metadata"] for line in file.open()]
        gold = write_lines(tmp_path / "gold.jsonl", questions)
        command = [warm_python(), str(SCORER), "--predictions_path", str(file), "--gold_path", str(gold)]
        scored = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
        numbers = [float(value) for value in rows[name].xpath(".//data/@value")]
        assert numbers[0] == step and numbers[1] == 40
        assert [f"{100 * numbers[2]:.2f}", f"{100 * numbers[5]:.2f}"] == scored[1:]
    subjects = [row[0].text_content() for row in page.xpath("//table[@id='atlas-subjects']/tbody/tr")]
    assert subjects == ["law", "philosophy", "virology"]
    assert page.xpath("//table[@id='pairs-atlas']") and len(page.xpath("//svg")) == 4
    assert "done already, nothing to do" in inside("report", experiments).stdout


def test_the_paper_s_numbers_stand_in_a_column_of_their_own(inside: Callable, experiments: Path) -> None:
    """This holds for the paper's settings, which are found by the experiment's name."""
    (experiments / "full").rename(experiments / "xl-mmlu-5-shot-multi")
    assert inside("report", experiments).returncode == 0
    page = html.fromstring((experiments / "report" / "index.html").read_text())
    assert page.xpath("//table[@id='atlas']/thead//th/text()")[-1].startswith("the paper's debiased accuracy")
    numbers = {
        row[0].text_content(): row[-1].xpath(".//data/@value") for row in page.xpath("//table[@id='atlas']/tbody/tr")
    }
    assert numbers == {"xl-mmlu-5-shot-multi": ["0.566"], "zeroshot": []}


def test_predictions_that_are_not_whole_are_said(inside: Callable, experiments: Path) -> None:
    (experiments / "zeroshot" / "combined_test-step-0.manifest.json").unlink()
    (experiments / "more").mkdir()
    (experiments / "more" / "combined_test-step-0.jsonl").write_text('{"query": "?"}\n')
    assert inside("report", experiments).returncode == 0
    page = html.fromstring((experiments / "report" / "index.html").read_text())
    said = " ".join(page.xpath("//section[@id='missing']//li/text()"))
    assert "zeroshot/combined_test-step-0.jsonl is not finished: 40 questions so far" in said
    assert "line 1: not a prediction of evaluate.py" in said


def test_experiments_compare(inside: Callable, experiments: Path, tmp_path: Path) -> None:
    result = inside("compare", experiments, "--output", tmp_path / "compared")
    assert result.returncode == 0, result.stderr
    assert [row[0] for row in read_csv(tmp_path / "compared" / "atlas.csv")] == ["full", "zeroshot"]
