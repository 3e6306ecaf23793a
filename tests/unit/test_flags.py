"""Flags as fields of a frozen dataclass: their values, the messages for mistakes, and --help."""

import re
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import pytest

from teacherlm.core import flags
from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, flag, parse, parse_shard

SOURCE = Path(flags.__file__).parents[1]


@dataclass(frozen=True)
class Cake:
    """A program with a flag of each kind."""

    made: str = "here"  # not a flag
    size: float | None = flag(None, help="in metres", group="form", above=0, below=1)
    name: str = flag(help="what it is called", group="form")
    layers: int = flag(3, help="how many (default: 3)", group="form", least=1, most=9)
    shape: str = flag("round", choices=("round", "square"))
    hot: bool = flag(False, help="from the oven")
    shard: tuple[int, int] = flag((0, 1), parse=parse_shard)
    files: tuple[Path, ...] = flag((), help="recipes")
    wish: tuple[str, ...] = flag((), repeated=True)
    oven: str = flag("gas", excludes="heat")
    stove: str | None = flag(None, excludes="heat")
    last_word: str = flag(factory=lambda: "amen", spelled=("--last-word", "--end"))
    rank: int | None = flag(None, help=HIDDEN)
    guests: tuple[str, ...] = flag((), positional=True, help="who comes")

    @property
    def height(self) -> int:
        return self.layers * 2


def read(words: str) -> Cake:
    return parse(Cake, "A cake.", words.split())


def test_what_is_not_given_has_the_default_of_its_field() -> None:
    assert read("--name x") == Cake(name="x")
    assert Cake(name="x").last_word == "amen"


def test_words_become_values_of_the_types_of_the_fields() -> None:
    words = "Ann Bob --name x --size 0.5 --layers 4 --shape square --hot --shard 1/2 --files a b --wish c --wish d"
    expected = Cake(
        size=0.5,
        name="x",
        layers=4,
        shape="square",
        hot=True,
        shard=(1, 2),
        files=(Path("a"), Path("b")),
        wish=("c", "d"),
        stove="wood",
        last_word="y",
        rank=7,
        guests=("Ann", "Bob"),
    )
    found = read(f"{words} --stove wood --end y --rank 7")
    assert found == expected
    assert found.height == 8


def test_flags_stay_as_they_were_read() -> None:
    found = read("--name x")
    with pytest.raises(FrozenInstanceError):
        found.layers = 4
    assert replace(found, layers=4).height == 8
    assert found.layers == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "the following arguments are required: --name; --help lists the flags"),
        ("--name x --colour", "unrecognized arguments: --colour; --help lists the flags"),
        ("--name", "argument --name: expected one argument; --help lists the flags"),
        ("--name x --layers many", "argument --layers: invalid int value: 'many'; --help lists the flags"),
        (
            "--name x --shape long",
            "argument --shape: invalid choice: 'long' (choose from round, square); --help lists the flags",
        ),
        ("--name x --layers 0", "--layers: at least 1 was expected, found 0"),
        ("--name x --layers 10", "--layers: at most 9 was expected, found 10"),
        ("--name x --size 0", "--size: more than 0 was expected, found 0.0"),
        ("--name x --size 1", "--size: less than 1 was expected, found 1.0"),
        ("--name x --size nan", "--size: a finite number was expected, found nan"),
        ("--name x --shard 2/2", "--shard: I/N with 0 <= I < N was expected, found '2/2'"),
        ("--name x --files", "argument --files: expected at least one argument; --help lists the flags"),
        ("--name x --hot=yes", "argument --hot: ignored explicit argument 'yes'; --help lists the flags"),
        (
            "--name x --oven a --stove b",
            "argument --stove: not allowed with argument --oven; --help lists the flags",
        ),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read(words)
    found = str(error.value).replace("'round', 'square'", "round, square")  # as in Python before 3.12
    assert found == said


HELP = """\
usage: cake [-h] [--size SIZE] --name NAME [--layers LAYERS]
            [--shape {round,square}] [--hot] [--shard SHARD]
            [--files FILES [FILES ...]] [--wish WISH]
            [--oven OVEN | --stove STOVE] [--last-word LAST_WORD]
            [guests ...]

A cake.

positional arguments:
  guests                who comes

options:
  -h, --help            show this help message and exit
  --shape {round,square}
  --hot                 from the oven
  --shard SHARD
  --files FILES [FILES ...]
                        recipes
  --wish WISH
  --oven OVEN
  --stove STOVE
  --last-word LAST_WORD, --end LAST_WORD

form:
  --size SIZE           in metres
  --name NAME           what it is called
  --layers LAYERS       how many (default: 3)
"""


def test_help_lists_the_flags_in_their_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["cake"])
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    usage, _, rest = capsys.readouterr().out.partition("\n\n")  # Python versions break the usage into different lines
    rest = rest.replace("--last-word, --end LAST_WORD", "--last-word LAST_WORD, --end LAST_WORD")  # as before 3.13
    assert [" ".join(usage.split()), rest] == [" ".join(HELP.partition("\n\n")[0].split()), HELP.partition("\n\n")[2]]


def test_lines_of_a_description_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Cake, "A cake:\n\n  flour\n  eggs", ["--help"])
    assert "A cake:\n\n  flour\n  eggs\n" in capsys.readouterr().out


def test_no_namespace_of_argparse_is_handed_on() -> None:
    """A namespace's fields have no types, and any code can change them."""
    found = [file for file in SOURCE.rglob("*.py") if re.search(r"\bNamespace\b", file.read_text(encoding="utf-8"))]
    # Released checkpoints of ATLAS contain a namespace.
    assert [str(file.relative_to(SOURCE)) for file in found] == ["atlas/checkpoints.py"]
