"""Debiasing of the order of choices: each question is asked with its choices in several orders (catalog/orders.py)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from teacherlm.catalog.orders import orders
from teacherlm.catalog.prompts import LETTERS, split_choices
from teacherlm.core.errors import UserError

MOST_CHOICES = 7
"""Maximum number of choices for all orders: 7 choices have 5,040 orders, and 8 choices have 40,320."""


def use_permutations(task: Any, kind: str, name: str) -> None:
    """Let a task ask each question once per order: in the `cyclic` orders (one per choice), or in `all` orders.

    The task's `process_results` then gets the debiased log-probabilities of the choices in their original order.

    Raises:
        UserError: the choices cannot be found in the task's questions, or the task does not ask for their letters.
    """
    if kind == "none":
        return
    if not hasattr(task, "orders"):
        raise UserError(f"--permutations: {name} is a task of lm-eval; only tasks of this project can be permuted")
    doc = next(iter(task.eval_docs))
    choices = len(split_question(doc, name)[1])
    continuations = [request.arguments[1:] for request in task.requests(doc)]
    if continuations != [(letter,) for letter in LETTERS[:choices]]:
        raise UserError(
            f"--permutations: {name} does not ask for the letters of the {choices} choices of its questions"
        )
    if kind == "all" and choices > MOST_CHOICES:
        raise UserError(
            f"--permutations all: {name} has {choices} choices, which have {math.factorial(choices):,} orders; use "
            "--permutations cyclic"
        )
    asked_in = in_turn(choices, kind)
    task.orders = [lambda doc, order=order: reorder(doc, order, name) for order in asked_in]
    process: Callable = task.process_results
    task.process_results = lambda doc, results: process(doc, debias(results, asked_in))
    task.debias = lambda results: debias(results, asked_in)


def in_turn(choices: int, kind: str) -> list[tuple[int, ...]]:
    """The orders in the sequence in which they are asked. Cyclic orders rotate to the left, as in earlier results."""
    first, *others = orders(choices, kind)
    return [first, *(reversed(others) if kind == "cyclic" else others)]


def debias(results: Sequence[float], orders: Sequence[tuple[int, ...]]) -> list[float]:
    """The logarithm of each choice's mean probability over the orders.

    Args:
        results: log-likelihoods of the letters, first for the first order, then for the second, and so on.
        orders: `orders[o][p]` is the index of the choice at letter p in order o.
    """
    logprobs_OC = log_softmax(np.asarray(results, dtype=np.float64).reshape(len(orders), -1), axis=1)
    aligned_OC = np.take_along_axis(logprobs_OC, np.argsort(orders, axis=1), axis=1)
    return (logsumexp(aligned_OC, axis=0) - np.log(len(orders))).tolist()


def reorder(doc: Mapping[str, Any], order: Sequence[int], name: str) -> dict[str, Any]:
    """A sample with its choices in another order, and with the matching letter as its answer."""
    question, choices = split_question(doc, name)
    if len(choices) != len(order):
        raise UserError(
            f"--permutations: {name} has questions with {len(order)} and with {len(choices)} choices; all questions of "
            "a task must have the same number"
        )
    gold = LETTERS.index(doc["answer"].strip("()"))
    parts = [question, *(f"({letter}) {choices[choice]}" for letter, choice in zip(LETTERS, order))]
    return {**doc, "question": " ".join(parts), "answer": f"({LETTERS[list(order).index(gold)]})"}


def split_question(doc: Mapping[str, Any], name: str) -> tuple[str, tuple[str, ...]]:
    """The question and the choices of a sample `question (A) first (B) second`."""
    text, answer = (doc.get("question"), doc.get("answer")) if isinstance(doc, Mapping) else (None, None)
    if not isinstance(text, str) or not isinstance(answer, str):
        raise UserError(f"--permutations: the samples of {name} have no question and answer")
    question, choices = split_choices(f" {text}")
    if not choices:
        raise UserError(f"--permutations: no choices (A), (B), ... in the question {text[:60]!r}... of {name}")
    return question.removeprefix(" "), choices
