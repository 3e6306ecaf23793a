"""What is wrong with the teacher's texts, measured while post-processing: a flag for each fault.

docs/reference/quality-flags.md has the flags.

Writes TITLE_quality.jsonl, a line a sample: {"flags": {"cot": ["cut"], "question": ["overlap"]}, "evidence": [...]},
and its manifest with the counts. Time grows with the number of samples, memory by some 30 bytes each.
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

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompts import LETTERS, completion_start, prompts_digest, take_apart
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, dump_line, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.dataset.contamination import TestSplit, read_test_split
from teacherlm.dataset.near_duplicates import Signatures
from teacherlm.dataset.ngrams import ngram_hashes, word_hashes, words_of

FLAGS = ("empty", "cut", "repeats", "copies", "language", "contradicts", "duplicate", "overlap")
QUESTION = "question"
"""Stands for a sample's own question where flags are said of a kind of text; it can have `overlap`."""

CLOSING = ".!?…。！？”’\"')]}»"
"""A text that ends otherwise is cut off."""
REPEATED = 0.3
"""The share of word 4-grams that were there before in the text, from which on it repeats itself."""
COPIED = 0.5
"""The share of word 4-grams that are the question's, from which on a text copies it."""
FEWEST_LETTERS = 40
"""Of a text, for its language to be asked for; the model that tells languages knows too little from less."""
SURE = 0.5
"""Probability of a foreign language from which on it is believed: a sentence of names gets some 0.2."""
READ_LETTERS = 1000
"""Of a text, that its language is told by."""
KNOWN_SHARE = 0.2
"""A text of which so many words are common ones of the questions is in their language: no need to ask the model."""
SAMPLES_OF_LANGUAGE = 500
"""Questions that tell the dataset's language."""

Stream = Callable[[], Iterator[tuple[str, Record]]]


def quality_file(folder: Path, title: str) -> Path:
    return folder / f"{title}_quality.jsonl"


def measure_quality(run: StageRun, benchmark: Benchmark, kinds: list[str], stream: Stream, test: Path) -> None:
    """Write TITLE_quality.jsonl and its manifest, unless they are there and match their inputs.

    Args:
        run: compared with `quality_inputs`.
        kinds: the texts that each record has (`cot`, ...).
        stream: opens the joined records anew at each call: (where a record stands, the record).
        test: folder of the test set; where there is none, overlap is not looked for, and its count is null.
    """
    if run.is_done:
        run.say_done()
        return
    run.say_again()
    output, folder = run.output, run.output.parent
    split = read_test_split(benchmark, test) if "test set" in run.inputs else None
    counts = {kind: dict.fromkeys(FLAGS, 0) for kind in kinds} | {QUESTION: {"overlap": 0}}
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as draft:
        duplicates = write_draft(draft, stream, kinds, split, folder)
        draft.seek(0)
        written = write_records(output, counted(with_duplicates(draft, duplicates), counts))
    found: Mapping[str, Mapping[str, int | None]] = counts
    if split is None:
        found = {kind: {**flags, "overlap": None} for kind, flags in counts.items()}
    tested = {"test_questions": split.size, "unchecked": split.unchecked} if split else {}
    run.finish({"quality": output}, {"records": written, **tested, **found, "seconds": run.seconds})
    flagged = {kind: ", ".join(f"{n} {flag}" for flag, n in flags.items() if n) for kind, flags in found.items()}
    said = "; ".join(f"{kind}: {words}" for kind, words in flagged.items() if words)
    print(f"quality: {output} has {written} samples; {said or 'no flags'}")


def quality_inputs(
    benchmark: Benchmark, enhanced: Mapping[str, manifests.Description], test: Path, known: Mapping[str, Any]
) -> dict[str, manifests.Description]:
    """The enhanced files, the benchmark's YAML, the prompts, and the test set where it is there."""
    places = {"benchmark": benchmark.path} | ({"test set": test} if (test / "state.json").is_file() else {})
    described = {name: manifests.describe(path, known.get(name)) for name, path in places.items()}
    return {**enhanced, **described, "prompts": prompts_digest()}


def write_draft(
    draft: IO[str], stream: Stream, kinds: list[str], split: TestSplit | None, folder: Path
) -> dict[str, np.ndarray]:
    """A line a sample, without near-duplicates: those are known in the end, of each kind the earlier text, or -1."""
    foreign = make_language_check(stream)
    signatures = {kind: Signatures(folder) for kind in kinds}
    for _, record in stream():
        question, choices = take_apart(record["text"])
        gold = record["text"][completion_start(record["text"]) or 0 :][:1]
        flags, evidence = {}, []
        asked = words_of(" ".join([question, *choices]))
        asked_hashes = word_hashes(asked)
        known = set(ngram_hashes(asked_hashes, 4).tolist())
        if split and (found := split.overlaps(asked, asked_hashes)):
            flags[QUESTION] = ["overlap"]
            evidence += [{"of": QUESTION, "flag": "overlap", "test": n, "text": piece} for n, piece in found]
        for kind in kinds:
            words = words_of(record[kind])
            hashes = word_hashes(words)
            signatures[kind].add(hashes)
            found = split.overlaps(words, hashes) if split else []
            own = faults(record[kind], words, hashes, known, foreign)
            if kind != "error" and names_another(record[kind], choices, gold):  # mistakes name wrong choices
                own.append("contradicts")
            if found:
                own.append("overlap")
                evidence += [{"of": kind, "flag": "overlap", "test": n, "text": piece} for n, piece in found]
            if own:
                flags[kind] = own
        draft.write(dump_line({"flags": flags, "evidence": evidence} if evidence else {"flags": flags}) + "\n")
    return {kind: found.duplicates() for kind, found in signatures.items()}


def with_duplicates(draft: IO[str], duplicates: dict[str, np.ndarray]) -> Iterator[Record]:
    """The draft's lines with the flag `duplicate`, and the earlier sample (counted from 1) as evidence."""
    for number, line in enumerate(draft):
        said = json.loads(line)
        for kind, earlier in duplicates.items():
            if earlier[number] >= 0:
                flags = said["flags"].setdefault(kind, [])
                flags.append("duplicate")
                flags.sort(key=FLAGS.index)
                said.setdefault("evidence", []).append(
                    {"of": kind, "flag": "duplicate", "sample": int(earlier[number]) + 1}
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
    text: str, words: list[str], hashes_W: np.ndarray, question: set[int], foreign: Callable[[str, list[str]], bool]
) -> list[str]:
    """The flags of one text that need no other text but the question, whose 4-grams are given."""
    if not words:
        return ["empty"]
    found = []
    if text.rstrip()[-1:] not in CLOSING:
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
    """A function that says of a text and its words whether its language is another than that of the questions.

    Most texts are known by their common words; the others are told by py3langid, a naive Bayes model over 97 languages
    that lies in its package (Lui and Baldwin 2012).
    """
    first = [take_apart(record["text"])[0] for _, record in itertools.islice(stream(), SAMPLES_OF_LANGUAGE)]
    counts = Counter(word for question in first for word in set(words_of(question)))
    common = {word for word, count in counts.items() if count > max(1, 0.02 * len(first)) and word.isalpha()}
    language, _ = language_of(" ".join(question[:READ_LETTERS] for question in first))

    def foreign(text: str, words: list[str]) -> bool:
        words = words[:READ_LETTERS]
        if sum(word in common for word in words) >= KNOWN_SHARE * len(words):
            return False
        start = text[:READ_LETTERS]
        if sum(map(str.isalpha, start)) < FEWEST_LETTERS:
            return False
        told, probability = language_of(start)
        return told != language and probability >= SURE

    return foreign


@cache
def identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second to load

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
"""Letters at a text's end that can name its conclusion."""


def names_another(text: str, choices: tuple[str, ...], gold: str) -> bool:
    """Whether a text ends by naming another choice than the gold one.

    What counts is the last `the answer is X`; without one, the last sentence: a letter in brackets, or, where it gives
    a verdict, a choice's text; said of no other choice beside the gold one, and not denied.
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
    """The flags of --filter, with commas."""
    flags = tuple(flag for flag in text.split(",") if flag)
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"--filter: {flag!r} is no flag; there are: {', '.join(FLAGS)}")
    return flags


def dropped_samples(quality: Path, flags: Sequence[str]) -> dict[int, list[str]]:
    """Number of a sample (from 1) -> why it is dropped (`cot cut`), of those that have one of the flags."""
    dropped = {}
    for number, (_, said) in enumerate(read_records(quality), 1):
        why = [f"{kind} {flag}" for kind, found in said["flags"].items() for flag in found if flag in flags]
        if why:
            dropped[number] = why
    return dropped
