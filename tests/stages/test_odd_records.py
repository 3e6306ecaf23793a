"""Records that people bring: what is odd about them goes through the scripts, or is named by file, line and field."""

import datetime
import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from backports import zstd
from support.files import contents, sample_claims
from support.programs import only_error

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split
from teacherlm.core.errors import UserError
from teacherlm.core.records import read_records

PACK = {".gz": gzip.compress, ".zst": zstd.compress}

TEXTS = {
    "emoji": "A family \U0001f469‍\U0001f469‍\U0001f467 waved a flag \U0001f3f4‍☠️.",
    "combining": "Ze\u0301ro e\u0301le\u0301phant a̶̛͓͝.",
    "right to left": "\u202eשלום\u202c and \u200fمرحبا\u200e.",
    "line separators": "One\u2028two\u2029three\u0085four\x0b\x0c\x1c\x1efive.",
    "NUL": "Nothing\x00at all\x00.",
    "byte order marks": "\ufeffIn the middle\ufeff and \ufffe\uffff.",
    "private": "\ue000 \U0010ffff 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽.",
    "line breaks": "First\nsecond\r\nthird\rfourth\t.",
    "quotes": "\"'`\\ {{ sentence }} {% raw %} \\n </s> <pad>.",
}


class Workplace:
    """A folder like CREAK's with the training samples of the test, and functions that run the scripts on it."""

    def __init__(self, claims: Path, run: Callable[..., subprocess.CompletedProcess]):
        self.claims, self.run, self.benchmark = claims, run, "creak"
        self.train, self.output = claims / "train.json", claims.parent / "output"

    def prepare(self, *flags: object) -> subprocess.CompletedProcess:
        places = ["--data", self.claims, "--output_dir", self.output, "--test_dir", self.output / "tests"]
        return self.run("data_prepare", "--benchmark", self.benchmark, *places, *flags)

    def enhance(self, model: Path, source: Path | None = None) -> subprocess.CompletedProcess:
        files = ["--input", source or self.output / "CREAK.jsonl", "--output", self.output / "CREAK_cot.jsonl"]
        return self.run("enhance", "--name", model, *files, "--task_type", "cot_text", "--num_tokens", 4)

    def put(self, *records: dict) -> None:
        self.train.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def refused(self, *words: str) -> None:
        """Check that preparation ends with one line that has these words, and leaves no files."""
        error = only_error(self.prepare())
        assert all(word in error for word in words), error
        assert len(error) < 600
        assert contents(self.output) == {}


@pytest.fixture
def work(claims: Path, inside: Callable) -> Workplace:
    return Workplace(claims, inside)


def claim(**fields: object) -> dict:
    return {"ex_id": "1", "sentence": "Bees make honey.", "label": "true", **fields}


def saved(folder: Path) -> list[dict]:
    dataset = datasets.load_from_disk(str(folder))
    return list(dataset["train"] if isinstance(dataset, datasets.DatasetDict) else dataset)


# ----------------------------------------------------------------------------------------------------- what works


def test_unicode_of_all_kinds_goes_through_all_stages(work: Workplace, tiny_llama: Path) -> None:
    work.put(*(claim(ex_id=name, sentence=text) for name, text in TEXTS.items()))
    for run in (work.prepare, lambda: work.enhance(tiny_llama), work.prepare):
        done = run()
        assert done.returncode == 0, done.stderr
    samples = saved(work.output / "CREAK")
    assert {sample["ex_id"]: sample["sentence"] for sample in samples} == TEXTS
    assert all(sample["sentence"] in sample["text"] for sample in samples)
    assert all(sample["all"] == sample["cot_text"] + sample["cot"] for sample in samples)


def test_fields_of_a_megabyte(work: Workplace, tiny_llama: Path) -> None:
    long = "Ωmega " * 175_000
    work.put(*(claim(ex_id=str(number), explanation=long, facts=[long]) for number in range(3)))
    for run in (work.prepare, lambda: work.enhance(tiny_llama), work.prepare):
        done = run()
        assert done.returncode == 0, done.stderr
    assert [(sample["explanation"], sample["facts"]) for sample in saved(work.output / "CREAK")] == [(long, [long])] * 3


def test_a_question_of_a_megabyte_is_prepared(work: Workplace) -> None:
    long = "x" * 1_000_000
    work.put(claim(sentence=long))
    assert work.prepare().returncode == 0
    assert long in saved(work.output / "CREAK")[0]["cot_text"]


@pytest.mark.parametrize("fields", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_thousands_of_fields_in_a_line(fields: int, work: Workplace) -> None:
    """With the larger number this took about twenty seconds, mostly in the library that handles the schema's JSON."""
    wide = {f"field {number}": f"value {number}" for number in range(fields)}
    work.put(claim(), claim(**wide))
    done = work.prepare()
    assert done.returncode == 0, done.stderr
    [(_, narrow), (_, record)] = read_records(work.output / "CREAK.jsonl")
    assert (len(narrow), len(record)) == (7, fields + 7)
    dataset = datasets.load_from_disk(str(work.output / "CREAK"))["train"]
    assert len(dataset.column_names) == fields + 7
    column = dataset.data.column(f"field {fields - 1}")
    assert column.to_pylist() == [None, f"value {fields - 1}"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_line_ends_of_windows_a_mark_at_the_start_and_archives(work: Workplace, ending: str) -> None:
    expected = [record for _, record in read_records(work.train)]
    content = b"\xef\xbb\xbf" + work.train.read_bytes().replace(b"\n", b"\r\n")
    work.train.unlink()
    half = content.index(b"\n", len(content) // 2) + 1  # an archive of two parts, as `cat a.gz b.gz` makes it
    parts = [content] if not ending else [PACK[ending](content[:half]), PACK[ending](content[half:])]
    work.train.with_name("train.json" + ending).write_bytes(b"".join(parts))
    assert work.prepare().returncode == 0
    samples = saved(work.output / "CREAK")
    assert [{name: sample[name] for name in expected[0]} for sample in samples] == expected


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_json_list_with_a_mark_at_the_start_and_in_an_archive(work: Workplace, ending: str) -> None:
    content = b"\xef\xbb\xbf \r\n" + json.dumps([claim(), claim()]).encode()
    work.train.unlink()
    work.train.with_name("train.json" + ending).write_bytes(PACK.get(ending, bytes)(content))
    assert work.prepare().returncode == 0
    assert len(saved(work.output / "CREAK")) == 2


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_csv_in_an_archive_gives_the_name_that_its_pattern_matches(tmp_path: Path, ending: str) -> None:
    (tmp_path / "test").mkdir()
    long = "x" * 1_000_000
    content = f'"{long}",a,b,c,d,B\r\n'.encode()
    (tmp_path / "test" / f"virology_test.csv{ending}").write_bytes(PACK[ending](content))
    [(_, sample)] = read_split(load_benchmark("mmlu"), "test", tmp_path)
    assert sample == {"question": long, "choices": ["a", "b", "c", "d"], "answer": "B", "subject": "virology"}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_the_teacher_reads_archives(work: Workplace, tiny_llama: Path, ending: str) -> None:
    assert work.prepare("--limit", 2).returncode == 0
    packed = work.output / f"packed.jsonl{ending}"
    packed.write_bytes(PACK[ending]((work.output / "CREAK.jsonl").read_bytes()))
    done = work.enhance(tiny_llama, packed)
    assert done.returncode == 0, done.stderr
    written = [record for _, record in read_records(work.output / "CREAK_cot.jsonl")]
    assert [record["text"] for record in written] == [record["text"] for _, record in read_records(packed)]


def test_whole_numbers_become_floats_where_both_are_and_missing_fields_null(work: Workplace) -> None:
    fields = [{"n": 1, "o": {"a": 1}, "l": []}, {"n": 0.5, "o": {"b": "x"}, "l": [None, 2]}, {"n": None, "e": {}}]
    work.put(*(claim(**more, big=2**63 - 1, **{"": "no name", "a.b": -(2**63)}) for more in fields))
    done = work.prepare()
    assert done.returncode == 0, done.stderr
    samples = saved(work.output / "CREAK")
    assert [sample["n"] for sample in samples] == [1.0, 0.5, None]
    assert [sample["l"] for sample in samples] == [[], [None, 2], None]
    assert [sample["o"] for sample in samples] == [{"a": 1, "b": None}, {"a": None, "b": "x"}, None]
    assert {(sample["big"], sample[""], sample["a.b"]) for sample in samples} == {(2**63 - 1, "no name", -(2**63))}


def test_thirty_two_levels_are_not_too_deep(work: Workplace) -> None:
    value = json.loads("[" * 16 + '{"a": ' * 15 + '{"b": 1}' + "}" * 15 + "]" * 16)
    work.put(claim(deep=value))
    done = work.prepare()
    assert done.returncode == 0, done.stderr
    assert saved(work.output / "CREAK")[0]["deep"] == value


def test_labels_that_are_numbers_are_the_yamls_to_name(work: Workplace, tmp_path: Path) -> None:
    yaml = tmp_path / "numbers.yaml"
    text = (
        load_benchmark("creak").path.read_text(encoding="utf-8").replace('{"true": A, "false": B}', '{"1": A, "0": B}')
    )
    yaml.write_text(text, encoding="utf-8")
    for name in ("train", "dev"):
        records = [{**sample, "label": int(sample["label"] == "true")} for sample in sample_claims(name)][:4]
        (work.claims / f"{name}.json").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    work.benchmark = yaml
    assert work.prepare().returncode == 0
    for sample in saved(work.output / "CREAK"):
        assert sample["text"].endswith(f"The answer is ({'BA'[sample['label']]}).")


# ---------------------------------------------------------------------------------------------- what is one clear line


@pytest.mark.parametrize("label", [1, 0, True, None, [], "maybe", "x" * 1_000_000], ids=lambda label: str(label)[:9])
def test_a_label_that_is_none_names_what_is_accepted(work: Workplace, label: object) -> None:
    work.put(claim(), claim(label=label))
    accepted = ["is null; CREAK needs sentence, label"] if label is None else ["expected one of 'true', 'false'"]
    work.refused(f"{work.train}, line 2: the field 'label' is ", *accepted)


FLAWS = {
    "half a pair": (r'"\ud83d"', r"the field 'entity' has \ud83d, half of a surrogate pair"),
    "the other half, deep": (r'[{"a": "x\udc00"}]', r"the field 'entity' has \udc00, half"),
    "half a pair in a name": (r'{"\ud800": 1}', r"the field 'entity' has \ud800, half"),
    "NUL in a name": (r'{"a\u0000": 1}', r"the field 'entity' has \u0000 in a name, at which Arrow cuts the name"),
    "NUL in a field's name": (r'"x", "a\u0000b": 1', r"the field 'a\x00b' has \u0000 in a name"),
    "beyond 64 bits": (str(2**63), "the field 'entity' is a whole number that exceeds 64 bits; put it in quotes"),
    "below 64 bits": (f"[{-(2**63) - 1}]", "the field 'entity' is a whole number that exceeds 64 bits"),
    "5000 digits": ("9" * 5000, "the field 'entity' is a whole number that exceeds 64 bits"),
    "NaN": ("NaN", "the field 'entity' is nan, which is not a number in JSON"),
    "Infinity": ("[-Infinity]", "the field 'entity' is -inf, which is not a number in JSON"),
    "infinite": ("1e999", "the field 'entity' is inf, which is not a number in JSON"),
    "nested 40 deep": ("[" * 40 + "]" * 40, "the field 'entity' is nested more than 32 levels deep"),
    "nested 40 objects deep": ('{"a":' * 40 + "1" + "}" * 40, "the field 'entity' is nested more than 32 levels"),
    "nested 100,000 deep": ("[" * 100_000 + "]" * 100_000, "nested more than 32 levels deep"),
    "a name twice": ('{"a": 1, "a": 2}', "the field 'a' occurs twice in one object"),
    "a field twice": ('"x", "sentence": "y"', "the field 'sentence' occurs twice in one object"),
    "a number among texts": ("7", "the field 'entity' is '7', which does not fit its type string in "),
    "a list among texts": ("[]", "the field 'entity' is '[]', which does not fit its type string"),
    "texts and numbers in a list": ('["a", 1]', "the field 'entity' is"),
    "a text after a number in a list in a list": ('[[0, "x", 2]]', "the field 'entity' is"),
    "a raw NUL": ('"a\0b"', "one JSON object in UTF-8 was expected"),
    "latin-1": (b'"\xe9"', "one JSON object in UTF-8 was expected"),
    "UTF-8 of half a pair": (b'"\xed\xa0\x80"', "one JSON object in UTF-8 was expected"),
}


@pytest.mark.parametrize("kind", FLAWS)
def test_a_value_that_cannot_be_kept_is_named(work: Workplace, kind: str) -> None:
    value, words = FLAWS[kind]
    value = value if isinstance(value, bytes) else value.encode()
    good = json.dumps(claim(entity="bee")).encode()
    work.train.write_bytes(good + b"\n" + good.replace(b'"bee"', value) + b"\n" + good + b"\n")
    work.refused(f"{work.train}, line 2: ", words)


@pytest.mark.parametrize("large", [2**53 + 1, -(2**63)])
@pytest.mark.parametrize("swap", [False, True])
def test_a_whole_number_that_no_float_holds_is_named_among_floats(work: Workplace, large: int, swap: bool) -> None:
    """Arrow cannot convert it to a float. This used to be found only after TITLE.jsonl had been written."""
    values = [large, 1.5][:: -1 if swap else 1]
    work.train.write_text("".join(json.dumps(claim(entity=[value])) + "\n" for value in values), encoding="utf-8")
    work.refused(f"{work.train}, line 2: the field 'entity' is ", "make it one type")


@pytest.mark.parametrize("kind", ["half a pair", "beyond 64 bits", "NaN", "nested 40 deep"])
def test_in_a_json_list_the_sample_is_named(work: Workplace, kind: str) -> None:
    value, words = FLAWS[kind]
    good = json.dumps(claim(entity="bee"))
    work.train.write_text(f"[{good}, {good.replace(json.dumps('bee'), value)}]", encoding="utf-8")
    work.refused(f"{work.train}, sample 2: ", words)


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a": 1, "a": 2}]', '[{"a": 1]', "[7]", "[[]]", "[]"])
def test_a_json_list_that_is_none_of_records_is_named(work: Workplace, text: str) -> None:
    work.train.write_text(text, encoding="utf-8")
    work.refused(str(work.train))


def test_a_value_of_the_test_split_is_named_before_anything_is_written(work: Workplace) -> None:
    dev = work.claims / "dev.json"
    dev.write_text(json.dumps(claim()) + "\n" + json.dumps(claim(text="mine")) + "\n", encoding="utf-8")
    work.refused(f"{dev}, line 2: the field 'text' is already there")


@pytest.mark.parametrize("name", load_prompts().reserved)
def test_a_field_that_the_pipeline_writes_is_refused(work: Workplace, name: str) -> None:
    work.put(claim(), claim(**{name: "mine"}))
    work.refused(f"{work.train}, line 2: the field {name!r} is already there, and the pipeline writes it; rename it")


@pytest.mark.parametrize("name", ["cot", "all"])
def test_the_teacher_refuses_a_field_that_it_writes(work: Workplace, tiny_llama: Path, name: str) -> None:
    source = work.claims / "mine.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps({"cot_text": "Why?", name: "mine"}).encode()))
    error = only_error(work.enhance(tiny_llama, source))
    assert f"{source}, line 1: the field {name!r} is already there; rename it first" in error
    assert contents(work.output) == {}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut off", "cut to nothing", "flipped", "garbage after it", "no archive"])
def test_a_damaged_archive_is_named(work: Workplace, ending: str, damage: str) -> None:
    packed = work.train.with_name("train.json" + ending)
    content = bytearray(PACK[ending](work.train.read_bytes() * 20))
    work.train.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 0x55
    damaged = {
        "cut off": content[:-3],
        "cut to nothing": content[:5],
        "flipped": content,
        "garbage after it": content + b"garbage",
        "no archive": b'{"sentence": "Bees make honey.", "label": "true"}\n',
    }
    packed.write_bytes(damaged[damage])
    work.refused(str(packed), "" if damage == "flipped" else "cut off or damaged")


def test_an_empty_archive_is_empty(work: Workplace) -> None:
    work.train.unlink()
    work.train.with_name("train.json.gz").write_bytes(gzip.compress(b""))
    work.refused(f"{work.train}.gz: empty; at least one record was expected")


def test_a_file_and_its_archive_are_one_too_many(work: Workplace) -> None:
    work.train.with_name("train.json.zst").write_bytes(zstd.compress(work.train.read_bytes()))
    work.refused(f"{work.train}: train.json.zst exists as well; remove one of them")


def test_a_value_of_a_saved_dataset_that_json_does_not_have_is_named(work: Workplace, tmp_path: Path) -> None:
    good = datasets.Dataset.from_list([claim(), claim()])
    for name, values, words in (
        ("score", [0.5, float("nan")], "train sample 2: the field 'score' is nan"),
        ("day", [datetime.datetime(2020, 1, 1)] * 2, "train sample 1: the field 'day' is of the type datetime"),
    ):
        data = tmp_path / name
        datasets.DatasetDict({"train": good.add_column(name, values), "validation": good}).save_to_disk(str(data))
        with pytest.raises(UserError, match=words):
            list(read_split(load_benchmark("creak"), "train", data))
