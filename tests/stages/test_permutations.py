"""Orders of choices: which questions are asked, and that a preference for a letter cancels out."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import read_lines
from support.programs import ROOT, only_error
from support.scoring import reference_likelihoods, words

from teacherlm.scoring.permutations import debias, in_turn, reorder, split_question

DOC = {"question": "What shines? (as in (A) or so) (A) mud (B) the sun (C) salt", "answer": "(B)", "id": 7}


def test_orders_move_the_answer_with_its_choice() -> None:
    assert in_turn(3, "cyclic") == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert split_question(DOC, "x") == ("What shines? (as in (A) or so)", ("mud", "the sun", "salt"))
    assert reorder(DOC, (0, 1, 2), "x") == DOC
    assert reorder(DOC, (1, 2, 0), "x") == {
        "question": "What shines? (as in (A) or so) (A) the sun (B) salt (C) mud",
        "answer": "(A)",
        "id": 7,
    }


@pytest.mark.parametrize("kind", ["cyclic", "all"])
def test_a_preference_for_a_letter_cancels_out(kind: str) -> None:
    orders = in_turn(3, kind)
    assert sorted(orders)[0] == orders[0] == (0, 1, 2) and len(orders) == (3 if kind == "cyclic" else 6)
    letter, choice = [5.0, 0.0, -3.0], [0.1, 0.3, 0.2]  # a strong preference for A, and a little knowledge
    results = [letter[place] + choice[order[place]] for order in orders for place in range(3)]
    found = debias(results, orders)
    assert sum(map(math.exp, found)) == pytest.approx(1)
    assert max(range(3), key=found.__getitem__) == 1
    assert max(range(3), key=results[:3].__getitem__) == 0


def test_scored_in_all_orders_by_hand(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    command = words(tiny_llama, "sample", prepared / "tests", tmp_path, "--limit", 12, "--permutations", "cyclic")
    result = inside("evaluate", *command)
    assert result.returncode == 0, result.stderr
    right = 0
    for sample in read_lines(tmp_path / "tiny" / "sample_samples.jsonl"):
        other = sample["prompt"].replace("(A) True (B) False", "(A) False (B) True")
        assert other != sample["prompt"]
        first, second = reference_likelihoods(tiny_llama, [sample["prompt"], other], ["A", "B"])
        shares = [[math.exp(row[letter]) for letter in "AB"] for row in (first, second)]
        true = sum(row[place] / sum(row) for place, row in enumerate(shares)) / 2
        assert sample["loglikelihoods"] == pytest.approx({"A": math.log(true), "B": math.log(1 - true)}, abs=1e-4)
        assert sample["orders"] == pytest.approx([*first.values(), *second.values()], abs=1e-4)
        right += ("A" if true > 0.5 else "B") == sample["gold"]
        assert sample["acc"] == (sample["choice"] == sample["gold"])
    assert json.loads((tmp_path / "tiny" / "sample.json").read_text())["correct"] == right


def test_a_task_without_letters_is_refused(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    folder = ROOT / "tests" / "support" / "old_tasks"
    command = ["--model_args", f"pretrained={tiny_llama}", "--tasks", "endings", "--include_path", folder]
    error = only_error(inside("evaluate", *command, "--output_path", tmp_path, "--permutations", "all"))
    assert "the samples of endings have no question and answer" in error
