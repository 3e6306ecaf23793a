"""Benchmarks. Each has a YAML file that says where its data is and how a sample becomes a question.

The YAML's fields are described in docs/reference/benchmarks.md. Templates are Jinja2 in a sandbox, because a
benchmark is data and not code.

As a script, this module answers a shell's question: `python -P -m teacherlm.catalog.benchmarks title NAME` prints the
title, which the names of the benchmark's files begin with.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import jinja2
from pydantic import FailFast, InstanceOf, model_validator

from teacherlm.catalog.answers import Asked, Kind, require_rule
from teacherlm.catalog.prompt_sets import PromptSet
from teacherlm.catalog.prompts import LETTERS, Question, split_choices
from teacherlm.catalog.right_answers import OF_CHOICES, OPEN, right_answers, texts_at
from teacherlm.catalog.sample_values import ASKED, field_of
from teacherlm.catalog.templates import ERRORS, compile_template, fields_of, render
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.names import is_plain_name, meant, plain_name
from teacherlm.core.places import ROOT, yaml_file, yaml_names
from teacherlm.core.programs import print_for_shell, run
from teacherlm.core.records import Record
from teacherlm.core.terminal import shown
from teacherlm.core.yaml_fields import fits, read_yaml
from teacherlm.core.yaml_files import Unquoted

FOLDER = ROOT / "benchmarks"
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
"""A dataset's id. `datasets` would take any other text for a folder, a file, or a loader such as `imagefolder`."""
PATH = re.compile(r"[^\s.{}]+(\.[^\s.{}]+)*")
"""Names that lead to a list in a sample: `answers`, `answers.text`."""
MOST_PARTS, NAME_MAX = 32, 255
"""Maximum number of parts of a pattern's path; maximum number of bytes of a file name in most file systems."""


def is_inside(pattern: str) -> bool:
    """Whether a pattern of files is valid and stays in the folder in which the files are looked for.

    A pattern is refused if it is absolute, has the part `..`, does not end with a file's name, has a part that is too
    long for a name, has too many parts, or has a part that contains `**` and something else.
    """
    parts = pattern.split("/")
    whole = parts[0] and parts[-1] not in ("", ".", "**") and len(parts) <= MOST_PARTS
    odd = any(part == ".." or ("**" in part and part != "**") or len(os.fsencode(part)) > NAME_MAX for part in parts)
    return bool(whole) and not odd


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as its YAML file describes it. docs/reference/benchmarks.md describes the fields."""

    path: Path
    title: str
    question: str
    splits: Mapping[str, Annotated[str, fits("the name of a split", is_plain_name)]]
    choices: tuple[str, ...] = ()
    answer: str = ""
    answers: Annotated[str, fits("the name of a list (answers, or answers.text)", PATH.fullmatch)] | None = None
    hub: Annotated[str, fits("a dataset's OWNER/NAME", HUB_ID.fullmatch)] | None = None
    hub_config: str | None = None
    local: str | None = None
    files: Mapping[str, Annotated[str, fits("a pattern inside the data's folder", is_inside)]] = field(
        default_factory=dict
    )
    columns: tuple[str, ...] | None = None
    file_field: str | None = None
    groups: Mapping[str, Annotated[list[str], FailFast()]] = field(default_factory=dict)  # aliases can make millions
    labels: Mapping[InstanceOf[str], str] | None = None  # `InstanceOf` keeps the type Unquoted
    answer_is: Annotated[str, fits("letter, index, text or number", (*OF_CHOICES, *OPEN).__contains__)] = "letter"
    extract: tuple[str, ...] = ()
    preamble: str = ""

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse fields that contradict each other, and invalid templates, before any data is read.

        Raises:
            ValueError, UserError: the message names the field or the template.
        """
        plain_name(self.title, f"{self.path}: title")
        self.check_answers()
        for label, letter in (self.labels or {}).items():
            if letter not in tuple(LETTERS[: len(self.choices)]):
                raise ValueError(f"labels: {label!r}: the letter of a choice was expected, found {letter!r}")
            if self.boolean_labels.get(label.capitalize(), letter) != letter:
                raise ValueError(f"labels: {label}: the same boolean has another letter; put the labels in quotes")
        if missing := {"train", "test"} - set(self.splits):
            raise ValueError(f"splits: {' and '.join(sorted(missing))} missing; give the source's split for each")
        if self.file_field and any(Path(files).name.count("*") != 1 for files in self.files.values()):
            raise ValueError("file_field: each file name must have one *, whose text becomes the field's value")
        if self.groups and not self.file_field:
            raise ValueError("groups: a group lists values of the file_field, which is missing")
        _ = self.templates  # they are compiled here, and kept
        return self

    def check_answers(self) -> None:
        """Refuse fields about the answer that contradict each other.

        Raises:
            ValueError: the message names the field.
        """
        if self.is_open:
            if len(self.choices) == 1 or self.answer_is not in OPEN:
                raise ValueError(
                    f"choices: 2 to {len(LETTERS)} templates were expected, found {len(self.choices)} "
                    f"(questions without choices need `answer_is: {' or '.join(OPEN)}`)"
                )
            if self.labels:
                raise ValueError("labels: they are letters of choices, and there are no choices")
            if not self.answer and not self.answers:
                raise ValueError("the field 'answer' is missing, or `answers` with the name of a list")
        else:
            if len(self.choices) > len(LETTERS):
                raise ValueError(f"choices: 2 to {len(LETTERS)} templates were expected, found {len(self.choices)}")
            if self.answer_is not in OF_CHOICES:
                raise ValueError(f"answer_is: letter, index or text was expected, found {self.answer_is!r}")
            if self.answers:
                raise ValueError("answers: several right answers are only possible without `choices`")
            if not self.answer:
                raise ValueError("the field 'answer' is missing")
        for number, rule in enumerate(self.extract, 1):
            try:
                require_rule(rule, self.answer_kind)
            except ValueError as error:
                raise ValueError(f"extract, {number}. rule: {error}") from None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def is_open(self) -> bool:
        """Whether its questions have no choices."""
        return len(self.choices) < 2

    @cached_property
    def templates(self) -> dict[str, jinja2.Template]:
        """The templates by name: question, answer, preamble, and each choice.

        Raises:
            UserError: see `compile_template`.
        """
        sources = {"question": self.question, "answer": self.answer, "preamble": self.preamble}
        sources |= {f"choice {letter}": source for letter, source in zip(LETTERS, self.choices)}
        return {name: compile_template(source, f"{self.path}: the template {name}") for name, source in sources.items()}

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields of a sample that the templates read, in the order of the templates."""
        sources = [self.question, *self.choices, self.answer, self.preamble]
        read = [name for source in sources for name in fields_of(source)]
        return tuple(dict.fromkeys([*read, *([self.answers.partition(".")[0]] if self.answers else [])]))

    @cached_property
    def question_fields(self) -> tuple[str, ...]:
        """The fields of a sample that the template `question` reads."""
        return tuple(fields_of(self.question))

    def ask(self, sample: Record, where: str) -> Question:
        """The question of a sample.

        Args:
            sample: the fields of the source dataset.
            where: the sample's place, for messages: "train.json, line 7".

        Raises:
            UserError: a field is missing or null, a template fails, or the answer is not one of the choices.
        """
        for name in self.fields:
            if sample.get(name) is None:
                state = "is null" if name in sample else "is missing"
                raise UserError(f"{where}: the field {name!r} {state}; {self.title} needs {', '.join(self.fields)}")
        rendered = {}
        for name, template in self.templates.items():
            try:
                rendered[name] = render(template, sample)
            except ERRORS as error:
                raise UserError(f"{where}: the template {name} of {self.path.name} fails: {error}") from error
        if not rendered["question"].strip():
            raise UserError(f"{where}: the question is empty (field {self.fields[0]!r})")
        if self.is_open:
            golds = self.right_answers(sample, rendered["answer"], where)
            return Question(rendered["question"], (), -1, rendered["preamble"], golds)
        choices = tuple(rendered[f"choice {letter}"] for letter in LETTERS[: len(self.choices)])
        gold = self.gold(rendered["answer"], choices, where)
        return Question(rendered["question"], choices, gold, rendered["preamble"])

    def right_answers(self, sample: Record, answer: str, where: str) -> tuple[str, ...]:
        """The right answers of a question without choices: the rendered `answer`, then those of the list `answers`.

        Raises:
            UserError: see right_answers.py.
        """
        decides = f"answer_is of {self.path.name} is {self.answer_is}"
        found: dict[str, None] = {}
        if self.answer:
            fields = ", ".join(map(repr, fields_of(self.answer)))
            found |= dict.fromkeys(right_answers([answer], self.answer_kind, fields, where, decides))
        if self.answers:
            texts = texts_at(sample, self.answers, where)
            found |= dict.fromkeys(right_answers(texts, self.answer_kind, repr(self.answers), where, decides))
        return tuple(found)

    @property
    def has_asked(self) -> bool:
        """Whether a training record says in a field of its own what its question asks for."""
        return self.is_open or bool(self.extract)

    @property
    def answer_kind(self) -> Kind:
        """What the answer to a question is."""
        if not self.is_open:
            return "letter"
        return "number" if self.answer_is == "number" else "text"

    def asked(self, doc: Record) -> Asked:
        """What the question of a test sample asks for.

        Args:
            doc: a sample of `test_sample`. Its choices may have another order.
        """
        if self.is_open:
            return Asked(
                self.answer_kind, tuple(doc.get("answers") or [doc["answer"]]), (), self.extract, str(self.path)
            )
        _, choices = split_choices(f" {doc['question']}")
        return Asked("letter", (doc["answer"].strip("()"),), choices, self.extract, str(self.path))

    def gold(self, answer: str, choices: tuple[str, ...], where: str) -> int:
        """The index of the choice that an answer names, by the YAML's `labels`, or by the letter, index or text."""
        letters = LETTERS[: len(choices)]
        decides = f"answer_is of {self.path.name} is {self.answer_is}; it can be letter, index or text"
        if self.labels is not None:
            decides = f"the labels of {self.path.name}"
            accepted = {
                label: letters.index(letter) for label, letter in {**self.boolean_labels, **self.labels}.items()
            }
        elif self.answer_is == "text":
            accepted = {text: index for index, text in enumerate(choices)}  # for equal texts the last, as the reference
        elif self.answer_is == "index":
            accepted = {str(index): index for index in range(len(choices))}
        else:
            accepted = {letter: index for index, letter in enumerate(letters)}
        if answer not in accepted:
            fields = ", ".join(map(repr, fields_of(self.answer)))
            raise UserError(
                f"{where}: the field {fields} is {shown(answer)}; expected one of {', '.join(map(repr, accepted))} "
                f"({decides})"
            )
        return accepted[answer]

    @cached_property
    def boolean_labels(self) -> dict[str, str]:
        """Rendered boolean (True, False) -> letter, for the labels that are an unquoted true or false."""
        labels = list((self.labels or {}).items())
        return {
            label.capitalize(): letter
            for label, letter in reversed(labels)
            if isinstance(label, Unquoted) and label.lower() in ("true", "false")
        }

    def prepare(self, sample: Record, where: str, prompts: PromptSet) -> Record:
        """A training sample with its prompt fields added: `text`, and those that the teacher reads."""
        self.refuse_reserved(sample, where, prompts)
        question = self.ask(sample, where)
        added: Record = dict(prompts.prompt_fields(question, sample, where))
        if self.has_asked:
            golds = question.answers or (LETTERS[question.gold],)
            added[ASKED] = field_of(Asked(self.answer_kind, golds, question.choices, self.extract))
        return {**sample, **added}

    def test_sample(self, sample: Record, where: str) -> Record:
        """A test sample for the tasks: its fields with `task_name`, `question`, `answer` and perhaps `preamble` added.

        A source field with one of these names is kept under another one, such as `origin_question`.
        """
        question = self.ask(sample, where)
        added: Record = {"task_name": self.title, "question": question.with_choices, "answer": question.answer}
        if self.is_open and (self.answers or "answers" in sample):
            added["answers"] = list(question.answers)
        if question.preamble:
            added["preamble"] = question.preamble
        kept = {f"origin_{name}" if name in added else name: value for name, value in sample.items()}
        return {**kept, **added}

    def refuse_reserved(self, sample: Record, where: str, prompts: PromptSet) -> None:
        reserved = (*prompts.reserved, *((ASKED,) if self.has_asked else ()))
        taken = [name for name in reserved if name in sample]
        if taken:
            raise UserError(
                f"{where}: the field {taken[0]!r} is already there, and the pipeline writes it; rename it first"
            )


def names() -> list[str]:
    return yaml_names(FOLDER)


def benchmark_and_part(task: str) -> tuple[str, str | None] | None:
    """The benchmark that a task's name begins with, and the rest: mmlu_stem -> (mmlu, stem), mmlu -> (mmlu, None)."""
    for name in sorted(names(), key=len, reverse=True):
        if task == name:
            return name, None
        if task.startswith(f"{name}_"):
            return name, task.removeprefix(f"{name}_")
    return None


def benchmark_of(task: str) -> Benchmark | None:
    """The benchmark that a task's name begins with; None for a task of another name."""
    found = benchmark_and_part(task)
    return load_benchmark(found[0]) if found else None


def load_benchmark(name: str) -> Benchmark:
    """Read `benchmarks/NAME.yaml` of the current folder or of the project, or the YAML file at the path `name`.

    Raises:
        UserError: there is no such file (similar names are listed), or a field of the YAML is missing, unknown or
            malformed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else yaml_file(FOLDER, name)
    if not path.is_file():
        raise UserError(f"no benchmark {name!r}; {meant(name, names())} (or give the path of a YAML file)")
    return read_yaml(path, Benchmark, {"path": path})


def main() -> None:
    parser = Parser(prog="teacherlm.catalog.benchmarks", description="Answer a shell's question.")
    parser.add_argument("command", choices=["title"])
    parser.add_argument("name")
    print_for_shell(load_benchmark(parser.parse_args().name).title)


if __name__ == "__main__":
    run(main)
