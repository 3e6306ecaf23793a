"""The quality of the teacher's texts, measured in post-processing: a flag for each kind of fault.

docs/reference/quality-flags.md describes the flags.

The result is TITLE_quality.jsonl, with a line per sample: {"flags": {"cot": ["cut"], "question": ["overlap"]},
"evidence": [...]}. If the dataset has a row per text, so has TITLE_texts_quality.jsonl; `sample` and `text` number its
lines. Its manifest has the counts. Time is linear in the number of samples; memory is about 30 bytes per
sample.
"""

import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from teacherlm.catalog.answers import Asked, f1, gold_values
from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.conclusions import conclusion
from teacherlm.catalog.ngrams import ngram_hashes, word_hashes, words_of
from teacherlm.catalog.overlaps import TestSplit, read_test_split
from teacherlm.catalog.prompt_sets import NUMBERS, Kind, PromptSet
from teacherlm.catalog.prompts import LETTERS, split_question
from teacherlm.catalog.sample_values import asked_of
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, dump_line, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.dataset.near_duplicates import Signatures

FLAGS = ("empty", "cut", "repeats", "copies", "language", "contradicts", "duplicate", "overlap")
QUESTION = "question"
"""The name of a sample's question among the kinds of text. The question can have the flag `overlap`."""

CLOSING = ".!?…。！？”’\"')]}»"
"""Characters that end a complete text. A text with another last character has the flag `cut`, if it is not known why
the text ended."""
REPEATED = 0.3
"""Fraction of word 4-grams that occurred earlier in the text, above which the text has the flag `repeats`."""
COPIED = 0.5
"""Fraction of word 4-grams that are in the question, above which the text has the flag `copies`."""
MIN_LETTERS = 40
"""Minimum number of letters for language detection. The model is unreliable for shorter texts."""
SURE = 0.5
"""Minimum probability of another language for the flag `language`. A sentence of names gets about 0.2."""
READ_CHARACTERS = 1000
"""Number of characters given to the language detector."""
KNOWN_FRACTION = 0.2
"""Fraction of words that are common in the questions, from which on a text is taken to be in their language without
language detection."""
SAMPLES_OF_LANGUAGE = 500
"""Number of questions from which the dataset's language is detected."""

Stream = Callable[[], Iterator[tuple[str, Record]]]


def quality_file(folder: Path, title: str) -> Path:
    return folder / f"{title}_quality.jsonl"


def kinds_with_ends(enhanced: Mapping[str, Path]) -> list[str]:
    """The kinds of text of which it is known why each text ended.

    Args:
        enhanced: kind -> the file with the texts. Its manifest says whether the records have `KIND_ended` wherever a
            text was cut.
    """
    found = []
    for kind, file in enhanced.items():
        manifest = manifests.read_manifest(manifests.manifest_of(file))
        made = manifest is not None and manifest["stage"] in ("enhance", "mix") and manifest["outputs"].get("enhanced")
        if manifest is None or not made or not manifests.still_there(made):
            continue
        ended = manifest.get("counts", {}).get("ended")
        if isinstance(ended, dict) and "unknown" not in ended:
            found.append(kind)
    return found


def measure_quality(run: StageRun, benchmark: Benchmark, kinds: Mapping[str, Kind], stream: Stream, test: Path) -> None:
    """Write TITLE_quality.jsonl and its manifest, unless they exist and match their inputs.

    Args:
        run: the run, already compared with `quality_inputs`, and with the kinds of `kinds_with_ends` as its argument
            `ended`.
        kinds: name -> kind of explanation, for the texts that each record has.
        stream: opens the joined records again at each call: (the record's place, the record).
        test: the folder of the test set. Without a test set, overlap is not checked, and its count is null.
    """
    if run.is_done:
        run.say_done()
        return
    run.say_again()
    output, folder = run.output, run.output.parent
    split = read_test_split(benchmark, test) if "test set" in run.inputs else None
    counts = {kind: dict.fromkeys(FLAGS, 0) for kind in kinds} | {QUESTION: {"overlap": 0}}
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as draft:
        duplicates = write_draft(draft, stream, kinds, run.arguments.get("ended", []), split, folder)
        draft.seek(0)
        written = write_records(output, counted(with_duplicates(draft, duplicates), counts))
    found: Mapping[str, Mapping[str, int | None]] = counts
    if split is None:
        found = {kind: {**flags, "overlap": None} for kind, flags in counts.items()}
    tested = {"test_questions": split.size, "unchecked": split.unchecked} if split else {}
    run.finish({"quality": output}, {"records": written, **tested, **found, "seconds": run.seconds})
    flagged = {kind: ", ".join(f"{n} {flag}" for flag, n in flags.items() if n) for kind, flags in found.items()}
    said = "; ".join(f"{kind}: {words}" for kind, words in flagged.items() if words)
    print(f"quality: {output} has {plural(written, 'sample')}; {said or 'no flags'}")


def quality_inputs(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: Mapping[str, manifests.Description],
    test: Path,
    known: Mapping[str, Any],
) -> dict[str, manifests.Description]:
    """The enhanced files, the benchmark's YAML, the prompts, and the test set if it exists."""
    places = {"benchmark": benchmark.path} | ({"test set": test} if (test / "state.json").is_file() else {})
    described = {name: manifests.describe(path, known.get(name)) for name, path in places.items()}
    return {**enhanced, **described, "prompts": prompts.digest(benchmark.is_open)}


def write_draft(
    draft: IO[str],
    stream: Stream,
    kinds: Mapping[str, Kind],
    with_ends: list[str],
    split: TestSplit | None,
    folder: Path,
) -> dict[str, np.ndarray]:
    """Write a line per sample without the flag `duplicate`; return for each kind the numbers of earlier duplicates.

    Duplicates are known only after all texts are read. A text without an earlier duplicate has the number -1.

    Args:
        with_ends: the kinds of which it is known why the texts ended.
    """
    foreign = make_language_check(stream)
    signatures = {kind: Signatures(folder) for kind in kinds}
    for where, record in stream():
        question, choices = split_question(record["text"])
        asked = asked_of(record, where)
        flags, evidence = {}, []
        question_words = words_of(" ".join([question, *choices]))
        asked_hashes = word_hashes(question_words)
        known = set(ngram_hashes(asked_hashes, 4).tolist())
        if split and (found := split.overlaps(question_words, asked_hashes)):
            flags[QUESTION] = ["overlap"]
            evidence += [{"of": QUESTION, "flag": "overlap", "test": n, "text": piece} for n, piece in found]
        for kind, described in kinds.items():
            words = words_of(record[kind])
            hashes = word_hashes(words)
            signatures[kind].add(hashes)
            found = split.overlaps(words, hashes) if split else []
            if kind in with_ends:
                is_cut = record.get(f"{kind}_ended", "stop") != "stop"
            else:
                is_cut = record[kind].rstrip()[-1:] not in CLOSING
            found_flags = faults(record[kind], words, hashes, is_cut, known, foreign)
            if not described.names_wrong_choices and contradicts(record[kind], choices, asked):
                found_flags.append("contradicts")
            if found:
                found_flags.append("overlap")
                evidence += [{"of": kind, "flag": "overlap", "test": n, "text": piece} for n, piece in found]
            if found_flags:
                flags[kind] = found_flags
        said = {name.removesuffix("_number"): record[name] for name in NUMBERS if name in record}
        draft.write(dump_line({**said, "flags": flags, **({"evidence": evidence} if evidence else {})}) + "\n")
    return {kind: found.duplicates() for kind, found in signatures.items()}


def with_duplicates(draft: IO[str], duplicates: dict[str, np.ndarray]) -> Iterator[Record]:
    """The draft's lines with the flag `duplicate` added, and the earlier sample as evidence, counted from 1.

    If a sample has several lines, the evidence is the number of the earlier text's line.
    """
    for number, line in enumerate(draft):
        said = json.loads(line)
        for kind, earlier in duplicates.items():
            if earlier[number] >= 0:
                flags = said["flags"].setdefault(kind, [])
                flags.append("duplicate")
                flags.sort(key=FLAGS.index)
                where = "line" if "text" in said else "sample"
                said.setdefault("evidence", []).append(
                    {"of": kind, "flag": "duplicate", where: int(earlier[number]) + 1}
                )
        yield said


def counted(lines: Iterable[Record], counts: dict[str, dict[str, int]]) -> Iterator[Record]:
    for said in lines:
        for kind, flags in said["flags"].items():
            for flag in flags:
                counts[kind][flag] += 1
        yield said


# ---------------------------------------------------------------------------------------------------- faults of a text


def faults(
    text: str,
    words: list[str],
    hashes_W: np.ndarray,
    is_cut: bool,
    question: set[int],
    foreign: Callable[[str, list[str]], bool],
) -> list[str]:
    """The flags of a text that depend only on the text, on why it ended, and on the 4-grams of its question."""
    if not words:
        return ["empty"]
    found = []
    if is_cut:
        found.append("cut")
    grams = ngram_hashes(hashes_W, 4).tolist()
    distinct = set(grams)
    if len(grams) - len(distinct) > REPEATED * len(grams):
        found.append("repeats")
    if grams and len(distinct & question) > COPIED * len(distinct):
        found.append("copies")
    if foreign(text, words):
        found.append("language")
    return found


def make_language_check(stream: Stream) -> Callable[[str, list[str]], bool]:
    """A function of a text and its words that returns whether its language differs from that of the questions.

    Common words suffice for most texts. For the others, py3langid detects the language with a naive Bayes model for 97
    languages (Lui and Baldwin 2012).
    """
    first = [split_question(record["text"])[0] for _, record in itertools.islice(stream(), SAMPLES_OF_LANGUAGE)]
    counts = Counter(word for question in first for word in set(words_of(question)))
    common = {word for word, count in counts.items() if count > max(1, 0.02 * len(first)) and word.isalpha()}
    language, _ = language_of(" ".join(question[:READ_CHARACTERS] for question in first))

    def foreign(text: str, words: list[str]) -> bool:
        words = words[:READ_CHARACTERS]
        if sum(word in common for word in words) >= KNOWN_FRACTION * len(words):
            return False
        start = text[:READ_CHARACTERS]
        if sum(map(str.isalpha, start)) < MIN_LETTERS:
            return False
        told, probability = language_of(start)
        return told != language and probability >= SURE

    return foreign


@cache
def identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, probability)."""
    found: tuple[str, float] = identifier().classify(text)
    return found


ANSWER = re.compile(r"\banswer(?:\s+is|\s+must\s+be|\s+should\s+be|\s*:)[\s:\"'“(]*", re.IGNORECASE)
LETTER = re.compile(r"([A-Z])\b(?!['’])(?<!A(?= (?!because|since|as|and|for|so)[a-z]))")  # not `A new drug`
BRACKETED = re.compile(r"\(([A-Z])\)")
SENTENCE_END = re.compile(r"[.!?]+(?:\s+|$)|\n+")
VERDICT = re.compile(r"\b(?:answer|therefore|thus|hence|so|correct|choice|option|statement|sentence|claim)\b", re.I)
DENIAL = re.compile(r"\b(?:no|not|never|neither|nor|rather|wrong|incorrect|cannot)\b|n['’]t\b", re.IGNORECASE)
ENDING = 400
"""Number of characters at a text's end in which its conclusion is searched."""


def contradicts(text: str, choices: tuple[str, ...], asked: Asked | None) -> bool:
    """Whether a text's conclusion is another answer than a right one. For texts as answers, one that has no word of a
    right answer."""
    if asked is None or asked.kind == "letter":
        return names_another(text, choices, asked.golds[0] if asked else "")
    found = conclusion(text, asked)
    if found is None:
        return False
    golds = gold_values(asked)
    return found[1] not in golds and (asked.kind == "number" or not f1(found[1], golds))


def names_another(text: str, choices: tuple[str, ...], gold: str) -> bool:
    """Whether a text's conclusion names another choice than gold.

    The conclusion is the last `the answer is X`. If there is none, it is the last sentence, unless it has a denial:
    it names a choice by its letter in brackets or, if the sentence gives a verdict, by its text. A conclusion that also
    names gold does not count.
    """
    end = text.rstrip()[-ENDING:]
    if last := next(iter(reversed(list(ANSWER.finditer(end)))), None):
        said = end[last.end() :]
        if letter := LETTER.match(said):
            return letter[1] != gold and letter[1] in LETTERS[: len(choices)]
        named = {letter for letter, choice in zip(LETTERS, choices) if said.lower().startswith(choice.lower().strip())}
        return bool(named) and gold not in named
    sentence = next((part for part in reversed(SENTENCE_END.split(end)) if part.strip()), "")
    if DENIAL.search(sentence):
        return False
    named = {letter for letter in BRACKETED.findall(sentence) if letter in LETTERS[: len(choices)]}
    if VERDICT.search(sentence):
        said = f" {' '.join(words_of(sentence))} "
        named |= {letter for letter, choice in zip(LETTERS, choices) if f" {' '.join(words_of(choice))} " in said}
    return bool(named) and gold not in named


# ------------------------------------------------------------------------------------------------------------- FILTER


def read_filter(text: str) -> tuple[str, ...]:
    """The flags of --filter, which are separated by commas."""
    flags = tuple(flag for flag in text.split(",") if flag)
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"--filter: {flag!r} is not a flag; the flags are: {', '.join(FLAGS)}")
    return flags


def dropped_samples(quality: Path, flags: Sequence[str]) -> dict[int, list[str]]:
    """Number of a sample (from 1) -> the reasons why it is dropped (`cot cut`), for samples with one of the flags."""
    dropped = {}
    for number, (_, said) in enumerate(read_records(quality), 1):
        if why := reasons_to_drop(said, flags):
            dropped[number] = why
    return dropped


def reasons_to_drop(said: Record, flags: Sequence[str]) -> list[str]:
    """Why a line of the quality file is dropped (`cot cut`)."""
    return [f"{kind} {flag}" for kind, found in said["flags"].items() for flag in found if flag in flags]
