"""Prompt sets: what the teacher is asked, and how its text is joined to a sample. Each is a YAML file in `prompts/`.

From a kind of explanation `cot` follow the field `cot_text` (the teacher's prompt), `cot` (its text), `cot_tail` (the
explanation after the answer), `cot_first` (the explanation before it), and `cot_shuffled` (the control: the explanation
of another sample with the same answer, in the place of the own one in `cot_tail`). docs/reference/prompts.md describes
the YAML. Its templates are Jinja2 in a sandbox, because a prompt is data and not code.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import jinja2
from pydantic import model_validator

from teacherlm.catalog import text_parts
from teacherlm.catalog.prompts import DEFAULT, OPEN, WITH_CHOICES, Question, remove_duplicated_block, split_answer
from teacherlm.catalog.sample_values import ASKED, values_of, values_of_text
from teacherlm.catalog.templates import ERRORS, compile_template, fields_of, render
from teacherlm.core.errors import UserError
from teacherlm.core.names import meant
from teacherlm.core.places import ROOT, yaml_file, yaml_names
from teacherlm.core.records import Record
from teacherlm.core.yaml_fields import Switch, Whole, named, read_yaml

FOLDER = ROOT / "prompts"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
SUFFIXES = (
    "text",
    "hint",
    "tail",
    "first",
    "shuffled",
    "completions",
    "thinking",
    "ended",
    "source",
    "attempts",
    "top_logprobs",
)
"""What a kind's fields in a record end with, apart from the field of the kind's own name."""
SHUFFLED = "_shuffled"
"""What the names of control fields end with."""
NUMBERS = ("sample_number", "text_number")
"""The fields that number the rows of a dataset with a row per text. Both count from 1."""
TAKEN = (
    *("text", "all", "question", "answer", "preamble", "task_name", "prompt", "explanation", "sample", "letter"),
    *("answers", ASKED, *NUMBERS, text_parts.COLUMN),
)
"""Names that no kind and no field of several kinds may have, because they mean something else."""
OF_QUESTION = ("preamble", "question", "choices", "sample")
"""What a template knows of a sample without its answer."""
OF_ANSWER = ("text", "letter", "answer", "answers")
FIRST = (
    "{{ preamble }}Q: {{ question }} A: {{ explanation | trim }} The answer is "
    "{% if choices %}({{ letter }}).{% else %}{{ answer | full_stop }}{% endif %}"
)
"""The default of the template `first`."""
IF_CHOICES = re.compile(r"\{% if choices %\}(.*?)(?:\{% else %\}.*?)?\{% endif %\}", re.DOTALL)
"""A part of a template that differs for questions without choices."""


@dataclass(frozen=True)
class Example:
    """A prompt and the text that a teacher should write after it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Kind:
    """A kind of explanation.

    Attributes:
        prompt: the template of the teacher's prompt.
        system: the system message, for chat teachers. Other teachers get it before the prompt.
        examples: conversations that the teacher sees before the prompt.
        sees_answer: whether the template `prompt` may have the right answer. If not, a text counts only if its
            conclusion is the right answer.
        hint: the template of a prompt with the right answer, for samples whose attempts all had another conclusion.
        attempts: maximum number of texts per sample and explanation, before the hint, if the teacher does not see the
            answer.
        names_wrong_choices: whether a good text may end with another choice than the right one.
        tail, first: the templates of the fields KIND_tail and KIND_first.
    """

    prompt: str
    system: str = ""
    examples: tuple[Annotated[Example, named(Example)], ...] = ()
    sees_answer: Switch = True
    hint: str = ""
    attempts: Whole = 4
    names_wrong_choices: Switch = False
    tail: str = "{{ text }} {{ explanation | trim }}"
    first: str = FIRST


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts as its YAML file describes it.

    Attributes:
        kinds: name -> kind of explanation.
        fields: name -> template of a field that is made of several explanations (`full_tail`).
        single_spaces: whether double spaces become single in prompts and in the fields made of explanations.
    """

    path: Path
    kinds: Mapping[str, Annotated[Kind, named(Kind)]]
    fields: Mapping[str, str] = field(default_factory=dict)
    single_spaces: Switch = False

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse names that clash, and templates that are invalid or read what they cannot know.

        Raises:
            ValueError, UserError: the message names the field or the template.
        """
        if not self.kinds:
            raise ValueError("kinds: at least one kind of explanation was expected")
        made: dict[str, str] = dict.fromkeys(TAKEN, "the pipeline")
        for name, kind in self.kinds.items():
            require_name(f"kinds: {name}", name)
            for taken in (name, *(f"{name}_{suffix}" for suffix in SUFFIXES)):
                if taken in made:
                    raise ValueError(f"kinds: {name}: the field {taken!r} is already made by {made[taken]}")
                made[taken] = f"the kind {name}"
            if kind.hint and kind.sees_answer:
                raise ValueError(f"kinds: {name}: a hint needs `sees_answer: false`")
            if not 1 <= kind.attempts <= 100:
                raise ValueError(f"kinds: {name}: attempts: a number from 1 to 100 was expected, found {kind.attempts}")
        for name in self.fields:
            require_name(f"fields: {name}", name)
            for taken in (name, shuffled(name)):
                if taken in made:
                    raise ValueError(f"fields: {name}: the field {taken!r} is already made by {made[taken]}")
                made[taken] = "another field"
        _ = self.templates  # they are compiled here, and kept
        return self

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def templates(self) -> dict[str, jinja2.Template]:
        """The templates by name: `cot prompt`, `cot hint`, `cot tail`, `cot first`, and each field of several kinds.

        Raises:
            UserError: a template is invalid, or reads a variable that it cannot know.
        """
        sources: dict[str, tuple[str, tuple[str, ...]]] = {}
        for name, kind in self.kinds.items():
            known = OF_QUESTION + (OF_ANSWER if kind.sees_answer else ())
            everything = (*OF_QUESTION, *OF_ANSWER, "prompt", "explanation")
            sources |= {f"{name} prompt": (kind.prompt, known), f"{name} hint": (kind.hint, OF_QUESTION + OF_ANSWER)}
            sources |= {f"{name} tail": (kind.tail, everything), f"{name} first": (kind.first, everything)}
        for name, source in self.fields.items():
            sources[name] = (source, (*OF_QUESTION, *OF_ANSWER, *self.kinds))
        templates = {}
        for name, (source, known) in sources.items():
            where = f"{self.path}: the template {name}"
            templates[name] = compile_template(source, where)
            if unknown := [word for word in fields_of(source) if word not in known]:
                raise UserError(f"{where} reads {unknown[0]!r}; it knows {', '.join(known)}{hidden(unknown[0], known)}")
        return templates

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Fields that the pipeline adds to a sample. They would overwrite a dataset's fields of the same names."""
        of_kinds = [f"{name}_{suffix}" for name in self.kinds for suffix in SUFFIXES]
        of_several = [*self.fields, *map(shuffled, self.fields)]
        return ("text", "all", *NUMBERS, text_parts.COLUMN, *self.kinds, *of_kinds, *of_several)

    @cached_property
    def training_fields(self) -> dict[str, tuple[str, ...]]:
        """Field that a student can be trained on -> the kinds of explanation that it needs."""
        found: dict[str, tuple[str, ...]] = {"text": (), "all": (next(iter(self.kinds)),)}
        for name in self.kinds:
            found |= dict.fromkeys((name, f"{name}_tail", f"{name}_first", shuffled(name)), (name,))
        for name, source in self.fields.items():
            needed = tuple(kind for kind in self.kinds if kind in fields_of(source))
            found |= dict.fromkeys((name, shuffled(name)), needed)
        return found

    def prompt_fields(self, question: Question, sample: Record, where: str) -> dict[str, str]:
        """The prompt fields of a training sample: `text`, KIND_text for each kind, and KIND_hint where there is one.

        Raises:
            UserError: a template fails.
        """
        values = values_of(question, sample)
        made = {"text": values["text"]}
        for name, kind in self.kinds.items():
            made[f"{name}_text"] = self.cleaned(self.render(f"{name} prompt", values, where))
            if kind.hint:
                made[f"{name}_hint"] = self.cleaned(self.render(f"{name} hint", values, where))
        return made

    def training_texts(self, record: Record, explanations: Mapping[str, str], where: str) -> dict[str, str]:
        """The fields that are made of explanations: KIND_tail and KIND_first for each kind, those of several kinds, and
        `parts`, which says what is question, answer and explanation in each of them.

        Args:
            record: the sample with its prompt fields, of which `text` says what the question is.
            explanations: kind -> the teacher's text, for the kinds that there are.

        Raises:
            UserError: a template fails.
        """
        made = self.rendered(self.forms(explanations), record, explanations, where)
        spans = {} if (plain := text_parts.spans_of_plain(record["text"])) is None else {"text": plain}
        return {
            **made,
            text_parts.COLUMN: text_parts.written({**spans, **self.parts(made, record, explanations, where)}),
        }

    def shuffled_texts(self, record: Record, explanations: Mapping[str, str], where: str) -> dict[str, str]:
        """The control fields KIND_shuffled, and those of several kinds: the explanations of another sample in the
        places of a record's own ones. `parts` also has the record's own parts.

        Args:
            record: a record with its `training_texts`.
            explanations: kind -> the text about the other sample.

        Raises:
            UserError: a template fails.
        """
        forms = {name: form for name, form in self.forms(explanations).items() if not form.endswith(" first")}
        made = {shuffled(name): text for name, text in self.rendered(forms, record, explanations, where).items()}
        spans = json.loads(record[text_parts.COLUMN]) | self.parts(made, record, explanations, where)
        return {**made, text_parts.COLUMN: text_parts.written(spans)}

    def forms(self, kinds: Collection[str]) -> dict[str, str]:
        """Field -> its template, for the fields that these kinds of explanation suffice for."""
        found = {f"{name}_{form}": f"{name} {form}" for form in ("tail", "first") for name in kinds}
        of_several = [name for name in self.fields if all(kind in kinds for kind in self.training_fields[name])]
        return found | {name: name for name in of_several}

    def made_fields(self, kinds: Collection[str]) -> list[str]:
        """The names of the fields that `training_texts` and `shuffled_texts` make of these kinds of explanation."""
        forms = self.forms(kinds)
        controls = [shuffled(name) for name, form in forms.items() if not form.endswith(" first")]
        return [*forms, text_parts.COLUMN, *controls]

    def rendered(
        self, forms: Mapping[str, str], record: Record, explanations: Mapping[str, str], where: str
    ) -> dict[str, str]:
        """Field -> its text."""
        values = values_of_text({**record, **explanations})
        prompts = {name: record[f"{name}_text"] for name in explanations}
        return {name: self.rendered_form(form, values, prompts, explanations, where) for name, form in forms.items()}

    def rendered_form(
        self,
        form: str,
        values: Mapping[str, Any],
        prompts: Mapping[str, str],
        explanations: Mapping[str, str],
        where: str,
    ) -> str:
        """The text of one template of `forms`."""
        known = {**values, **explanations}
        if form not in self.fields:
            kind = form.partition(" ")[0]
            known |= {"prompt": prompts[kind], "explanation": explanations[kind]}
        return self.cleaned(self.render(form, known, where))

    def parts(
        self, made: Mapping[str, str], record: Record, explanations: Mapping[str, str], where: str
    ) -> dict[str, text_parts.Spans]:
        """Field -> its parts, where they are known. Each template is rendered with marks around the answer and the
        explanations; see text_parts.py.

        Args:
            made: field -> its text.
        """
        forms = self.forms(explanations)
        forms |= {shuffled(name): form for name, form in forms.items() if not form.endswith(" first")}
        values, text = values_of_text({**record, **explanations}), record["text"]
        values["text"] = text_parts.marked_text(text)
        if not values["choices"] and "letter" not in values:
            values["answer"] = text_parts.marked_answer(values["answer"])
        elif split_answer(text)[1]:
            values["letter"] = text_parts.marked_answer(values["letter"])
        prompts = {name: self.marked_prompt(record[f"{name}_text"], text) for name in explanations}
        marked = {name: text_parts.marked_explanation(one) for name, one in explanations.items()}
        found = {}
        for name, plain in made.items():
            try:
                spans = text_parts.spans_of(self.rendered_form(forms[name], values, prompts, marked, where), plain)
            except UserError:  # the template computes with the letter
                continue
            if spans is not None:
                found[name] = spans
        return found

    def marked_prompt(self, prompt: str, text: str) -> str:
        """A teacher's prompt with marks around the letter of the right answer in the sample's text, if it is in it."""
        cleaned = text.replace("  ", " ") if self.single_spaces else text
        for one in (text, cleaned):
            if one in prompt:
                return prompt.replace(one, text_parts.marked_text(one))
        return prompt

    def render(self, template: str, values: Mapping[str, Any], where: str) -> str:
        try:
            return render(self.templates[template], values)
        except ERRORS as error:
            why = str(error)
            if isinstance(error, jinja2.UndefinedError) and "'letter'" in why and "letter" not in values:
                why = "a question without choices has no letter; write {% if choices %}({{ letter }}){% endif %}"
            raise UserError(f"{where}: the template {template} of {self.path.name} fails: {why}") from error

    def cleaned(self, text: str) -> str:
        return remove_duplicated_block(text) if self.single_spaces else text

    def digest(self, is_open: bool = False) -> dict[str, str]:
        """A digest of what this set makes. A stage whose output has prompts in it records it as an input.

        It is computed from the set's fields and from the texts of two questions (with double spaces, an empty choice
        and a preamble), so that a change of the code that makes texts changes it too.

        Args:
            is_open: whether the stage's questions have no choices. Only then what the templates say of such questions
                counts, and the texts of two of them.
        """
        described = {**dataclasses.asdict(self), "path": self.name}
        made: list[object] = [described if is_open else with_choices(described)]
        for question in (*WITH_CHOICES, *(OPEN if is_open else ())):
            try:
                fields = self.prompt_fields(question, {}, self.name)
                texts = self.training_texts(fields, {kind: f" {kind}  . " for kind in self.kinds}, "")
            except UserError:  # a template reads the sample's own fields; its source is in `described`
                continue
            made += [fields, {name: text for name, text in texts.items() if name != text_parts.COLUMN}]
        return {"path": f"prompts/{self.name}", "sha256": hashlib.sha256(json.dumps(made).encode()).hexdigest()}


def with_choices(value: Any) -> Any:
    """A set's fields whose templates have only what is for questions with choices."""
    if isinstance(value, Mapping):
        return {name: with_choices(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_choices(one) for one in value]
    return IF_CHOICES.sub(lambda found: found[1], value) if isinstance(value, str) else value


def shuffled(name: str) -> str:
    """The control of a kind (`cot`), of its field `cot_tail`, or of a field of several kinds (`full_tail`)."""
    return name.removesuffix("_tail") + SHUFFLED


def hidden(name: str, known: tuple[str, ...]) -> str:
    return "; the teacher does not see the answer" if name in OF_ANSWER and "text" not in known else ""


def require_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: a name of small letters, digits and single underscores was expected")


def names() -> list[str]:
    return yaml_names(FOLDER)


def load_prompts(name: str = DEFAULT) -> PromptSet:
    """Read `prompts/NAME.yaml` of the current folder or of the project, or the YAML file at the path `name`.

    Raises:
        UserError: there is no such file (similar names are listed), or a field of the YAML is missing, unknown or
            malformed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else yaml_file(FOLDER, name)
    if not path.is_file():
        raise UserError(f"no prompts {name!r}; {meant(name, names())} (or give the path of a YAML file)")
    return read_yaml(path, PromptSet, {"path": path})
