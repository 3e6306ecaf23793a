"""A chat student's conversations: their tokens are the library's, and the loss is on the assistant's turn."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.chat_students import QWEN3, TEMPLATES, TOLD, chat_tokenizer, library_tokens
from transformers import AutoTokenizer

from teacherlm.catalog.chat_students import RECORD, chat_of, difference, is_recorded, with_template, write_record
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.prompts import Question
from teacherlm.catalog.turns import split_turns
from teacherlm.core.errors import UserError
from teacherlm.finetune.chat_samples import encode_conversations
from teacherlm.finetune.collators import NO_LOSS, next_tokens
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.samples import tokenize
from teacherlm.runtime.chat_student import ChatStudent

EXPLANATIONS = [" Snow reflects  light. It is\ncold. ", " Coal A: is a rock.", "雪 is white — 100%."]
QUESTIONS = [
    Question("Is snow white?", ("yes", "no"), 0),
    Question("Who said A: coal is white?", ("nobody", "a miner", ""), 1),
    Question("Is it so", ("no", "yes"), 1, "The following is about snow. "),
]
USERS = [
    "Is snow white? (A) yes (B) no",
    "Who said A: coal is white? (A) nobody (B) a miner (C)",
    "The following is about snow. Is it so (A) no (B) yes",
]


def rows() -> list[dict[str, str]]:
    """Samples with their training texts, as post-processing writes them."""
    prompts = load_prompts()
    found = []
    for question, explanation in zip(QUESTIONS, EXPLANATIONS):
        record = prompts.prompt_fields(question, {}, "")
        record["all"] = record["cot_text"] + explanation
        found.append({**record, "cot": explanation, **prompts.training_texts(record, {"cot": explanation}, "")})
    return found


def encoded(tokenizer: Any, folder: Path, field: str, samples: list[dict], length: int = 2048, **how: Any) -> Any:
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    student = ChatStudent(tokenizer, folder)
    fields = parse_fields(field)
    completion = how.pop("completion", False)
    return tokenize(Dataset.from_dict(columns), tokenizer, fields, length, completion, 0, chat=student, **how)[0]


def learnt(sample: dict) -> list[int]:
    """The tokens with a loss."""
    return [label for label in next_tokens(sample) if label != NO_LOSS]


@pytest.mark.parametrize("field", ["text", "cot_tail", "cot_first", "all"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_tokens_and_loss_are_those_of_the_library(smollm2: Path, family: str, field: str) -> None:
    tokenizer, samples = chat_tokenizer(smollm2, family), rows()
    found = encoded(tokenizer, smollm2, field, samples)
    for sample, row, question, user in zip(found, samples, QUESTIONS, USERS, strict=True):
        text = row[field]
        if field == "cot_first":
            choices = question.with_choices.rstrip()
            assistant = text[text.index(choices) + len(choices) + len(" A: ") :]
        else:
            assistant = text[text.rindex("The answer is (") :]
        ids, mask = library_tokens(tokenizer, family, user, assistant.strip())
        assert sample["input_ids"] == ids[: len(sample["input_ids"])]
        rest = tokenizer.decode(ids[len(sample["input_ids"]) :])
        assert rest == ("" if family in ("llama3", "mistral") else "\n")
        assert sum(mask[len(sample["input_ids"]) :]) == 0
        assert learnt(sample) == [token for token, one in zip(ids, mask) if one]
        assert sample["tokens"] == len(sample["input_ids"])


def test_tokens_of_the_real_template_are_those_of_the_library(smollm2: Path) -> None:
    tokenizer, samples = AutoTokenizer.from_pretrained(smollm2), rows()
    found = encoded(tokenizer, smollm2, "text", samples)
    for sample, user, question in zip(found, USERS, QUESTIONS, strict=True):
        turns = [{"role": "user", "content": user}]
        answer = {"role": "assistant", "content": f"The answer is {question.answer}."}
        whole = tokenizer.apply_chat_template([*turns, answer])["input_ids"]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert whole == [*sample["input_ids"], *tokenizer.encode("\n")]
        assert learnt(sample) == whole[len(asked) : -1]
        assert sample["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", TEMPLATES)
def test_asking_begins_the_conversation_that_was_learned(smollm2: Path, family: str) -> None:
    """The context of a letter is the beginning of the training tokens, up to the letter."""
    tokenizer, samples = chat_tokenizer(smollm2, family), rows()
    student = ChatStudent(tokenizer, smollm2)
    found = encoded(tokenizer, smollm2, "text", samples, completion=True)
    for sample, row, question in zip(found, samples, QUESTIONS, strict=True):
        user, written = split_turns(row["text"][: row["text"].rindex("(") + 1])
        context = student.tokens(student.asked([("user", user.strip())], written))
        assert sample["input_ids"][: sample["skipped"]] == context
        letter, *others = learnt(sample)
        assert tokenizer.decode(letter) == question.answer[1]
        assert tokenizer.decode(others[:-1]) == ")." and others[-1] == student.ends
        asked = student.tokens(student.asked([("user", user.strip())]))
        assert context[: len(asked)] == asked
        messages = [{"role": "user", "content": user.strip()}]
        library = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **TOLD.get(family, {}))
        assert asked == library["input_ids"]


@pytest.mark.parametrize("family", ["chatml", "mistral"])
def test_the_parts_are_those_of_the_text(smollm2: Path, family: str) -> None:
    """What the student writes before the letter belongs to the answer; the token that ends the turn, to the last."""
    tokenizer, samples = chat_tokenizer(smollm2, family), rows()
    for field, order in {"text": "a", "cot_tail": "ae", "cot_first": "ea"}.items():
        found = encoded(tokenizer, smollm2, field, samples, with_parts=True)
        for sample, row in zip(found, samples, strict=True):
            parts = "".join("qae"[part] for part in sample["parts"])
            assert len(parts) == len(sample["input_ids"])
            assert parts[: sample["skipped"]] == "q" * sample["skipped"]
            runs = "".join(part for place, part in enumerate(parts) if part != parts[place - 1 : place])
            assert runs == "q" + order
            answer = [token for token, part in zip(sample["input_ids"], parts) if part == "a"]
            said = tokenizer.decode(answer, skip_special_tokens=True).strip()
            letter = row["text"][row["text"].rindex("(") + 1]
            expected = f"{letter})." if field == "cot_first" else f"The answer is ({letter})."
            assert said == expected


def test_a_long_conversation_loses_the_left_of_its_turns_and_keeps_its_form(smollm2: Path) -> None:
    tokenizer, samples = chat_tokenizer(smollm2, "llama3"), rows()
    student = ChatStudent(tokenizer, smollm2)
    whole = encoded(tokenizer, smollm2, "cot_tail", samples, with_parts=True)[1]
    head = len(student.tokens(student.head))
    user = len(tokenizer.encode(USERS[1], add_special_tokens=False))
    for excess in (1, user - 1, user + 3):
        how = ("cot_tail", ["sample 2"], whole["tokens"] - excess, False, True)
        [cut] = encode_conversations(student, samples[1:2], *how)
        ids, opened = whole["input_ids"], whole["skipped"]
        middle = ids[head + user : opened]  # between the turns
        contents = [*ids[head : head + user], *ids[opened:-1]][excess:]
        kept_user = max(0, user - excess)
        expected = ids[:head] + contents[:kept_user] + middle + contents[kept_user:] + ids[-1:]
        assert cut.ids == expected
        assert cut.skipped == head + kept_user + len(middle)
        assert len(cut.parts) == len(expected) and cut.tokens == whole["tokens"]
    with pytest.raises(UserError, match=r"sample 1: the chat template alone writes .* increase --max_source_length"):
        encoded(tokenizer, smollm2, "cot_tail", samples, 9)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("cot", "Snow is white.", "it is not known where the question ends"),
        ("cot", "One A: two A: three", "it is not known where the question ends"),
        ("text", "Q:  A: The answer is (A).", "the user's turn is empty"),
        ("cot", "Q: Why? A: ", "the assistant's turn is empty"),
        ("cot", "Q: Is </think> a word? A: Yes </think>, it is.", "changes the text of a turn"),
    ],
)
def test_a_text_that_is_no_conversation_is_one_line(smollm2: Path, field: str, text: str, words: str) -> None:
    good = {"text": "Q: Is it? A: The answer is (A).", "cot": "Q: Why? A: Because."}
    with pytest.raises(UserError, match=words) as raised:
        encoded(chat_tokenizer(smollm2, "qwen3"), smollm2, field, [good, {**good, field: text}])
    assert str(raised.value).startswith("sample 2: ") and "\n" not in str(raised.value)


TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
OPEN = "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "fails"),
        ("{{ raise_exception('only on Sundays') }}", "only on Sundays"),
        ("hello", "leaves out the user's message"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the assistant's"),
        (TURN, "asks for an answer with another text"),  # without what opens an answer
        (TURN + OPEN + "{% if add_generation_prompt %}<think>\n{% endif %}", "asks for an answer with another text"),
        (TURN.replace("<|im_end|>", " ") + OPEN, "writes no special token after the assistant's turn"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(smollm2: Path, template: str, words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=words) as raised:
        ChatStudent(tokenizer, smollm2)
    assert "\n" not in str(raised.value) and "--chat false" in str(raised.value)


def test_tokens_that_do_not_begin_with_those_that_ask_are_refused(smollm2: Path) -> None:
    """A template without anything between the turns: the last word of one and the first of the other are a token."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if loop.index == 2 }}{% endfor %}"
    assert len(tokenizer.encode("Weather")) == 1
    with pytest.raises(UserError, match="sample 1: --chat: the tokens of the conversation do not begin with"):
        encoded(tokenizer, smollm2, "cot", [{"cot": "Q: Wea A: ther is fine."}])
    tokenizer.chat_template = QWEN3  # this tokenizer makes "\n", "\n", "The" of what ends with the token "\n\n"
    with pytest.raises(UserError, match="the tokens that ask for an answer do not begin a conversation"):
        ChatStudent(tokenizer, smollm2)


def test_a_date_in_a_template_is_always_the_same_day(smollm2: Path) -> None:
    student = ChatStudent(chat_tokenizer(smollm2, "llama3"), smollm2)
    assert "Today Date: 26 Jul 2024" in student.asked([("user", "Why?")])


def test_examples_in_one_text_keep_their_marks() -> None:
    example = "On snow. Q: Is it? (A) a (B) b A: The answer is (A).\n\n"
    question = "On snow. Q: Why? (A) c (B) d A: The answer is ("
    assert split_turns(question) == ("On snow. Why? (A) c (B) d", "The answer is (")
    assert split_turns(example + question) == (
        (example + question).removesuffix(" A: The answer is ("),
        "The answer is (",
    )
    assert split_turns("no mark") is None


def test_a_checkpoint_says_how_it_was_trained(smollm2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    assert [chat_of(smollm2, chosen) for chosen in ("auto", "true", "false")] == [False, True, False]
    assert [with_template(folder, "auto") for folder in (smollm2, tiny_llama)] == [True, False]
    with pytest.raises(UserError, match=r"--chat true: the tokenizer in .* has no chat template"):
        chat_of(tiny_llama, "true")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (smollm2 / name).is_file():
            (tmp_path / name).write_bytes((smollm2 / name).read_bytes())
    (tmp_path / "trainer_state.json").write_text("{}")
    assert "was trained on plain text" in difference(tmp_path, True) and not difference(tmp_path, False)
    write_record(tmp_path)
    assert is_recorded(tmp_path) and chat_of(tmp_path, "auto") and not chat_of(tmp_path, "false")
    assert "was trained as a chat student" in difference(tmp_path, False) and not difference(tmp_path, True)
    for said in ("[]", '{"chat": 3}', "{"):
        (tmp_path / RECORD).write_text(said)
        with pytest.raises(UserError, match=RECORD):
            chat_of(tmp_path, "auto")
