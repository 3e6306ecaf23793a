"""Evaluate a reader and its retriever on multiple-choice questions.

Writes {checkpoint_dir}/{name}/{file}-step-{n}.jsonl, a prediction a question, and a manifest beside it. Several workers
share the questions and the index: `srun python evaluate.py ...` or `torchrun --nproc_per_node 2 evaluate.py ...`.
"""

import functools
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The project's folder in place of this one, whose evaluate.py is not the library of that name.
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place != str(HERE))]

import torch  # noqa: E402

from atlas import options, workers  # noqa: E402
from atlas.evaluation import Evaluation, evaluate, read_questions  # noqa: E402
from atlas.model import describe_sources, load_model, make_index, step_of  # noqa: E402
from teacherlm.errors import LIST_MISSING, UserError, run  # noqa: E402
from teacherlm.files import require_writable  # noqa: E402
from teacherlm.interrupts import REQUEUE, Stop  # noqa: E402


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--list_missing", action="store_true", help=LIST_MISSING)
    asked = options.check(parser.parse_args())
    if not asked.eval_data:
        raise UserError("--eval_data: at least one file of questions was expected")
    folder = asked.checkpoint_dir / asked.name
    require_writable(folder)
    torch.manual_seed(asked.seed)
    device = workers.join_workers(asked.main_port)
    step, sources = step_of(asked), functools.partial(describe_sources, asked)
    evaluations = [Evaluation(asked, path, step, sources) for path in asked.eval_data]
    if asked.list_missing:
        print("" if all(evaluation.done for evaluation in evaluations) else "0")
        return 0
    for evaluation in evaluations:
        if evaluation.done:
            result = evaluation.result
            workers.say(f"evaluate: {evaluation.path}: done already, nothing to do ({result} matches its inputs)")
    evaluations = [evaluation for evaluation in evaluations if not evaluation.done]
    stop = Stop()
    try:
        if evaluations:
            questions = [read_questions(asked, evaluation.path) for evaluation in evaluations]
            model = load_model(asked, device, asked.precision)
            index = make_index(asked, model, device) if asked.retrieves else None
            for evaluation, asked_of in zip(evaluations, questions):
                if not evaluate(evaluation, asked_of, model, index, stop):
                    print("evaluate: interrupted; the same command goes on from there")
                    return REQUEUE
    finally:
        stop.restore()
    workers.leave()
    return 0


if __name__ == "__main__":
    run(main)
