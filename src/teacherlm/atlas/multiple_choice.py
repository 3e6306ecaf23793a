"""Multiple-choice questions: prompts, permutations, and averages over permutations (Izacard et al. 2022, section 4.3).

A question is a record {"question", "options": {"A": text, ...}, "answer": letter, "dataset"}. It can be asked in
several orders of its options. Averaging over the orders removes a reader's preference for a letter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas.reader import IGNORED
from teacherlm.catalog.orders import orders
from teacherlm.catalog.prompts import LETTERS
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.terminal import shown

MAXIMUM_PROMPT_LENGTH = 356
"""Maximum number of tokens in a prompt, as in the reference. The question of a longer prompt loses its beginning."""

SENTINEL = "<extra_id_0>"
"""T5's first sentinel token. It marks the gap that the reader fills with a letter, as in T5's pretraining."""


def read_questions(path: Path, n_options: int) -> list[Record]:
    """The questions in a JSON lines file.

    Raises:
        UserError: a field is missing or invalid; the message names file, line and field.
    """
    return [checked(question, f"{path}, line {number}", n_options) for number, question in read_records(path)]


def checked(question: Record, where: str, n_options: int) -> Record:
    letters = LETTERS[:n_options]
    options = question.get("options")
    if not isinstance(question.get("question"), str):
        raise UserError(f"{where}: the field 'question' must be a text, found {shown(question.get('question'))}")
    if not isinstance(options, dict) or sorted(options) != list(letters):
        found = ", ".join(options) if isinstance(options, dict) else shown(options)
        raise UserError(f"{where}: the field 'options' must have {', '.join(letters)}, found {found}")
    for letter, text in options.items():
        if not isinstance(text, str):
            raise UserError(f"{where}: the option {letter} must be a text, found {shown(text)}")
    if question.get("answer") not in options:
        raise UserError(
            f"{where}: the field 'answer' must be one of {', '.join(letters)}, found {shown(question.get('answer'))}"
        )
    return question


def permutations(question: Record, kind: str) -> list[Record]:
    """The question with its options in several orders, the original order first.

    Args:
        question: the question in the form of the file.
        kind: `single` (only the original order), `cyclic` (one order per option), or `all` orders.

    Returns:
        Copies with rearranged `options` and `answer`, and two more fields: `is_original`, and `uid`, which is the same
        for all orders of a question.
    """
    letters = sorted(question["options"])
    texts = [question["options"][letter] for letter in letters]
    gold = letters.index(question["answer"])
    uid = question["question"] + " ".join(question["options"].values())
    found = []
    for order in orders(len(letters), kind):
        arranged = {letter: texts[option] for letter, option in zip(letters, order)}
        answer = letters[order.index(gold)]
        original = order == tuple(range(len(letters)))
        found.append({**question, "options": arranged, "answer": answer, "is_original": original, "uid": uid})
    return found


def prompt(tokenizer: Any, question: Record) -> str:
    """The prompt for retriever and reader. It has at most MAXIMUM_PROMPT_LENGTH tokens, unless the options are longer.

    A question that is too long loses tokens on its left, because the actual question is at the end.
    """
    options = " ".join(f"({letter}) {text}" for letter, text in question["options"].items()).strip()

    def written(text: str) -> str:
        return f"question: {text.strip()} options: {options} answer: {SENTINEL}"

    whole = written(question["question"])
    if length(tokenizer, whole) <= MAXIMUM_PROMPT_LENGTH:
        return whole
    left = MAXIMUM_PROMPT_LENGTH - length(tokenizer, written(""))
    # If the options alone are too long, `left` is not positive. As in the reference, -left tokens are then removed from
    # the beginning of the question (none if `left` is 0), and the prompt is longer than the maximum.
    tokens = tokenizer(question["question"])["input_ids"][-left:]
    return written(tokenizer.decode(tokens, skip_special_tokens=True))


def length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def target(question: Record, decoder_format: str | None = None) -> str:
    """The text that the reader should write. `decoder_format`, if given, contains it at {target}."""
    text = f"{SENTINEL} {question['answer']}"
    return text if decoder_format is None else decoder_format.format(target=text)


def decoder_prompts(queries: Sequence[str], decoder_prompt_format: str | None) -> list[str] | None:
    """The text with which the decoder begins each target, or None. `decoder_prompt_format` contains the prompt at
    {query}."""
    return decoder_prompt_format and [decoder_prompt_format.format(query=query) for query in queries]


def letter_places(tokenizer: Any, labels_BT: Sequence[Sequence[int]]) -> list[int]:
    """The position of the letter in each target, after the sentinel. It is 1 unless the target has another format.

    Raises:
        UserError: a target was cut and has no letter.
    """
    sentinel, places = tokenizer.convert_tokens_to_ids(SENTINEL), []
    for labels in labels_BT:
        place = max((place for place, label in enumerate(labels) if label == sentinel), default=len(labels)) + 1
        if place >= len(labels) or labels[place] in (IGNORED, tokenizer.eos_token_id):
            raise UserError("--target_maxlength cuts the letter off the target; use a larger value")
        places.append(place)
    return places


def choice_tokens(tokenizer: Any, letters: Sequence[str]) -> list[int]:
    """The token of each letter in the form in which the decoder writes it after the sentinel.

    Raises:
        UserError: the tokenizer does not have a separate token for each letter.
    """
    tokens = [tokenizer(letter)["input_ids"][0] for letter in letters]
    if len(set(tokens)) < len(tokens):
        raise UserError(f"the reader's tokenizer does not have a separate token for each of {', '.join(letters)}")
    return tokens


def marginalize(predictions: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Average each option's probability over the permutations, in which its letter differs.

    p(option) = 1/P sum_p softmax(choice_logits_p)[letter of the option in permutation p]

    Args:
        predictions: {"metadata": a permutation, "choice_logits": {letter: logit}}, the original order first.

    Returns:
        ({letter in the original order: probability}, {text of the option: its probability in each permutation}).
        Options with the same text share their probabilities.
    """
    by_text: dict[str, list[float]] = {}
    for prediction in predictions:
        letters = sorted(prediction["choice_logits"])
        logits = torch.tensor([prediction["choice_logits"][letter] for letter in letters], dtype=torch.float64)
        for letter, probability in zip(letters, torch.softmax(logits, dim=0).tolist()):
            by_text.setdefault(prediction["metadata"]["options"][letter], []).append(probability)
    original = predictions[0]["metadata"]["options"]
    mean = {letter: sum(by_text[text]) / len(by_text[text]) for letter, text in sorted(original.items())}
    return mean, by_text


def reduce_permutations(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One prediction for a question that was asked in several orders: that of the original order, with the debiased
    choice."""
    probabilities, by_text = marginalize(predictions)
    choice = max(probabilities, key=lambda letter: probabilities[letter])
    return {
        **predictions[0],
        "generation": choice,
        "choice_probs": probabilities,
        "all_probs": by_text,
        "permutations": list(predictions),
    }
