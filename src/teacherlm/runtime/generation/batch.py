"""The rows that a model completes at the same time, and their keys and values."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from teacherlm.runtime.generation import Completion, Prompt
from teacherlm.runtime.generation.key_values import GROWTH, KeyValues, moves_to_drop
from teacherlm.runtime.generation_check import Continuations
from teacherlm.runtime.sampling import choose_tokens, top_tokens
from teacherlm.runtime.self_check import failure, fault_of

if TYPE_CHECKING:
    from teacherlm.runtime.generation.transformers_engine import TransformersEngine

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Maximum number of prompt tokens that are computed together. More would need more memory for the states between the
layers, which on a CPU should also fit into its cache."""


@dataclass
class Row:
    """A sequence in the batch: the prompt's tokens, the new tokens, and the generator of its random numbers.

    Attributes:
        top: for each new token, the most likely tokens and their log-probabilities (sampling.top_tokens), if they are
            kept.
    """

    prompt: Prompt
    tokens: list[int]
    generator: torch.Generator
    new: list[int] = field(default_factory=list)
    top: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are in the cache: all but the newest token."""
        return len(self.tokens) + len(self.new) - 1


class Batch:
    """The rows that are being completed, and their keys and values.

    Attributes:
        together: rows that the newest piece of work was about, those that were to join included.
    """

    def __init__(self, engine: "TransformersEngine"):
        self.engine = engine
        self.together = 0
        self.clear()

    def clear(self) -> None:
        self.rows: list[Row] = []
        self.cache: KeyValues | None = None

    def free_places(self) -> int:
        return self.engine.max_rows - len(self.rows)

    def joining(self, waiting: deque[Row]) -> int:
        """How many of the waiting rows may join now, given the free places and the memory.

        No row joins before an eighth of the places is free, because joining copies the whole batch. An empty batch
        always accepts one row, which fails if it does not fit.
        """
        if not waiting or self.free_places() < max(1, self.engine.max_rows // 8):
            return 0
        count, width = 0, self.width()
        for row in itertools.islice(waiting, self.free_places()):
            width = max(width, len(row.tokens))
            if (self.rows or count) and self.size(len(self.rows) + count + 1, width + 1) > self.engine.memory:
                break
            count += 1
        return count

    def width(self) -> int:
        return self.cache.end if self.cache else 0

    def size(self, rows: int, width: int) -> float:
        """Bytes of the keys and values, plus one more layer, because layers are rebuilt one by one."""
        share = 1 + 1 / self.engine.layers
        return share * rows * (width + GROWTH) * self.engine.column_bytes

    @torch.inference_mode()
    def admit(self, waiting: deque[Row]) -> None:
        """Add waiting rows: compute their prompts, choose their first tokens and join them to the batch."""
        new = [waiting.popleft() for _ in range(self.joining(waiting))]
        self.together = len(self.rows) + len(new)
        try:
            self.enter(new)
        except torch.cuda.OutOfMemoryError:
            if self.rows[-len(new) :] != new:
                waiting.extendleft(reversed(new))
            raise

    def enter(self, new: list[Row]) -> None:
        new.sort(key=lambda row: len(row.tokens))  # rows of similar length need little padding
        caches = [self.prefill(rows) for rows in groups(new, PREFILL_TOKENS[self.engine.device.type])]
        if self.cache is None:
            self.cache = caches.pop(0)
        self.rows += new
        self.make_room(caches)

    def prefill(self, rows: list[Row]) -> KeyValues:
        width = max(len(row.tokens) for row in rows)
        ids_BT = torch.tensor([[0] * (width - len(row.tokens)) + row.tokens for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row.tokens)) + [1] * len(row.tokens) for row in rows])
        for row in rows:
            row.new.clear()
            row.top.clear()
            row.generator.manual_seed(row.prompt.seed)
        cache = KeyValues()
        self.forward(rows, ids_BT, mask_BT.to(self.engine.device), (mask_BT.cumsum(1) - 1).clamp(min=0), cache)
        return cache

    def make_room(self, joining: list[KeyValues]) -> None:
        """Rebuild the keys and values with the joining rows, the columns of the longest row, and free columns."""
        self.cache.join(joining, max(row.length for row in self.rows))
        self.set_mask()

    def set_mask(self) -> None:
        """Set the mask so that each row sees the columns of its prompt and of its new tokens except the newest."""
        self.lengths_B = torch.tensor([row.length for row in self.rows])
        column_T = torch.arange(self.cache.width)
        begins_B1 = (self.cache.end - self.lengths_B)[:, None]
        self.mask_BT = ((column_T >= begins_B1) & (column_T < self.cache.end)).long().to(self.engine.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one new token for every row."""
        self.together = len(self.rows)
        if self.cache.end == self.cache.width:
            self.make_room([])
        self.mask_BT[:, self.cache.end] = 1
        last_B1 = torch.tensor([[row.new[-1]] for row in self.rows])
        self.forward(self.rows, last_B1, self.mask_BT, self.lengths_B[:, None], self.cache)
        self.lengths_B += 1
        self.engine.steps += 1
        self.engine.rows_filled += len(self.rows)

    def forward(
        self, rows: list[Row], ids_BT: torch.Tensor, mask_BT: torch.Tensor, positions_BT: torch.Tensor, cache: KeyValues
    ) -> None:
        device = self.engine.device
        positions = {"position_ids": positions_BT.to(device)} if self.engine.takes_positions else {}
        logits_B1V = self.engine.model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **positions,
        ).logits
        self.choose(rows, logits_B1V[:, -1])

    def choose(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        """Give each row its next token."""
        sampling = self.engine.sampling
        generators = [row.generator for row in rows]
        chosen_B = choose_tokens(logits_BV, generators, sampling.temperature, sampling.top_p)
        for row, token in zip(rows, chosen_B.tolist()):
            row.new.append(token)
        keep_top(rows, logits_BV, sampling.top_logprobs)

    def retire(self) -> Iterator[Completion]:
        """Yield the rows that have ended and drop them."""
        ended = [position for position, row in enumerate(self.rows) if self.engine.ended(row)]
        for row in self.drop(ended):
            yield self.engine.completion(row)

    def give_way(self, waiting: deque[Row]) -> None:
        """Before the keys and values need too much memory, move the rows with the fewest new tokens back to the queue.

        These rows start again later and get the same text, because each row has a separate random generator.
        """
        while len(self.rows) > 1 and self.size(len(self.rows), self.width() + 1) > self.engine.memory:
            self.evict(max(1, len(self.rows) // 8), waiting)

    def evict(self, count: int, waiting: deque[Row]) -> None:
        order = sorted(range(len(self.rows)), key=lambda position: len(self.rows[position].new))
        waiting.extendleft(reversed(self.drop(sorted(order[:count]))))

    @torch.inference_mode()
    def drop(self, leaving: list[int]) -> list[Row]:
        """Remove the rows at these positions (in ascending order) from the batch, and return them."""
        dropped = [self.rows[position] for position in leaving]
        if len(leaving) == len(self.rows):
            self.clear()
        elif leaving:
            self.cache.drop(leaving)
            moves, left = moves_to_drop(leaving, len(self.rows))
            for source, target in moves:
                self.rows[target] = self.rows[source]
            del self.rows[left:]
            self.set_mask()
        return dropped


def keep_top(rows: list[Row], logits_BV: torch.Tensor, k: int) -> None:
    """Keep the k most likely tokens at the newest token of each row; with k = 0, nothing."""
    if k:
        for row, ids_K, logprobs_K1 in zip(rows, *top_tokens(logits_BV, k)):
            row.top.append((ids_K, logprobs_K1))


class CheckedBatch(Batch):
    """A batch for the self-check: it chooses given tokens and keeps the logits from which they would be chosen."""

    def __init__(self, engine: "TransformersEngine", new: list[list[int]]):
        super().__init__(engine)
        self.new = new
        self.seen: dict[int, list[torch.Tensor]] = {}

    def choose(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        for row, logits_V in zip(rows, logits_BV):
            self.seen.setdefault(row.prompt.index, []).append(logits_V.float().cpu())
            row.new.append(self.new[row.prompt.index][len(row.new)])


def batch_fault(engine: "TransformersEngine", expected: Continuations, tolerance: float) -> str:
    """What is wrong with a batch that rows of different lengths join and leave; "" when nothing is wrong."""
    prompts = [Prompt("check", index, 0, "", 0) for index in range(len(expected.prompts))]
    rows = [Row(prompt, tokens, torch.Generator(engine.device)) for prompt, tokens in zip(prompts, expected.prompts)]
    batch = CheckedBatch(engine, expected.new)
    try:
        with torch.inference_mode():
            batch.enter(rows[:2])
            batch.step()
            batch.enter(rows[2:])
            batch.step()
            batch.drop([0])
            for _ in range(2):
                batch.step()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a model can raise anything
        return failure(error)
    found = [torch.stack(batch.seen[index]) for index in range(len(rows))]
    wanted = [logits[: len(row)] for logits, row in zip(expected.logits, found)]
    return fault_of(lambda: found, wanted, tolerance)


def groups(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Split rows, sorted by length, into groups of at most `tokens` tokens including padding, or of one row."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(row.tokens) > tokens:
            yield group
            group = []
        group.append(row)
    yield group
