"""Score a model by the log-likelihood of the choices. With --checkpoints, score each checkpoint of a run as well.

It writes OUTPUT/MODEL/TASK.json (accuracy, standard error, 95 % interval), beside it TASK_samples.jsonl (the choice and
the log-likelihoods of each sample) and a manifest, and prints a table. Existing, unchanged results are skipped.

Source: the evaluation of TeacherLM (He et al. 2023, arXiv 2310.19019) with EleutherAI's lm-evaluation-harness.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherlm.catalog.chat_students import chat_of, difference, name_of_result
from teacherlm.catalog.models import describe_model, find_model, local_folder
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.lock import one_writer
from teacherlm.core.names import file_name
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.records import write_records
from teacherlm.core.results import read_result
from teacherlm.core.stage_run import StageRun
from teacherlm.scoring.checkpoints import STEP, checkpoints, label, skip
from teacherlm.scoring.flags import EvaluateFlags, read_flags
from teacherlm.scoring.loader import Loader, Unusable
from teacherlm.scoring.result_names import OWNER, owner_of, require_name, take_name
from teacherlm.scoring.result_tables import curve, table
from teacherlm.scoring.shards import batches, remove_progress, score_shard, shard_lock
from teacherlm.scoring.task_files import is_pattern
from teacherlm.scoring.task_inputs import describe_task


@dataclass(frozen=True)
class Scoring:
    """One model on one task.

    Attributes:
        label: the name of the model in the results.
        folder: the folder of the model.
        task: the name of the task.
    """

    flags: EvaluateFlags
    label: str
    folder: Path
    task: str

    @property
    def path(self) -> Path:
        """The file of the result."""
        return self.flags.output_path / self.label / f"{file_name(self.task)}.json"

    @property
    def is_chat(self) -> bool:
        """Whether the model gets conversations.

        Raises:
            Unusable: it has no chat template, or its record of a chat student is damaged.
        """
        try:
            is_chat = chat_of(self.folder, self.flags.chat)
        except UserError as error:
            raise Unusable(str(error)) from error
        if self.flags.fewshot_as_multiturn and not is_chat:
            raise Unusable(
                f"--fewshot_as_multiturn: {self.folder} is no chat student; leave it out, or use --chat true"
            )
        return is_chat

    def compared_run(self) -> StageRun:
        """The run that makes the result, compared with the existing result by flags and digests of model and task."""
        flags = self.flags
        run = StageRun("evaluate", self.path)
        try:
            model = describe_model(self.folder, run.known.get("model"))
        except UserError as error:  # the base model of adapters is missing or has changed
            raise Unusable(str(error)) from error
        arguments = {
            "num_fewshot": flags.num_fewshot,
            "dtype": flags.dtype,
            "limit": flags.limit,
            "seed": flags.seed,
            "tokenization": flags.tokenization,
            "permutations": flags.permutations,
        }
        if self.is_chat:  # results without these fields are of plain texts
            arguments |= {"chat": True, "fewshot_as_multiturn": flags.fewshot_as_multiturn}
        task = describe_task(self.task, flags.datasets, flags.include_path, run.known)
        run.compare(arguments, {"model": model, **task})
        return run


def main() -> int:
    flags = read_flags(__doc__)
    require_writable(flags.output_path)
    base = find_model(flags.pretrained)
    folder = local_folder(base)
    name = label(folder) if STEP.fullmatch(folder.name) else name_of_result(base.name, chat_of(folder, flags.chat))
    broken: list[str] = []
    models = itertools.chain([(name, folder)], checkpoints(flags, broken))
    tasks: Sequence[str] = flags.tasks
    if any(map(is_pattern, tasks)):
        from teacherlm.scoring.find_tasks import expand

        tasks = expand(tasks, flags.datasets, flags.include_path)
    if flags.list_missing:
        for number, (name, folder) in enumerate(models):
            if not all(Scoring(flags, name, folder, task).compared_run().is_done for task in tasks):
                print(number)
        return 0
    loaded = Loader(flags)
    results = []
    for number, (name, folder) in enumerate(models):
        try:
            for task in tasks:
                owner = owner_of(None if number else base, folder, flags.output_path / name)
                results += evaluate(Scoring(flags, name, folder, task), owner, loaded)
        except Unusable as error:
            if flags.checkpoints is None:
                raise
            skip(name, str(error), broken)
    print(table(results))
    for task in tasks:
        print(curve(task, [result for result in results if result["task"] == task]), end="")
    return 2 if broken else 0


def evaluate(of: Scoring, owner: dict[str, str], loaded: Loader) -> list[dict[str, Any]]:
    """The results of one model on one task. Valid results are read; otherwise the model is scored.

    The list is empty if other processes have not finished their shards. Only one process at a time scores a shard.
    """
    require_file_place(of.path)
    with one_writer(shard_lock(of.path, *of.flags.shard)):
        return evaluate_shard(of, owner, loaded)


def evaluate_shard(of: Scoring, owner: dict[str, str], loaded: Loader) -> list[dict[str, Any]]:
    flags, task, path = of.flags, of.task, of.path
    run = of.compared_run()
    if run.is_done:
        run.say_done(of=f"{of.label} on {task}", because=f"{path} matches its inputs")
        remove_progress(path)
        return [known_result(path)]

    from teacherlm.scoring.chat_requests import use_chat
    from teacherlm.scoring.evaluator import combine
    from teacherlm.scoring.find_tasks import categories, make_tasks
    from teacherlm.scoring.permutations import use_permutations

    run.say_again()
    print(f"evaluate: {of.label} on {task}", flush=True)
    tasks = make_tasks(task, flags.datasets, flags.num_fewshot, flags.seed, flags.include_path)
    for name, made in tasks.items():
        use_permutations(made, flags.permutations, name)
    digest = run.inputs["model"]["sha256"]
    run.inputs["model"].update(owner)
    require_name(path.parent, owner, digest)
    model = loaded(of.folder, digest)
    take_name(path.parent, owner, digest)
    if said := difference(of.folder, of.is_chat):
        print(f"evaluate: {said}")
    use_chat(model, of.folder, tasks, of.is_chat, flags.fewshot_as_multiturn)
    work = run.work | {"tokens": model.tokens_at_a_time(), "samples": model.samples}
    work["version"] = manifests.stage_version("evaluate")
    scored, missing = score_shard(model, tasks, flags.limit, path, flags.shard, work)
    with run:
        run.compare_again()
        if run.is_done:
            print(f"evaluate: {of.label} on {task}: another process has merged the shards")
            remove_progress(path)
            path.with_name(OWNER).unlink(missing_ok=True)  # this process wrote it after the other had removed it
            return [known_result(path)]
        if missing:
            index, count = flags.shard
            left = batches(missing)
            print(f"evaluate: shard {index}/{count} is done; other processes still have to score {left}")
            return []
        results, samples = scored
        result = results[0] if list(tasks) == [task] else combine(task, results, categories(task, tasks))
        result = {"model": of.label, "path": str(of.folder), **result, **run.arguments, **model.described()}
        samples_path = path.with_name(f"{path.stem}_samples.jsonl")
        write_records(samples_path, samples)
        with whole_file(path) as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        run.finish({"result": path, "samples": samples_path}, {"samples": len(samples), "seconds": run.seconds})
        remove_progress(path)
        path.with_name(OWNER).unlink(missing_ok=True)  # now the manifest names the owner
        return [result]


def known_result(path: Path) -> dict[str, Any]:
    """An existing result.

    Raises:
        UserError: the file is not a valid result.
    """
    try:
        return {"model": "-", "stderr": None, "interval_95": None, **read_result(path)}
    except ValueError as error:
        raise UserError(f"{path}: not a valid result ({error}); remove it, and run the same command again") from error
