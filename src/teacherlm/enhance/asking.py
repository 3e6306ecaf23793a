"""Which prompts a command asks, and what comes of each answer: a text that is kept, another attempt, or a failure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from teacherlm.enhance.chat import explanation_of
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.enhance.job import Job, shard_records
from teacherlm.enhance.judging import Question, judge, question_of
from teacherlm.runtime.generation import Completion, Failure, Prompt, draw_seed


class Asking:
    """The missing completions of all jobs, with their attempts.

    Memory holds only the questions whose answers have not come, so it does not grow with the number of records.

    Attributes:
        failed: maps prompt field -> index of the record -> reason why it has no text.
    """

    def __init__(self, flags: EnhanceFlags, jobs: list[Job]):
        self.flags = flags
        self.jobs = {job.field: job for job in jobs}
        self.failed: dict[str, dict[int, str]] = {field: {} for field in self.jobs}
        self.asked: dict[tuple[str, int, int], Question] = {}
        self.again: deque[Prompt] = deque()
        self.first = self.first_attempts()

    def prompts(self) -> Iterator[Prompt]:
        """The prompts to ask now: further attempts, then the next first attempts.

        It ends when there are none of either. Answers that come later may need more attempts; then it is called again.
        """
        while True:
            prompt = self.again.popleft() if self.again else next(self.first, None)
            if prompt is None:
                return
            yield prompt

    def first_attempts(self) -> Iterator[Prompt]:
        """The prompts of the completions that are not on disk yet, record by record."""
        for index, line, record in shard_records(self.flags.input, self.flags.shard):
            where = f"{self.flags.input}, line {line}"
            for job in self.jobs.values():
                for number in job.missing(index):
                    self.asked[job.field, index, number] = question_of(record, job.kind, where)
                    yield prompt_of(self.flags.seed, job, index, number, record[job.field])

    def take(self, result: Completion | Failure) -> bool:
        """Decide about the answer to a prompt. A text that is kept is written to disk.

        Returns:
            Whether it was the last attempt.
        """
        prompt = result.prompt
        key = (prompt.kind, prompt.index, prompt.number)
        question, job = self.asked[key], self.jobs[prompt.kind]
        if isinstance(result, Completion) and prompt.messages:
            result = explanation_of(result, self.flags.num_tokens)
        if isinstance(result, Failure):
            self.failed[prompt.kind][prompt.index] = result.reason
            del self.asked[key]
            return True
        verdict = judge(job.described, question, result.text, self.flags.temperature > 0)
        if verdict.again is not None:
            question.attempts += 1
            self.again.append(
                prompt_of(self.flags.seed, job, prompt.index, prompt.number, verdict.again, question.attempts)
            )
            return False
        del self.asked[key]
        if verdict.failed is not None:
            self.failed[prompt.kind][prompt.index] = verdict.failed
        else:
            piece = verdict.kept or {"dropped": verdict.dropped, "attempts": question.attempts + 1}
            job.keep(prompt.index, prompt.number, question.prompt, {**piece, **about(result)})
        return True


def prompt_of(seed: int, job: Job, index: int, number: int, text: str, attempt: int = 0) -> Prompt:
    """The prompt of an attempt, with its own random numbers.

    Args:
        text: the record's prompt field, or its hint.
    """
    prompt = Prompt(job.field, index, number, job.text(text), 0, job.messages(text))
    return replace(prompt, seed=draw_seed(seed, index, number, prompt.asked, attempt))


def about(completion: Completion) -> dict[str, Any]:
    """What is kept of a completion beside its text."""
    found = {"tokens": completion.new_tokens, "ended": completion.ended}
    of_engine = {"thinking": completion.thinking, "top_logprobs": completion.top_logprobs}
    return found | {name: text for name, text in of_engine.items() if text}
