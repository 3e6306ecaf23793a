"""Written answers: which answer a text gives, and whether it is right."""

import re
import string
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherlm.catalog.answer_values import f1, normal_text
from teacherlm.catalog.answers import DEFAULT_RULES, Asked, compiled, gold_values, read_answer
from teacherlm.core.errors import UserError

YES_NO = Asked("letter", ("B",), ("True", "False"))
FOUR = Asked("letter", ("C",), ("Paris", "London", "New York", "York"))
NUMBER = Asked("number", ("72",))
TEXT = Asked("text", ("Barack Obama", "Obama"))

LETTERS_READ = [
    ("The answer is (B).", YES_NO, "B"),
    ("Bees have wings. So the answer is (B)", YES_NO, "B"),
    ("The answer is B", YES_NO, "B"),
    ("the answer is b)", YES_NO, "B"),
    ("The answer is (b).", YES_NO, "B"),
    ("The answer is **B**.", YES_NO, "B"),
    ("Answer: B", YES_NO, "B"),
    ("The answer is: option B.", YES_NO, "B"),
    (r"The answer is \boxed{B}.", YES_NO, "B"),
    ("The answer is （Ｂ）。", YES_NO, "B"),  # letters and brackets of full width
    ("The answer is (A)? No, bees fly. The answer is (B).", YES_NO, "B"),  # the last conclusion counts
    ("The answer is (A) or (B).", YES_NO, None),  # two answers
    ("The answer is (E).", YES_NO, None),  # no letter of a choice
    ("The answer is not (A).", YES_NO, None),
    ("The answer is (A), but (A) is wrong.", YES_NO, "A"),
    ("(B)", YES_NO, "B"),
    ("B", YES_NO, "B"),
    ("b.", YES_NO, "B"),
    ("B. False", YES_NO, "B"),
    ("It is (B), I think.", YES_NO, "B"),
    ("It is not (A). It is (B).", YES_NO, "B"),
    ("(A) is wrong, so it has to be (B).", YES_NO, "B"),
    ("Either (A) or (B) may be right.", YES_NO, None),
    ("A bee has wings.", YES_NO, None),  # an article
    ("Vitamin B helps here.", YES_NO, None),  # a letter in a sentence
    ("I would say false.", YES_NO, "B"),  # the text of a choice
    ("This is not true.", YES_NO, None),
    ("It is true and it is false.", YES_NO, None),
    ("I do not know.", YES_NO, None),
    ("", YES_NO, None),
    ("The capital is New York.", FOUR, "C"),  # York is inside of New York
    ("York is older than New York.", FOUR, None),
    ("In York, of course.", FOUR, "D"),
    ("The answer is New York.", FOUR, "C"),
    ("The answer is Yorkshire.", FOUR, None),  # York is a part of a word
]

NUMBERS_READ = [
    ("48 / 2 = 24 and 48 + 24 = 72. The answer is 72.", "72"),
    ("#### 72", "72"),
    ("48/2 = <<48/2=24>>24\n#### 72", "72"),
    ("The answer is $72.", "72"),
    ("The answer is 72 clips.", "72"),
    ("The answer is 72%.", "72"),
    ("The answer is 1,072.", "1072"),
    ("The answer is $1,234,567.50.", "2469135/2"),
    ("The answer is 1 072.", "1072"),  # a no-break space between thousands
    ("The answer is 3/4.", "3/4"),
    ("The answer is 1 3/4 cups.", "7/4"),
    ("The answer is 1½.", "3/2"),
    ("The answer is -5 degrees.", "-5"),
    ("The answer is −5.", "-5"),  # a minus sign
    ("The answer is 0.50.", "1/2"),
    ("The answer is .5", "1/2"),
    ("The answer is 7.2e1.", "72"),
    ("The answer is 7.2 × 10^1.", "72"),
    ("The answer is 2.5 million people.", "2500000"),
    ("The answer is 12 + 60 = 72.", "72"),  # an equation: what it is equal to
    ("The answer is x = 72.", "72"),
    (r"The answer is $\boxed{72}$.", "72"),
    (r"The answer is \boxed{\frac{3}{4}}.", "3/4"),
    (r"The answer is $1\dfrac{3}{4}$.", "7/4"),
    (r"The answer is \$1{,}072.", "1072"),
    ("The answer is **72**.", "72"),
    ("The answer is ٧٢.", "72"),  # Arabic digits
    ("The answer is ７２.", "72"),  # digits of full width
    ("The answer is 70. No: the answer is 72.", "72"),
    ("She sold 48 and then 24, so 72", "72"),  # no conclusion: the last number
    ("72", "72"),
    ("The answer is 70 or 72.", None),  # two answers
    ("The answer is between 70 and 72.", None),
    ("The answer is not 72.", None),
    ("The answer is unknown, but 72 is near.", "72"),
    ("The answer is unknown.", None),
    ("I do not know.", None),
    ("Room B72", None),  # a number inside of a word
    ("", None),
]

TEXTS_READ = [
    ("The answer is Barack Obama.", "barack obama"),
    ("the answer is: the Obama", "obama"),
    ("Answer: Barack  OBAMA!", "barack obama"),
    ("The answer is Barack Obama. He was born in Hawaii.", "barack obama"),
    ("The answer is Dr. Who. He has a box.", "dr who"),
    ("The answer is Washington D.C.", "washington dc"),
    ("The answer is J. R. R. Tolkien. He wrote it.", "j r r tolkien"),
    ("The answer is Bush. No: the answer is Obama.", "obama"),
    ("The answer is “Barack Obama”.", "barack obama"),
    ("The answer is **Barack Obama**", "barack obama"),
    (r"The answer is $\boxed{\text{Barack Obama}}$.", "barack obama"),
    ("Barack Obama\n\nQ: Who was next?", "barack obama"),  # no conclusion: the first line
    ("The answer is 3.5 miles. That is far.", "35 miles"),
    ("The answer is Café Müller.", "café müller"),
    ("The answer is the A.", "a"),  # nothing is left without articles
    ("The answer is “%”.", "%"),  # nothing is left without punctuation
    ("", None),
    ("...", None),
]


NEVER_WRONG = [
    ("Choose the best answer: (A) True (B) False. I think (B).", YES_NO, "B"),
    ("The answer is (A) True or (B) False.", YES_NO, ""),  # echoed choices
    ("Answer: (A) True\n(B) False\nI think it is (B)", YES_NO, "B"),
    ("The answer is (A)? Let me check. No, the answer is not (A).", YES_NO, "B"),
    ("The answer is (A). Wait. On reflection the answer is clearly (B).", YES_NO, "B"),
    ("The answer is (A). Hmm, actually it is (B).", YES_NO, "B"),
    ("**Answer:** A dog has four legs, so the statement is **False**.", YES_NO, "B"),
    ("The answer is A-level", YES_NO, ""),
    ("If the answer is (A), bees would be fish. Hence it has to be (B).", YES_NO, "B"),
    ("The answer is (A) or possibly (B).", YES_NO, ""),
    ("The answer is (A) – no, sorry: (B).", YES_NO, "B"),
    ("The answer is C major", FOUR, ""),
    ("C. elegans is a nematode. It is blue.", FOUR, ""),
    ("Copyright (c) 2019", FOUR, ""),
    ("P(B) = 0.2 is small", YES_NO, ""),
    ("f(a) > 0, thus it is green", YES_NO, ""),
    *((f"{said}", YES_NO, "B") for said in ("It cannot be (A).", "We can rule out (A).", "(A) does not make sense")),
    *(
        (f"{said}", YES_NO, "B")
        for said in ("Is it (A)? No.", "All except (A)", "Let us first consider (A). Bees have")
    ),
    *((f"This statement {said}.", YES_NO, "B") for said in ("cannot be true", "is not entirely true")),
    *((f"It is {said} true.", YES_NO, "B") for said in ("far from", "no longer", "unlikely to be", "partly")),
    ("It would be true if whales were fish, but they are not.", YES_NO, "B"),
    ("There is no doubt.", Asked("letter", ("A",), ("yes", "no")), "A"),
    ("It is 10².", Asked("letter", ("B",), ("10", "10²")), "B"),
    ("It is .5", Asked("letter", ("B",), ("5", "0.5")), "B"),
    ("It is - 3", Asked("letter", ("B",), ("3", "-3")), "B"),
    ("It is 5 %", Asked("letter", ("A",), ("5%", "5")), "A"),
    ("(B).\n\nQuestion: Do cows fly?\nAnswer: (A)", YES_NO, "B"),
    *(
        (f"The answer is {said}", NUMBER, "72")
        for said in ("72 = 6 * 12", "72 (= 48 + 24)", "48 + 24, which is 72", "50% of 144, which is 72")
    ),
    ("Answer:\n1. She sold 48 clips.\nIn total 72", NUMBER, "72"),
    ("Answer:\n\nStep 1: 48/2 = 24\n24 + 48 = 72", NUMBER, "72"),
    ("#### 72\n\nQuestion: How many?\nAnswer: 5", NUMBER, "72"),
    ("72. Let me know if you have 1 more question!", NUMBER, "72"),
    *(
        (f"{before} {said}.", NUMBER, "")
        for before in ("The answer is", "It comes to")
        for said in ("$20k", "$1.5M", "3 hundred", r"\sqrt{2}", "√2", "3π", "3x + 2", r"\frac{a}{2}", "x = 2 or x = -3")
    ),
    *(
        (f"{before} {said}.", NUMBER, "")
        for before in ("The answer is", "It comes to")
        for said in ("2, 3 and 5", "12%-15%", "$10 - $12", "10~12", "3:30 pm", "2 hours 30 minutes", "5 feet 10 inches")
    ),
]
"""Texts that were read wrongly -> the right answer. None is accepted as well."""
READ_NOW = [
    ("The answer is 72 because 12 + 60 = 72.", NUMBER, "72"),
    (r"The answer is 2.5 \cdot 10^{6}.", NUMBER, "2500000"),
    (r"The answer is 10^{-3}.", NUMBER, "1/1000"),
    ("The answer is minus 5.", NUMBER, "-5"),
    ("The answer is Brown v. Board of Education", TEXT, "brown v board of education"),
    ("The answer is Jan. 5, 1990", TEXT, "jan 5 1990"),
    ("The answer is Yahoo! Inc.", TEXT, "yahoo inc"),
    ("The answer is 10 a.m. Monday", TEXT, "10 am monday"),
    ("Paris is the answer: it is big", TEXT, "paris"),
]


@pytest.mark.parametrize(("text", "asked", "right"), NEVER_WRONG)
def test_a_text_is_read_rightly_or_not_at_all(text: str, asked: Asked, right: str) -> None:
    assert read_answer(text, asked) in (right, None)


@pytest.mark.parametrize(("text", "asked", "expected"), READ_NOW)
def test_a_text_in_another_form_is_read(text: str, asked: Asked, expected: str) -> None:
    assert read_answer(text, asked) == expected


@pytest.mark.parametrize(("text", "asked", "expected"), LETTERS_READ)
def test_the_letter_of_a_choice_is_read(text: str, asked: Asked, expected: str | None) -> None:
    assert read_answer(text, asked) == expected


@pytest.mark.parametrize(("text", "expected"), NUMBERS_READ)
def test_a_number_is_read(text: str, expected: str | None) -> None:
    assert read_answer(text, NUMBER) == expected


@pytest.mark.parametrize(("text", "expected"), TEXTS_READ)
def test_a_text_is_read(text: str, expected: str | None) -> None:
    assert read_answer(text, TEXT) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked("number", ("1,072", "$1072")), ("1072",)),
        (Asked("text", ("The Beatles", "Beatles!", "A")), ("beatles", "a")),
        (Asked("letter", ("(B)",), ("yes", "no")), ("B",)),
    ],
)
def test_right_answers_have_the_same_form(asked: Asked, expected: tuple[str, ...]) -> None:
    assert gold_values(asked) == expected


@pytest.mark.parametrize("gold", ["", "many", "3 or 4", "9" * 500])
def test_a_right_answer_that_is_no_number_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        gold_values(Asked("number", (gold,)))


# ------------------------------------------------------------------------------------------ numbers, written in any way

numbers = st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=1000)
whole = st.integers(min_value=-(10**15), max_value=10**15)
decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=3)


def number_read(text: str) -> str | None:
    return read_answer(f"So it is clear. The answer is {text}.", NUMBER)


@given(whole)
def test_a_whole_number_is_read_back_however_it_is_written(number: int) -> None:
    size, sign = abs(number), "-" if number < 0 else ""
    forms = [f"{number}", f"{number:,}", f"{sign}${size:,}", f"{number} apples", f"{number:,}%", f"x = {number}"]
    forms += [f"{sign}{size:,}".replace(",", " "), f"{number}.0", f"**{number}**"]
    forms += [f"{number}".translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩"))]
    assert {form: number_read(form) for form in forms} == dict.fromkeys(forms, str(number))


@given(numbers)
def test_a_fraction_is_read_back(number: Fraction) -> None:
    assert number_read(str(number)) == str(number)
    if number > 1 and number.denominator > 1:
        mixed = f"{int(number)} {number - int(number)}"
        assert number_read(mixed) == str(number)


@given(decimals)
def test_a_decimal_number_is_read_back(number: object) -> None:
    assert number_read(f"{number:f}") == str(Fraction(str(number)))


@given(
    st.text(max_size=200),
    st.sampled_from([YES_NO, FOUR, NUMBER, TEXT]),
    st.sampled_from(["", "The answer is ", "#### ", "(A) ", "½ ", "1e999999 ", "1/0 ", "is wrong "]),
)
def test_no_text_is_an_error(text: str, asked: Asked, before: str) -> None:
    found = read_answer(before + text, asked)
    assert found is None or (isinstance(found, str) and found)


@given(st.text(max_size=60), st.text(max_size=60))
def test_an_answer_is_read_the_same_after_more_text(before: str, answer: str) -> None:
    """Conclusions are looked for at the end of a text."""
    said = f"\nThe answer is {answer}"
    if "answer" not in answer.casefold() and "####" not in answer:
        assert read_answer(before + said, TEXT) in (read_answer(said, TEXT), read_answer(before, TEXT))


# ------------------------------------------------------------------------------- SQuAD, after the official evaluation


def squad_normal(text: str) -> str:
    """The rules of the official evaluation (Rajpurkar et al. 2016): lower case, punctuation, articles, blanks."""
    text = text.lower()
    text = "".join(character for character in text if character not in set(string.punctuation))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def squad_f1(answer: str, gold: str) -> float:
    ours, theirs = squad_normal(answer).split(), squad_normal(gold).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


plain_words = st.text(alphabet="aAbt hen.,-'!\n", max_size=30)


@given(plain_words)
def test_texts_are_normalised_as_in_squad(text: str) -> None:
    assert normal_text(text) == squad_normal(text)


@given(plain_words, st.lists(plain_words, min_size=1, max_size=4))
def test_f1_is_the_best_of_squads_over_the_right_answers(answer: str, golds: list[str]) -> None:
    expected = max(squad_f1(answer, gold) for gold in golds)
    assert f1(normal_text(answer), [normal_text(gold) for gold in golds]) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ patterns


def test_a_benchmarks_own_pattern_finds_the_answer() -> None:
    asked = Asked("number", ("72",), (), (r"total of (\d+)", "last_number"))
    assert read_answer("A total of 3, a total of 72 in 8 days.", asked) == "72"  # the last match
    assert read_answer("In 8 days.", asked) == "8"
    named = Asked("text", ("x",), (), (r"(?:so|thus) (?P<answer>\w+)",))
    assert read_answer("So what? thus Rome", named) == "rome"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "nor a valid pattern"),
        ("[0-9]+", "a pattern with a group"),
        ("(x{4000000000})", "a pattern must not have {4000000000"),
        ("(?R)?(a)", "a pattern must not have (?R"),
        ("((?1)b|a)", "a pattern must not have (?1"),
        ("(a)" * 200, "a pattern must not have more than 500 characters"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        compiled(pattern)


def test_a_pattern_that_takes_too_long_is_ended_and_named() -> None:
    asked = Asked("text", ("x",), (), ("(a+)+$",), "town.yaml")
    begun = time.monotonic()
    with pytest.raises(UserError, match=re.escape("town.yaml: extract: the pattern '(a+)+$' takes longer than 1 s")):
        read_answer("a" * 5000 + "!", asked)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("asked", [YES_NO, FOUR, NUMBER, TEXT])
@pytest.mark.parametrize("part", ["a", "1", " ", "1,", "(A) ", "answer is ", "####", "not ", "1/", "A, ", "½", ".\n"])
def test_a_long_text_is_read_in_a_moment(part: str, asked: Asked) -> None:
    begun = time.monotonic()
    read_answer(part * (20_000 // len(part)), asked)
    assert time.monotonic() - begun < 10


def test_every_kind_of_answer_has_rules() -> None:
    assert set(DEFAULT_RULES) == {"letter", "number", "text"}
