"""Score a model, and with --checkpoints each of a student's checkpoints, by the log-likelihood of the choices.

Writes OUTPUT/MODEL/TASK.json (accuracy, standard error, 95 % interval), TASK_samples.jsonl beside it (each sample's
choice and log-likelihoods) and a manifest, and prints a table. What is scored and unchanged is skipped.

Source: the evaluation of TeacherLM (He et al. 2023, arXiv 2310.19019) on EleutherAI's lm-evaluation-harness.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from teacherlm import manifests, tables
from teacherlm.errors import Parser, UserError, run
from teacherlm.files import require_writable, whole_file
from teacherlm.models import describe_model, find_model, local_folder
from teacherlm.records import write_records


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["hf", "bloom", "opt"], default="hf", help="the family; all load alike")
    parser.add_argument(
        "--model_args", required=True, help="pretrained=MODEL: a name in models/, a folder, or a hub id"
    )
    parser.add_argument("--tasks", required=True, help="names with commas: files in lm_eval/tasks/, or benchmarks/")
    parser.add_argument("--checkpoints", type=Path, help="score each checkpoint-N of this folder too")
    parser.add_argument(
        "--output_path", type=Path, default=Path("results"), help="folder of the results (default: results)"
    )
    parser.add_argument(
        "--datasets", type=Path, help="folder of the test sets (default: lm_eval/datasets beside this file)"
    )
    parser.add_argument("--num_fewshot", type=int, default=0)
    parser.add_argument("--batch_size", type=int, help="default: the model's YAML, else 8")
    parser.add_argument("--device", help="cpu, cuda, or the number of a GPU (default: a GPU when there is one)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--limit", type=int, help="the first so many samples only: for trying out, not for results")
    parser.add_argument("--seed", type=int, default=0, help="draws the few-shot examples")
    parser.add_argument("--no_cache", action="store_true", help=argparse.SUPPRESS)  # the reference's; there is no cache
    args = parser.parse_args()
    key, _, args.pretrained = args.model_args.partition("=")
    if key != "pretrained" or not args.pretrained:
        raise UserError(f"--model_args: pretrained=MODEL was expected, found {args.model_args!r}")
    args.tasks = [name for name in args.tasks.split(",") if name]
    if not args.tasks:
        raise UserError("--tasks: at least one name was expected")
    return args


def main() -> None:
    args = parse_arguments()
    require_writable(args.output_path)
    base = find_model(args.pretrained)
    args.batch_size = args.batch_size or base.recommended("evaluate.batch")
    results = []
    for label, folder in [(base.name, local_folder(base)), *checkpoints(args.checkpoints)]:
        loaded = functools.cache(functools.partial(load, folder, args))  # once, and only if a task needs it
        results += [evaluate(args, label, folder, task, loaded) for task in args.tasks]
    print(table(results))


def load(folder: Path, args: argparse.Namespace) -> Any:
    from scoring import load_model

    return load_model(folder, args.device, args.dtype, args.batch_size)


def checkpoints(folder: Path | None) -> list[tuple[str, Path]]:
    """(RUN/checkpoint-N, its folder) for each checkpoint of a run, in the order of their steps."""
    if folder is None:
        return []
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    if not found:
        raise UserError(f"{folder}: no checkpoint-N there; finetune.sh makes them")
    return [(f"{folder.resolve().name}/{path.name}", path) for path in sorted(found, key=step)]


def step(path: Path) -> int:
    return int(path.name.split("-")[1])


def evaluate(
    args: argparse.Namespace, label: str, folder: Path, task: str, loaded: Callable[[], Any]
) -> dict[str, Any]:
    """The result of one model on one task: read when it is there and still holds, scored otherwise."""
    started = time.time()
    path = args.output_path / label / f"{task}.json"
    manifest = manifests.read_manifest(manifests.manifest_of(path))
    known = (manifest or {}).get("inputs", {})
    inputs = {"model": describe_model(folder, known.get("model")), **describe_task(args.datasets, task, known)}
    arguments = {name: getattr(args, name) for name in ("num_fewshot", "dtype", "limit", "seed")}
    if not manifests.changes(manifest, "evaluate", arguments, inputs):
        print(f"evaluate: {label} on {task}: done already, nothing to do ({path} matches its inputs)")
        return json.loads(path.read_text(encoding="utf-8"))

    from find_tasks import DATASETS, make_task
    from scoring import score

    print(f"evaluate: {label} on {task}", flush=True)
    made = make_task(task, args.datasets or DATASETS, args.num_fewshot, args.seed)
    result, samples = score(loaded(), made, task, args.limit)
    result = {"model": label, "path": str(folder), **result, **arguments, "tokenization": "context and choice apart"}
    samples_path = path.with_name(f"{task}_samples.jsonl")
    write_records(samples_path, samples)
    with whole_file(path) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    manifests.write_manifest(
        manifests.manifest_of(path),
        stage="evaluate",
        arguments=arguments,
        inputs=inputs,
        outputs={"result": manifests.describe(path), "samples": manifests.describe(samples_path)},
        counts={"samples": len(samples), "seconds": round(time.time() - started, 1)},
        started=started,
    )
    return result


def describe_task(datasets: Path | None, task: str, known: dict[str, Any]) -> dict[str, Any]:
    """Digests of what the questions come from: the test set and the task file, those that there are."""
    here = Path(__file__).resolve().parent / "lm_eval"
    places = {"test set": (datasets or here / "datasets") / task, "task file": here / "tasks" / f"{task}.py"}
    return {name: manifests.describe(path, known.get(name)) for name, path in places.items() if path.exists()}


def table(results: list[dict[str, Any]]) -> str:
    """A table of the results, with standard errors, as lm-eval prints it."""
    rows = [("model", "task", "n", "acc", "stderr", "95 % interval")]
    for r in results:
        low, high = r["interval_95"]
        interval = f"{low:.4f} - {high:.4f}"
        error = "-" if r["stderr"] is None else f"± {r['stderr']:.4f}"  # one sample has none
        rows.append((r["model"], r["task"], str(r["n"]), f"{r['value']:.4f}", error, interval))
    return tables.table(rows)


if __name__ == "__main__":
    run(main)
