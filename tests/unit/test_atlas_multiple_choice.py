"""Prompts, permutations, and the average over permutations."""

import itertools
import math
from pathlib import Path

import pytest
from support.atlas_models import make_questions, make_tiny_t5, write_lines

from teacherlm.atlas import multiple_choice as mc
from teacherlm.catalog.orders import orders
from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_tokenizer

QUESTION = {
    "question": " the first king of the city ? ",
    "options": {"A": "one", "B": "two", "C": "three", "D": "the old one"},
    "answer": "C",
    "dataset": "prehistory_test",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return load_tokenizer(make_tiny_t5(tmp_path_factory.mktemp("t5")))


def test_the_prompt_is_the_reference_s(tokenizer: object) -> None:
    expected = (
        "question: the first king of the city ? options: (A) one (B) two (C) three (D) the old one answer: <extra_id_0>"
    )
    assert mc.prompt(tokenizer, QUESTION) == expected
    assert mc.target(QUESTION) == "<extra_id_0> C"


def test_a_long_question_loses_its_beginning(tokenizer: object) -> None:
    words = ["river", "king"] * 300
    prompt = mc.prompt(tokenizer, {**QUESTION, "question": " ".join(words) + " ?"})
    assert mc.length(tokenizer, prompt) <= mc.MAXIMUM_PROMPT_LENGTH
    assert mc.length(tokenizer, prompt) >= mc.MAXIMUM_PROMPT_LENGTH - 3
    assert prompt.endswith("river king ? options: (A) one (B) two (C) three (D) the old one answer: <extra_id_0>")


@pytest.mark.parametrize("words", [346, 347, 360])
def test_options_that_fill_the_prompt_leave_the_question_s_tail(tokenizer: object, words: int) -> None:
    """Like the reference, which slices with the number of remaining tokens, even if it is not positive."""
    options = {**QUESTION["options"], "D": " ".join(["river"] * words)}
    text = "the first king of the city and one old queen of the island ?"
    listed = " ".join(f"({letter}) {option}" for letter, option in options.items())
    empty = f"question:  options: {listed} answer: <extra_id_0>"
    left = mc.MAXIMUM_PROMPT_LENGTH - mc.length(tokenizer, empty)
    assert left <= 0
    kept = tokenizer.decode(tokenizer(text)["input_ids"][-left:], skip_special_tokens=True)
    prompt = mc.prompt(tokenizer, {**QUESTION, "question": text, "options": options})
    assert prompt == f"question: {kept.strip()} options: {listed} answer: <extra_id_0>"
    assert (kept == "") == (-left >= len(tokenizer(text)["input_ids"]))


def test_the_letter_is_found_in_any_format(tokenizer: object) -> None:
    """The letter follows the sentinel. A target that was cut before its letter is refused."""
    for form in (None, "{target}", "the answer is {target} of one"):
        tokens = tokenizer(mc.target(QUESTION, form))["input_ids"]
        (place,) = mc.letter_places(tokenizer, [tokens])
        assert tokens[place] == mc.choice_tokens(tokenizer, "ABCD")[2]
        assert form != "{target}" or place == 1
    with pytest.raises(UserError, match="--target_maxlength cuts the letter off"):
        mc.letter_places(tokenizer, [tokens[:place]])


def test_permutations_keep_the_answer_s_text() -> None:
    for kind, count in (("single", 1), ("cyclic", 4), ("all", 24)):
        asked = mc.permutations(QUESTION, kind)
        assert len({tuple(order["options"].values()) for order in asked}) == count
        assert all(order["options"][order["answer"]] == "three" for order in asked)
        assert [order["is_original"] for order in asked] == [True] + [False] * (count - 1)
        assert {order["uid"] for order in asked} == {asked[0]["uid"]}
    second = mc.permutations(QUESTION, "cyclic")[1]  # the reference rotates to the right
    assert list(second["options"].values()) == ["the old one", "one", "two", "three"]


def test_options_of_the_same_text_do_not_confuse_the_answer() -> None:
    question = {**QUESTION, "options": {"A": "one", "B": "one", "C": "two", "D": "three"}, "answer": "B"}
    for order in mc.permutations(question, "all"):
        assert order["options"][order["answer"]] == "one"
    probabilities, _ = mc.marginalize(
        [{"metadata": question, "choice_logits": {"A": 1.0, "B": 3.0, "C": 0.0, "D": 0.0}}]
    )
    assert probabilities["A"] == probabilities["B"]


@pytest.mark.parametrize("kind", ["single", "cyclic", "all"])
def test_debiased_probabilities_are_means_over_the_permutations(kind: str) -> None:
    question = make_questions(1)[0]
    asked = mc.permutations(question, kind)
    logits = [[math.sin(7 * place + letter) * 3 for letter in range(4)] for place in range(len(asked))]
    predictions = [
        {"metadata": order, "answers": [order["answer"]], "choice_logits": dict(zip("ABCD", row))}
        for order, row in zip(asked, logits)
    ]
    reduced = mc.reduce_permutations(predictions)
    for letter, text in question["options"].items():
        total = 0.0
        for order, row in zip(asked, logits):
            at = next(other for other, words in order["options"].items() if words == text)
            total += math.exp(row["ABCD".index(at)]) / sum(map(math.exp, row))
        assert reduced["choice_probs"][letter] == pytest.approx(total / len(asked), abs=1e-9)
        assert len(reduced["all_probs"][text]) == len(asked)
    assert reduced["generation"] == max("ABCD", key=reduced["choice_probs"].get)
    assert reduced["metadata"] == asked[0] and len(reduced["permutations"]) == len(asked)


def test_a_reader_that_likes_a_letter_gains_nothing_by_it() -> None:
    asked = mc.permutations(QUESTION, "cyclic")
    liking = {"A": 9.0, "B": 0.0, "C": 0.0, "D": 0.0}
    predictions = []
    for order in asked:
        logits = dict(liking)
        logits[order["answer"]] += 0.1
        predictions.append({"metadata": order, "answers": [order["answer"]], "choice_logits": logits})
    assert mc.reduce_permutations(predictions)["generation"] == "C"


def test_bad_questions_are_named(tmp_path: Path) -> None:
    wrong = [
        (
            {"options": {"A": "one", "B": "two", "C": "three"}},
            "line 2: the field 'options' must have A, B, C, D, found A, B, C",
        ),
        ({"options": "one"}, "line 2: the field 'options' must have"),
        ({"options": {**QUESTION["options"], "B": 2}}, "line 2: the option B must be a text, found '2'"),
        ({"answer": "E"}, "line 2: the field 'answer' must be one of A, B, C, D, found 'E'"),
        ({"question": None}, "line 2: the field 'question' must be a text"),
    ]
    for change, message in wrong:
        path = write_lines(tmp_path / "questions.jsonl", [QUESTION, {**QUESTION, **change}])
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            mc.read_questions(path, 4)


def test_orders_are_all_different() -> None:
    assert sorted(orders(4, "all")) == sorted(itertools.permutations(range(4)))
    assert orders(3, "cyclic") == [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
