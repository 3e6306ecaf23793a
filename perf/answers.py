"""Measure written answers per second: lm-eval's HFLM in batches, this project's engine, vLLM through it.

All contenders answer the same questions greedily, until the beginning of another question or the maximum number of
tokens, and their texts are compared. The time does not include loading the model. `make perf STAGE=answers` runs it;
docs/measurements/written-answers.md has the results.
"""

import argparse
import importlib.util
import json
import logging
import time
from collections.abc import Callable
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
from teacherlm.catalog.sources import read_split
from teacherlm.scoring.flags import STOP

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of models that are passed as objects
CONTENDERS = [
    Contender("hflm-1", "lm-eval's HFLM, batch 1", "float32", peer=True, once=True),
    Contender("hflm-8", "lm-eval's HFLM, batch 8", "float32", peer=True),
    Contender("hflm-32", "lm-eval's HFLM, batch 32", "float32", peer=True),
    Contender("hflm-64", "lm-eval's HFLM, batch 64", "float32", peer=True),
    Contender("ours", "this project's engine", "float32"),
]
VLLM = Contender("vllm", "vLLM, through this project's engine", "float32", peer=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CREAK's files (default: the hub)")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--num_tokens", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vllm_python", help="a Python that has vllm (default: this one, if it has vllm)")
    parser.add_argument("--contenders", help="the contenders, separated by commas; the first one is the reference")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    has_vllm = args.vllm_python or importlib.util.find_spec("vllm")
    contenders = [*CONTENDERS, *([VLLM] if has_vllm else [])]
    if args.contender:
        print(json.dumps(measure(next(one for one in contenders if one.name == args.contender), args)))
        return
    contenders = choose(contenders, args.contenders)
    words = [f"--{name}={getattr(args, name)}" for name in ("questions", "num_tokens")]
    words += [f"--data={args.data}"] if args.data else []
    pythons = {VLLM.name: args.vllm_python} if args.vllm_python else None
    measured = run_alternately(__spec__.name, contenders, words, args.repetitions, pythons)
    others = compare(measured, contenders[0].name)
    rows = summarize(contenders, measured, "answers/s", contenders[0].name)
    for row in rows:
        row["other_texts"] = others[row["name"]]
    write_results(HERE / "results" / "answers.json", rows)
    print(table(rows))
    print(f"texts that differ from those of {contenders[0].name}: {others}")


def compare(measured: dict[str, list[dict[str, Any]]], reference: str) -> dict[str, int]:
    """The number of each contender's texts that differ from the reference's."""
    expected = measured[reference][0]["texts"]
    found = {
        name: sum(one != other for one, other in zip(runs[0]["texts"], expected, strict=True))
        for name, runs in measured.items()
    }
    for runs in measured.values():
        for run in runs:
            del run["texts"]
    return found


def measure(contender: Contender, args: argparse.Namespace) -> dict[str, Any]:
    benchmark = load_benchmark("creak")
    samples = read_split(benchmark, "test", args.data, args.questions)
    prompts = [f"Q: {benchmark.ask(sample, where).with_choices} A:" for where, sample in samples]
    answer = (hflm if contender.name.startswith("hflm") else engine)(contender, args)
    answer(prompts[:2])
    before = reset_peak_memory()
    started = time.perf_counter()
    texts = answer(prompts)
    seconds = time.perf_counter() - started
    added = memory("VmHWM") - before
    return {"value": len(prompts) / seconds, "seconds": seconds, "added_memory_bytes": added, "texts": texts}


def hflm(contender: Contender, args: argparse.Namespace) -> Callable[[list[str]], list[str]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from teacherlm.runtime.loading import load_model, load_tokenizer

    folder = local_folder(find_model("smollm2-135m"))
    model = load_model(folder).float().eval()
    size = contender.name.split("-")[1]
    library = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), batch_size=size, device="cpu")
    how = {"until": list(STOP), "max_gen_toks": args.num_tokens, "do_sample": False}

    def answer(prompts: list[str]) -> list[str]:
        asked = [Instance("generate_until", {}, (prompt, how), 0, metadata=("", 0, 1)) for prompt in prompts]
        return list(library.generate_until(asked, disable_tqdm=True))

    return answer


def engine(contender: Contender, args: argparse.Namespace) -> Callable[[list[str]], list[str]]:
    from teacherlm.runtime.generation import Completion, Prompt, Sampling

    folder, sampling = local_folder(find_model("smollm2-135m")), Sampling(args.num_tokens, 0.0, 1.0, STOP)
    made: Any
    if contender.name == VLLM.name:
        from teacherlm.runtime.generation.vllm_engine import VLLMEngine

        made = VLLMEngine(folder, contender.dtype, sampling)
    else:
        from teacherlm.runtime.generation.transformers_engine import TransformersEngine

        made = TransformersEngine(folder, contender.dtype, sampling)

    def answer(prompts: list[str]) -> list[str]:
        asked = (Prompt("creak", index, 0, text, 0) for index, text in enumerate(prompts))
        found = {}
        for completion in made.complete(asked):
            assert isinstance(completion, Completion), completion.reason
            found[completion.prompt.index] = completion.text
        return [found[index] for index in range(len(prompts))]

    return answer


if __name__ == "__main__":
    main()
