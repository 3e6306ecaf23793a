"""Score a model by the log-likelihood of the choices, or by the answers that it writes. With --checkpoints, score each
checkpoint of a run as well.

It writes OUTPUT/MODEL/TASK.json (accuracy, standard error, 95 % interval), beside it TASK_samples.jsonl (the choice and
the log-likelihoods of each sample) and a manifest, and prints a table. The results of written answers are
TASK@generate.json, and the samples have the texts. Existing, unchanged results are skipped.

Source: the evaluation of TeacherLM (He et al. 2023, arXiv 2310.19019) with EleutherAI's lm-evaluation-harness.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from teacherlm.core.results import GENERATED, read_result
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.runtime.generation import Engine
from teacherlm.scoring.checkpoints import STEP, checkpoints, label, skip
from teacherlm.scoring.flags import GENERATE, LETTER, EvaluateFlags, read_flags, require_effect
from teacherlm.scoring.loader import Loader, Unusable
from teacherlm.scoring.result_names import OWNER, owner_of, require_name, take_name
from teacherlm.scoring.result_tables import curve, table
from teacherlm.scoring.shards import batches, remove_progress, score_shard, shard_lock
from teacherlm.scoring.task_files import is_pattern
from teacherlm.scoring.task_inputs import describe_task, is_open
from teacherlm.scoring.writers import Writers, engine_of, stops


@dataclass(frozen=True)
class Scoring:
    """One model on one task.

    Attributes:
        label: the name of the model in the results.
        folder: the folder of the model.
        task: the name of the task.
        measure: LETTER or GENERATE.
    """

    flags: EvaluateFlags
    label: str
    folder: Path
    task: str
    measure: str

    @property
    def name(self) -> str:
        """The name of the task in the results."""
        return self.task + (GENERATED if self.measure == GENERATE else "")

    @property
    def path(self) -> Path:
        """The file of the result."""
        return self.flags.output_path / self.label / f"{file_name(self.name)}.json"

    @cached_property
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
            **(self.letter_arguments() if self.measure == LETTER else self.written_arguments()),
        }
        if self.is_chat:  # results without these fields are of plain texts
            arguments |= {"chat": True, "fewshot_as_multiturn": flags.fewshot_as_multiturn}
        task = describe_task(self.task, flags.datasets, flags.include_path, run.known)
        run.compare(arguments, {"model": model, **task})
        return run

    def letter_arguments(self) -> dict[str, Any]:
        return {"tokenization": self.flags.tokenization, "permutations": self.flags.permutations}

    def written_arguments(self) -> dict[str, Any]:
        flags = self.flags
        return {
            "num_answers": flags.num_answers,
            "num_tokens": flags.num_tokens,
            "temperature": flags.temperature,
            "top_p": flags.top_p,
            "stop": list(stops(flags, self.is_chat)),
            "engine": engine_of(flags, self.folder),
        }


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
            if not all(one.compared_run().is_done for one in scorings(flags, name, folder, tasks)):
                print(number)
        return 0
    loaded = Models(flags)
    results = []
    for number, (name, folder) in enumerate(models):
        try:
            for one in scorings(flags, name, folder, tasks):
                owner = owner_of(None if number else base, folder, flags.output_path / name)
                results += evaluate(one, owner, loaded)
        except Unusable as error:
            if flags.checkpoints is None:
                raise
            skip(name, str(error), broken)
    print(table(results))
    for task in dict.fromkeys(result["task"] for result in results):
        print(curve(task, [result for result in results if result["task"] == task]), end="")
    return 2 if broken else 0


def scorings(flags: EvaluateFlags, label: str, folder: Path, tasks: Sequence[str]) -> list[Scoring]:
    """The results that are wanted of a model. Those of one measure follow one another, as each measure loads the model
    in its own way.

    Raises:
        UserError: a flag has no effect on these results, or there is no such engine here.
    """
    wanted = [(task, measures_of(task, flags)) for task in tasks]
    require_effect(flags, {measure for _, measures in wanted for measure in measures})
    if any(GENERATE in measures for _, measures in wanted):
        engine_of(flags, folder)  # refused before the letters are scored
    return [
        Scoring(flags, label, folder, task, measure)
        for measure in (LETTER, GENERATE)
        for task, measures in wanted
        if measure in measures
    ]


def measures_of(task: str, flags: EvaluateFlags) -> tuple[str, ...]:
    """The measures of a task.

    Raises:
        UserError: letters are asked for, and the benchmark has no choices.
    """
    answer = flags.answer
    if answer == GENERATE:
        return (GENERATE,)
    if is_open(task, flags.include_path):
        if answer == "auto":
            return (GENERATE,)
        raise UserError(f"--answer {answer}: {task} has no choices whose letters can be scored; use --answer generate")
    return (LETTER, GENERATE) if answer == "both" else (LETTER,)


class Models:
    """Loads models, for either measure. Only one model is in memory at a time."""

    def __init__(self, flags: EvaluateFlags):
        self.of_letters, self.writers = Loader(flags), Writers(flags)

    def scorer(self, folder: Path, digest: str) -> Any:
        """The model for log-likelihoods."""
        self.writers.free()
        return self.of_letters(folder, digest)

    def writer(self, folder: Path, digest: str, longest: int, chat: bool) -> Engine:
        """The engine for written answers; see Writers."""
        self.of_letters.free()
        return self.writers(folder, digest, longest, chat)


def evaluate(of: Scoring, owner: dict[str, str], loaded: Models) -> list[dict[str, Any]]:
    """The results of one model on one task. Valid results are read; otherwise the model is scored.

    The list is empty if other processes have not finished their shards. Only one process at a time scores a shard.
    """
    require_file_place(of.path)
    with one_writer(shard_lock(of.path, *of.flags.shard)):
        return evaluate_shard(of, owner, loaded)


def evaluate_shard(of: Scoring, owner: dict[str, str], loaded: Models) -> list[dict[str, Any]]:
    flags, task, path = of.flags, of.task, of.path
    run = of.compared_run()
    if run.is_done:
        run.say_done(of=f"{of.label} on {of.name}", because=f"{path} matches its inputs")
        remove_progress(path)
        return [known_result(path)]

    from teacherlm.scoring.evaluator import combine
    from teacherlm.scoring.find_tasks import categories, make_tasks
    from teacherlm.scoring.generated_results import with_counts

    run.say_again()
    print(f"evaluate: {of.label} on {of.name}", flush=True)
    tasks = make_tasks(task, flags.datasets, flags.num_fewshot, flags.seed, flags.include_path)
    digest = run.inputs["model"]["sha256"]
    run.inputs["model"].update(owner)
    require_name(path.parent, owner, digest)
    if said := difference(of.folder, of.is_chat):
        print(f"evaluate: {said}")
    ask = score_letters if of.measure == LETTER else score_written
    scored, missing, described = ask(of, run, tasks, loaded, lambda: take_name(path.parent, owner, digest))
    with run:
        run.compare_again()
        if run.is_done:
            print(f"evaluate: {of.label} on {of.name}: another process has merged the shards")
            remove_progress(path)
            path.with_name(OWNER).unlink(missing_ok=True)  # this process wrote it after the other had removed it
            return [known_result(path)]
        if missing:
            index, count = flags.shard
            print(f"evaluate: shard {index}/{count} is done; other processes still have to do {missing}")
            return []
        results, samples = scored
        if list(tasks) == [task]:
            result = results[0]
        else:
            groups = categories(task, tasks)
            result = combine(task, results, groups)
            if of.measure == GENERATE:
                result = with_counts(result, samples, flags.num_answers, groups)
        result |= {"task": of.name}
        result = {"model": of.label, "path": str(of.folder), **result, **run.arguments, **described}
        samples_path = path.with_name(f"{path.stem}_samples.jsonl")
        write_records(samples_path, samples)
        with whole_file(path) as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        run.finish({"result": path, "samples": samples_path}, {"samples": len(samples), "seconds": run.seconds})
        remove_progress(path)
        path.with_name(OWNER).unlink(missing_ok=True)  # now the manifest names the owner
        return [result]


Scored = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""The results of tasks, and the records of their samples."""


def score_letters(
    of: Scoring, run: StageRun, tasks: Mapping[str, Any], loaded: Models, begin: Callable[[], None]
) -> tuple[Scored, str, dict[str, Any]]:
    """The results by the log-likelihoods of the choices.

    Args:
        begin: is called when the model is loaded, before the first result is computed.

    Returns:
        The results, what other processes still have to do ("" if nothing), and fields that describe the computation.
    """
    from teacherlm.scoring.chat_requests import use_chat
    from teacherlm.scoring.permutations import use_permutations

    for name, made in tasks.items():
        use_permutations(made, of.flags.permutations, name)
    model = loaded.scorer(of.folder, run.inputs["model"]["sha256"])
    begin()
    use_chat(model, of.folder, tasks, of.is_chat, of.flags.fewshot_as_multiturn)
    work = run.work | {"tokens": model.tokens_at_a_time(), "samples": model.samples}
    work["version"] = manifests.stage_version("evaluate")
    scored, missing = score_shard(model, dict(tasks), of.flags.limit, of.path, of.flags.shard, work)
    return scored, batches(missing) if missing else "", {} if missing else model.described()


def score_written(
    of: Scoring, run: StageRun, tasks: Mapping[str, Any], loaded: Models, begin: Callable[[], None]
) -> tuple[Scored, str, dict[str, Any]]:
    """The results by the answers that the model writes; see score_letters."""
    from teacherlm.scoring.generated_answers import write_answers
    from teacherlm.scoring.generated_questions import questions_of
    from teacherlm.scoring.generated_results import scored

    flags = of.flags
    questions = questions_of(tasks, flags.limit, of.is_chat, flags.fewshot_as_multiturn)
    longest = max((len(question.bytes_asked()) for question in questions), default=0)

    def make_engine() -> Engine:
        engine = loaded.writer(of.folder, run.inputs["model"]["sha256"], longest, of.is_chat)
        begin()
        return engine

    work = run.work | {"version": manifests.stage_version("evaluate")}
    many = (flags.num_answers, flags.seed, flags.num_tokens)
    answers, missing = write_answers(questions, *many, of.path, flags.shard, work, make_engine)
    begin()  # also if there was nothing left to write
    if missing:
        return ([], []), plural(missing, "answer"), {}
    return scored(questions, answers, flags.num_answers), "", {"answer": GENERATE}


def known_result(path: Path) -> dict[str, Any]:
    """An existing result.

    Raises:
        UserError: the file is not a valid result.
    """
    try:
        return {"model": "-", "stderr": None, "interval_95": None, **read_result(path)}
    except ValueError as error:
        raise UserError(f"{path}: not a valid result ({error}); remove it, and run the same command again") from error
