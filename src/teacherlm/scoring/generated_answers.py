"""Let a model write its answers. Each is kept on disk as soon as it ends, and several processes can share the work."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.progress_file import ProgressFile
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape
from teacherlm.core.terminal import plural
from teacherlm.runtime.generation import Completion, Engine, Failure, Prompt, draw_seed
from teacherlm.runtime.generation.thinking import without_thinking
from teacherlm.scoring.generated_questions import Question
from teacherlm.scoring.shards import progress_file, read_others

ANSWER = {"text": LONG_TEXT, "tokens": int, "ended": str, "thinking?": LONG_TEXT}
Answer = dict[str, Any]
"""An answer as it is kept: `text`, `tokens` (number of new ones), `ended`, and `thinking` if there is any."""


def write_answers(
    questions: Sequence[Question],
    number: int,
    seed: int,
    num_tokens: int,
    path: Path,
    shard: tuple[int, int],
    work: Mapping[str, Any],
    make_engine: Callable[[], Engine],
) -> tuple[list[list[Answer]], int]:
    """The answers to each question that this process and others have so far, with those of this process's shard.

    Args:
        number: number of answers per question.
        num_tokens: maximum number of new tokens per answer, for messages.
        path: the file of the result, beside which the answers are kept.
        work: the settings that the answers depend on.
        make_engine: makes the engine, if there is something left to write.

    Returns:
        For each question its answers, and the number of answers that other processes still have to write. In that case
        the lists are not complete.
    """
    index, count = shard
    file = progress_file(path, index, count)
    progress = ProgressFile(file, work, restart=True)
    if len(progress):
        print(f"evaluate: an earlier run wrote {plural(len(progress), 'answer')}; continuing with the others")
    stop = Stop()
    try:
        others = read_others(path, file, dict(work))
        keys = range(len(questions) * number)
        done = {
            key for key in keys if (key in progress and is_answer(progress.read(key))) or is_answer(others.get(key))
        }
        mine = [key for key in keys if key % count == index and key not in done]
        if mine:
            write(make_engine(), prompts_of(questions, number, seed, mine), len(mine), num_tokens, progress, stop)
        others = read_others(path, file, dict(work))  # those that they have written in the meantime
        known = [progress.read(key) if key in progress else others.get(key) for key in keys]
        missing = sum(not is_answer(answer) for answer in known)
        found = [answer or {} for answer in known]
        return [found[start : start + number] for start in range(0, len(found), number)], missing
    finally:
        progress.close()
        stop.restore()


def is_answer(piece: Any) -> bool:
    """Whether a piece of a file of progress is an answer. Another program may have written it."""
    return piece is not None and flaw_of_shape(piece, ANSWER) is None


def prompts_of(questions: Sequence[Question], number: int, seed: int, keys: Sequence[int]) -> Iterator[Prompt]:
    """The prompts of these answers. Answer K of question Q has the key Q * number + K."""
    for key in keys:
        question, answer = questions[key // number], key % number
        prompt = Prompt(question.task, key, answer, question.prompt, 0, question.messages)
        yield replace(prompt, seed=draw_seed(seed, question.doc_id, answer, prompt.asked))


def write(
    engine: Engine, prompts: Iterator[Prompt], count: int, num_tokens: int, progress: ProgressFile, stop: Stop
) -> None:
    """Write the answers to all prompts.

    Raises:
        UserError: a prompt cannot be answered.
        SystemExit: a signal asked to end. The answers that were begun are on disk.
    """
    wanted = itertools.takewhile(lambda _: not stop.requested, prompts)
    for result in tqdm(engine.complete(wanted), total=count, unit=" answers", disable=not sys.stderr.isatty()):
        if isinstance(result, Failure):
            raise UserError(
                f"{result.prompt.kind}: a question cannot be answered: {result.reason}; the answers so far are kept"
            )
        progress.append(result.prompt.index, answer_of(result, num_tokens))
        count -= 1
    if stop.requested and count:
        print(f"evaluate: interrupted after {plural(len(progress), 'answer')}; the same command continues")
        sys.exit(REQUEUE)


def answer_of(completion: Completion, num_tokens: int) -> Answer:
    """What is kept of a completion. If the model did not come to an answer after its thinking, the text is empty."""
    made: Completion | Failure = completion
    if completion.prompt.messages:
        made = without_thinking(completion, num_tokens)
    about = {"tokens": completion.new_tokens, "ended": completion.ended}
    if isinstance(made, Failure):
        return {"text": "", **about, "thinking": completion.thinking or completion.text}
    return {"text": made.text, **about, **({"thinking": made.thinking} if made.thinking else {})}
