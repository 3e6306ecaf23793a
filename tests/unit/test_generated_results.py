"""The metrics of written answers against brute force: all subsets of answers, all ways to break a tie."""

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from teacherlm.catalog.answers import Asked
from teacherlm.scoring.evaluator import combine
from teacherlm.scoring.generated_questions import Question
from teacherlm.scoring.generated_results import budgets, majority, pass_at, record_of, scored, with_counts

CHOICES = ("red", "green", "blue")


def question(task: str = "colours", doc_id: int = 0, gold: str = "B") -> Question:
    return Question(task, doc_id, Asked("letter", (gold,), CHOICES), (gold,), "Q: Which? A:")


def answer(text: str, tokens: int = 5, ended: str = "stop") -> dict[str, object]:
    return {"text": text, "tokens": tokens, "ended": ended}


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(number: int) -> None:
    for right, k in itertools.product(range(number + 1), range(1, number + 1)):
        answers = [True] * right + [False] * (number - right)
        subsets = list(itertools.combinations(answers, k))
        assert pass_at(k, number, right) == pytest.approx(float(Fraction(sum(map(any, subsets)), len(subsets))))


def test_the_vote_is_the_mean_over_all_ways_to_break_a_tie() -> None:
    draw = random.Random(0)
    for _ in range(300):
        number = draw.randint(2, 8)
        texts = [
            draw.choice(["The answer is (A).", "(B)", "blue", "I do not know.", "(A) or (B)"]) for _ in range(number)
        ]
        record = record_of(question(), [answer(text) for text in texts], number)
        votes = [one for one in record["found"] if one is not None]
        most = max((votes.count(one) for one in votes), default=0)
        tied = {one for one in votes if votes.count(one) == most}
        expected = [one == "B" for one in sorted(tied)]
        assert record[f"maj@{number}"] == pytest.approx(sum(expected) / len(expected) if expected else 0.0)
        assert record["tied"] == (len(tied) > 1)
        assert record["acc"] == pytest.approx(record["found"].count("B") / number)


def test_texts_without_an_answer_do_not_vote() -> None:
    assert majority([None, None, None, "A"]) == ["A"]
    assert majority([None, None]) == []
    assert sorted(majority(["A", "B", None])) == ["A", "B"]


def test_the_budgets_are_the_powers_of_two_and_the_number() -> None:
    assert [budgets(number) for number in (2, 3, 8, 12)] == [[2], [2, 3], [2, 4, 8], [2, 4, 8, 12]]


def test_what_cannot_be_read_is_wrong_and_counted_apart() -> None:
    answers = [answer("The answer is (B).", 6), answer("Green it is.", 4), answer("Who knows", 9, "length")]
    results, records = scored([question(doc_id=number) for number in range(3)], [[one] for one in answers], 1)
    assert [record["found"] for record in records] == [["B"], ["B"], [None]]
    assert [record.get("choice") for record in records] == ["B", "B", None]
    [result] = results
    assert (result["value"], result["correct"], result["n"]) == (pytest.approx(2 / 3), 2, 3)
    counted = {name: result[name] for name in ("texts", "unreadable", "cut_off", "mean_tokens")}
    assert counted == {"texts": 3, "unreadable": 1, "cut_off": 1, "mean_tokens": 6.3}
    low, high = result["interval_95"]
    assert 0 < low < 2 / 3 < high < 1


def test_the_first_conclusion_counts_but_the_last_one_of_a_chat_model() -> None:
    """A student that has not learned to end its text writes further answers."""
    text = " 2 + 2 = 4. The answer is (B). The answer is (A). The answer is (C)."
    assert record_of(question(), [answer(text)], 1)["found"] == ["B"]
    chat = replace(question(), messages=(("user", "Which?"),))
    assert record_of(chat, [answer(text)], 1)["found"] == ["C"]
    unsure = "The answer is unclear. Is it (A)? The answer is (B). The answer is (A)."
    assert record_of(question(), [answer(unsure)], 1)["found"] == ["B"]


def test_each_task_has_a_result_of_its_own() -> None:
    questions = [question("one", 0), question("two", 0), question("two", 1)]
    results, _ = scored(questions, [[answer("(B)")], [answer("(A)")], [answer("(B)")]], 1)
    assert [(result["task"], result["n"], result["value"]) for result in results] == [("one", 1, 1.0), ("two", 2, 0.5)]


def test_several_tasks_have_the_counts_of_all_texts() -> None:
    """All texts together, and those of each group."""
    questions = [question("t_one", 0), question("t_two", 0), question("t_two", 1)]
    texts = [["(B)", "(B)"], ["(A)", "Who knows"], ["(B)", "(A)"]]
    results, records = scored(questions, [[answer(one) for one in both] for both in texts], 2)
    groups = {"all": ["t_one", "t_two"], "second": ["t_two"]}
    made = with_counts(combine("t", results, groups), records, 2, groups)
    assert (made["value"], made["texts"], made["unreadable"], made["n"]) == (pytest.approx(3 / 6), 6, 1, 3)
    assert made["metrics"]["pass@2"]["value"] == pytest.approx(2 / 3)
    assert made["stderr"] == pytest.approx(made["metrics"]["acc"]["stderr"])
    assert {name: part["texts"] for name, part in made["groups"].items()} == {"all": 6, "second": 4}
    assert [part["task"] for part in made["tasks"]] == ["t_one@generate", "t_two@generate"]


def test_texts_have_exact_match_and_f1() -> None:
    asked = Asked("text", ("the river Thames", "Thames"))
    thames = Question("rivers", 0, asked, ("river thames", "thames"), "Q: Which? A:")
    record = record_of(thames, [answer("The answer is the long Thames.")], 1)
    assert (record["acc"], record["f1"]) == (0.0, pytest.approx(2 * 1 / (2 + 1)))
    assert record_of(thames, [answer("The answer is Thames.")], 1)["acc"] == 1.0
