"""Which parts of a piece of work this process does, and what is known of the others' parts."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from teacherlm.interrupts import REQUEUE, Stop
from teacherlm.progress_file import ProgressFile

Answer = Any
"""Of a log-likelihood: [sum, whether greedy]; of a generation: the text; of a rolling log-likelihood: the sum."""


class Share:
    """Which parts of the work are this process's, and the answers so far.

    Args:
        progress: where the answers of finished parts are; None: nowhere, all parts are done here.
        index, count: this process is the one numbered `index` of `count`.
        others: parts that other processes have finished.
        stop: whether to end with exit code REQUEUE after the part at work.
    """

    def __init__(
        self,
        progress: ProgressFile | None = None,
        index: int = 0,
        count: int = 1,
        others: Mapping[int, dict[str, Any]] | None = None,
        stop: Stop | None = None,
    ):
        self.progress, self.index, self.count = progress, index, count
        self.others, self.stop = others or {}, stop
        self.first = 0
        self.missing: set[int] = set()

    def do(self, parts: int, compute: Callable[[int], list[Answer]]) -> list[list[Answer] | None]:
        """The answers of each part: those that are there, those computed here, None for other processes'."""
        keys = range(self.first, self.first + parts)
        self.first += parts
        answers: list[list[Answer] | None] = []
        for part, key in enumerate(tqdm(keys, disable=not sys.stderr.isatty() or parts < 2)):
            if self.progress is not None and key in self.progress:
                answers.append(self.progress.read(key)["answers"])
            elif key in self.others:
                answers.append(self.others[key]["answers"])
            elif part * self.count // parts == self.index:
                answers.append(compute(part))
                if self.progress is not None:
                    self.progress.append(key, {"answers": answers[-1]})
                if self.stop is not None and self.stop.asked:
                    print(f"evaluate: interrupted after {len(self.progress)} batches; the same command goes on")
                    sys.exit(REQUEUE)
            else:
                answers.append(None)
                self.missing.add(key)
        return answers
