"""Benchmarks' YAML files, which every stage reads, and the samples that their templates produce."""

import random
import shutil
from pathlib import Path

from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one
from support.programs import ROOT

from teacherlm.catalog.answers import gold_values, read_answer
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sample_values import asked_of
from teacherlm.catalog.sources import read_split, source_files

PROMPTS = load_prompts()
BOMBS = [
    b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)),
    b"question: &a [*a]\n",
    b"files: &a {train: *a}\n",
    b"<<: *x\n",
    b"question: !!python/object/apply:os.system [id]\n",
    b"groups: " + b"[" * 3000 + b"]" * 3000 + b"\n",
    b"? [a, b]\n: c\n",
    b"---\n---\n",
    b"%YAML 9.9\n---\n",
]
TOWN = """\
title: Town
splits: {train: train, test: test}
files: {train: town.jsonl, test: town.jsonl}
question: "{{ q }}"
answer: "{{ a.names[0] }}"
answers: a.names
answer_is: text
extract: ["so: (?P<answer>.+)", concluded_text]
"""
"""A benchmark without choices."""
PATTERNS = [
    *(rb"(a+)+$", rb"(x{4000000000})", rb"(?R)?(a)", rb"((?1)b|a)", rb"(a", rb"(?P<answer>)", rb"(?P<answer>a)?(b)?"),
    *(
        b"(" * 240 + b"a" + b")" * 240,
        rb"((a{1,1000}){1,1000}){1,1000}",
        rb"(a{e<=1000})",
        rb"(?<=(a*))b",
        rb"(\\p{L}+)+x",
    ),
    *(b"last_number", b"letter", b"(" + b"a?" * 200 + b")" + b"a" * 90),
]
TEMPLATES = [
    b"{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    b"{{ 'a' * 999999999 }}",
    b"{{ 9 ** 99999999 }}",
    b"{{ ''.__class__.__mro__ }}",
    b"{{ sentence.format.__globals__ }}",
    b"{{ '%999999999d' | format(1) }}",
    b"{{ sentence | center(999999999) }}",
    b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    b"{% include '/etc/passwd' %}",
    b"{{ [sentence] * 99999999 }}",
    b"{% set a = [1] %}{% for b in 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' %}{% set a = a + a %}{% endfor %}{{ a }}",
    b"{{ sentence | indent(999999999) }}",
    b"{{ sentence | wordwrap(1) }}",
    b"{{ undefined_name }}",
    b"{{ (1, 2, 3) | sum(start=sentence) }}",
    b"{{ sentence ~ sentence ~ " + b"~ ".join([b"sentence "] * 500) + b"}}",
    b"{{ " + b"(" * 500 + b"sentence" + b")" * 500 + b" }}",
    b"{{ sentence | batch(0) | list }}",
    b"{{ sentence | truncate(-1) }}",
    b"{{ sentence | random }}",
]


def example(folder: Path) -> None:
    """The files of CREAK, MMLU and TOWN, with their data in the same folder."""
    for name in ("creak", "mmlu"):
        shutil.copyfile(ROOT / "benchmarks" / f"{name}.yaml", folder / f"{name}.yaml")
    data = folder / "data"
    for split in ("auxiliary_train", "test", "dev", "val"):
        (data / split).mkdir(parents=True)
        (data / split / f"virology_{split}.csv").write_text('What is "it",a,b,c,d,B\nand what is this?,1,2,3,4,D\n')
    for split in ("train", "dev"):
        (data / f"{split}.json").write_text('{"sentence": "It is so.", "label": "true"}\n')
    (folder / "town.yaml").write_text(TOWN)
    (data / "town.jsonl").write_text('{"q": "Where is it?", "a": {"names": ["the town of Aaaa", "1,072 / 3"]}}\n')


def damage(files: Files, draw: random.Random) -> Files:
    names = [name for name in files if name.endswith(".yaml")]
    if draw.random() < 0.85:
        return damage_one(files, draw, names)
    name = draw.choice(names)
    content = files[name]
    if draw.random() < 0.5:
        return files | {name: draw.choice([content, b""]) + draw.choice(BOMBS)}
    if name == "town.yaml":
        return files | {name: content.replace(b"so: (?P<answer>.+)", draw.choice(PATTERNS))}
    template = draw.choice(TEMPLATES)
    for old in (
        b"{{ sentence }}",
        b"{{ label }}",
        b"{{ question | full_stop | one_line }}",
        b"{{ choices[0] | one_line }}",
    ):
        if draw.random() < 0.5:
            content = content.replace(old, template.replace(b"sentence", old.split(b" ")[1].split(b"[")[0]))
    return files | {name: content}


def read(place: Path) -> None:
    for file in (place / f"{name}.yaml" for name in ("creak", "mmlu", "town")):
        if not file.exists():  # the cases in found/ that are older than a file here
            continue
        benchmark = load_benchmark(str(file))
        for split in ("train", "test"):
            source_files(benchmark, place / "data")
            for where, sample in read_split(benchmark, split, place / "data"):
                asked = asked_of(benchmark.prepare(sample, where, PROMPTS), where)
                tested = benchmark.test_sample(sample, where)
                if asked is not None:
                    assert gold_values(asked) == gold_values(benchmark.asked(tested))
                    read_answer("a" * 2000 + " so: the answer is 1/2, aaab", asked)


SUBJECT = Subject("benchmark_files", example, read, damage)
