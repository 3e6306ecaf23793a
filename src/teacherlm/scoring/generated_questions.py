"""The questions that a model answers in writing: what it is asked, and which answers are right."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from teacherlm.catalog.answers import Asked, gold_values
from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompts import ANSWER_BEGINS, ANSWER_MARK, split_choices
from teacherlm.catalog.turns import TURN
from teacherlm.core.errors import UserError
from teacherlm.runtime.generation import Message, asked_text
from teacherlm.scoring.chat_requests import TaskInTurns
from teacherlm.scoring.find_tasks import benchmark_of
from teacherlm.scoring.task_api import Task, file_of
from teacherlm.scoring.task_classes import task_errors


@dataclass(frozen=True)
class Question:
    """One question to one model.

    Attributes:
        task: the name of its task.
        doc_id: its number in the task.
        asked: what an answer is, and the right ones.
        golds: the right answers in the form in which answers are compared.
        prompt: the text that the model continues: `Q: Is it so? (A) yes (B) no A:`, after the examples.
        messages: the same as a conversation, for a model that is asked through its chat template; otherwise empty.
    """

    task: str
    doc_id: int
    asked: Asked
    golds: tuple[str, ...]
    prompt: str
    messages: tuple[Message, ...] = ()

    def bytes_asked(self) -> bytes:
        """What the model is asked, for an upper bound of its number of tokens."""
        return asked_text(self.prompt, self.messages).encode(errors="surrogatepass")


def questions_of(
    tasks: Mapping[str, Any], limit: int | None, chat: bool = False, as_turns: bool = False
) -> list[Question]:
    """The questions of tasks, in order.

    Args:
        limit: maximum number of questions per task; None means all.
        chat: whether the model is asked through its chat template.
        as_turns: whether each few-shot example has two turns of its own.

    Raises:
        UserError: a task is not in the form of a benchmark.
    """
    found = []
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise UserError(
                f"--answer generate: {name} is a task of lm-eval, which says how it is answered; leave the flag out"
            )
        benchmark = benchmark_of(type(task))
        in_turns = TaskInTurns(task, name, None, as_turns) if chat else None
        if in_turns:
            task.fewshot_examples = in_turns.fewshot_examples
        for doc_id, doc in task.doc_iterator(limit=limit):
            where = f"{name}, sample {doc_id}"
            with task_errors(where, always=file_of(type(task))):
                question = question_of(name, doc_id, doc, task.context(doc), benchmark, where)
                if in_turns:
                    question = replace(question, messages=tuple(in_turns.turns(question.prompt)[0]))
                found.append(question)
    return found


def question_of(name: str, doc_id: int, doc: Any, context: str, benchmark: Benchmark | None, where: str) -> Question:
    """The question of a sample.

    Args:
        context: the text before the letter or the answer that is scored: it ends with ` A: The answer is (`.
        where: the sample's place, for messages.
    """
    prompt = prompt_of(context) if isinstance(context, str) else ""
    if not prompt or not isinstance(doc, Mapping) or not isinstance(doc.get("question"), str):
        raise UserError(
            f"--answer generate: {where}: a sample with a question, and a context that ends with {ANSWER_MARK!r}, were "
            "expected; a task file of another form asks for a text itself, with rf.greedy_until"
        )
    asked = asked_of(doc, benchmark)
    try:
        golds = gold_values(asked)
    except ValueError as error:
        raise UserError(f"{where}: the right answer {error}") from error
    return Question(name, doc_id, asked, golds, prompt)


def prompt_of(context: str) -> str:
    """The text that the model continues: a context up to the ` A:` before its answer. "" if it ends in another way."""
    for mark in (ANSWER_MARK, ANSWER_BEGINS):
        if context.endswith(mark):
            return context.removesuffix(mark) + TURN
    return ""


def asked_of(doc: Mapping[str, Any], benchmark: Benchmark | None) -> Asked:
    """What a sample's question asks for. A task file of another name than a benchmark's asks for a letter."""
    if benchmark is not None:
        return benchmark.asked(dict(doc))
    return Asked("letter", (str(doc.get("answer")).strip("()"),), split_choices(f" {doc['question']}")[1])
