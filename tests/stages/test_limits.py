"""Small files that stand for large ones: descriptions, templates and records are limited, and the error is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bounded import bounded
from support.new_benchmarks import SAMPLE, mistake, written
from support.programs import STAGES, only_error

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.sources import read_csv
from teacherlm.core import limits
from teacherlm.core.json_files import load_json
from teacherlm.core.records import read_records

TIMES_TEN = ", ".join(["*{0}"] * 10)
WITHOUT_TITLE = "question: q\nchoices: [a, b]\nanswer: a\nsplits: {train: a, test: b}\n"
LAUGHS = f"{WITHOUT_TITLE}title:\n- &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &{name} [{TIMES_TEN.format(before)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
MERGED = "a: &a {q: x, r: x}\n" + "".join(
    f"{name}: &{name}\n  <<: [{TIMES_TEN.format(before)}]\n" for before, name in zip("abcdefghi", "bcdefghij")
)
STAIRS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))


def test_aliases_that_stand_for_gigabytes(tmp_path: Path) -> None:
    """528 bytes like these took a minute and 3.6 GB, because the message had their value in it."""
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    assert len(LAUGHS) < 800
    error = only_error(bounded([STAGES["data_prepare"], "--benchmark", path, "--output_dir", tmp_path], 30, 512))
    assert f"{path}: not valid YAML, line 12: its aliases expand to more than 4,000,000" in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MERGED, "its aliases expand to more than"),
        ("title: &a [*a]\n", "line 1: an alias is inside the value that it stands for"),
        ("title: &a {b: *a}\n", "line 1: an alias is inside the value that it stands for"),
        ("title: " + "[" * 100_000, f"line 1: nested more than {limits.YAML_DEPTH} levels deep"),
        ("title: " + "{a: " * 60_000, f"line 1: nested more than {limits.YAML_DEPTH} levels deep"),
        ("\n".join(" " * n + "a:" for n in range(300)), f"nested more than {limits.YAML_DEPTH} levels deep"),
        (STAIRS, f"its aliases expand to more than {limits.YAML_DEPTH} levels of nesting"),
        ("title: " + "x" * limits.YAML_BYTES, f"at most {limits.YAML_BYTES:,} bytes were expected"),
        ("title: !!timestamp x\n", "could not determine a constructor for the tag"),
        ("title: !!int x\n", "could not determine a constructor for the tag"),
        ("title: !!python/object/apply:os.system [id]\n", "could not determine a constructor for the tag"),
        ('title: "\\ud800"\n', "line 1: the character \\ud800 is not allowed"),
        ('title: "a\\0b"\n', "line 1: the character \\u0000 is not allowed"),
        ('title: "\\e[2J"\n', "line 1: the character \\u001b is not allowed"),
        (f"? {'k' * 100_000}\n: x\n", "unknown field 'kkk"),
        (f"{WITHOUT_TITLE}title: [{'y, ' * 20_000}]\n", "title: a text was expected, found ['y', 'y'"),
    ],
)
def test_a_description_that_is_meant_to_hurt(inside: Callable, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "hurts.yaml"
    path.write_text(text)
    error = only_error(inside("data_prepare", "--benchmark", path, "--output_dir", tmp_path))
    assert said in error
    assert len(error) < 2200
    assert [file.name for file in tmp_path.iterdir()] == ["hurts.yaml"]


def test_aliases_and_merges_that_people_write_still_work(tmp_path: Path) -> None:
    path = tmp_path / "fine.yaml"
    path.write_text(
        "title: Fine\nquestion: '{{ q }}'\nchoices: [&yes 'Yes', 'No', *yes]\nanswer: '{{ a }}'\n"
        "files: &files {train: a.json}\nsplits: {<<: *files, test: b}\n"
    )
    benchmark = load_benchmark(str(path))
    assert benchmark.choices == ("Yes", "No", "Yes")
    assert benchmark.splits == {"train": "a.json", "test": "b"}


# ---------------------------------------------------------------------------------------------------------- templates

LETTER_LOOP = "{% for a in '" + "x" * 200 + "' %}"
DOUBLED = "".join("{% set a = " + sum_ + " %}" for sum_ in ["'x' ~ question", *["a ~ a"] * 60])


MANY = "".join(f"{{% set a{number} = MAKE %}}" for number in range(200))
MAKERS = (
    "t | list",
    "t.split(',')",
    "t.splitlines()",
    "t.upper()",
    "t | lower",
    "t | sort",
    "t | sort | unique | list",
)
MAKERS += ("t[1:]", "t.partition(',')", "(t, t)[0:2]", "t | title", "t ~ 'x'", "t | map('upper') | list", "t | default")


@pytest.mark.parametrize(
    "template",
    [
        LETTER_LOOP * 6 + "{% endfor %}" * 6,
        LETTER_LOOP * 6 + "text" + "{% endfor %}" * 6,
        LETTER_LOOP * 6 + "{{ a }}" + "{% endfor %}" * 6,
        LETTER_LOOP * 30 + "{% endfor %}" * 30,
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ 'x' * 99999999 * 99999999 }}",
        "{% set a = [question] * 1000000000 %}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ question.ljust(9999999999) }}",
        "{{ question.center(9999999999) }}",
        "{{ question | center(9999999999) }}",
        "{{ question | indent(9999999999) }}",
        "{{ question | format(1) }}",
        "{{ [1] | batch(9999999999, 'x') | list }}",
        "{{ question.zfill(9999999999) }}",
        "{{ '\t'.expandtabs(9999999999) }}",
        DOUBLED,
        DOUBLED.replace("~", "+"),
        DOUBLED.replace("a ~ a", "[a, a]") + "{{ a }}",
        DOUBLED.replace("a ~ a", "[a, a]") + "{% set b = a %}{{ a == b }}",
        DOUBLED.replace("a ~ a", "(a, a)") + "{{ {a: 1} }}",
        DOUBLED.replace("a ~ a", "{'k': a, 'l': a}") + "{{ a | string }}",
        DOUBLED.replace("'x' ~ question", "[question]").replace("a ~ a", "a + a"),
        DOUBLED.replace("a ~ a", "a.join([a, a])"),
        DOUBLED.replace("a ~ a", "[a, a] | join"),
        DOUBLED.replace("a ~ a", "a.replace('x', a)"),
        DOUBLED.replace("a ~ a", "a | replace('', a)"),
        "{% set a = 7 %}" + "{% set a = a * a %}" * 60 + "{{ a }}",
        LETTER_LOOP * 3 + "{{ question | map('replace', '', question) | list }}" + "{% endfor %}" * 3,
        "{% set a = ('x' * 3000) | list %}{% for b in a %}{{ a | reject('in', a) | list }}{% endfor %}",
        "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
        "{% set a %}{{ question }}{% endset %}",
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 3000 + "1 }}",
        "{{ " + "1 + " * 4000 + "1 }}",
        "{% if 1 %}" * 1500 + "{% endif %}" * 1500,
        "x" * (limits.TEMPLATE_CHARACTERS + 1),
        "{{ question | truncate(1) }}",
        "{% set a = ('f' * 200000) | int(0, 16) %}{{ a // 3 }}",
        "{% set a = ('9' * 4000) | int %}{{ a - 1 }}",
        *(f"{{{{ ({'9' * 4000} {sign} 7) > 1 }}}}" for sign in ("-", "/", "//", "+", "*", "%")),
        *(f"{{% set t = 'x,' * 100000 %}}{MANY.replace('MAKE', make)}{{{{ question }}}}" for make in MAKERS),
    ],
)
def test_a_template_that_is_meant_to_hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr("teacherlm.catalog.templates.TEMPLATE_WORK", limits.TEMPLATE_WORK // 20)  # to be there sooner
    monkeypatch.setattr("teacherlm.catalog.templates.TEMPLATE_KEPT", limits.TEMPLATE_KEPT // 20)
    path = written(tmp_path, "{{ question }}", template)
    said = mistake(lambda: load_benchmark(path).ask(SAMPLE, "train.jsonl, line 7"))
    assert said.startswith((f"{path}: the template question", "train.jsonl, line 7: the template question"))


def test_a_template_ends_at_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "{{ question }}", LETTER_LOOP * 6 + "{% endfor %}" * 6)
    message = "train.jsonl, line 7: the template question of commonsense_qa.yaml fails: it "
    for name, value, said in (
        ("TEMPLATE_WORK", limits.TEMPLATE_WORK, "makes more than 5,000,000 characters (a step of a loop counts as 20)"),
        ("TEMPLATE_SECONDS", 0.1, "takes more than 0.1 seconds"),
    ):
        monkeypatch.setattr(f"teacherlm.catalog.templates.{name}", value)
        assert mistake(lambda: load_benchmark(path).ask(SAMPLE, "train.jsonl, line 7")) == message + said


@pytest.mark.parametrize("name", ["div", "lst", "spl", "srt"])
def test_templates_that_took_gigabytes_or_a_minute(tmp_path: Path, name: str) -> None:
    source = {
        "div": "{% set a = ('f' * 2400000) | int(0, 16) %}{% set b = ('f' * 1200000) | int(0, 16) %}{{ (a // b) > 1 }}",
        "lst": "{% set t = 'x' * 4000000 %}" + MANY.replace("MAKE", "t | list"),
        "spl": "{% set t = ',' * 4000000 %}" + MANY.replace("MAKE", "t.split(',')"),
        "srt": "{% set t = 'b\\na\\n' * 1000000 %}" + MANY.replace("MAKE", "t.splitlines() | sort | unique | list"),
    }[name]
    path = written(tmp_path, "{{ question }}", source + "{{ question }}")
    code = "import sys, json; from teacherlm.catalog import benchmarks, templates\n"
    code += "templates.TEMPLATE_KEPT //= 5\n"  # to be there sooner
    code += "benchmarks.load_benchmark(sys.argv[1]).ask(json.loads(sys.argv[2]), '')"
    done = bounded(["-c", code, path, json.dumps(SAMPLE)], 10, 400)
    assert "UserError" in done.stderr and "fails: it" in done.stderr


def test_a_template_may_do_what_people_need(tmp_path: Path) -> None:
    template = (
        "{% set parts = question.split(' ') %}{% for part in parts if part | length > 2 %}{{ loop.index }}:"
        "{{ part | upper }}{{ ', ' if not loop.last }}{% endfor %} {{ parts | map('lower') | join('-', ) }} "
        "{{ ('a' ~ 'b') * 2 }} {{ 3 * 4 % 5 + 1 }} {{ [1, 2] | join('+') }} {% for a, b in {'k': 'v'}.items() %}"
        "{{ a ~ b }}{% endfor %} {% filter single_blanks %}x  y{% endfilter %} {{ question.replace('W', 'w') | trim }}"
    )
    path = written(tmp_path, "{{ question }}", template)
    asked = load_benchmark(path).ask({**SAMPLE, "question": "What is it"}, "")
    assert asked.question == "1:WHAT what-is-it abab 3 1+2 kv x y what is it"


# -------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than"),
        ("[" * 100_000 + "]" * 100_000, "nested more than"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than"),
        ("[" * 40 + "]" * 40, "nested more than"),
        ("[" + "[]," * limits.JSON_VALUES + "[]]", "lists and objects"),
        ('"' + "x" * limits.JSON_BYTES + '"', "bytes"),
        ("9" * 100_000, "digits"),
        (b"\xff", "decode"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_meant_to_hurt(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said):
        load_json(path)


def test_json_of_any_width_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    value = {"a": [[{"b": [1.5, None, "\udcc3"]}] * 1000], "c": 2}
    path.write_text(json.dumps(value))
    assert load_json(path) == value


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '{"a": [' + "[]," * limits.JSON_VALUES + "[]]}"])
def test_a_record_that_is_meant_to_hurt(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    assert mistake(lambda: list(read_records(path))).startswith(f"{path}, line 2: ")


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with open(path, "wb") as file:
        file.truncate(8 * 2**30)  # a hole: it takes no space
    code = "import sys; from pathlib import Path; from teacherlm.core.records import read_records\n"
    code += "list(read_records(Path(sys.argv[1])))"
    done = bounded(["-c", code, path], 60, 512)
    assert "UserError" in done.stderr and "line 1: a line of at most" in done.stderr


def test_a_table_of_many_columns(tmp_path: Path) -> None:
    """Columns with the same name become a list. For each column, all columns used to be searched for its name."""
    path = tmp_path / "wide.csv"
    path.write_text(",".join(["a", "a", *map(str, range(50_000))]) + "\n" + ",".join(["x"] * 50_002) + "\n")
    code = "import sys; from pathlib import Path; from teacherlm.catalog.sources import read_csv\n"
    code += "print(len(list(read_csv(Path(sys.argv[1]), None))))"
    assert bounded(["-c", code, path], 20).stdout == "1\n"
    ((_, sample),) = read_csv(path, None)
    assert sample["a"] == ["x", "x"] and sample["7"] == "x"
