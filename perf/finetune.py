"""Measure tokens per second and memory of finetuning: the reference's way, length-sorted padding, TRL, this project.

Only the tokens of samples count, not padding. The time does not include the first step. `make perf STAGE=finetune` runs
it; docs/measurements/finetune.md has the results. The scenarios are a model with the shape of BLOOM-560m (random
weights, its real vocabulary) and SmolLM2-135M with mixed lengths, and SmolLM2-135M on CREAK's texts, which have similar
lengths.
"""

import argparse
import importlib.util
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from perf.measure import HERE, Contender, choose, run_alternately, summarize, table, write_results
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.models import find_model, local_folder
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split
from teacherlm.runtime.memory import keep_freed_memory


@dataclass(frozen=True)
class Scenario:
    """What is trained.

    Attributes:
        model: the name of the model.
        lengths: minimum and maximum number of tokens per sample, uniformly distributed; None means CREAK's texts.
        batch: number of samples per step.
        steps: number of steps that are timed.
    """

    model: str
    lengths: tuple[int, int] | None
    batch: int
    steps: int


SCENARIOS = {
    "bloom": Scenario("bloom-560m", (40, 512), 4, 2),
    "smollm2": Scenario("smollm2-135m", (40, 300), 8, 4),
    "creak": Scenario("smollm2-135m", None, 8, 8),
}
CONTENDERS = [
    Contender("reference", "padded, full logits, gradient checkpointing", "float32"),
    Contender("reference-bf16", "padded, full logits, gradient checkpointing", "bfloat16"),
    Contender("padded", "padded, full logits", "float32"),
    Contender("sorted", "padded, sorted by length, full logits", "float32", peer=True),
    Contender("trl-padded", "TRL's SFTTrainer", "float32", peer=True),
    Contender("trl-packed", "TRL's SFTTrainer, packing", "float32", peer=True),
    Contender("trl-packed-bf16", "TRL's SFTTrainer, packing", "bfloat16", peer=True),
    Contender("ours", "this project", "float32"),
    Contender("ours-checkpointed", "this project, gradient checkpointing", "float32"),
    Contender("ours-bf16", "this project", "bfloat16"),
    Contender("ours-bf16-checkpointed", "this project, gradient checkpointing", "bfloat16"),
]
"""bfloat16 means autocast to bfloat16. Weights, gradients and Adam's states stay in float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CREAK's files (default: the hub)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contenders", help="the contenders, separated by commas; the first one is the reference")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args.contender, SCENARIOS[args.scenarios], args.data)))
        return
    contenders = [c for c in CONTENDERS if importlib.util.find_spec("trl") or not c.name.startswith("trl")]
    contenders = choose(contenders, args.contenders)
    results = []
    for name in args.scenarios.split(","):
        print(f"\n{name}: {SCENARIOS[name]}", flush=True)
        words = [f"--scenarios={name}", *([f"--data={args.data}"] if args.data else [])]
        measured = run_alternately(__spec__.name, contenders, words, args.repetitions)
        rows = summarize(contenders, measured, "real tokens/s", contenders[0].name)
        results += [{"scenario": name, **row} for row in rows]
        print(table(rows))
    write_results(HERE / "results" / "finetune.json", results)


CHECK: dict[str, float] = {}
"""The duration of the self-check, for contenders that make one."""


def measure(name: str, scenario: Scenario, data: Path | None) -> dict[str, float]:
    """Train a few steps, and return tokens per second and the memory beyond weights, gradients and Adam's states."""
    from transformers import TrainerCallback

    from teacherlm.runtime.loading import load_tokenizer

    folder = local_folder(find_model("smollm2-135m"))
    tokenizer = load_tokenizer(folder)
    model = make_model(scenario, folder)
    samples = make_samples(scenario, data, tokenizer, model.config.vocab_size)
    before = peak_memory()  # recorded, to show that loading did not need more memory than training
    ends: list[float] = []
    counts: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            ends.append(time.perf_counter())

    def counting(collate: Callable) -> Callable:
        def collate_and_count(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            counts.append(sum(len(row["input_ids"]) for row in rows))
            return batch

        return collate_and_count

    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(name, scenario, model, tokenizer, samples, output)
        trainer.data_collator = counting(trainer.data_collator)
        trainer.add_callback(Clock())
        trainer.train()
    seconds = ends[-1] - ends[0]
    tokens = sum(counts[1 : len(ends)])
    states = 16 * sum(part.numel() for part in model.parameters())
    return {
        "value": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "added_memory_bytes": peak_memory() - states - BASE,
        "before_training_bytes": before - BASE,
        **CHECK,
    }


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


BASE = 0
"""Number of bytes of the process with its libraries, before the model is made."""


def make_model(scenario: Scenario, folder: Path) -> Any:
    global BASE
    import torch
    from transformers import BloomConfig, BloomForCausalLM, Trainer, TrainingArguments  # noqa: F401

    from teacherlm.runtime.loading import load_model

    BASE = peak_memory()
    torch.manual_seed(0)
    if scenario.model == "bloom-560m":
        config = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
        return BloomForCausalLM(config)
    return load_model(folder, dtype=torch.float32)


def make_samples(scenario: Scenario, data: Path | None, tokenizer: Any, vocabulary: int) -> Any:
    """Enough samples for a few steps: CREAK's texts, joined and cut to the wanted lengths."""
    from datasets import Dataset

    benchmark = load_benchmark("creak")
    count = 64 * scenario.batch
    samples = read_split(benchmark, "train", data, count)
    prompts = load_prompts()
    records = [benchmark.prepare(sample, where, prompts) for where, sample in samples]
    rows = [tokenizer(record["text"])["input_ids"] for record in records]
    if scenario.lengths:
        draw = random.Random(0)
        endless = [token for row in rows for token in row] * 8
        lengths = [draw.randint(*scenario.lengths) for _ in rows]
        starts = [draw.randrange(len(endless) - scenario.lengths[1]) for _ in rows]
        rows = [endless[start : start + length] for start, length in zip(starts, lengths)]
    assert max(map(max, rows)) < vocabulary
    return Dataset.from_dict({"input_ids": rows})


def make_trainer(name: str, scenario: Scenario, model: Any, tokenizer: Any, samples: Any, output: str) -> Any:
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    common = {
        "output_dir": output,
        "max_steps": 1 + scenario.steps,
        "per_device_train_batch_size": scenario.batch,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        "bf16": "bf16" in name,
        "gradient_checkpointing": name.startswith("reference") or name.endswith("checkpointed"),
    }
    if name.startswith("trl"):
        return make_trl_trainer(name, scenario, model, tokenizer, samples, common)
    if name.startswith("ours"):
        return make_our_trainer(model, samples, common)
    if name == "sorted":
        common["train_sampling_strategy"] = "group_by_length"
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model=model, args=TrainingArguments(**common), train_dataset=samples, data_collator=collate)


def make_our_trainer(model: Any, samples: Any, common: dict[str, Any]) -> Any:
    from transformers import TrainingArguments

    from teacherlm.finetune.chunked_loss import use_chunked_loss
    from teacherlm.finetune.collators import PackingCollator
    from teacherlm.finetune.student import find_path
    from teacherlm.finetune.trainer import FinetuneTrainer
    from teacherlm.runtime.packed_attention import use_packing
    from teacherlm.runtime.verdicts import timed

    keep_freed_memory()
    own = SimpleNamespace(peft="none", packing=True, attention="sdpa")
    how = SimpleNamespace(
        gradient_checkpointing=common.get("gradient_checkpointing", False), gradient_checkpointing_kwargs=None
    )
    longest = max(map(len, samples["input_ids"]))
    verdict = timed(lambda: find_path(model, own, how, Path("the student"), longest))
    assert verdict.path == "packed", verdict
    CHECK["check_seconds"] = verdict.seconds
    use_packing(model, longest=longest)
    use_chunked_loss(model)
    samples = samples.add_column("skipped", [0] * len(samples)).add_column("sample", range(len(samples)))
    return FinetuneTrainer(
        model=model,
        args=TrainingArguments(**common, remove_unused_columns=False),
        train_dataset=samples,
        data_collator=PackingCollator("token"),
        phases=[len(samples)],
        callbacks=[],
    )


def make_trl_trainer(
    name: str, scenario: Scenario, model: Any, tokenizer: Any, samples: Any, common: dict[str, Any]
) -> Any:
    """TRL with its defaults, except for dtype and gradient checkpointing, whose defaults would make it slower.

    Packed rows are as long as the longest sample, and a step has as many rows as hold its samples.
    """
    from trl import SFTConfig, SFTTrainer

    packing = name.startswith("trl-packed")
    longest = max(map(len, samples["input_ids"]))
    mean = sum(map(len, samples["input_ids"])) / len(samples)
    if packing:
        common["per_device_train_batch_size"] = max(1, round(scenario.batch * mean / longest))
    config = SFTConfig(**common, packing=packing, max_length=longest)
    return SFTTrainer(model=model, args=config, train_dataset=samples, processing_class=tokenizer)


if __name__ == "__main__":
    main()
