"""Answer-order debiasing: each question is asked with its choices in several orders.

A model that likes one letter, whatever stands behind it, is wrong as often as not. Following Izacard et al. 2022 (arXiv
2208.03299, section 4.3), a choice's probability is averaged over the orders, whatever its letter was in each.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from teacherlm.catalog.prompts import LETTERS
from teacherlm.core.errors import UserError

MOST_CHOICES = 7
"""Of questions that are asked in all orders: 7 have 5,040, and 8 have 40,320."""


def use_permutations(task: Any, kind: str, name: str) -> None:
    """Let a task ask each question once for every order: `cyclic`, as many as there are choices, or `all` orders.

    The task's own `process_results` gets the choices' debiased log-probabilities in their original order.

    Raises:
        UserError: the task's choices cannot be told apart in its questions.
    """
    if kind == "none":
        return
    if not hasattr(task, "orders"):
        raise UserError(f"--permutations: {name} is lm-eval's own task; only tasks of this project can be permuted")
    doc = next(iter(task.eval_docs))
    choices = len(split_question(doc, name)[1])
    asked = [request.arguments[1:] for request in task.requests(doc)]
    if asked != [(letter,) for letter in LETTERS[:choices]]:
        raise UserError(
            f"--permutations: {name} does not ask for the letters of the {choices} choices of its questions"
        )
    if kind == "all" and choices > MOST_CHOICES:
        raise UserError(
            f"--permutations all: {name} has {choices} choices, which have {math.factorial(choices):,} orders; take "
            "--permutations cyclic"
        )
    orders = cyclic(choices) if kind == "cyclic" else list(itertools.permutations(range(choices)))
    task.orders = [lambda doc, order=order: reorder(doc, order, name) for order in orders]
    process: Callable = task.process_results
    task.process_results = lambda doc, results: process(doc, debias(results, orders))
    task.debias = lambda results: debias(results, orders)


def cyclic(choices: int) -> list[tuple[int, ...]]:
    return [tuple((start + place) % choices for place in range(choices)) for start in range(choices)]


def debias(results: Sequence[float], orders: Sequence[tuple[int, ...]]) -> list[float]:
    """Log of each choice's mean probability.

    Args:
        results: log-likelihoods of the letters, of the first order, then of the second, and so on.
        orders: orders[o][p] is the choice that stands at letter p in order o.
    """
    logprobs_OC = log_softmax(np.asarray(results, dtype=np.float64).reshape(len(orders), -1), axis=1)
    aligned_OC = np.take_along_axis(logprobs_OC, np.argsort(orders, axis=1), axis=1)
    return (logsumexp(aligned_OC, axis=0) - np.log(len(orders))).tolist()


def reorder(doc: Mapping[str, Any], order: Sequence[int], name: str) -> dict[str, Any]:
    """A sample with its choices in another order, and the answer's letter with them."""
    question, choices = split_question(doc, name)
    if len(choices) != len(order):
        raise UserError(f"--permutations: {name} has questions of {len(order)} and of {len(choices)} choices")
    gold = LETTERS.index(doc["answer"].strip("()"))
    parts = [question, *(f"({letter}) {choices[choice]}" for letter, choice in zip(LETTERS, order))]
    return {**doc, "question": " ".join(parts), "answer": f"({LETTERS[list(order).index(gold)]})"}


def split_question(doc: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
    """`question (A) first (B) second` -> the question and its choices; looked for from the end, where they are."""
    text, answer = (doc.get("question"), doc.get("answer")) if isinstance(doc, Mapping) else (None, None)
    if not isinstance(text, str) or not isinstance(answer, str):
        raise UserError(f"--permutations: the samples of {name} have no question and answer")
    last = max((letter for letter in LETTERS if f" ({letter}) " in f" {text}"), default="A")
    choices: list[str] = []
    for letter in reversed(LETTERS[: LETTERS.index(last) + 1]):
        text, mark, choice = text.rpartition(f" ({letter}) ")
        if not mark:
            raise UserError(f"--permutations: no ({letter}) in the question {doc['question'][:60]!r}... of {name}")
        choices.insert(0, choice)
    return text, choices
