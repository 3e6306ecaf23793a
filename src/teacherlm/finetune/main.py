"""Finetune a student on the texts of a dataset, with one checkpoint per epoch.

Checkpoints, log.jsonl and the manifest go to --output_dir. If this run has checkpoints there, training resumes from the
last complete one and continues to the full number of epochs.

All flags of transformers' TrainingArguments are accepted too; `finetune.py --help` lists them.
"""

import dataclasses
import pickle
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teacherlm.catalog.adapters import is_adapter
from teacherlm.catalog.chat_students import difference, with_template
from teacherlm.catalog.models import Model, describe_files, describe_model, find_model, local_folder
from teacherlm.core import manifests
from teacherlm.core.errors import UserError, reason
from teacherlm.core.interrupts import REQUEUE
from teacherlm.core.outputs import require_folder_place, require_writable
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.finetune import processes
from teacherlm.finetune.launch import OUT_OF_MEMORY
from teacherlm.finetune.processes import is_lost_peer, join_processes, meet, said_once
from teacherlm.runtime.memory import is_out_of_memory
from teacherlm.runtime.processes import each, from_first, gather, is_first, rank, say

if TYPE_CHECKING:  # it imports transformers, which join_processes has to precede
    from teacherlm.finetune.savers import Resumed
    from teacherlm.finetune.training_data import Samples


def main() -> int:
    started = time.time()
    with said_once():
        join_processes()
        from teacherlm.finetune.arguments import parse_arguments

        words = sys.argv[1:]
        flags, training = parse_arguments(words)
        meet(training)
        output = Path(training.output_dir)
        model = find_model(flags.model_name_or_path)
        model_folder = local_folder(model)
        flags = choose_chat(fit_to_model(flags, model_folder), model, model_folder)
        require_writable(output.parent)
        require_folder_place(output)
        run = StageRun("finetune", output, read=read_manifest, processes=processes)
        if flags.list_missing:
            arguments, length, inputs = describe_run(flags, training, model_folder, run.manifest)
            run.compare({**arguments, **length}, inputs)
            print("" if run.is_done else "0")
            return 0
    with run:
        run.started = started
        return work(run, flags, training, model_folder, words)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest, completed with the defaults of flags that were added after it was written."""
    from teacherlm.finetune.recorded import with_defaults

    manifest = manifests.read_manifest(path)
    return None if manifest is None else with_defaults(manifest)


def work(run: StageRun, flags: Any, training: Any, model_folder: Path, words: list[str]) -> int:
    """Train unless that is done already, and return the exit code.

    Args:
        words: the flags as they were given.
    """
    from teacherlm.finetune.recorded import effective_batch
    from teacherlm.finetune.savers import Resumed, Saver, must_change, require_intact, user_of
    from teacherlm.finetune.training_data import load_samples

    with said_once():
        arguments, length, inputs = from_first(lambda: describe_run(flags, training, model_folder, run.manifest))
        training = keep_effective_batch(run.output, flags, training, arguments, inputs, words)
        arguments["effective_batch"] = effective_batch(training)
        run.compare({**arguments, **length}, inputs)
        if run.is_done:
            run.say_done()
            return 0
        samples = load_samples(flags, training, model_folder)
        last = from_first(lambda: claim(arguments, inputs, flags, training, samples))
        resumed = None if last is None else Resumed(Path(last["checkpoint"]), Saver(*last["saver"]))
        if resumed is not None and must_change(resumed.saver, user_of(training)):
            checkpoint = resumed.checkpoint
            each(lambda: require_intact(checkpoint, rank(), training.world_size))
    student = Student(model_folder, inputs["student"]["sha256"])
    status, counts = train(flags, training, samples, student, resumed)
    if status == 0 and is_first():
        conclude(run, counts)
    return status


def keep_effective_batch(
    folder: Path, flags: Any, training: Any, arguments: dict[str, Any], inputs: dict[str, Any], words: list[str]
) -> Any:
    """The arguments of the library, divided so that a run in another number of processes keeps its effective batch."""
    from teacherlm.finetune.arguments import with_division
    from teacherlm.finetune.division import Division, kept_division, said

    found = from_first(lambda: kept_division(folder, arguments, inputs, training, flags.loss_average, flags.restart))
    if found is None:
        return training
    division = Division(*found)
    say(said(division, training))
    return with_division(words, *division)


def describe_run(
    flags: Any, training: Any, model_folder: Path, manifest: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the checkpoints depend on: (flags that change numbers, length of the training, digests of the inputs).

    With the length come the test sets in which training samples are looked for.

    Args:
        manifest: the manifest of an earlier run, or None.
    """
    from teacherlm.finetune.adapters import MERGED
    from teacherlm.finetune.recorded import OF_THE_MACHINE, lengths, recorded_arguments
    from teacherlm.finetune.samples import require_dataset
    from teacherlm.finetune.training_data import test_sets

    if is_adapter(model_folder):
        raise UserError(
            f"{model_folder}: these are adapters; give an ordinary model, such as the folder {MERGED} that "
            "--merge_adapters true makes"
        )
    known = (manifest or {}).get("inputs", {})
    inputs = {"student": describe_model(model_folder, known.get("student"))}
    if flags.teacher:
        inputs["teacher"] = describe_model(local_folder(find_model(flags.teacher)), known.get("teacher"))
    for name, folder in folders(flags).items():
        require_dataset(folder)
        inputs[name] = manifests.describe(folder, known.get(name))
    length = lengths(flags, training)
    if tests := test_sets(flags):  # a finished training has no new checkpoints for another test set, but another list
        described = [manifests.describe(folder) for folder in tests]
        length["test_sets"] = {folder.name: one["sha256"] for folder, one in zip(tests, described)}
    arguments = recorded_arguments(flags, training)
    if flags.list_missing and manifest:  # the login node's hardware differs from the compute nodes'
        arguments |= {name: manifest["arguments"].get(name) for name in OF_THE_MACHINE}
    return arguments, length, inputs


def folders(flags: Any) -> dict[str, Path]:
    """The folders that the checkpoints depend on, by their names in the manifest."""
    from teacherlm.finetune.sets import parse_sets
    from teacherlm.finetune.training_data import test_sets

    sets = parse_sets(flags.dataset_name)
    found = {"dataset" if len(sets) == 1 else f"dataset {n}": one.folder for n, one in enumerate(sets, 1)}
    if flags.dev_dataset:
        found["dev"] = Path(flags.dev_dataset)
    if flags.overlaps == "leave_out":
        found |= {f"test set {folder.name}": folder for folder in test_sets(flags)}
    return found


def fit_to_model(flags: Any, model_folder: Path) -> Any:
    """The flags with a --max_source_length that is not above the student's maximum."""
    from teacherlm.runtime.model_config import load_config, position_count

    positions = position_count(load_config(model_folder))
    if positions is None or flags.max_source_length <= positions:
        return flags
    say(f"finetune: the student takes at most {positions} tokens, so --max_source_length is set to {positions}")
    return dataclasses.replace(flags, max_source_length=positions)


def choose_chat(flags: Any, model: Model, model_folder: Path) -> Any:
    """The flags with --chat true or false, as --chat or else the student's YAML says.

    Raises:
        UserError: the student cannot be trained in this way.
    """
    from teacherlm.catalog.text_parts import QUESTION
    from teacherlm.finetune.student import shares_of

    is_chat = with_template(model_folder, flags.chat or str(model.recommended("finetune.chat")).lower())
    shares = shares_of(flags)
    if is_chat and shares is not None and shares[QUESTION]:
        raise UserError(
            f"--loss_weights {flags.loss_weights}: a chat student learns the assistant's turn only, and the question "
            "is the user's; leave the question out, or use --chat false"
        )
    if not flags.list_missing and (said := difference(model_folder, is_chat)):
        say(f"finetune: {said}")
    return dataclasses.replace(flags, chat=str(is_chat).lower())


class Student(NamedTuple):
    """The model that training begins with: its folder, and the digest of its files."""

    folder: Path
    digest: str


def claim(
    arguments: dict[str, Any], inputs: dict[str, Any], flags: Any, training: Any, samples: "Samples"
) -> dict[str, Any] | None:
    """Reserve the output folder for this run, list the samples that were cut and those that other sets have, and return
    the checkpoint to resume.

    Returns:
        The path of the checkpoint and the Saver of its states, or None.
    """
    from teacherlm.core.records import write_records
    from teacherlm.finetune.checkpoints import check_resumable, claim_folder
    from teacherlm.finetune.samples import cut_samples
    from teacherlm.finetune.savers import must_change, user_of

    output = Path(training.output_dir)
    last = claim_folder(output, arguments, inputs, flags.restart, training.world_size)
    saver = None if last is None else check_resumable(last, training)
    if samples.rows.repeated:
        write_records(output / "repeated.jsonl", samples.rows.repeated)
        print(f"finetune: {samples.rows.findings}; {output / 'repeated.jsonl'} has the list")
    if cut := cut_samples(samples.tokens, flags.max_source_length):
        write_records(output / "cut.jsonl", cut)
        print(
            f"finetune: {len(cut)} of {plural(len(samples.tokens), 'sample')} had more than "
            f"{flags.max_source_length} tokens; tokens were cut on the left, and {output / 'cut.jsonl'} has the list"
        )
    if last is None or saver is None:
        return None
    user = user_of(training)
    changed = f"; its states were saved by {saver.described}" if must_change(saver, user) else ""
    print(f"finetune: resuming from {last}{changed}")
    return {"checkpoint": str(last), "saver": saver}


def train(
    flags: Any, training: Any, samples: "Samples", student: Student, resumed: "Resumed | None"
) -> tuple[int, dict[str, Any]]:
    """Train to the full number of epochs, from a checkpoint if there is one; return exit code and counts."""
    from transformers import set_seed

    from teacherlm.finetune.interrupts import Interrupts
    from teacherlm.finetune.recorded import effective_batch
    from teacherlm.finetune.watching import start_wandb
    from teacherlm.runtime.compat.of_deepspeed import state_classes
    from teacherlm.runtime.pickles import without_code

    device, accumulated = training.train_batch_size, training.gradient_accumulation_steps
    effective = effective_batch(training)
    by_tokens = flags.tokens_per_batch is not None
    division = [f"batches of {flags.tokens_per_batch} tokens" if by_tokens else f"batches of {device}"]
    division += [f"{accumulated} of them accumulated"] if accumulated > 1 and not by_tokens else []
    division += [f"{training.world_size} processes"] if training.world_size > 1 else []
    say(
        f"finetune: {plural(samples.per_epoch, 'sample')} of {flags.task_type} per epoch, at most {effective} per "
        f"step ({', '.join(division)})"
    )
    if training.world_size > 1:
        say(f"finetune: the processes run on {' '.join(gather(socket.gethostname()))}")
    set_seed(training.seed)
    interrupts = Interrupts()
    start_wandb(training)
    last = None if resumed is None else resumed.checkpoint
    try:
        trainer = make_trainer(flags, training, samples, student, resumed, interrupts)
        with without_code(state_classes() if training.deepspeed else ()):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{last}: refused or damaged ({reason(error)}); only tensors and plain values are read from a checkpoint; "
            "remove it, and training resumes from the one before"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if is_lost_peer(error):
            print("finetune.py: another process has ended; its messages or the system's log say why", file=sys.stderr)
            return 2, {}
        if not is_out_of_memory(error):
            raise
        why = out_of_memory(device, accumulated, effective)
        if by_tokens:
            why = (
                f"out of memory with {flags.tokens_per_batch} tokens at a time; a smaller --tokens_per_batch learns "
                "the same; AUTO_BATCH=1 does this automatically"
            )
        print(f"finetune.py: error: {why}", file=sys.stderr)
        return OUT_OF_MEMORY, {}
    finally:
        interrupts.stop.restore()
    if interrupts.stopped:
        step = trainer.state.global_step
        say(f"finetune: interrupted after step {step}; a checkpoint was saved, and the same command resumes from it")
        return REQUEUE, {}
    cut = sum(count > flags.max_source_length for count in samples.tokens["tokens"])
    counts = {"samples": samples.per_epoch, "cut": cut, "sets": samples.rows.described()}
    counts |= {"steps": trainer.state.global_step, "effective_batch": effective, "processes": training.world_size}
    return 0, {**counts, "device_batch": device, "accumulation": accumulated}


def make_trainer(
    flags: Any, training: Any, samples: "Samples", student: Student, resumed: "Resumed | None", interrupts: Any
) -> Any:
    """The trainer, with the student on its device."""
    from teacherlm.finetune.dev import DevLoss
    from teacherlm.finetune.student import load_student, saved_weights, shares_of
    from teacherlm.finetune.trainer import FinetuneTrainer
    from teacherlm.finetune.watching import LOG, LossLog
    from teacherlm.runtime.chat_student import with_end
    from teacherlm.runtime.loading import base_model

    longest = samples.longest(flags.max_source_length)
    model, collate, unprepared = load_student(flags, training, *student, longest, samples.teacher)
    if samples.chat is not None:  # the settings lie in each checkpoint, so that whatever generates with it stops there
        settings = base_model(model).generation_config
        settings.eos_token_id = with_end(settings.eos_token_id, samples.chat.ends)
    on_policy = None
    if flags.on_policy:
        from teacherlm.finetune.on_policy import make_on_policy

        on_policy = make_on_policy(flags, training, samples.tokenizer, model, unprepared)
    return FinetuneTrainer(
        model=model,
        args=training,
        train_dataset=samples.tokens,
        eval_dataset=samples.dev,
        processing_class=samples.tokenizer,
        data_collator=collate,
        phases=samples.phases,
        texts=samples.texts,
        shuffle=flags.shuffle,
        resumed=resumed,
        read_weights=lambda checkpoint: saved_weights(flags, training, checkpoint),
        merge_adapters=flags.merge_adapters,
        student=student.digest,
        is_chat=samples.chat is not None,
        shares=shares_of(flags),
        tokens_per_batch=flags.tokens_per_batch,
        on_policy=on_policy,
        callbacks=[
            LossLog(Path(training.output_dir) / LOG, None if resumed is None else resumed.checkpoint),
            *([DevLoss(flags.early_stop)] if samples.dev is not None else []),
            interrupts,
        ],
    )


def out_of_memory(device: int, accumulated: int, effective: int) -> str:
    if device == 1:
        return (
            "out of memory with one sample at a time; try --gradient_checkpointing true, a smaller "
            "--max_source_length, or --deepspeed zero3 on more GPUs"
        )
    smaller = next(size for size in range(device // 2, 0, -1) if device % size == 0)
    return (
        f"out of memory with {device} samples at a time; a batch of {smaller} with {accumulated * device // smaller} "
        f"accumulated batches keeps {effective} samples per step; AUTO_BATCH=1 does this automatically"
    )


def conclude(run: StageRun, counts: dict[str, Any]) -> None:
    """Write the manifest with all checkpoints."""
    output = run.output
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    run.finish({path.name: describe_files(path) for path in checkpoints}, {**counts, "seconds": run.seconds})
    names = ", ".join(path.name for path in checkpoints)
    print(f"finetune: {plural(len(checkpoints), 'checkpoint')} in {output}: {names}")
