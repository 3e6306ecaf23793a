"""What post-processing says of the teacher's texts: each flag where it belongs, and the test split found in them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import only_error

from teacherlm.catalog.ngrams import ngram_hashes, word_hashes, words_of
from teacherlm.catalog.overlaps import LONGEST, TestSplit
from teacherlm.core.records import read_records, write_records
from teacherlm.dataset.near_duplicates import Signatures
from teacherlm.dataset.quality import CLOSING, FLAGS, names_another

WORDS = [
    "river",
    "mountain",
    "paper",
    "window",
    "yellow",
    "quiet",
    "under",
    "build",
    "carry",
    "often",
    "seven",
    "bridge",
]
WORDS += ["letter", "garden", "silver", "road"]

TRUE_FALSE = ("True", "False")


def some_words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture
def measure(inside: Callable, tmp_path: Path) -> Callable[..., list[dict]]:
    """Post-process samples with the given texts; returns the lines of the quality file."""

    def run(
        texts: list[str], sentences: list[str] | None = None, kind: str = "cot", test: tuple[str, ...] = ()
    ) -> list:
        sentences = sentences or [
            f"Claim {number} of the set is about a {WORDS[number]}." for number in range(len(texts))
        ]
        data = tmp_path / "data"
        data.mkdir()
        for name, claims in (("train", sentences), ("dev", test or ["Nothing that anybody said."])):
            write_records(data / f"{name}.json", [{"sentence": claim, "label": "true"} for claim in claims])
        where = ("--benchmark", "creak", "--output_dir", tmp_path / "out", "--test_dir", tmp_path / "tests")
        assert inside("data_prepare", *where, "--data", data).returncode == 0
        samples = [record for _, record in read_records(tmp_path / "out" / "CREAK.jsonl")]
        records = [{**sample, kind: text, "all": sample["text"] + text} for sample, text in zip(samples, texts)]
        write_records(tmp_path / "out" / f"CREAK_{kind}.jsonl", records)
        result = inside("data_prepare", *where, "--post_process")
        assert result.returncode == 0, result.stderr
        return [said for _, said in read_records(tmp_path / "out" / "CREAK_quality.jsonl")]

    return run


GOOD = "The claim is about something that everybody can see, and nothing speaks against it. So the answer is (A)."
GERMAN = "Das ist eine Behauptung, die jeder sofort überprüfen kann, und deshalb ist sie auch ganz sicher richtig."


def test_each_fault_has_its_flag(measure: Callable[..., list[dict]]) -> None:
    sentence = f"The {some_words(1, 20)} was there."
    texts = {
        GOOD: [],
        " \n ": ["empty"],
        "The claim is about something that everybody can see, and": ["cut"],
        "and on " * 20 + "it goes.": ["repeats"],
        f"We are asked this: {sentence} That is it.": ["copies"],
        GERMAN: ["language"],
        "Ferruccio Lamborghini founded Lamborghini in Italy, Maserati founded Maserati.": [],
        "Nobody has ever seen such a thing, which is why the answer is (B).": ["contradicts"],
        GOOD.replace("everybody", "anybody"): [],
        f"{GOOD} ": ["duplicate"],
        f"It is known that {some_words(2, 15)} holds.": ["overlap"],
    }
    sentences = [f"Claim {number} of the set is about a thing." for number in range(len(texts))]
    sentences[4] = sentence
    said = measure(list(texts), sentences, test=(f"So {some_words(2, 15)} is it", "Other things are said here."))
    assert [one["flags"].get("cot", []) for one in said] == list(texts.values())
    assert said[9]["evidence"] == [{"of": "cot", "flag": "duplicate", "sample": 1}]
    overlap = " ".join(some_words(2, 15).split()[:LONGEST])
    assert said[10]["evidence"] == [{"of": "cot", "flag": "overlap", "test": 0, "text": overlap}]


def test_wrong_choices_belong_to_texts_on_mistakes(measure: Callable[..., list[dict]]) -> None:
    (said,) = measure(["People say that the answer is (B)."], kind="error")
    assert said == {"flags": {}}


@pytest.mark.parametrize(
    ("text", "choices", "gold", "expected"),
    [
        ("So the answer is (B).", TRUE_FALSE, "A", True),
        ("So the answer is (A).", TRUE_FALSE, "A", False),
        ("The answer is (B). No: the answer is A.", TRUE_FALSE, "A", False),
        ("The answer is: False.", TRUE_FALSE, "A", True),
        ("It follows that the statement is false.", TRUE_FALSE, "A", True),
        ("The statement is not false.", TRUE_FALSE, "A", False),
        ("The statement is in no way false.", TRUE_FALSE, "A", False),
        ("The statement is false, whoever calls it true.", TRUE_FALSE, "A", False),
        ("Therefore (B)", TRUE_FALSE, "A", True),
        ("The answer is A new idea.", TRUE_FALSE, "B", False),
        ("The answer is (E).", TRUE_FALSE, "A", False),
        ("Hence one finds it in the sea.", ("a house", "the sea"), "A", True),
        ("One swims in the sea.", ("a house", "the sea"), "A", False),
        ("", TRUE_FALSE, "A", False),
        ("The answer is (", TRUE_FALSE, "A", False),
    ],
)
def test_a_text_that_ends_by_naming_another_choice(text: str, choices: tuple, gold: str, expected: bool) -> None:
    assert names_another(text, choices, gold) is expected


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_those_that_have_most_words_in_a_row_in_common(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    texts = [[f"w{draw.randrange(500)}" for _ in range(60)] for _ in range(200)]
    planted = {}
    for later, earlier in zip(range(100, 200), draw.sample(range(100), 100)):
        changed = list(texts[earlier])
        if later % 2:
            changed[draw.randrange(60)] = "other"  # 55 of 61 triples in common
        else:
            changed[::2] = ["other"] * 30  # none
        texts[later] = changed
        if later % 2:
            planted[later] = earlier
    signatures = Signatures(tmp_path)
    for words in texts:
        signatures.add(word_hashes(words))
    found = {later: int(earlier) for later, earlier in enumerate(signatures.duplicates()) if earlier >= 0}
    assert found.items() <= planted.items()
    assert len(found) >= 0.95 * len(planted)
    assert list(tmp_path.iterdir()) == []


def test_texts_without_words_are_no_duplicates(tmp_path: Path) -> None:
    signatures = Signatures(tmp_path)
    for text in ("", "...", "yes", "yes"):
        signatures.add(word_hashes(words_of(text)))
    assert signatures.duplicates().tolist() == [-1, -1, -1, 2]


def test_ngrams_are_equal_where_their_words_are() -> None:
    words = some_words(3, 500).split()
    for n in (1, 4, 13):
        numbers = ngram_hashes(word_hashes(words), n).tolist()
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        assert len(numbers) == len(grams)
        assert len(dict(zip(grams, numbers))) == len(set(grams)) == len(set(numbers))
        assert dict(zip(numbers, grams)) == {number: gram for number, gram in zip(numbers, grams)}
    assert ngram_hashes(word_hashes(words[:3]), 4).tolist() == []


# ------------------------------------------------------------------------------------------------------------ overlaps


def sentences(path: Path) -> list[str]:
    return [json.loads(line)["sentence"] for line in path.read_text(encoding="utf-8").splitlines()]


def overlaps(split: TestSplit, text: str) -> list[tuple[int, str]]:
    words = words_of(text)
    return split.overlaps(words, word_hashes(words))


def test_all_of_fifty_planted_overlaps_with_creak_s_dev_split_are_found(shared_data: Path) -> None:
    """The overlaps have all lengths: whole short claims, and 13 words of long ones, with other punctuation and case."""
    dev = sentences(shared_data / "creak" / "dev.json")
    split = TestSplit([sentence] for sentence in dev)
    assert split.unchecked == 0
    draw = random.Random(0)
    for number in draw.sample(range(len(dev)), 50):
        words = words_of(dev[number])
        start = draw.randrange(max(1, len(words) - LONGEST + 1))
        piece = words[start : start + LONGEST]
        text = f"{some_words(number, 9)}, {' '.join(piece).upper()}: {some_words(number + 1, 9)}."
        assert (number, " ".join(piece)) in overlaps(split, text)


def test_creak_s_training_split_overlaps_nowhere_but_where_the_words_are_listed(shared_data: Path) -> None:
    """The result is compared with a direct search for the words in sentences and explanations."""
    dev = sentences(shared_data / "creak" / "dev.json")
    split = TestSplit([sentence] for sentence in dev)
    pieces = {}
    for number, sentence in enumerate(dev):
        words = words_of(sentence)
        n = min(LONGEST, len(words))
        pieces |= {tuple(words[start : start + n]): number for start in range(len(words) - n + 1)}
    found, expected = set(), set()
    for line in (shared_data / "creak" / "train.json").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for name in ("sentence", "explanation"):
            words = words_of(sample[name])
            found |= {(sample["ex_id"], name, piece) for _, piece in overlaps(split, sample[name])}
            for n in range(5, LONGEST + 1):
                grams = (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
                expected |= {(sample["ex_id"], name, " ".join(gram)) for gram in grams if gram in pieces}
    assert found == expected
    assert [(name, piece) for _, name, piece in sorted(found)] == [
        ("explanation", "alexander graham bell invented the telephone")
    ]


def test_what_the_template_says_around_each_question_is_no_overlap(measure: Callable[..., list[dict]]) -> None:
    claim = "Boats sink when they are full of water."
    said = measure([GOOD], [claim], test=("Boats sink when there is a hole in them.", "Boats float on water."))
    assert said == [{"flags": {}}]


def test_a_training_question_that_is_a_test_question_too_is_said(measure: Callable[..., list[dict]]) -> None:
    (said,) = measure([GOOD], ["Boats float on any water."], test=("boats float on any water",))
    assert said["flags"] == {"question": ["overlap"]}
    assert said["evidence"] == [{"of": "question", "flag": "overlap", "test": 0, "text": "boats float on any water"}]


def test_pieces_that_many_test_questions_share_say_nothing() -> None:
    split = TestSplit([["Which of the following is true?"]] * 4 + [["Which of the following is false?"]])
    assert overlaps(split, "Which of the following is true?") == []
    assert overlaps(split, "Which of the following is false?") == [(4, "which of the following is false")]


def test_without_a_test_set_overlap_is_not_counted(inside: Callable, prepared: Path, tmp_path: Path) -> None:
    samples = [record for _, record in read_records(prepared / "SAMPLE.jsonl")]
    records = [{**sample, "cot": GOOD, "all": sample["text"] + GOOD} for sample in samples]
    write_records(tmp_path / "SAMPLE_cot.jsonl", records)
    words = ("--benchmark", "sample", "--output_dir", tmp_path, "--test_dir", tmp_path / "none", "--post_process")
    assert inside("data_prepare", *words).returncode == 0
    counts = json.loads((tmp_path / "SAMPLE_quality.manifest.json").read_text())["counts"]
    assert tuple(counts["cot"]) == FLAGS
    assert (counts["cot"]["duplicate"], counts["cot"]["overlap"], counts["question"]) == (23, None, {"overlap": None})


def test_filter_names_flags(inside: Callable, prepared: Path) -> None:
    result = inside("data_prepare", "--benchmark", "sample", "--output_dir", prepared, "--filter", "empty,long")
    assert "'long' is not a flag; the flags are: empty, cut, repeats" in only_error(result)


def test_a_filter_that_leaves_nothing_is_one_line(inside: Callable, prepared: Path, tmp_path: Path) -> None:
    samples = [record for _, record in read_records(prepared / "SAMPLE.jsonl")]
    write_records(tmp_path / "SAMPLE_cot.jsonl", [{**s, "cot": "and", "all": s["text"] + "and"} for s in samples])
    words = ("--benchmark", "sample", "--output_dir", tmp_path, "--post_process", "--filter", "cut")
    assert "none is left" in only_error(inside("data_prepare", *words))
    assert not list(tmp_path.glob("SAMPLE_without*"))


# ------------------------------------------------------------------------------------------------- why the texts ended


def cut_flags(folder: Path) -> list[bool]:
    lines = [said for _, said in read_records(folder / "SAMPLE_quality.jsonl")]
    return ["cut" in said["flags"].get("cot", []) for said in lines]


@pytest.mark.parametrize("teacher", ["a model", "people"])
def test_a_text_is_cut_if_a_limit_ended_it_whatever_its_last_character(
    teacher: str, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    output = folder / "SAMPLE_cot.jsonl"
    flags = ["--input", folder / "SAMPLE.jsonl", "--output", output, "--task_type", "cot_text", "--num_tokens", 6]
    flags += ["--name", tiny_llama if teacher == "a model" else "field:explanation", "--stop", "w"]
    assert inside("enhance", *flags, "--max_failures", 24).returncode == 0
    where = ["--benchmark", "sample", "--output_dir", folder, "--test_dir", folder / "tests", "--post_process"]
    assert inside("data_prepare", *where).returncode == 0
    records = [record for _, record in read_records(output)]
    assert cut_flags(folder) == [record.get("cot_ended") == "length" for record in records]
    assert any(cut_flags(folder)) == (teacher == "a model")

    # A file of an earlier version: nobody knows why its texts ended.
    manifest = output.with_suffix(".manifest.json")
    content = json.loads(manifest.read_text())
    ended = content["counts"].pop("ended")
    manifest.write_text(json.dumps(content))
    result = inside("data_prepare", *where)
    assert "quality: runs again, because" in result.stdout
    assert cut_flags(folder) == [record["cot"].rstrip()[-1] not in CLOSING for record in records]
    assert sum(ended.values()) == len(records)
