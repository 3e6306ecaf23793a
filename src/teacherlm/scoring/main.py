"""Score a model, and with --checkpoints each of a student's checkpoints, by the log-likelihood of the choices.

Writes OUTPUT/MODEL/TASK.json (accuracy, standard error, 95 % interval), TASK_samples.jsonl beside it (each sample's
choice and log-likelihoods) and a manifest, and prints a table. What is scored and unchanged is skipped.

Source: the evaluation of TeacherLM (He et al. 2023, arXiv 2310.19019) on EleutherAI's lm-evaluation-harness.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from teacherlm.catalog.models import describe_model, find_model, local_folder
from teacherlm.core import manifests
from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import whole_file
from teacherlm.core.flags import LIST_MISSING, Parser, require_number, share_of
from teacherlm.core.json_files import load_json, load_object
from teacherlm.core.lock import one_writer
from teacherlm.core.names import file_name, plain_name
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.programs import print_error
from teacherlm.core.records import write_records
from teacherlm.core.results import read_result
from teacherlm.core.stage_run import StageRun
from teacherlm.scoring.result_names import OWNER, owner_of, require_name, take_name
from teacherlm.scoring.result_tables import curve, table
from teacherlm.scoring.shares import remove_progress, score_share, share_lock
from teacherlm.scoring.task_files import is_pattern
from teacherlm.scoring.task_inputs import DATASETS, describe_task

FAMILIES = ("hf", "hf-causal", "hf-causal-experimental", "bloom", "opt")
DTYPES = ("float32", "bfloat16", "float16")
WATCH_SECONDS = 30
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
)
SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
"""Settings in these files that differ between checkpoints of one model: the weights are computed in --dtype."""
STEP = re.compile(r"checkpoint-\d+")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=FAMILIES, default="hf", help="the family; all load alike")
    parser.add_argument(
        "--model_args",
        required=True,
        help="pretrained=MODEL: a name in models/, a folder, or a hub id; dtype=... as --dtype",
    )
    parser.add_argument(
        "--tasks",
        required=True,
        help="names with commas: of task files, tasks in them, benchmarks/, lm-eval's own; 'mmlu_*' for all that match",
    )
    parser.add_argument("--checkpoints", type=Path, help="score each checkpoint-N of this folder too")
    parser.add_argument(
        "--watch", action="store_true", help="wait for more of the --checkpoints until their finetuning has ended"
    )
    parser.add_argument(
        "--output_path", type=Path, default=Path("results"), help="folder of the results (default: results)"
    )
    parser.add_argument(
        "--datasets", type=Path, help="folder of the test sets (default: lm_eval/datasets beside this file)"
    )
    parser.add_argument("--include_path", type=Path, help="a folder with more task files")
    parser.add_argument(
        "--num_fewshot", type=int, help="examples before each question (default: 0, or what lm-eval's own task has)"
    )
    parser.add_argument("--batch_size", default="auto", help="inputs at once, at most (default: auto: by the device)")
    parser.add_argument(
        "--tokenization",
        default="auto",
        choices=["auto", "apart", "joint"],
        help="of context and choice: apart, as the reference; joint, as lm-eval and as students are trained; auto "
        "(default): apart where both give the same tokens, else joint",
    )
    parser.add_argument("--joint_tokenization", action="store_true", help="the same as --tokenization joint")
    parser.add_argument(
        "--permutations",
        default="none",
        choices=["none", "cyclic", "all"],
        help="ask each question with its choices in several orders, and average (default: none)",
    )
    parser.add_argument("--shard", default="0/1", help="I/N: the Ith of N shares, 0 the first; the last to end merges")
    parser.add_argument("--device", help="cpu, cuda, or the number of a GPU (default: a GPU when there is one)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--limit", type=int, help="the first so many samples only: for trying out, not for results")
    parser.add_argument("--seed", type=int, default=0, help="draws the few-shot examples")
    parser.add_argument("--list_missing", action="store_true", help=LIST_MISSING)
    parser.add_argument("--no_cache", action="store_true", help=argparse.SUPPRESS)  # the reference's; there is no cache
    args = parser.parse_args()
    args.pretrained, dtype = model_args(args.model_args)
    args.dtype = dtype or args.dtype
    args.tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not args.tasks:
        raise UserError("--tasks: at least one name was expected")
    if args.batch_size == "auto":
        args.batch_size = None
    elif not args.batch_size.isdecimal() or int(args.batch_size) < 1:
        raise UserError(f"--batch_size: a positive number or auto was expected, found {args.batch_size!r}")
    else:
        args.batch_size = int(args.batch_size)
    args.shard = share_of(args.shard)
    if args.joint_tokenization:
        args.tokenization = "joint"
    for name, low in {"limit": 1, "num_fewshot": 0, "seed": 0}.items():
        require_number(name, getattr(args, name), least=low)
    return args


def model_args(text: str) -> tuple[str, str | None]:
    """The model and the dtype of `pretrained=MODEL[,dtype=DTYPE]`; a comma that belongs to MODEL stays in it."""
    if re.search(r"(^|,)\s*trust_remote_code\s*=", text):
        raise UserError("--model_args: trust_remote_code: code from a model's folder is never run here; leave it out")
    text, mark, dtype = text.rpartition(",dtype=")
    if not mark:
        text, dtype = dtype, ""
    key, _, model = text.partition("=")
    if key != "pretrained" or not model or (mark and dtype not in DTYPES):
        raise UserError(f"--model_args: pretrained=MODEL[,dtype=...] was expected, found {text + mark + dtype!r}")
    return model, dtype or None


class Unusable(UserError):
    """A model that cannot be scored. Of several checkpoints the others are scored nevertheless."""


def main() -> int:
    args = parse_arguments()
    require_writable(args.output_path)
    base = find_model(args.pretrained)
    folder = local_folder(base)
    name = label(folder) if STEP.fullmatch(folder.name) else base.name
    broken: list[str] = []
    models = itertools.chain([(name, folder)], checkpoints(args, broken))
    if any(map(is_pattern, args.tasks)):
        from teacherlm.scoring.find_tasks import expand

        args.tasks = expand(args.tasks, args.datasets or DATASETS, args.include_path)
    if args.list_missing:
        for number, (name, folder) in enumerate(models):
            if not all(run_of(args, name, folder, task).is_done for task in args.tasks):
                print(number)
        return 0
    loaded = Loader(args)
    results = []
    for number, (name, folder) in enumerate(models):
        try:
            for task in args.tasks:
                owner = owner_of(None if number else base, folder, args.output_path / name)
                results += evaluate(args, name, folder, owner, task, loaded)
        except Unusable as error:
            if args.checkpoints is None:
                raise
            skip(name, str(error), broken)
    print(table(results))
    for task in args.tasks:
        print(curve(task, [result for result in results if result["task"] == task]), end="")
    return 2 if broken else 0


def skip(name: str, fault: str, broken: list[str]) -> None:
    """Say in one line that a model is not scored, and why."""
    print_error(UserError(f"{name} is not scored: {fault}"))
    broken.append(name)


class Loader:
    """Loads models one after the other: of a run's checkpoints, only the weights change."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder: Path | None = None
        self.model: Any = None

    def __call__(self, folder: Path, digest: str) -> Any:
        if folder == self.folder:
            return self.model
        from teacherlm.scoring.language_model import LanguageModel

        args = self.args
        before, self.folder = self.folder, None  # where loading fails, the model is of neither
        try:
            swapped = before and same_model(folder, before) and self.model.scored.swap(folder, digest)
            if not swapped:
                self.model = None  # its memory is needed for the next
                how = (args.device, args.dtype, args.tokenization, args.batch_size)
                self.model = LanguageModel(folder, *how, digest)
        except UserError as error:
            raise Unusable(str(error)) from error
        self.folder = folder
        return self.model


def same_model(one: Path, other: Path) -> bool:
    """Whether two folders differ by nothing but their weights: the same configuration, generation and tokenizer."""
    return all(content(one / name) == content(other / name) for name in MODEL_FILES)


def content(file: Path) -> Any:
    """What a file says, without what says nothing of how a model computes; None where there is no such file."""
    if not file.is_file():
        return None
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        found = load_json(file)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):  # a broken file; loading says so
        return file.read_bytes()
    return {name: value for name, value in found.items() if name not in SAYS_NOTHING}


def checkpoints(args: argparse.Namespace, broken: list[str]) -> Iterator[tuple[str, Path]]:
    """(RUN/checkpoint-N, its folder) for each whole checkpoint of the run, in the order of their steps.

    With --watch new ones too, until finetune.py has written the run's manifest; one that is not whole may still be on
    its way until then.

    Args:
        broken: gets the names of those that are not whole in the end.
    """
    run = args.checkpoints
    if run is None:
        return
    seen: set[Path] = set()
    while True:
        last = not args.watch or manifests.manifest_of(run).exists()  # asked first: what it lists is there then
        found = [path for path in run.glob("checkpoint-*") if STEP.fullmatch(path.name)]
        for path in sorted(set(found) - seen, key=step):
            fault = what_is_missing(path)
            if fault and not last:
                continue
            seen.add(path)
            if not fault:
                yield label(path), path
            elif not args.list_missing:
                skip(label(path), f"it is not whole: {fault}", broken)
        if last:
            break
        time.sleep(WATCH_SECONDS)
    if not seen:
        raise UserError(f"{run}: no checkpoint-N there; finetune.sh makes them")


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be loaded: a file that is not there or shorter than it says; None when it is whole."""
    from safetensors import SafetensorError, safe_open

    if not (checkpoint / "config.json").is_file() and not (checkpoint / "adapter_config.json").is_file():
        return "no config.json"
    for name in ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json"):
        if fault := broken_json(checkpoint / name):
            return f"{name}: {fault}"
    index = checkpoint / "model.safetensors.index.json"
    files = set(checkpoint.glob("*.safetensors"))
    if index.is_file():
        try:
            files |= {checkpoint / plain_name(name, index.name) for name in load_object(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name}: it names no files"
        except UserError as error:
            return str(error)
    if not files and not list(checkpoint.glob("*.bin")):
        return "no weights"
    for file in sorted(files):
        try:
            safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {reason(error)}"
    return None


def broken_json(file: Path) -> str | None:
    """Why a file is no JSON object; None when it is one, or is not there."""
    try:
        load_object(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def label(checkpoint: Path) -> str:
    """RUN/checkpoint-N, as its results are called, however it was named."""
    return f"{checkpoint.resolve().parent.name}/{checkpoint.name}"


def step(path: Path) -> int:
    return int(path.name.split("-")[1])


def evaluate(
    args: argparse.Namespace,
    label: str,
    folder: Path,
    owner: dict[str, str],
    task: str,
    loaded: Callable[[Path, str], Any],
) -> list[dict[str, Any]]:
    """The results of one model on one task: read when they are there and still hold, scored otherwise.

    Nothing, when other processes have not yet done their shares. A share is done by one process at a time.
    """
    path = result_path(args, label, task)
    require_file_place(path)
    with one_writer(share_lock(path, *args.shard)):
        return evaluate_share(args, label, folder, owner, task, loaded)


def evaluate_share(
    args: argparse.Namespace,
    label: str,
    folder: Path,
    owner: dict[str, str],
    task: str,
    loaded: Callable[[Path, str], Any],
) -> list[dict[str, Any]]:
    run = run_of(args, label, folder, task)
    path = run.output
    if run.is_done:
        run.say_done(of=f"{label} on {task}", because=f"{path} matches its inputs")
        remove_progress(path)
        return [known_result(path)]

    from teacherlm.scoring.evaluator import combine
    from teacherlm.scoring.find_tasks import categories, make_tasks
    from teacherlm.scoring.permutations import use_permutations

    run.say_again()
    print(f"evaluate: {label} on {task}", flush=True)
    tasks = make_tasks(task, args.datasets or DATASETS, args.num_fewshot, args.seed, args.include_path)
    for name, made in tasks.items():
        use_permutations(made, args.permutations, name)
    digest = run.inputs["model"]["sha256"]
    run.inputs["model"].update(owner)
    require_name(path.parent, owner, digest)
    model = loaded(folder, digest)
    take_name(path.parent, owner, digest)
    work = run.work | {"tokens": model.tokens_at_a_time(), "samples": model.samples}
    work["version"] = manifests.stage_version("evaluate")
    scored, missing = score_share(model, tasks, args.limit, path, args.shard, work)
    with run:
        run.look_again()
        if run.is_done:
            print(f"evaluate: {label} on {task}: another process has put the shares together")
            remove_progress(path)
            return [known_result(path)]
        if missing:
            index, count = args.shard
            print(f"evaluate: share {index}/{count} is done; {missing} batches are other processes'")
            return []
        results, samples = scored
        result = results[0] if list(tasks) == [task] else combine(task, results, categories(task, tasks))
        result = {"model": label, "path": str(folder), **result, **run.arguments, **model.described()}
        samples_path = path.with_name(f"{path.stem}_samples.jsonl")
        write_records(samples_path, samples)
        with whole_file(path) as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        run.finish({"result": path, "samples": samples_path}, {"samples": len(samples), "seconds": run.seconds})
        remove_progress(path)
        path.with_name(OWNER).unlink(missing_ok=True)  # the manifest says it from now on
        return [result]


def known_result(path: Path) -> dict[str, Any]:
    """A result that is there already.

    Raises:
        UserError: it is none, although its manifest says that it was written so.
    """
    try:
        return {"model": "-", "stderr": None, "interval_95": None, **read_result(path)}
    except ValueError as error:
        raise UserError(f"{path}: no result ({error}); remove it, and run the same command again") from error


def result_path(args: argparse.Namespace, label: str, task: str) -> Path:
    return args.output_path / label / f"{file_name(task)}.json"


def run_of(args: argparse.Namespace, label: str, folder: Path, task: str) -> StageRun:
    """The run of one model on one task, compared with its work: flags, and digests of the model and the task."""
    run = StageRun("evaluate", result_path(args, label, task))
    try:
        model = describe_model(folder, run.known.get("model"))
    except UserError as error:  # of adapters, whose base model is gone or another
        raise Unusable(str(error)) from error
    inputs = {"model": model, **describe_task(task, args.datasets or DATASETS, args.include_path, run.known)}
    names = ("num_fewshot", "dtype", "limit", "seed", "tokenization", "permutations")
    run.compare({name: getattr(args, name) for name in names}, inputs)
    return run
