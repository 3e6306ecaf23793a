"""evaluate_mmlu_predictions.py on predictions made by hand, whose scores can be counted."""

import subprocess
from pathlib import Path

from support.atlas_models import write_lines
from support.files import read_lines
from support.mmlu_scores import SCRIPT
from support.programs import only_error, warm_python

# domain -> for each question whether (the choice, the debiased choice) is right
RIGHT = {
    "philosophy": [(1, 1), (1, 0), (0, 1), (0, 1)],
    "sociology": [(0, 0), (1, 1)],
    "astronomy": [(1, 1), (1, 1), (1, 0)],
    "virology": [(0, 1)],
}
TABLE = """\
       category	         Acc(%)	  Debias Acc(%)
-----------------------------------------------
     humanities	          50.00	          75.00
       Soc Sci.	          50.00	          50.00
           STEM	         100.00	          66.67
          other	           0.00	         100.00
            all	          60.00	          70.00
"""
DOMAINS = """\
       category	         Acc(%)	  Debias Acc(%)
-----------------------------------------------
      astronomy	         100.00	          66.67
     philosophy	          50.00	          75.00
      sociology	          50.00	          50.00
       virology	           0.00	         100.00
"""


def question(domain: str, number: int, split: str = "test") -> dict:
    options = {letter: f"{letter} of {number}" for letter in "ABCD"}
    return {"question": f"{domain} {number}", "options": options, "answer": "B", "dataset": f"{domain}_{split}"}


def prediction(asked: dict, choice: int, debiased: int) -> dict:
    """A prediction whose original order is not the first permutation, so that it has to be found by its mark."""
    best = "B" if choice else "D"
    other = {"metadata": {**asked, "is_original": False}, "choice_logits": dict.fromkeys("ABCD", 0.0)}
    original = {"metadata": {**asked, "is_original": True}, "choice_logits": {**dict.fromkeys("ABCD", 0.0), best: 1.0}}
    return {"generation": "B" if debiased else "A", "permutations": [other, original], "metadata": asked}


def score(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([warm_python(), *map(str, (SCRIPT, *words))], capture_output=True, text=True)


def gold_file(folder: Path) -> Path:
    return write_lines(folder / "gold.jsonl", [question(d, n) for d, marks in RIGHT.items() for n in range(len(marks))])


def test_a_file(tmp_path: Path) -> None:
    lines = [prediction(question(d, n), *mark) for d, marks in RIGHT.items() for n, mark in enumerate(marks)]
    file = write_lines(tmp_path / "combined_test-step-0.jsonl", lines[::-1])
    done = score("--predictions_path", file, "--gold_path", gold_file(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"predictions for {file}\n{TABLE}"


def test_a_folder_of_domains_in_either_spelling(tmp_path: Path) -> None:
    for mark, domain in zip(".-.-", RIGHT):
        lines = [prediction(question(domain, n), *right) for n, right in enumerate(RIGHT[domain])]
        if domain == "astronomy":
            lines = [{"generation": p["generation"], "permuatations": p["permutations"]} for p in lines]
        write_lines(tmp_path / "runs" / domain / f"{domain}{mark}test-step-16.jsonl", lines)
    asked = ["--predictions_path", tmp_path / "runs", "--gold_path", gold_file(tmp_path), "--split", "test"]
    done = score(*asked, "--step", 16)
    assert done.stdout == f"predictions for {tmp_path / 'runs'}, step 16\n{DOMAINS}\n{TABLE}", done.stderr
    assert "runs/astronomy/astronomy.test-step-12.jsonl: no such file" in only_error(score(*asked, "--step", 12))


def test_step_1_of_a_zero_shot_run_is_its_step_0(tmp_path: Path) -> None:
    """The documentation of the reference asks for step 1; no other step is guessed."""
    lines = [prediction(question(d, n), *mark) for d, marks in RIGHT.items() for n, mark in enumerate(marks)]
    write_lines(tmp_path / "combined_test-step-0.jsonl", lines)
    asked = tmp_path / "combined_test-step-1.jsonl"
    done = score("--predictions_path", asked, "--gold_path", gold_file(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{asked}: no such file; combined_test-step-0.jsonl is scored" in done.stdout
    assert done.stdout.endswith(TABLE)
    other = score("--predictions_path", tmp_path / "combined_test-step-16.jsonl", "--gold_path", gold_file(tmp_path))
    assert "combined_test-step-16.jsonl: no such file; there are combined_test-step-0.jsonl" in only_error(other)
    write_lines(tmp_path / "combined_test-step-8.jsonl", lines)
    message = only_error(score("--predictions_path", asked, "--gold_path", gold_file(tmp_path)))
    assert "no such file; there are combined_test-step-0.jsonl, combined_test-step-8.jsonl" in message
    folder = ["--predictions_path", tmp_path, "--gold_path", gold_file(tmp_path), "--split", "test", "--step", 4]
    message = only_error(score(*folder))
    assert "combined.test-step-4.jsonl: no such file; there are combined_test-step-0.jsonl, combined_t" in message
    message = only_error(score("--predictions_path", tmp_path / "nowhere.jsonl", "--gold_path", gold_file(tmp_path)))
    assert "nowhere.jsonl: no such file; predictions of evaluate.py were expected" in message


def test_a_part_is_not_scored(tmp_path: Path) -> None:
    gold = gold_file(tmp_path)
    lines = [prediction(q, 1, 1) for q in read_lines(gold) if q["question"] not in ("philosophy 2", "virology 0")]
    file = write_lines(tmp_path / "part.jsonl", lines)
    message = only_error(score("--predictions_path", file, "--gold_path", gold))
    assert "it lacks 2 predictions: philosophy (1 of 4), virology (1 of 1)" in message


def test_what_is_no_prediction_is_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"generation": "A"}])
    message = only_error(score("--predictions_path", file, "--gold_path", gold_file(tmp_path)))
    assert "p.jsonl, line 1: not a prediction of evaluate.py" in message


def test_the_step_is_chosen_on_validation_questions(tmp_path: Path) -> None:
    """Step 8 is the best on validation, step 12 on the test: what is scored is the test at step 8."""
    run = tmp_path / "run"
    valid = [question("anatomy", number, "val") for number in range(4)]
    test = [question("anatomy", number) for number in range(4)]
    right = {4: (1, 3), 8: (3, 2), 12: (2, 4), 16: (3, 1)}  # of the validation and of the test questions
    for step, (of_valid, of_test) in right.items():
        for name, asked, count in (("valid", valid, of_valid), ("test", test, of_test)):
            lines = [prediction(q, 0, number < count) for number, q in enumerate(asked)]
            write_lines(run / f"combined_{name}-step-{step}.jsonl", lines)
    golds = [write_lines(tmp_path / f"{name}.jsonl", asked) for name, asked in (("valid", valid), ("test", test))]
    asked = ["--predictions_path", run, "--gold_path", golds[1], "--select-step", golds[0]]
    done = score(*asked)
    assert done.returncode == 0, done.stderr
    assert "step 8: 75.00 on 4 validation questions" in done.stdout
    assert f"predictions for {run}, step 8" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["all", "0.00", "50.00"]
    for file in run.glob("combined_valid*"):
        file.unlink()
    assert "no validation predictions there" in only_error(score(*asked))
