"""Let a teacher write, for every record, why its answer is right: the chain of thought, the mistakes, the fundamentals.

Reads JSON lines whose prompt field (`cot_text`, `error_text` or `fundamental_text`) is completed; writes the same
records in the same order with `cot` (`error`, `fundamental`), the completion, and `all`, prompt and completion.
Interrupted, the same command goes on where it was; finished and unchanged, it does nothing.

Source: TeacherLM (He et al. 2023, arXiv 2310.19019), section 3.
"""

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from progress_file import ProgressFile
from tqdm import tqdm

from teacherlm import manifests
from teacherlm.errors import UserError, run
from teacherlm.files import require_writable, set_aside
from teacherlm.models import describe_model, find_model, local_folder
from teacherlm.prompts import KINDS
from teacherlm.records import Record, read_records, write_records


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the teacher: a name in models/, a folder, or a hub id")
    parser.add_argument("--input", required=True, type=Path, help="JSON lines, as data_prepare.py writes them")
    parser.add_argument("--output", required=True, type=Path, help="JSON lines with the teacher's texts")
    parser.add_argument("--task_type", required=True, choices=list(KINDS), help="the field that the teacher completes")
    parser.add_argument("--batch_size", type=int, help="records at a time (default: the teacher's YAML, else 8)")
    parser.add_argument("--num_tokens", type=int, default=2048, help="at most so many new tokens (default: 2048)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16", "int8"],
        help="auto: bfloat16 where the device computes in it, else float32",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest token (default: 1, sampling)")
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="sample from the likeliest tokens up to this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="a record's draws depend on it and the prompt (default: 0)")
    parser.add_argument(
        "--restart", action="store_true", help="keep what was made with other settings beside, begin anew"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # torchrun of the reference passes it
    args = parser.parse_args()
    for name, low in (("batch_size", 1), ("num_tokens", 1), ("temperature", 0), ("top_p", 1e-9), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(
                f"--{name}: {'a positive number' if low else 'no negative number'} was expected, found {value}"
            )
    if args.output.resolve() == args.input.resolve():
        raise UserError(f"--output: {args.output} is the input; give another file")
    return args


def main() -> None:
    args = parse_arguments()
    started = time.time()
    total = check_records(args.input, args.task_type)
    require_writable(args.output.parent)
    teacher = find_model(args.name)
    folder = local_folder(teacher)

    manifest_path = manifests.manifest_of(args.output)
    manifest = manifests.read_manifest(manifest_path)
    known = (manifest or {}).get("inputs", {})
    inputs = {
        "records": manifests.describe(args.input, known.get("records")),
        "teacher": describe_model(folder, known.get("teacher")),
    }
    arguments = settings(args)
    changes = manifests.changes(manifest, "enhance", arguments, inputs)
    if not changes:
        print(f"enhance: done already, nothing to do ({manifest_path} matches its inputs)")
        return
    if args.output.exists() and not args.restart:
        why = "; ".join(changes) if manifest else "without a manifest"
        raise UserError(
            f"{args.output} is there already ({why}); move it away, or pass --restart, which keeps it beside"
        )

    work = {**arguments, **{name: described["sha256"] for name, described in inputs.items()}}
    progress = ProgressFile(args.output.with_name(f".{args.output.name}.progress"), work, args.restart)
    batch_size = args.batch_size or teacher.recommended("enhance.batch")
    tokens, dtype = generate(progress, args, folder, batch_size, total)

    old = set_aside(args.output)
    if old:
        print(f"enhance: the former {args.output} is kept as {old}")
    write_records(args.output, enhanced(args.input, progress, args.task_type))
    manifests.write_manifest(
        manifest_path,
        stage="enhance",
        arguments=arguments,
        inputs=inputs,
        outputs={"enhanced": manifests.describe(args.output)},
        counts={"records": total, "new_tokens": tokens, "seconds": round(time.time() - started, 1), "dtype": dtype},
        started=started,
    )
    progress.remove()
    print(f"enhance: {args.output} has {total} records")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the texts depend on, beside the records and the teacher. The batch size is not among it."""
    names = ("task_type", "num_tokens", "dtype", "temperature", "top_p", "seed")
    return {name: getattr(args, name) for name in names}


def check_records(path: Path, task_type: str) -> int:
    """Count the records; every one must have the prompt field, and none what will be added.

    Raises:
        UserError: file, line and field of the first that does not.
    """
    count = 0
    for number, record in read_records(path):
        count += 1
        if not isinstance(record.get(task_type), str) or not record[task_type]:
            texts = [name for name in KINDS if isinstance(record.get(name), str)]
            raise UserError(
                f"{path}, line {number}: the field {task_type!r} is missing, empty or no text; "
                f"this record has {', '.join(texts) or 'none of ' + ', '.join(KINDS)}"
            )
        for added in (KINDS[task_type], "all"):
            if added in record:
                raise UserError(
                    f"{path}, line {number}: the field {added!r} is already there; rename or remove it first"
                )
    return count


def generate(
    progress: ProgressFile, args: argparse.Namespace, folder: Path, batch_size: int, total: int
) -> tuple[int, str | None]:
    """Complete what is missing, batch by batch, each on disk before the next; returns (new tokens, dtype)."""
    if len(progress) == total:
        return 0, None
    from transformers_engine import Prompt, Sampling, TransformersEngine, best_dtype

    dtype = best_dtype() if args.dtype == "auto" else args.dtype
    sampling = Sampling(args.num_tokens, args.temperature, args.top_p, args.seed)
    if len(progress):
        print(f"enhance: {len(progress)} of {total} records were done before, going on")
    engine = TransformersEngine(folder, dtype, sampling)
    print(f"enhance: {total} records, {args.task_type}, on {engine.device.type} in {dtype}, batches of {batch_size}")

    def waiting() -> Iterator[Prompt]:
        for index, (_, record) in enumerate(read_records(args.input)):
            if index not in progress:
                text = record[args.task_type]
                yield Prompt(index, text, record_seed(args.seed, index, text))

    tokens, began = 0, time.time()
    prompts = waiting()
    bar = tqdm(total=total, initial=len(progress), unit="record", desc="enhance", mininterval=progress_interval())
    with bar:
        while batch := list(itertools.islice(prompts, batch_size)):
            completions = list(engine.complete(batch))
            progress.append({"index": c.index, "text": c.text, "tokens": c.tokens} for c in completions)
            tokens += sum(completion.tokens for completion in completions)
            bar.set_postfix_str(f"{tokens / (time.time() - began):.0f} tokens/s", refresh=False)
            bar.update(len(batch))
    return tokens, dtype


def record_seed(seed: int, index: int, prompt: str) -> int:
    """A record's own seed: of the run's seed, the record's number and its prompt; 63 bits."""
    digest = hashlib.sha256(f"{seed} {index} {prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def progress_interval() -> float:
    """Seconds between two lines of progress: often on a terminal, once a minute in a log file."""
    return 0.5 if sys.stderr.isatty() else 60.0


def enhanced(path: Path, progress: ProgressFile, task_type: str) -> Iterator[Record]:
    """The input's records with the teacher's texts, in input order."""
    completions = progress.read(iter(range(len(progress))))
    for (_, record), completion in zip(read_records(path), completions, strict=True):
        yield {**record, KINDS[task_type]: completion["text"], "all": record[task_type] + completion["text"]}


if __name__ == "__main__":
    run(main)
