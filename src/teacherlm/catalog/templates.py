"""The templates of a benchmark: Jinja2 templates that read a sample's fields, with limited memory and time.

Jinja2's sandbox keeps a template away from Python's objects, but allows `{{ "x" * 10 ** 10 }}` and five nested loops.
Here a template may only use what makes text from fields: loops, conditions, `set`, and the filters and methods listed
below. Every operation that makes a text or a list longer than its inputs is counted, and a rendering that exceeds a
limit (limits.py) ends with an error.
"""

import functools
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from teacherlm.catalog.prompts import full_stop, remove_duplicated_block
from teacherlm.core.errors import UserError, reason
from teacherlm.core.limits import (
    LOOP_STEP,
    TEMPLATE_BITS,
    TEMPLATE_CHARACTERS,
    TEMPLATE_KEPT,
    TEMPLATE_SECONDS,
    TEMPLATE_WORK,
)

FILTER_NAMES = (
    *(
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "int",
        "items",
        "last",
    ),
    *("length", "list", "lower", "max", "min", "sort", "title", "trim", "truncate", "unique", "upper", "wordcount"),
)
FILTERS_OF_FILTERS = ("map", "reject", "rejectattr", "select", "selectattr")
"""Jinja2's filters, without those that draw at random or pad a text to a given width."""

METHODS: dict[type, Collection[str]] = {
    str: {name for name in dir(str) if not name.startswith("_")}
    - {"center", "encode", "expandtabs", "format", "format_map", "ljust", "maketrans", "rjust", "translate", "zfill"},
    list: {"count", "index"},
    tuple: {"count", "index"},
    dict: {"get", "items", "keys", "values"},
    LoopContext: {"changed", "cycle"},
}
"""Type of a value -> the methods that a template may call."""

REFUSED = {
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Include: "include",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.AssignBlock: "set without =",
    nodes.Pow: "**",
}
"""Parts of Jinja2 that a benchmark does not need, and that can recurse, read files or escape the counting."""

ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RecursionError, NameError),
)
"""Errors that a template raises for values of the wrong type: in `{{ 5 | full_stop }}`, 5 has no `endswith`."""


class TooMuch(jinja2.TemplateRuntimeError):
    """A rendering exceeds a limit."""


class Work(threading.local):
    """What this thread's rendering has made so far, and the processor time at which it is stopped."""

    characters = kept = 0
    end = 0.0

    def begin(self) -> None:
        self.characters, self.kept, self.end = 0, 0, time.thread_time() + TEMPLATE_SECONDS

    def spend(self, characters: int) -> None:
        """Raises:
        TooMuch: with these characters the rendering exceeds TEMPLATE_WORK, or it takes too long.
        """
        self.characters += characters
        if self.characters > TEMPLATE_WORK:
            raise TooMuch(f"it makes more than {TEMPLATE_WORK:,} characters (a step of a loop counts as {LOOP_STEP})")
        if time.thread_time() > self.end:
            raise TooMuch(f"it takes more than {TEMPLATE_SECONDS:g} seconds")

    def keep(self, value: Any) -> Any:
        """Count and return a value from a filter or a method. A template can keep such values with `set`.

        Raises:
            TooMuch: all such values of this rendering exceed TEMPLATE_KEPT, or the value is too large a number.
        """
        require_small(value)
        waiting = [value]
        while waiting:
            part = waiting.pop()
            self.kept += 1 + (len(part) if isinstance(part, str) else 0)
            if self.kept > TEMPLATE_KEPT:
                made = f"{TEMPLATE_KEPT:,} characters and values"
                raise TooMuch(f"its filters, methods and slices make more than {made}")
            if isinstance(part, dict):
                waiting += part.values()
            elif isinstance(part, list | tuple):
                waiting += part
        return value

    def steps(self, values: Iterable[Any], characters: int) -> Iterator[Any]:
        """The values of a loop. Each step is counted, plus the characters of fixed text in the loop's body."""
        for value in values:
            self.spend(LOOP_STEP + characters)
            yield value

    def expand(self, value: Any) -> None:
        """Count all parts of a value. A list can occur in others many times, and is written or compared each time."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            self.spend(1 + (len(value) if isinstance(value, str) else 0))
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list | tuple):
                waiting += value


WORK = Work()


def size_of(value: Any) -> int:
    """The cost of a value: the length of a text, the cost of a product with a whole number, otherwise 0."""
    if isinstance(value, str):
        return len(value)
    return value.bit_length() ** 2 // 10_000 if isinstance(value, int) else 0


def require_small(value: Any) -> None:
    """Refuse a whole number that makes a step slow. Dividing two numbers of a million digits takes a minute.

    Raises:
        TooMuch: the number has more than TEMPLATE_BITS bits.
    """
    if isinstance(value, int) and value.bit_length() > TEMPLATE_BITS:
        raise TooMuch(f"it uses a whole number of more than {TEMPLATE_BITS:,} bits")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, in which only METHODS can be called. The results of methods and operators are counted."""

    intercepted_binops = frozenset(["*", "+", "%", "-", "/", "//"])

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        value, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if name not in METHODS.get(type(value), ()):
            raise jinja2.exceptions.SecurityError(f"{name or 'this'} cannot be called in a template")
        if name in COUNTED_METHODS:
            return WORK.keep(COUNTED_METHODS[name](value, *args, **kwargs))
        return WORK.keep(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        require_small(left)
        require_small(right)
        if operator == "%" and isinstance(left, str):
            raise jinja2.exceptions.SecurityError("% of a text cannot be used in a template")
        if operator == "*" and isinstance(left, int) != isinstance(right, int):  # copies of a text or a list
            copies, value = (left, right) if isinstance(left, int) else (right, left)
            if not isinstance(value, str | float):
                raise jinja2.exceptions.SecurityError("* of a list cannot be used in a template")
            WORK.spend(max(0, copies) * size_of(value))
        else:
            WORK.expand([left, right])
            WORK.spend(size_of(left) + size_of(right))
        return super().call_binop(context, operator, left, right)


# --------------------------------------------------------------------------------- filters and methods that are counted


def replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """`text.replace(old, new, count)`. None as the count replaces all occurrences."""
    whole, found, instead = text_of(text), text_of(old), text_of(new)
    most = -1 if count is None else count
    hits = whole.count(found)
    WORK.spend(len(whole) + len(instead) * (hits if most < 0 else min(hits, most)))
    return whole.replace(found, instead, most)


def text_of(value: Any) -> str:
    WORK.expand(value)
    return str(value)


def joined(values: Iterable[Any], between: Any = "") -> str:
    separator = str(between)
    return separator.join([text_of(value) for value in WORK.steps(values, len(separator))])


COUNTED_METHODS: dict[str, Callable[..., str]] = {
    "replace": replaced,
    "join": lambda between, values: joined(values, between),
}


@jinja2.pass_environment
def join(environment: jinja2.Environment, values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    """Jinja2's filter of this name."""
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return joined(values, d)


def over_counted(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that iterates over values. Each value counts as a step of a loop."""

    @functools.wraps(filter)
    def counted(context: Any, values: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        return filter(context, WORK.steps(values, 0), *args, **kwargs)

    return counted


def kept(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose results are counted."""

    @functools.wraps(filter)
    def counted(*args: Any, **kwargs: Any) -> Any:
        return WORK.keep(filter(*args, **kwargs))

    return counted


def one_line(text: str) -> str:
    return text.replace("\n", " ")


STEPS, CONCATENATED, MADE, SLICED = "for", "~", "[]", "[:]"
"""Names of filters that a template cannot use. `Bounded` inserts these filters."""


@jinja2.pass_context
def steps(context: Any, values: Iterable[Any], characters: int) -> Iterator[Any]:
    return WORK.steps(values, characters)


@jinja2.pass_context
def concatenated(context: Any, values: list[Any]) -> str:
    return joined(values)


@jinja2.pass_context
def written(context: Any, value: Any) -> str:
    """A value as the template writes it. (It takes the context, so that Jinja2 does not call it while compiling.)"""
    return text_of(value)


@jinja2.pass_context
def made(context: Any, value: Any) -> Any:
    """A list or mapping that the template contains, counted."""
    WORK.expand(value)
    return value


@jinja2.pass_context
def sliced(context: Any, value: Any) -> Any:
    """A slice of a text or a list, counted."""
    return WORK.keep(value)


SANDBOX = Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, finalize=written)
SANDBOX.globals.clear()
SANDBOX.filters = {name: FILTERS[name] for name in FILTER_NAMES}
SANDBOX.filters |= {name: over_counted(FILTERS[name]) for name in FILTERS_OF_FILTERS}
SANDBOX.filters |= {"replace": replaced, "join": join, "string": text_of}
SANDBOX.filters |= {"full_stop": full_stop, "one_line": one_line, "single_blanks": remove_duplicated_block}
SANDBOX.filters = {name: kept(filter) for name, filter in SANDBOX.filters.items()}
SANDBOX.filters |= {STEPS: steps, CONCATENATED: kept(concatenated), MADE: made, SLICED: sliced}


# ------------------------------------------------------------------------------------------------------------ templates


class Bounded(NodeTransformer):
    """Refuses the parts of Jinja2 that a template must not use, and inserts filters that count the others."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Raises:
        jinja2.TemplateSyntaxError: the node is one of REFUSED, or an infinite number.
        """
        if type(node) in REFUSED or getattr(node, "recursive", False):
            word = REFUSED.get(type(node), "recursive")
            raise jinja2.TemplateSyntaxError(f"{word} cannot be used here", node.lineno)
        if isinstance(node, nodes.Const) and isinstance(node.value, float) and not math.isfinite(node.value):
            raise jinja2.TemplateSyntaxError("a number in it is too large", node.lineno)  # compiles to the name `inf`
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        characters = sum(len(fixed.data) for fixed in node.find_all(nodes.TemplateData))
        node.iter = as_filter(node.iter, STEPS, nodes.Const(characters))
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return as_filter(node, SLICED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return as_filter(nodes.List(node.nodes, lineno=node.lineno, environment=SANDBOX), CONCATENATED)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return as_filter(node, MADE)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return as_filter(node, MADE) if node.ctx == "load" else node


def as_filter(value: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    made = nodes.Filter(value, name, list(args), [], None, None)
    made.set_lineno(value.lineno).set_environment(SANDBOX)
    return made


def compile_template(source: str, where: str) -> jinja2.Template:
    """A compiled template, for `render`.

    Args:
        where: the template's place, for messages.

    Raises:
        UserError: it is not valid Jinja2, is too long, or uses a part of Jinja2 that is refused here.
    """
    if len(source) > TEMPLATE_CHARACTERS:
        raise UserError(f"{where}: a template of at most {TEMPLATE_CHARACTERS:,} characters was expected")
    try:
        return SANDBOX.from_string(Bounded().visit(SANDBOX.parse(source)))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where} is not valid Jinja2: {error.message}") from error
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    except (SyntaxError, ValueError, ArithmeticError, MemoryError) as error:  # Python's compiler; a long number
        raise UserError(f"{where} cannot be compiled: {reason(error)}") from error


def fields_of(source: str) -> list[str]:
    """The fields of a sample that a template reads, sorted."""
    return sorted(jinja2.meta.find_undeclared_variables(SANDBOX.parse(source)))


def render(template: jinja2.Template, sample: Mapping[str, Any]) -> str:
    """Raises:
    One of ERRORS. It is `TooMuch` if the rendering exceeds a limit.
    """
    WORK.begin()
    return template.render(sample)
