"""Evaluate a reader and its retriever on multiple-choice questions.

It writes {checkpoint_dir}/{name}/{file}-step-{n}.jsonl with one prediction per question, and a manifest in the same
folder. Several workers split the questions and the index: `srun python evaluate.py ...` or `torchrun --nproc_per_node 2
evaluate.py ...`. Flags of train.py are accepted and ignored.
"""

import functools

import torch

from teacherlm.atlas import workers
from teacherlm.atlas.answering import Evaluation, evaluate, read_questions
from teacherlm.atlas.flags import EvaluateFlags, read_evaluation, say_notes
from teacherlm.atlas.model import describe_sources, load_model, make_index, step_of
from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.outputs import require_writable
from teacherlm.core.stage_run import locked


def main() -> int:
    flags = read_evaluation(__doc__)
    if not flags.eval_data:
        raise UserError("--eval_data: at least one file of questions was expected")
    folder = flags.checkpoint_dir / flags.name
    require_writable(folder)
    torch.manual_seed(flags.seed)
    device = workers.join_workers(flags.main_port)
    step, sources = step_of(flags), functools.partial(describe_sources, flags)
    evaluations = [Evaluation(flags, path, step, sources) for path in flags.eval_data]
    if flags.list_missing:
        print("" if all(evaluation.is_done() for evaluation in evaluations) else "0")
        return 0
    say_notes(flags, "evaluate")
    with locked(*(evaluation.run for evaluation in evaluations)):
        finished = evaluate_missing(flags, evaluations, device)
    if not finished:
        print("evaluate: interrupted; the same command continues")
        return REQUEUE
    workers.leave()
    return 0


def evaluate_missing(flags: EvaluateFlags, evaluations: list[Evaluation], device: torch.device) -> bool:
    """Make the evaluations that are not done. Returns False if it was interrupted."""
    missing = [evaluation for evaluation in evaluations if not evaluation.is_done()]
    for evaluation in evaluations:
        if evaluation.run.is_done:
            evaluation.run.say_done(of=evaluation.path, because=f"{evaluation.result} matches its inputs")
    if not missing:
        return True
    stop = Stop()
    try:
        questions = [read_questions(flags, evaluation.path) for evaluation in missing]
        model = load_model(flags, device, flags.precision)
        index = make_index(flags, model, device) if flags.retrieves else None
        return all(evaluate(evaluation, of, model, index, stop) for evaluation, of in zip(missing, questions))
    finally:
        stop.restore()
