"""The flags of a program. A mistake in them is reported in one line.

A program declares each flag once, as a field of a frozen dataclass:

    @dataclass(frozen=True)
    class MergeFlags:
        output: Path = flag(help="the enhanced file, as given to enhance.py")
        shards: int = flag(2, help="number of shards", least=2)
        list_missing: bool = flag(False, help=LIST_MISSING)

    flags = parse(MergeFlags, __doc__)

The type of the field says how its words are read: a `bool` is a switch, a `tuple[X, ...]` takes several words, and an
`X | None` is an optional X. A value that is computed from the flags is a property of the class, or is set in a copy
(`dataclasses.replace`).
"""

import argparse
import dataclasses
import math
import operator
import shutil
import textwrap
import types
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, Unpack, get_args, get_origin

from teacherlm.core.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Flags = TypeVar("Flags", bound="DataclassInstance")

HIDDEN = argparse.SUPPRESS
"""Help of a flag that is accepted but that --help does not list."""
LIST_MISSING = "print the numbers of the shards or models that are not done (0 in other stages), and do nothing"
"""Help of a flag that every stage has. The chain calls it to know which jobs to submit."""


class Range(TypedDict, total=False):
    """The range of numbers that a flag accepts."""

    least: float
    above: float
    most: float
    below: float


def flag(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    help: str | None = None,
    group: str | None = None,
    excludes: str | None = None,
    spelled: Sequence[str] = (),
    positional: bool = False,
    repeated: bool = False,
    parse: Callable[[str], Any] | None = None,
    choices: Collection[str] | None = None,
    metavar: str | None = None,
    **bounds: Unpack[Range],
) -> Any:
    """Declare a flag. One without a default is required.

    Args:
        factory: makes a default that depends on the environment.
        group: the heading under which --help lists the flag.
        excludes: the name of a group of flags, of which at most one may be given.
        spelled: the spellings of the flag, if they differ from `--` and the name of the field.
        positional: the argument is given by its position, without a name.
        repeated: the flag may be given several times, with one word each time.
        parse: converts a word to the value, if the type alone does not say how.
    """
    how = {
        "help": help,
        "group": group,
        "excludes": excludes,
        "spelled": spelled,
        "positional": positional,
        "repeated": repeated,
        "parse": parse,
        "shown": {"choices": choices, "metavar": metavar},
        "bounds": bounds,
    }
    return dataclasses.field(default=default, default_factory=factory, kw_only=True, metadata=how)


def parse(
    kind: type[Flags], description: str | None, words: Sequence[str] | None = None, example: str | None = None
) -> Flags:
    """Read the flags of a program from its command line, or from the given words.

    Args:
        example: a whole command, which --help ends with.

    Raises:
        UserError: a flag is unknown, has no value, or has a value that is not allowed.
    """
    found = vars(parser_of(kind, description, example).parse_args(words))
    for one in declared(kind):
        if one.name in found and one.metadata["bounds"]:
            require_number(one.name, found[one.name], **one.metadata["bounds"])
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def declared(kind: "type[DataclassInstance]") -> list[dataclasses.Field[Any]]:
    """The fields of a class that are flags. Other fields have no metadata."""
    return [one for one in dataclasses.fields(kind) if one.metadata]


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a UserError for a mistake: one line, without the usage text.

    Attributes:
        kind: the class that declares the flags, if there is one.
    """

    kind: "type[DataclassInstance] | None" = None

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def parser_of(
    kind: "type[DataclassInstance]", description: str | None = None, example: str | None = None, **settings: Any
) -> Parser:
    """The parser of these flags. Its result has only the flags that were given, because the class has the defaults."""
    if description and "\n" not in description:
        description = textwrap.fill(description, shutil.get_terminal_size().columns - 2)
    parser = Parser(
        description=description,
        epilog=example and f"example:\n  {example}",  # a command stays one line, which can be copied
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        **settings,
    )
    parser.kind = kind
    groups: dict[str, Any] = {}
    for one in declared(kind):
        how = one.metadata
        place: Any = parser
        if title := how["group"]:
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            place = groups[title]
        if name := how["excludes"]:
            if name not in groups:
                groups[name] = place.add_mutually_exclusive_group()
            place = groups[name]
        names = [one.name] if how["positional"] else how["spelled"] or [f"--{one.name}"]
        place.add_argument(*names, help=how["help"], **reading(one))
    return parser


def reading(one: dataclasses.Field[Any]) -> dict[str, Any]:
    """The arguments of `add_argument` for a flag: its type, its number of words, its choices."""
    how, kind = one.metadata, one.type
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    words: dict[str, Any] = {**how["shown"], "type": how["parse"] or kind}
    required = one.default is one.default_factory is dataclasses.MISSING
    if get_origin(kind) is tuple and how["parse"] is None:
        words["type"] = get_args(kind)[0]
        several = {"nargs": "*" if how["positional"] and not required else "+"}
        words |= {"action": "append"} if how["repeated"] else several
    return words if how["positional"] else {**words, "required": required}


def require_number(name: str, value: float | None, **bounds: Unpack[Range]) -> None:
    """Refuse a number that is not finite or out of the flag's range. None, for a flag that was not given, is accepted.

    Raises:
        UserError: the message names the flag, the range and the number.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise UserError(f"--{name}: a finite number was expected, found {value}")
    for bound, holds, words in (
        (bounds.get("least"), operator.ge, "at least"),
        (bounds.get("above"), operator.gt, "more than"),
        (bounds.get("most"), operator.le, "at most"),
        (bounds.get("below"), operator.lt, "less than"),
    ):
        if bound is not None and not holds(value, bound):
            raise UserError(f"--{name}: {words} {bound} was expected, found {value}")


LEAST_TEMPERATURE = 1e-3
"""Below it the logits, divided by the temperature, may exceed what a float holds."""


def require_temperature(temperature: float) -> None:
    """Raises:
    UserError: the temperature is neither 0 nor at least LEAST_TEMPERATURE.
    """
    if 0 < temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"--temperature: 0, which takes the most likely token, or at least {LEAST_TEMPERATURE} was expected, found "
            f"{temperature}"
        )


def parse_shard(text: str) -> tuple[int, int]:
    """(I, N) of `--shard I/N`: the shard with index I of N shards, counted from 0."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard: I/N with 0 <= I < N was expected, found {text!r}")
    return int(index), int(count)
