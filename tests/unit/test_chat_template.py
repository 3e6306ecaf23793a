"""Conversations: their tokens are those of apply_chat_template, and thinking is separated from the answer."""

from pathlib import Path

import pytest
from support.chat_models import TEMPLATES, with_template
from support.files import sample_claims
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.catalog.models import Model
from teacherlm.core.errors import UserError
from teacherlm.enhance.chat import explanation_of, is_chat
from teacherlm.runtime.chat_template import ChatTemplate
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_tokenizer

EXAMPLES = (("user", "Is snow white?"), ("assistant", "Yes."), ("user", "Is coal?"))


def as_dicts(messages: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def library_tokens(folder: Path, messages: tuple[tuple[str, str], ...]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(as_dicts(messages), add_generation_prompt=True)["input_ids"]


def chat_template(folder: Path) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(folder), folder)


def test_tokens_of_real_weights_are_those_of_the_library(smollm2: Path) -> None:
    template, library = chat_template(smollm2), AutoTokenizer.from_pretrained(smollm2)
    for messages in (EXAMPLES[-1:], EXAMPLES, (("system", "Be brief."), *EXAMPLES)):
        found = template.encode(messages)
        assert found == library.apply_chat_template(as_dicts(messages), add_generation_prompt=True)["input_ids"]
        assert found.count(library.convert_tokens_to_ids("<|im_start|>")) > len(messages)


@pytest.mark.parametrize("kind", ["with BOS", "without BOS", "with a switch for thinking", "that opens the thinking"])
def test_the_engine_s_tokens_are_those_of_the_library(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATES[kind])
    engine = TransformersEngine(folder, "float32", Sampling(4, 0, 1.0))
    row = engine.row_of(Prompt("cot_text", 0, 0, "", 0, EXAMPLES))
    assert row.tokens == library_tokens(folder, EXAMPLES)
    begins = {"with BOS": 1}.get(kind, 0)
    assert row.tokens[:begins] == [engine.tokenizer.bos_token_id] * begins


@pytest.mark.parametrize("kind", ["that refuses a system message", "that leaves out a system message"])
def test_a_system_message_that_the_template_does_not_take_begins_the_user_s(
    tiny_llama: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATES[kind])
    template = chat_template(folder)
    for _ in range(2):
        found = template.render((("system", "Be brief."), *EXAMPLES))
    assert found == "[user]Be brief.\n\nIs snow white?</s>[assistant]Yes.</s>[user]Is coal?</s>[assistant]"
    assert capsys.readouterr().out.count("takes no system message; its text begins the first user's message") == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only on Sundays') }}", "only on Sundays"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% for %}", "fails"),
        ("hello", "leaves out the user's message"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(
    tiny_llama: Path, tmp_path: Path, template: str, words: str
) -> None:
    folder = with_template(tiny_llama, tmp_path / "model", template)
    with pytest.raises(UserError, match=words) as raised:
        chat_template(folder)
    assert "\n" not in str(raised.value)
    assert "--chat false" in str(raised.value)


def test_texts_are_those_of_generate(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATES["with BOS"])
    engine = TransformersEngine(folder, "float32", Sampling(12, 0, 1.0), batch_size=3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    claims = [claim["sentence"] for claim in sample_claims()][:5]
    asked = [Prompt("cot_text", number, 0, "", 0, (("user", claim),)) for number, claim in enumerate(claims)]
    made = list(engine.complete(iter(asked)))
    assert len(made) == 5
    for completion in made:
        ids = tokenizer.apply_chat_template(
            as_dicts(completion.prompt.messages), add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.ended == ("length" if len(expected) == 12 else "stop")


def test_thinking_that_the_template_opens_is_thinking(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATES["that opens the thinking"])
    engine = TransformersEngine(folder, "float32", Sampling(6, 0, 1.0))
    (completion,) = engine.complete(iter([Prompt("cot_text", 0, 0, "", 0, EXAMPLES)]))
    assert completion.text.startswith("<think>")
    failure = explanation_of(completion, 6)
    assert isinstance(failure, Failure)
    assert failure.reason == "the thinking did not end within 6 tokens"


def test_marks_that_are_special_tokens_stay(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = TEMPLATES["without BOS"]
    template = ChatTemplate(tokenizer, tiny_llama)
    prompt = template.encode(EXAMPLES)
    new = tokenizer("<think> The moon</think> Snow.</s>", add_special_tokens=False)["input_ids"]
    assert template.decode(prompt, new) == "<think> The moon</think> Snow."


PROMPT = Prompt("cot_text", 0, 0, "Why?", 0, (("user", "Why?"),))


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("Because.\n", "", (" Because.", "")),
        ("<think>\nHm.\n</think>\n\nBecause.", "", (" Because.", "Hm.")),
        ("Hm.</think>Because.", "", (" Because.", "Hm.")),
        ("Because.", "Hm.", (" Because.", "Hm.")),
        ("The mark <think> is a text.", "", (" The mark <think> is a text.", "")),
        ("<think></think>", "", ("", "")),
    ],
)
def test_thinking_is_separated_from_the_answer(text: str, thinking: str, expected: tuple[str, str]) -> None:
    found = explanation_of(Completion(PROMPT, text, 3, 9, "stop", thinking), 9)
    assert (found.text, found.thinking) == expected


@pytest.mark.parametrize(
    ("text", "thinking", "ended", "words"),
    [
        ("<think>Hm. So", "", "length", "the thinking did not end within 9 tokens"),
        ("", "Hm. So", "length", "the thinking did not end within 9 tokens"),
        ("<think>Hm. So", "", "stop", "the thinking did not end"),
    ],
)
def test_thinking_without_an_end_is_no_explanation(text: str, thinking: str, ended: str, words: str) -> None:
    assert explanation_of(Completion(PROMPT, text, 3, 9, ended, thinking), 9) == Failure(PROMPT, words)


def test_auto_asks_whether_there_is_a_template(smollm2: Path, tiny_llama: Path) -> None:
    with_one, without = (Model(name="m", path=str(folder)) for folder in (smollm2, tiny_llama))
    server, field = Model(name="m", server="http://h:1/m"), Model(name="m", explanations="why")
    assert [is_chat("auto", model) for model in (with_one, without, server, field)] == [True, False, False, False]
    assert [is_chat("true", model) for model in (with_one, server, field)] == [True, True, False]
    assert not is_chat("false", with_one)
    with pytest.raises(UserError, match="has no chat template; use --chat false"):
        is_chat("true", without)
