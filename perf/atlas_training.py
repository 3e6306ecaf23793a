"""Measure steps of training (scenarios of perf/atlas.py).

Reader and retriever learn together (ppmean) in float32 on the CPU. The reader is a T5 with the shape of t5-v1_1-small
and random weights, and the retriever is minilm. A question has the paper's size: 30 passages and text_maxlength 512.
`train-shards` uses the shape of t5-v1_1-base with short questions, so that the optimizer states take most of the
memory. The peak memory is that of the largest process, including libraries and weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from perf.atlas_reading import make_reader, questions_with_passages, two_entries
from perf.measure import HERE, Contender

STEPS = 3
"""Number of steps. The first one is not counted."""
PASSAGES = 400
READER, RETRIEVER = "--use_gradient_checkpoint_reader", "--use_gradient_checkpoint_retriever"
FLAGS = {"plain": [], "reader": [READER], "retriever": [RETRIEVER], "both": [READER, RETRIEVER]}
FLAGS |= {"one": [*FLAGS["both"], "--per_gpu_batch_size=2"], "two": FLAGS["both"]}
FLAGS |= {
    "two-optim": [*FLAGS["both"], "--shard_optim"],
    "two-both": [*FLAGS["both"], "--shard_optim", "--shard_grads"],
}
CHECKPOINTS = [
    Contender("plain", "no gradient checkpoints", "float32"),
    Contender("reader", "--use_gradient_checkpoint_reader", "float32"),
    Contender("retriever", "--use_gradient_checkpoint_retriever", "float32"),
    Contender("both", "both", "float32"),
]
WORKERS = [
    Contender("one", "one worker, two questions per step", "float32"),
    Contender("two", "two workers, one question each", "float32"),
    Contender("two-optim", "two workers, --shard_optim", "float32"),
    Contender("two-both", "two workers, --shard_optim --shard_grads", "float32"),
]


def train(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run STEPS steps of train.py as a user would. The losses show whether the contenders compute the same."""
    from teacherlm.core.records import write_records

    shards = args.scenarios == "train-shards"
    passages, length = (2, 64) if shards else (30, 512)
    flags = {"--n_context": passages, "--retriever_n_context": passages, "--text_maxlength": length}
    flags |= {"--per_gpu_batch_size": 1, "--total_steps": STEPS, "--log_freq": 1, "--warmup_steps": 1, "--dropout": 0}
    flags |= {"--target_maxlength": 16, "--reader_model_type": make_reader("base" if shards else "small")}
    flags |= {"--temperature_gold": 0.1, "--temperature_score": 0.1, "--multiple_choice_train_permutations": "all"}
    flags |= {"--retriever_model_path": "minilm", "--name": "run"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        questions = [{**question, "dataset": "mmlu"} for question in questions_with_passages(args)]
        write_records(place / "train.jsonl", questions)
        write_records(place / "passages.jsonl", [{"id": str(n), **p} for n, p in enumerate(two_entries(PASSAGES))])
        flags |= {"--train_data": place / "train.jsonl", "--eval_data": place / "train.jsonl"}
        flags |= {"--passages": place / "passages.jsonl", "--checkpoint_dir": place}
        words = [str(word) for flag in flags.items() for word in flag] + ["--train_retriever", *FLAGS[contender]]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [
            sys.executable,
            *(several if contender.startswith("two") else []),
            str(HERE.parent / "atlas/train.py"),
        ]
        subprocess.run([*command, *words], check=True, stdout=sys.stderr)
        log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    seconds = statistics.mean(line["seconds_per_step"] for line in log[1:])
    losses = [line[name] for line in log for name in ("reader_loss", "retriever_loss")]
    return {"value": 1 / seconds, "seconds": seconds, "numbers": losses}
