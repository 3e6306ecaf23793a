"""What a teacher behind a server may cost: tokens or money. What was spent is kept beside the output."""

import threading
from dataclasses import dataclass
from typing import Any

from teacherlm.core.errors import UserError
from teacherlm.core.progress_file import ProgressFile


@dataclass
class Tokens:
    """Numbers of tokens: of prompts, and of new ones."""

    prompt: int = 0
    new: int = 0


class Budget:
    """The tokens that were spent, and those that running requests may need.

    A request begins only if the budget suffices for its prompt and the maximum number of new tokens, beside what was
    spent and what the running requests may need. So the budget is not exceeded as long as the server keeps to the
    maximum.

    Args:
        file: the file with what was spent; one line per answer.
        max_tokens: maximum number of tokens; None means no limit.
        max_cost: maximum cost, in the unit of the prices; None means no limit.
        price_in: price of a million tokens of prompts.
        price_out: price of a million new tokens.

    Attributes:
        stopped: whether a request was not begun, or not repeated, because the budget did not suffice.
    """

    def __init__(
        self, file: ProgressFile, max_tokens: int | None, max_cost: float | None, price_in: float, price_out: float
    ):
        self.file, self.max_tokens, self.max_cost = file, max_tokens, max_cost
        self.price_in, self.price_out = price_in, price_out
        self.spent, self.reserved = Tokens(), Tokens()
        for key in range(len(file)):
            self.spent.prompt += tokens_in(file, key, "prompt_tokens")
            self.spent.new += tokens_in(file, key, "new_tokens")
        self.stopped = False
        self.lock = threading.Lock()

    def cost(self, prompt: int, new: int) -> float:
        return (prompt * self.price_in + new * self.price_out) / 1e6

    def suffices(self, prompt: int, new: int) -> bool:
        """Whether the budget suffices for these tokens, beside those that were spent or are reserved."""
        prompt += self.spent.prompt + self.reserved.prompt
        new += self.spent.new + self.reserved.new
        if self.max_tokens is not None and prompt + new > self.max_tokens:
            return False
        return self.max_cost is None or self.cost(prompt, new) <= self.max_cost

    def reserve(self, prompt: int, new: int) -> bool:
        """Reserve the tokens that a request may need. False if the budget does not suffice."""
        with self.lock:
            if not self.suffices(prompt, new):
                return False
            self.reserved.prompt += prompt
            self.reserved.new += new
            return True

    def release(self, prompt: int, new: int) -> None:
        """End the reservation of a request."""
        with self.lock:
            self.reserved.prompt -= prompt
            self.reserved.new -= new

    def spend(self, prompt: int, new: int) -> None:
        """Count the tokens of an answer. They are on the disk when this returns."""
        with self.lock:
            self.spent.prompt += prompt
            self.spent.new += new
            self.file.append(len(self.file), {"prompt_tokens": prompt, "new_tokens": new})

    def may_repeat(self) -> bool:
        """Whether a running request may be sent again, after answers that were paid for and lost."""
        with self.lock:
            self.stopped = self.stopped or not self.suffices(0, 0)
            return not self.stopped

    def words(self) -> str:
        """What was spent, for a message."""
        said = f"{self.spent.prompt} prompt + {self.spent.new} new tokens"
        if self.price_in or self.price_out:
            said += f", cost {self.cost(self.spent.prompt, self.spent.new):.6g}"
        return said

    def summary(self) -> dict[str, Any]:
        """What was spent, for the manifest."""
        counts: dict[str, Any] = {"prompt_tokens": self.spent.prompt, "new_tokens": self.spent.new}
        if self.price_in or self.price_out:
            counts["cost"] = round(self.cost(self.spent.prompt, self.spent.new), 6)
        return {"spent": counts}


def tokens_in(file: ProgressFile, key: int, name: str) -> int:
    """A number of tokens in a line of the file.

    Raises:
        UserError: the line has no such number.
    """
    count = file.read(key).get(name)
    if type(count) is not int or count < 0:
        raise UserError(f"{file.path}: {name} in line {key + 2} is no number of tokens; remove the file to count anew")
    return count
