"""The teacher on this machine: a transformers model whose batch is kept full.

Sequences that end leave the batch at once and waiting prompts take their places, so that a long text does not make the
others' places idle. The keys and values of the batch are one buffer a layer in which all rows end at the same column
(padding is hidden by the attention mask); so every causal model of the library works as it is, whatever its position
encoding. Measurements against other ways: docs/enhance.md.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from engines import Completion, Failure, Prompt, Sampling
from engines.decode_attention import use_decode_attention
from engines.key_values import GROWTH, KeyValues, bytes_per_column, moves_to_drop
from engines.sampling import choose_tokens
from teacherlm.errors import UserError
from teacherlm.loading import load_model, load_tokenizer
from teacherlm.packed_linear import pack_linears

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_SHARE = 0.8
"""Of the memory that is free once the weights are loaded, so much may hold keys and values."""
PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of prompts that are computed together: what lies between the layers takes memory too, and on a CPU should stay
in its cache."""
MAX_ROWS = 512
"""More rows at a time bring nothing: the processor is busy by then."""


@dataclass
class Row:
    """A sequence in the batch: its prompt's tokens, the new ones, and where its random numbers come from."""

    prompt: Prompt
    tokens: list[int]
    generator: torch.Generator
    new: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """How many tokens' keys and values it has: not yet those of the newest."""
        return len(self.tokens) + len(self.new) - 1


def best_dtype() -> str:
    """bfloat16 where the device computes in it, float32 elsewhere."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


class TransformersEngine:
    """A teacher, loaded once.

    Args:
        folder: the model's folder.
        dtype: one of DTYPES, "auto" (see best_dtype), or "int8" (bitsandbytes, GPU only).
        sampling: see Sampling.
        batch_size: rows at a time; None: as many as fit into memory, at most MAX_ROWS.

    Attributes:
        dtype: the one that is used.
        rows_filled, steps: of the decoding so far; their ratio is the mean number of rows.
    """

    def __init__(self, folder: Path, dtype: str, sampling: Sampling, batch_size: int | None = None):
        self.sampling = sampling
        self.dtype = best_dtype() if dtype == "auto" else dtype
        self.tokenizer = load_tokenizer(folder)
        self.model = load_teacher(folder, self.dtype).eval()
        self.device = self.model.device
        use_decode_attention(self.model)
        if self.device.type == "cpu":
            pack_linears(self.model)
        self.max_rows = batch_size or MAX_ROWS
        self.memory = free_memory(self.device) * MEMORY_SHARE
        self.window = getattr(self.model.config, "max_position_embeddings", None)  # ALiBi has none
        self.takes_positions = self.model.config.model_type != "bloom"
        end = self.model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        self.end_tokens = set(end) if isinstance(end, (list, tuple)) else {end}
        self.rows_filled = self.steps = 0

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts; yields each as it ends."""
        batch = Batch(self)
        waiting: deque[Row] = deque()
        while True:
            yield from self.take(prompts, waiting, batch)
            if batch.joining(waiting):
                yield from self.guarded(batch, waiting, lambda: batch.admit(waiting))
            elif batch.rows:
                yield from self.guarded(batch, waiting, batch.step)
            else:
                return

    def take(self, prompts: Iterator[Prompt], waiting: deque[Row], batch: "Batch") -> Iterator[Failure]:
        """Take so many prompts that the batch can be filled; those that leave the model no room fail."""
        while len(waiting) < batch.places():
            prompt = next(prompts, None)
            if prompt is None:
                return
            tokens = self.tokenizer(prompt.text)["input_ids"]
            if not tokens:
                yield Failure(prompt, "the prompt has no tokens")
            elif self.window is not None and len(tokens) >= self.window:
                yield Failure(prompt, f"the prompt has {len(tokens)} tokens, the teacher's window is {self.window}")
            else:
                waiting.append(Row(prompt, tokens, torch.Generator(self.device)))

    def guarded(self, batch: "Batch", waiting: deque[Row], work: Any) -> Iterator[Completion | Failure]:
        """Do one piece of work. Out of memory, all rows wait again and from now on half as many go together.

        They begin anew and come out the same, because their random numbers are their own.
        """
        try:
            batch.give_way(waiting)
            work()
        except torch.cuda.OutOfMemoryError:
            together = len(batch.rows) or len(waiting)
            batch.evict(len(batch.rows), waiting)
            torch.cuda.empty_cache()
            if together == 1:
                row = waiting.popleft()
                yield Failure(row.prompt, f"{len(row.tokens) + len(row.new)} tokens do not fit into the GPU's memory")
            self.max_rows = max(1, together // 2)
        yield from batch.retire()

    def ended(self, row: Row) -> bool:
        if row.new[-1] in self.end_tokens or len(row.new) >= self.sampling.num_tokens:
            return True
        if self.window is not None and len(row.tokens) + len(row.new) >= self.window:
            return True
        return bool(self.sampling.stop) and self.stop_position(row) >= 0

    def stop_position(self, row: Row) -> int:
        """Where the first of the stop texts begins in what the row has so far; -1 when none is there."""
        text = self.text(row)
        found = [position for stop in self.sampling.stop if (position := text.find(stop)) >= 0]
        return min(found, default=-1)

    def text(self, row: Row) -> str:
        new = row.new[:-1] if row.new[-1] in self.end_tokens else row.new  # an end that is no special token would show
        return self.tokenizer.decode(new, skip_special_tokens=True)

    def completion(self, row: Row) -> Completion:
        text = self.text(row)
        if self.sampling.stop and (position := self.stop_position(row)) >= 0:
            text = text[:position]
        return Completion(row.prompt, text, len(row.tokens), len(row.new))


class Batch:
    """The rows that are being completed, and their keys and values."""

    def __init__(self, engine: TransformersEngine):
        self.engine = engine
        self.clear()

    def clear(self) -> None:
        self.rows: list[Row] = []
        self.cache: KeyValues | None = None

    def places(self) -> int:
        return self.engine.max_rows - len(self.rows)

    def joining(self, waiting: deque[Row]) -> int:
        """How many of the waiting rows may join now, as places and memory allow.

        None before an eighth of the places is free, since joining copies the whole batch; into an empty batch always
        one, which fails if it does not fit.
        """
        if not waiting or self.places() < max(1, self.engine.max_rows // 8):
            return 0
        count, width = 0, self.width()
        for row in itertools.islice(waiting, self.places()):
            width = max(width, len(row.tokens))
            if (self.rows or count) and self.size(len(self.rows) + count + 1, width + 1) > self.engine.memory:
                break
            count += 1
        return count

    def width(self) -> int:
        return self.cache.end if self.cache else 0

    def size(self, rows: int, width: int) -> float:
        """Bytes of so many rows; with one layer more, because layers are rebuilt one by one."""
        config = self.engine.model.config
        share = 1 + 1 / config.num_hidden_layers
        return share * rows * (width + GROWTH) * bytes_per_column(config, self.engine.model.dtype)

    @torch.inference_mode()
    def admit(self, waiting: deque[Row]) -> None:
        """Let waiting rows in: compute their prompts, choose their first tokens, join them to the batch."""
        new = [waiting.popleft() for _ in range(self.joining(waiting))]
        new.sort(key=lambda row: len(row.tokens))  # rows that are computed together need little padding
        try:
            caches = [self.prefill(rows) for rows in groups(new, PREFILL_TOKENS[self.engine.device.type])]
        except torch.cuda.OutOfMemoryError:
            waiting.extendleft(reversed(new))
            raise
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
            row.generator.manual_seed(row.prompt.seed)
        cache = KeyValues()
        self.forward(rows, ids_BT, mask_BT.to(self.engine.device), (mask_BT.cumsum(1) - 1).clamp(min=0), cache)
        return cache

    def make_room(self, joining: list[KeyValues]) -> None:
        """Rebuild the keys and values with the columns that the longest row needs, the joining rows, and room."""
        self.cache.join(joining, max(row.length for row in self.rows))
        self.set_mask()

    def set_mask(self) -> None:
        """Show each row its own columns: those of its prompt, and of its new tokens but the newest."""
        self.lengths_B = torch.tensor([row.length for row in self.rows])
        column_T = torch.arange(self.cache.width)
        begins_B1 = (self.cache.end - self.lengths_B)[:, None]
        self.mask_BT = ((column_T >= begins_B1) & (column_T < self.cache.end)).long().to(self.engine.device)

    @torch.inference_mode()
    def step(self) -> None:
        """One new token for every row."""
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
        sampling = self.engine.sampling
        generators = [row.generator for row in rows]
        chosen_B = choose_tokens(logits_B1V[:, -1], generators, sampling.temperature, sampling.top_p)
        for row, token in zip(rows, chosen_B.tolist()):
            row.new.append(token)

    def retire(self) -> Iterator[Completion]:
        """Yield the rows that have ended and drop them."""
        ended = [position for position, row in enumerate(self.rows) if self.engine.ended(row)]
        for row in self.drop(ended):
            yield self.engine.completion(row)

    def give_way(self, waiting: deque[Row]) -> None:
        """Before the keys and values outgrow their memory, the rows with the fewest new tokens wait again.

        They begin anew later and come out the same: their random numbers are their own.
        """
        while len(self.rows) > 1 and self.size(len(self.rows), self.width() + 1) > self.engine.memory:
            self.evict(max(1, len(self.rows) // 8), waiting)

    def evict(self, count: int, waiting: deque[Row]) -> None:
        order = sorted(range(len(self.rows)), key=lambda position: len(self.rows[position].new))
        waiting.extendleft(reversed(self.drop(sorted(order[:count]))))

    @torch.inference_mode()
    def drop(self, leaving: list[int]) -> list[Row]:
        """Take the rows at these positions, in ascending order, out of the batch."""
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


def groups(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows, shortest first, in groups that have at most so many tokens with their padding, or one row."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(row.tokens) > tokens:
            yield group
            group = []
        group.append(row)
    yield group


def load_teacher(folder: Path, dtype: str) -> torch.nn.Module:
    """The model on the CPU, on the GPU, or spread over several GPUs when it does not fit on one."""
    gpus = torch.cuda.device_count()
    if dtype == "int8":
        if not gpus:
            raise UserError("--dtype int8 needs a GPU (bitsandbytes); use --dtype auto here")
        return load_model(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="auto")
    if gpus > 1:
        return load_model(folder, dtype=DTYPES[dtype], device_map="auto")
    return load_model(folder, dtype=DTYPES[dtype]).to("cuda" if gpus else "cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; of the main memory, what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
