"""The teacher on this machine: a transformers model whose batch is kept full.

Sequences that end leave the batch at once and waiting prompts take their places, so that a long text does not make the
others' places idle. The keys and values of the batch are one buffer a layer in which all rows end at the same column
(padding is hidden by the attention mask). A model that this does not compute exactly is continued by the library, one
prompt at a time. Measurements against other ways: docs/measurements/enhance.md.
"""

import inspect
import os
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from teacherlm.core.errors import UserError
from teacherlm.enhance.engines import Completion, Failure, Prompt, Sampling
from teacherlm.enhance.engines.batch import Batch, Row, batch_fault
from teacherlm.enhance.engines.decode_attention import use_decode_attention
from teacherlm.enhance.engines.key_values import KeyValues
from teacherlm.enhance.engines.plain_generation import complete_alone
from teacherlm.runtime.check_sequences import window_beyond
from teacherlm.runtime.generation_check import generation_fault, make_continuations
from teacherlm.runtime.loading import load_model, load_tokenizer
from teacherlm.runtime.model_config import picks_tokens, position_count, vocabulary_size
from teacherlm.runtime.packed_linear import pack_linears
from teacherlm.runtime.plain_pass import plain_logits, set_attention
from teacherlm.runtime.self_check import fault_of, tolerance_of
from teacherlm.runtime.tokens import decode_completion, encode_prompt, require_embeddings
from teacherlm.runtime.verdicts import NOT_FOR_THIS, Verdict, first_exact, remembered

PATHS = ("batched", "alone", "uncached")
WORDS = {"alone": "one prompt at a time", "uncached": "one prompt at a time, without a cache"}
"""Ways to compute a teacher, the fastest first: batches of our own; the library's generation, of one prompt at a time;
plain forward passes over the whole text, a pass for each new token."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_SHARE = 0.8
"""Of the memory that is free once the weights are loaded, so much may hold keys and values."""
MAX_ROWS = 512
"""More rows at a time bring nothing: the processor is busy by then."""


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
        digest: of the model, for the verdict of the self-check to be kept; None: it is not kept.
        longest: tokens that no prompt with its completion exceeds; None: unknown.

    Attributes:
        dtype: the one that is used.
        verdict: whether the teacher is computed in batches, or by the library one prompt at a time.
        rows_filled, steps: of the decoding so far; their ratio is the mean number of rows.

    Raises:
        UserError: the model is refused, see loading.py and self_check.py.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        sampling: Sampling,
        batch_size: int | None = None,
        digest: str | None = None,
        longest: int | None = None,
    ):
        self.folder, self.sampling, self.longest = folder, sampling, longest
        self.dtype = best_dtype() if dtype == "auto" else dtype
        self.tokenizer = load_tokenizer(folder)
        self.model = load_teacher(folder, self.dtype)
        self.device = self.model.device
        self.linears_packed = False
        self.rows_filled = self.steps = 0
        key = {"stage": "enhance", "model": digest, "dtype": self.dtype, "device": self.device.type}
        key["longest"] = window_beyond(self.model.config, longest)
        self.verdict = remembered(key if digest else None, self.find_path)
        self.shape_model(self.verdict.attention, self.verdict.plain_linears, self.verdict.path == "batched")
        config = self.model.config
        if self.verdict.path != PATHS[0]:
            print(f"enhance: {config.model_type}: computed {WORDS[self.verdict.path]} ({self.verdict.why})", flush=True)
        self.max_rows = 1 if self.verdict.path != "batched" else batch_size or MAX_ROWS
        self.memory = free_memory(self.device) * MEMORY_SHARE
        self.window = position_count(config)
        self.vocabulary = vocabulary_size(config)
        end = self.model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        self.end_tokens = set(end) if isinstance(end, (list, tuple)) else {end}
        self.column_bytes, self.layers = self.measure_cache() if self.verdict.path == "batched" else (0, 1)
        self.rows_filled = self.steps = 0  # without those of the check

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the model is told its tokens' positions; others (BLOOM, state models) do not know the argument."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def find_path(self) -> Verdict:
        """The first of PATHS whose logits are those of the library's plain forward pass."""
        tolerance = tolerance_of(self.model, DTYPES.get(self.dtype), self.longest)
        expected = make_continuations(self.model, self.longest, tolerance)

        def fault(path: str, plain_linears: bool, attention: str) -> str:
            if path == PATHS[0] and picks_tokens(self.model.config):
                return NOT_FOR_THIS
            self.shape_model(attention, plain_linears, path == "batched")
            if path == "batched":
                return batch_fault(self, expected, tolerance)
            if path == "alone":
                return generation_fault(self.model, expected, tolerance, together=False, use_cache=True)
            # Its forward passes are plain ones; what the check looks at is whether packed linear layers serve.
            return fault_of(lambda: plain_logits(self.model, expected.texts), expected.whole, tolerance)

        return first_exact(PATHS, self.device.type == "cpu", fault, self.model.config, self.folder)

    def shape_model(self, attention: str, plain_linears: bool, batched: bool) -> None:
        """Give the model this attention, our own where rows are batched, and its linear layers their form."""
        if self.linears_packed and plain_linears:
            self.model = load_teacher(self.folder, self.dtype)
            self.linears_packed = False
        set_attention(self.model, attention)
        if batched:
            use_decode_attention(self.model)
        if self.device.type == "cpu" and not plain_linears and not self.linears_packed:
            pack_linears(self.model)
            self.linears_packed = True

    @torch.inference_mode()
    def measure_cache(self) -> tuple[int, int]:
        """(bytes of the keys and values of one token, number of layers)."""
        cache = KeyValues()
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=cache)
        return cache.bytes_per_column, len(cache.layers)

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts; yields each as it ends."""
        if self.verdict.path != "batched":
            yield from complete_alone(self, prompts, use_cache=self.verdict.path == "alone")
            return
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

    def take(self, prompts: Iterator[Prompt], waiting: deque[Row], batch: Batch) -> Iterator[Failure]:
        """Take so many prompts that the batch can be filled; those that leave the model no room fail."""
        while len(waiting) < batch.places():
            prompt = next(prompts, None)
            if prompt is None:
                return
            made = self.row_of(prompt)
            if isinstance(made, Failure):
                yield made
            else:
                waiting.append(made)

    def row_of(self, prompt: Prompt) -> Row | Failure:
        """A prompt as a row, or why it cannot be one.

        Raises:
            UserError: the tokenizer has tokens that the model has no embedding for.
        """
        tokens = encode_prompt(self.tokenizer, prompt.text)
        require_embeddings(tokens, self.vocabulary, f"record {prompt.index + 1}")
        if not tokens:
            return Failure(prompt, "the prompt has no tokens")
        if self.window is not None and len(tokens) >= self.window:
            return Failure(prompt, f"the prompt has {len(tokens)} tokens, the teacher's window is {self.window}")
        return Row(prompt, tokens, torch.Generator(self.device))

    def guarded(self, batch: Batch, waiting: deque[Row], work: Any) -> Iterator[Completion | Failure]:
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
        return decode_completion(self.tokenizer, row.tokens, new)

    def completion(self, row: Row) -> Completion:
        text = self.text(row)
        if self.sampling.stop and (position := self.stop_position(row)) >= 0:
            text = text[:position]
        return Completion(row.prompt, text, len(row.tokens), len(row.new))


def load_teacher(folder: Path, dtype: str) -> torch.nn.Module:
    """The model on the CPU, on the GPU, or spread over several GPUs when it does not fit on one."""
    gpus = torch.cuda.device_count()
    if dtype == "int8":
        if not gpus:
            raise UserError("--dtype int8 needs a GPU (bitsandbytes); use --dtype auto here")
        return load_model(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="auto").eval()
    if gpus > 1:
        return load_model(folder, dtype=DTYPES[dtype], device_map="auto").eval()
    return load_model(folder, dtype=DTYPES[dtype]).to("cuda" if gpus else "cpu").eval()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; of the main memory, what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
