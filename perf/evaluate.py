"""Questions a second and memory of scoring: the reference's loop, lm-eval's HFLM, and this project's model class.

All score the letters of the same questions, tokenized apart as the reference does; choices and log-likelihoods are
compared. Loading is not in the time; memory is what scoring adds to a loaded model. `make perf STAGE=evaluate` runs it;
docs/measurements/evaluate.md has the figures.
"""

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.measure import (
    HERE,
    Contender,
    choose,
    memory,
    reset_peak_memory,
    run_alternately,
    summarize,
    table,
    write_results,
)
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.models import find_model, local_folder
from teacherlm.catalog.prompts import LETTERS, test_context
from teacherlm.catalog.sources import read_split


@dataclass(frozen=True)
class Scenario:
    """What is scored.

    Attributes:
        source: "creak", or "mmlu" with five examples before each question.
        tokens: about so many of other texts stand before each question, which no other question shares.
        questions: how many.
    """

    model: str
    source: str
    questions: int
    tokens: int = 0


SCENARIOS = {
    "short": Scenario("smollm2-135m", "creak", 256),
    "long": Scenario("smollm2-135m", "creak", 48, 260),
    "bloom": Scenario("bloom-560m", "creak", 64),
    "bloom-long": Scenario("bloom-560m", "creak", 16, 260),
    "5-shot": Scenario("smollm2-135m", "mmlu", 64),
}
CONTENDERS = [
    Contender("reference", "the reference's loop: a forward pass a choice", "float32", once=True),
    Contender("hflm-1", "lm-eval's HFLM, batch 1", "float32", peer=True),
    Contender("hflm-8", "lm-eval's HFLM, batch 8", "float32", peer=True),
    Contender("hflm-32", "lm-eval's HFLM, batch 32", "float32", peer=True),
    Contender("hflm-auto", "lm-eval's HFLM, batch auto", "float32", peer=True),
    Contender("ours", "this project", "float32"),
    Contender("ours-bf16", "this project", "bfloat16"),
]


logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about models that are given as objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CREAK's files (default: the hub)")
    parser.add_argument("--mmlu", help="folder with MMLU's files (default: $MMLU_DATA, or the hub)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contenders", help="only these, with commas; the first is what the others are held against")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    args.mmlu = Path(mmlu) if (mmlu := args.mmlu or os.environ.get("MMLU_DATA")) else None
    if args.contender:
        contender = next(contender for contender in CONTENDERS if contender.name == args.contender)
        print(json.dumps(measure(contender, SCENARIOS[args.scenarios], args)))
        return
    results = []
    for name in args.scenarios.split(","):
        print(f"\n{name}: {SCENARIOS[name]}", flush=True)
        words = [
            f"--scenarios={name}",
            *(f"--{key}={getattr(args, key)}" for key in ("data", "mmlu") if getattr(args, key)),
        ]
        contenders = choose(CONTENDERS, args.contenders)
        measured = run_alternately(__spec__.name, contenders, words, args.repetitions)
        differences = compare(measured, contenders[0].name)
        rows = summarize(contenders, measured, "questions/s", contenders[0].name)
        for row in rows:
            row |= {"scenario": name, **differences[row["name"]]}
            print(f"{row['name']}: {differences[row['name']]}")
        results += rows
        print(table(rows), flush=True)
    write_results(HERE / "results" / "evaluate.json", results)


def compare(measured: dict[str, list[dict[str, Any]]], reference: str) -> dict[str, dict[str, float]]:
    """How far each contender's log-likelihoods are from the reference's, and how many choices are others."""
    expected = measured[reference][0]["loglikelihoods"]
    found = {}
    for name, runs in measured.items():
        ours = runs[0]["loglikelihoods"]
        apart = [abs(a - b) for row, other in zip(ours, expected, strict=True) for a, b in zip(row, other, strict=True)]
        best = [[row.index(max(row)) for row in rows] for rows in (ours, expected)]
        found[name] = {"largest_difference": max(apart), "other_choices": sum(a != b for a, b in zip(*best))}
    for runs in measured.values():
        for run in runs:
            del run["loglikelihoods"]
    return found


CHECK: dict[str, float] = {}
"""Seconds that the self-check took, of the contender that makes one."""


def measure(contender: Contender, scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    contexts, choices = make_contexts(scenario, args)
    folder = local_folder(find_model("smollm2-135m"))
    answer = {"reference": reference, "hflm": hflm, "ours": ours}[contender.name.split("-")[0]]
    score = answer(contender, scenario, folder)
    score(contexts[:2], choices)
    before = reset_peak_memory()
    started = time.perf_counter()
    likelihoods = score(contexts, choices)
    seconds = time.perf_counter() - started
    return {
        "value": len(contexts) / seconds,
        "seconds": seconds,
        "added_memory_bytes": memory("VmHWM") - before,
        "loglikelihoods": likelihoods,
        **CHECK,
    }


def make_contexts(scenario: Scenario, args: argparse.Namespace) -> tuple[list[str], str]:
    """What stands before the letters of each question, and the letters."""
    benchmark = load_benchmark(scenario.source)
    data = args.mmlu if scenario.source == "mmlu" else args.data
    asked = [benchmark.ask(sample, where) for where, sample in read_split(benchmark, "test", data, scenario.questions)]
    contexts = [test_context(question.with_choices, question.preamble) for question in asked]
    if scenario.source == "mmlu":
        five = [benchmark.ask(sample, where) for where, sample in read_split(benchmark, "dev", data, 5)]
        examples = [f"{test_context(q.with_choices, q.preamble)}{q.answer.removeprefix('(')}.\n\n" for q in five]
        contexts = ["".join(examples) + context for context in contexts]
    if scenario.tokens:
        others = [
            benchmark.ask(sample, where).question.split(". ", 1)[1]
            for where, sample in read_split(benchmark, "train", data, 2000)
        ]
        draw = random.Random(0)
        contexts = [" ".join(draw.sample(others, scenario.tokens // 12)) + " " + context for context in contexts]
    return contexts, LETTERS[: len(asked[0].choices)]


def make_model(scenario: Scenario, folder: Path, dtype: str) -> Any:
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    from teacherlm.runtime.loading import load_model

    if scenario.model == "bloom-560m":
        torch.manual_seed(0)
        config = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
        return BloomForCausalLM(config).to(getattr(torch, dtype)).eval()
    return load_model(folder, dtype=getattr(torch, dtype)).eval()


def reference(contender: Contender, scenario: Scenario, folder: Path) -> Callable:
    """A forward pass for each choice, all logits."""
    import torch

    from teacherlm.runtime.loading import load_tokenizer

    model, tokenizer = make_model(scenario, folder, contender.dtype), load_tokenizer(folder)

    @torch.inference_mode()
    def score(contexts: list[str], choices: str) -> list[list[float]]:
        found = []
        for context in contexts:
            tokens = tokenizer(context, add_special_tokens=False).input_ids
            found.append([])
            for choice in choices:
                (letter,) = tokenizer(choice, add_special_tokens=False).input_ids
                logits = model(torch.tensor([tokens])).logits.log_softmax(-1)
                found[-1].append(float(logits[0, -1, letter]))
        return found

    return score


def hflm(contender: Contender, scenario: Scenario, folder: Path) -> Callable:
    from lm_eval.models.huggingface import HFLM

    from teacherlm.runtime.loading import load_tokenizer

    model = make_model(scenario, folder, contender.dtype)
    size = contender.name.split("-")[1]
    library = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), batch_size=size, device="cpu")
    library._encode_pair = lambda *pair: tuple(library.tok_encode(text, add_special_tokens=False) for text in pair)
    return scored_by(library)


def ours(contender: Contender, scenario: Scenario, folder: Path) -> Callable:
    from teacherlm.scoring import language_model, scored_model

    model = make_model(scenario, folder, contender.dtype)
    scored_model.load_model = lambda *args, **options: model  # BLOOM's shape is in no folder
    made = language_model.LanguageModel(folder, None, contender.dtype, "apart")
    made.prepare(0)
    CHECK["check_seconds"] = made.scored.verdict.seconds
    return scored_by(made)


def scored_by(model: Any) -> Callable:
    from lm_eval.api.instance import Instance

    def score(contexts: list[str], choices: str) -> list[list[float]]:
        pairs = [(context, choice) for context in contexts for choice in choices]
        asked = [Instance("loglikelihood", {}, pair, 0, metadata=("", 0, 1)) for pair in pairs]
        answers = [value for value, _ in model.loglikelihood(asked, disable_tqdm=True)]
        return [answers[start : start + len(choices)] for start in range(0, len(answers), len(choices))]

    return score


if __name__ == "__main__":
    main()
