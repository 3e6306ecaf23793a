"""The prompts, byte for byte. Models are trained and tested with these texts, so results depend on every byte."""

from hypothesis import given
from hypothesis import strategies as st

from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.prompts import Question, remove_duplicated_block
from teacherlm.catalog.prompts import test_context as context_at_test  # otherwise pytest would take it for a test

SENTENCE = "Marlboro used iconic imagery to promote its brand."
CLAIM = Question(f"Determine the correctness of the following sentence. {SENTENCE}", ("True", "False"), gold=0)
TEXT = (
    "Q: Determine the correctness of the following sentence. Marlboro used iconic imagery to promote its brand. "
    "(A) True (B) False A: The answer is (A)."
)

# The rule is only about spaces, not about tabs, line breaks and no-break spaces.
texts = st.text(alphabet=" ab.\t\n\u00a0\u3000", max_size=24)


def test_the_four_prompts_are_those_of_the_paper() -> None:
    assert load_prompts().prompt_fields(CLAIM, {}, "") == {
        "text": TEXT,
        "cot_text": TEXT + " Let's think step by step.",
        "error_text": TEXT + " The common mistakes are:",
        "fundamental_text": TEXT + " The fundamental of this question is:",
    }


def test_the_context_at_test_time_ends_before_the_letter() -> None:
    assert context_at_test(CLAIM.with_choices) + "A)." == TEXT


def test_a_preamble_stands_before_the_question() -> None:
    preamble = "The following are multiple choice questions (with answers) about college physics. "
    asked = Question("What falls?", ("An apple", "A star", "Rain", "Night"), gold=2, preamble=preamble)
    expected = preamble + "Q: What falls? (A) An apple (B) A star (C) Rain (D) Night A: The answer is ("
    assert context_at_test(asked.with_choices, asked.preamble) == expected
    assert asked.text == expected + "C)."


def test_the_fields_of_a_test_set_are_the_references() -> None:
    assert CLAIM.with_choices.endswith(" promote its brand. (A) True (B) False")
    assert CLAIM.answer == "(A)"


def test_only_what_the_teacher_reads_is_cleaned_of_double_blanks() -> None:
    fields = load_prompts().prompt_fields(Question("Two  blanks", ("True", "False"), gold=1), {}, "")
    assert fields["text"] == "Q: Two  blanks (A) True (B) False A: The answer is (B)."
    assert fields["cot_text"] == "Q: Two blanks (A) True (B) False A: The answer is (B). Let's think step by step."


def test_the_corner_cases_of_remove_duplicated_block() -> None:
    cases = {
        "": "",
        " ": "",
        "   ": "",
        "a b": "a b",
        "a  b": "a b",
        "a   b": "a  b",
        "a    b": "a  b",
        " a": " a",
        "  a": " a",
        " a ": "a",
        "a \n": "a \n",
        "a\n ": "a\n",
        "a \t": "a \t",
        "a\u00a0\u00a0b": "a\u00a0\u00a0b",
    }
    assert {text: remove_duplicated_block(text) for text in cases} == cases


def halved_runs(text: str) -> str:
    """The rule in another form: n consecutive spaces become (n + 1) // 2; a text that ends with a space is stripped."""
    found, run = "", 0
    for character in text + "\0":
        if character == " ":
            run += 1
            continue
        found += " " * ((run + 1) // 2) + character
        run = 0
    found = found[:-1]
    if found[-1:] == " ":
        while found[-1:] == " ":
            found = found[:-1]
        while found[:1] == " ":
            found = found[1:]
    return found


@given(texts)
def test_runs_of_blanks_are_halved_and_a_trailing_one_costs_both_ends(text: str) -> None:
    assert remove_duplicated_block(text) == halved_runs(text)


def training_texts(cot: str, error: str, fundamental: str) -> dict[str, str]:
    explanations = {"cot": cot, "error": error, "fundamental": fundamental}
    return load_prompts().training_texts(load_prompts().prompt_fields(CLAIM, {}, ""), explanations, "")


def test_full_tail_has_all_three_explanations_in_the_order_of_the_papers_figure() -> None:
    made = training_texts(" Step one.", " Mixing up.", " Brands.")
    assert made["full_tail"] == (
        TEXT
        + " The fundamental of this question is: Brands."
        + " Let's think step by step. Step one."
        + " The common mistakes are: Mixing up."
    )
    assert made["cot_tail"] == TEXT + " Let's think step by step. Step one."
    assert made["error_tail"] == TEXT + " The common mistakes are: Mixing up."


def test_full_tail_is_cleaned_once_at_the_end() -> None:
    made = training_texts(" ", "  x   ", "")
    ending = " The fundamental of this question is: Let's think step by step. The common mistakes are: x"
    assert made["full_tail"] == TEXT + ending
    assert made["cot_tail"] == TEXT + " Let's think step by step."


def test_an_explanation_can_stand_before_the_answer() -> None:
    start = TEXT.removesuffix(" The answer is (A).")
    assert training_texts("It did.", "", "")["cot_first"] == f"{start} It did. The answer is (A)."
