"""Train a reader, and optionally its retriever, on multiple-choice questions.

It writes log.jsonl, checkpoint/step-N and the predictions of each evaluation to {checkpoint_dir}/{name}. The same
command resumes an interrupted run. Several workers are started with `srun python train.py ...` or `torchrun
--nproc_per_node 2 train.py ...`.
"""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas import learner, steps, workers
from teacherlm.atlas.answering import Evaluation, evaluate, read_questions
from teacherlm.atlas.flags import TrainFlags, read_training, say_notes, unused_flags
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.model import describe_sources, embed_passages, load_model, make_index
from teacherlm.atlas.schedules import IndexRefresh, learning_rate
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.json_files import require_object
from teacherlm.core.outputs import require_writable
from teacherlm.core.records import drop_torn_line, dump_line, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.core.training_log import read_log

STAGE = "atlas train"
BEGUN = "run.json"
"""The file in a run's folder with the settings with which it was begun."""
NOT_SHAPING = ("name", "checkpoint_dir", "model_path", "eval_data", "main_port", "write_results", "dont_write_passages")
NOT_SHAPING += ("train_data", "passages", "load_index_path", "save_index_path", "save_index_n_shards", "eval_freq")
NOT_SHAPING += ("log_freq", "save_freq", "save_optimizer", "per_gpu_embedder_batch_size", "generation_max_length")
NOT_SHAPING += ("multiple_choice_eval_permutations", "shard_optim", "shard_grads", "use_gradient_checkpoint_reader")
NOT_SHAPING += ("use_gradient_checkpoint_retriever", "per_gpu_batch_size", "retrieve_only", "list_missing", "notes")
NOT_SHAPING += ("generation_min_length", "generation_num_beams", "generation_length_penalty")
"""Flags that only say where files are or how something is computed. The weights depend on all other flags."""


def main() -> int:
    flags = read_training(__doc__)
    folder = flags.checkpoint_dir / flags.name
    require_writable(folder)
    device = workers.join_workers(flags.main_port)
    run = StageRun(STAGE, folder, label="train", processes=workers)
    if flags.list_missing:
        run.compare(*describe_run(flags, folder, run.known))
        print("" if run.is_done else "0")
        return 0
    say_notes(flags, "train")
    with run:
        run.compare(*workers.from_first(lambda: describe_run(flags, folder, run.known)))
        if run.is_done:
            run.say_done()
            return 0
        stop = Stop()
        try:
            return Training(flags, run, device, stop).run()
        finally:
            stop.restore()


def describe_run(
    flags: TrainFlags, folder: Path, known: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the weights depend on: (flags, digests of the inputs).

    Args:
        known: earlier digests.

    Raises:
        UserError: the folder holds a run that was begun with other settings.
    """
    found = {**vars(flags), "retrieves": flags.retrieves, "compressed": flags.compressed}
    left_out = {*NOT_SHAPING, *(one.name for one in unused_flags())}
    arguments = {name: value for name, value in found.items() if name not in left_out}
    arguments["effective_batch"] = flags.per_gpu_batch_size * workers.size() * flags.accumulation_steps
    inputs = describe_sources(flags, known)
    for number, file in enumerate(flags.train_data):
        inputs[f"questions {number}"] = manifests.describe(file, known.get(f"questions {number}"))
    work = json.loads(json.dumps({**arguments, **{name: value["sha256"] for name, value in inputs.items()}}))
    begun = folder / BEGUN
    if begun.is_file():
        before = require_object(begun)
        differing = [name for name in sorted({*before, *work}) if before.get(name) != work.get(name)]
        if differing:
            shown = "; ".join(f"{name} was {before.get(name)!r}, is {work.get(name)!r}" for name in differing)
            raise UserError(f"{folder}: begun with other settings: {shown}; use another --name, or the same settings")
    return arguments, inputs


class Training:
    """A training run: its models, its data and its current step."""

    def __init__(self, flags: TrainFlags, stage_run: StageRun, device: torch.device, stop: Stop):
        folder = stage_run.output
        self.folder, self.stage_run, self.stop = folder, stage_run, stop
        questions = [question for file in flags.train_data for question in read_questions(flags, file)]
        kind = flags.multiple_choice_train_permutations
        self.examples = learner.Examples(questions, kind, flags.shuffle, flags.seed)
        self.tests = [(file, read_questions(flags, file)) for file in flags.eval_data]
        self.step = workers.from_first(lambda: learner.last_step(folder))
        if self.step:
            flags = replace(flags, model_path=str(folder / "checkpoint" / f"step-{self.step}"))
            workers.say(f"train: resuming from {flags.model_path}")
        self.flags = flags
        self.model = load_model(flags, device, precision="fp32", trains=True)
        self.index = make_index(flags, self.model, device, trained=self.step > 0) if flags.retrieves else None
        self.trainee = learner.Trainee(flags, self.model)
        self.raw_optimizer = learner.optimizer_of(self.trainee, flags)
        self.accelerator, self.wrapped, self.optimizer = learner.distribute(flags, self.trainee, self.raw_optimizer)
        self.log = Log(folder / "log.jsonl", self.step)
        if self.step:
            self.log.losses = learner.load_state(folder, self.step, self.wrapped, self.optimizer, self.index)
        self.trains_passages = flags.train_retriever and not flags.query_side_retriever_training
        self.refresh = IndexRefresh(flags.refresh_index, flags.freeze_retriever_steps, self.trains_passages)
        total = flags.scheduler_steps or flags.total_steps
        self.rate_fraction = learning_rate(flags.scheduler, flags.warmup_steps, total)
        self.skips = steps.Skips(flags, folder)

    def run(self) -> int:
        flags = self.flags
        if workers.is_first():
            with whole_file(self.folder / BEGUN) as file:
                json.dump(self.stage_run.work, file, indent=1)
        workers.say(
            f"train: {plural(len(self.examples), 'example')}, steps {self.step} to {flags.total_steps}, "
            f"{plural(flags.per_gpu_batch_size, 'example')} per step on each of {plural(workers.size(), 'worker')}, "
            f"on the {self.model.reader.device.type.upper()}"
        )
        if self.step and not self.evaluate():
            return REQUEUE
        while self.step < flags.total_steps:
            if self.index and self.refresh.is_due(self.step):
                self.trainee.eval()
                self.index.vectors = embed_passages(flags, self.model, self.index.passages)
            self.log.add(self.learn())
            self.step += 1
            if self.step % flags.log_freq == 0 or self.step == flags.total_steps:
                self.log.write(self.step, [group["lr"] for group in self.raw_optimizer.param_groups])
            whole = self.step % flags.accumulation_steps == 0
            stopped = whole and any(workers.gather(self.stop.requested))
            if whole and self.step % flags.save_freq == 0 and not stopped:
                self.save(flags.save_optimizer)
            if stopped or not self.evaluate():
                self.save(with_state=True)
                workers.say(
                    f"train: interrupted after step {self.step}; a checkpoint was saved, and the same command resumes "
                    "from it"
                )
                return REQUEUE
        self.save(flags.save_optimizer)
        if workers.is_first():
            self.conclude()
        workers.wait_for_all()
        return 0

    def learn(self) -> dict[str, float]:
        """Compute one batch, take the optimizer step if the batch is its last one, and return the losses."""
        flags = self.flags
        torch.manual_seed((flags.seed * 1_000_003 + self.step) * 1024 + workers.rank())
        learns = flags.train_retriever and self.step >= flags.freeze_retriever_steps
        examples = self.examples.of_step(self.step, flags.per_gpu_batch_size)
        self.trainee.eval()
        with learner.autocast(flags, self.model.reader.device):
            batch = learner.Batch(flags, self.model, examples, self.index, learns)
        self.trainee.train()
        first_batch = self.step - self.step % flags.accumulation_steps
        skipped = False
        with self.accelerator.accumulate(self.wrapped):
            reader_loss, retriever_loss = self.wrapped(batch)
            steps.set_rates(self.raw_optimizer, self.rate_fraction(first_batch), learns)
            self.accelerator.backward(reader_loss if retriever_loss is None else reader_loss + retriever_loss)
            if self.accelerator.sync_gradients:
                skipped = not steps.take_step(self.accelerator, self.trainee, self.optimizer, flags.clip)
                self.skips.note(skipped, self.step + 1)
            if not learns:
                steps.forget_steps(self.raw_optimizer)
        losses = {"reader_loss": reader_loss, **({} if retriever_loss is None else {"retriever_loss": retriever_loss})}
        losses = {name: loss.item() for name, loss in losses.items() if loss.isfinite()}
        return {**losses, "skipped_steps": 1} if skipped else losses

    def evaluate(self) -> bool:
        """Evaluate all files if that is due and not done. Returns False if it was interrupted."""
        if self.step % self.flags.eval_freq:
            return True
        digest = hashlib.sha256(json.dumps([self.stage_run.work, self.step], sort_keys=True).encode()).hexdigest()
        source = {"run": {"path": str(self.folder), "sha256": digest, "files": {}}}
        self.trainee.eval()
        for path, questions in self.tests:
            evaluation = Evaluation(self.flags, path, self.step, lambda known: source)
            with evaluation.run, learner.autocast(self.flags, self.model.reader.device):
                done = evaluation.is_done()
                if not done and not evaluate(evaluation, questions, self.model, self.index, self.stop):
                    return False
        return True

    def save(self, with_state: bool) -> None:
        if with_state:
            flat = self.trains_passages and isinstance(self.index.vectors, FlatVectors)
            vectors = self.index.vectors if flat else None
            learner.save_state(self.folder, self.step, self.wrapped, self.optimizer, self.log.losses, vectors)
        learner.save(self.folder, self.model, self.step)

    def conclude(self) -> None:
        checkpoint = self.folder / "checkpoint" / f"step-{self.step}"
        counts = {
            "steps": self.step,
            "skipped_steps": sum(line.get("skipped_steps", 0) for line in read_log(self.log.path)),
            "seconds": self.stage_run.seconds,
        }
        self.stage_run.finish({checkpoint.name: checkpoint}, counts)
        print(f"train: {plural(self.step, 'step')} -> {checkpoint}", flush=True)


class Log:
    """Writes log.jsonl: each line has the means of the losses since the line before. On resume, log lines after the
    checkpoint's step are removed."""

    def __init__(self, path: Path, step: int):
        self.path, self.losses, self.began = path, [], time.monotonic()
        if workers.is_first() and path.is_file() and path.stat().st_size:
            drop_torn_line(path)
            kept = [line for line in read_log(path) if line["step"] <= step] if path.stat().st_size else []
            write_records(path, kept)

    def add(self, losses: dict[str, float]) -> None:
        self.losses.append(losses)

    def write(self, step: int, rates: list[float]) -> None:
        """Write a line with the means over all workers, and the number of skipped steps. The first worker writes it."""
        skipped = sum(losses.pop("skipped_steps", 0) for losses in self.losses)
        names = sorted({name for losses in self.losses for name in losses})
        mine = {name: [losses[name] for losses in self.losses if name in losses] for name in names}
        everyone = workers.gather(mine)
        names = sorted({name for of_worker in everyone for name in of_worker})
        seconds = (time.monotonic() - self.began) / len(self.losses)
        self.losses, self.began = [], time.monotonic()
        if not workers.is_first():
            return
        line: dict[str, Any] = {"step": step}
        for name in names:
            values = [value for of_worker in everyone for value in of_worker.get(name, ())]
            line[name] = sum(values) / len(values)
        line |= {"skipped_steps": skipped} if skipped else {}
        line |= {"learning_rates": rates, "seconds_per_step": round(seconds, 3)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(dump_line(line) + "\n")
        print(line, flush=True)
