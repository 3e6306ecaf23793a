"""Measure the teacher's records per second: the reference's loop, `generate` in batches, this project's engine, vLLM.

All contenders write chains of thought for the same prompts, sampled at temperature 1 until the end of the text. The
time is that of the generation, without loading the model. `make perf STAGE=enhance` runs it;
docs/measurements/enhance.md has the results.
"""

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

from perf.measure import HERE, Contender, choose, run_alternately, summarize, table, write_results
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.models import find_model, local_folder
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split

WITH_VLLM = [
    Contender("vllm", "vLLM, through this project's engine", "float32", peer=True),
    Contender("vllm-bf16", "vLLM, through this project's engine", "bfloat16", peer=True),
]
CONTENDERS = [
    Contender("reference", "the reference's loop: generate, batch 1", "float32", once=True),
    Contender("reference-bf16", "the reference's loop: generate, batch 1", "bfloat16", once=True),
    Contender("generate", "generate, batches of 32", "float32", peer=True),
    Contender("generate-bf16", "generate, batches of 32", "bfloat16", peer=True),
    Contender("ours", "this engine", "float32"),
    Contender("ours-bf16", "this engine", "bfloat16"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CREAK's files (default: the hub)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--num_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64, help="maximum number of rows of this engine")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vllm_python", help="a Python that has vllm (default: this one, if it has vllm)")
    parser.add_argument("--contenders", help="the contenders, separated by commas; the first one is the reference")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    has_vllm = args.vllm_python or importlib.util.find_spec("vllm")
    contenders = [*CONTENDERS, *(WITH_VLLM if has_vllm else [])]
    if args.contender:
        print(json.dumps(measure(next(c for c in contenders if c.name == args.contender), args)))
        return
    contenders = choose(contenders, args.contenders)
    words = [f"--{name}={getattr(args, name)}" for name in ("model", "records", "num_tokens", "batch_size")]
    words += [f"--data={args.data}"] if args.data else []
    pythons = {contender.name: args.vllm_python for contender in WITH_VLLM if args.vllm_python}
    measured = run_alternately(__spec__.name, contenders, words, args.repetitions, pythons)
    rows = summarize(contenders, measured, "records/s", contenders[0].name)
    write_results(HERE / "results" / "enhance.json", rows)
    print(table(rows))


CHECK: dict[str, float] = {}
"""The duration of the self-check, for contenders that make one."""


def measure(contender: Contender, args: argparse.Namespace) -> dict[str, float]:
    """Generate once, and return records and new tokens per second."""
    benchmark = load_benchmark("creak")
    samples = read_split(benchmark, "train", args.data, args.records)
    asked = load_prompts()
    prompts = [benchmark.prepare(sample, where, asked)["cot_text"] for where, sample in samples]
    ways = {"reference": with_generate, "generate": with_generate, "ours": with_engine, "vllm": with_vllm}
    generate = ways[contender.name.split("-")[0]](contender, args)
    started = time.perf_counter()
    tokens = generate(prompts)
    seconds = time.perf_counter() - started
    speed = {"value": len(prompts) / seconds, "seconds": seconds, "tokens_per_second": tokens / seconds}
    return speed | CHECK


def with_generate(contender: Contender, args: argparse.Namespace) -> Callable[[list[str]], int]:
    """Generate with transformers' `generate`, in batches; the reference has batches of 1."""
    import torch

    from teacherlm.runtime.loading import load_model, load_tokenizer

    folder = local_folder(find_model(args.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(folder, padding_side="left")
    model = load_model(folder, dtype=getattr(torch, contender.dtype)).to(device).eval()
    size = 1 if contender.name.startswith("reference") else 32
    torch.manual_seed(0)

    def generate(prompts: list[str]) -> int:
        waiting, tokens = iter(prompts), 0
        while batch := list(itertools.islice(waiting, size)):
            inputs = tokenizer(batch, return_tensors="pt", padding=True).to(device)
            length = inputs.input_ids.shape[1]
            outputs = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=args.num_tokens,
                do_sample=True,
                top_k=0,
                pad_token_id=tokenizer.pad_token_id,
            )
            ends = outputs[:, length:] == model.generation_config.eos_token_id
            tokens += int((ends.int().cumsum(1) - ends.int() == 0).sum())
        return tokens

    return generate


def with_engine(contender: Contender, args: argparse.Namespace) -> Callable[[list[str]], int]:
    from teacherlm.runtime.generation import Prompt, Sampling
    from teacherlm.runtime.generation.transformers_engine import TransformersEngine

    sampling = Sampling(args.num_tokens, 1.0, 1.0)
    engine = TransformersEngine(local_folder(find_model(args.model)), contender.dtype, sampling, args.batch_size)
    CHECK["check_seconds"] = engine.verdict.seconds

    def generate(prompts: list[str]) -> int:
        asked = (Prompt("cot_text", index, 0, text, index) for index, text in enumerate(prompts))
        return sum(completion.new_tokens for completion in engine.complete(asked))

    return generate


def with_vllm(contender: Contender, args: argparse.Namespace) -> Callable[[list[str]], int]:
    from teacherlm.runtime.generation import Prompt, Sampling
    from teacherlm.runtime.generation.vllm_engine import VLLMEngine

    engine = VLLMEngine(local_folder(find_model(args.model)), contender.dtype, Sampling(args.num_tokens, 1.0, 1.0))

    def generate(prompts: list[str]) -> int:
        asked = (Prompt("cot_text", index, 0, text, index) for index, text in enumerate(prompts))
        return sum(completion.new_tokens for completion in engine.complete(asked))

    return generate


if __name__ == "__main__":
    main()
