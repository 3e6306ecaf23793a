"""The model on this machine, with transformers: its batch is kept full.

A finished sequence leaves the batch at once, and a waiting prompt takes its place, so that one long text does not leave
the other places idle. Each layer has one buffer for the keys and values of the batch, in which all rows end at the same
column and the attention mask hides the padding. If a model is not computed exactly in this way, the library completes
one prompt at a time. docs/measurements/enhance.md compares the speed with other ways.
"""

import inspect
import os
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BitsAndBytesConfig

from teacherlm.catalog.chat_templates import ANSWER, THINKING
from teacherlm.catalog.top_logprobs import TopLogprobs, encode, vocabulary_digest
from teacherlm.core.errors import UserError
from teacherlm.runtime import gpu
from teacherlm.runtime.chat_template import ChatTemplate
from teacherlm.runtime.check_sequences import window_beyond
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling
from teacherlm.runtime.generation.batch import Batch, Row, batch_fault
from teacherlm.runtime.generation.decode_attention import use_decode_attention
from teacherlm.runtime.generation.key_values import KeyValues
from teacherlm.runtime.generation.plain_generation import complete_alone
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
"""Ways to compute a model, the fastest first: this project's batches; the library's generation, one prompt at a time;
plain forward passes over the whole text, one pass per new token."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FRACTION = 0.8
"""Maximum share of the memory that is free after loading the weights that keys and values may use."""
FURTHER = 8
"""Number of tokens, beside those of a stop text, that are looked at for it."""
MAX_ROWS = 512
"""Maximum number of rows at a time. More rows bring nothing, because the processor is already busy."""


def best_dtype() -> str:
    """bfloat16 if the device computes in it; otherwise float16 on a GPU and float32 on a CPU."""
    if torch.cuda.is_available():
        return "bfloat16" if gpu.computes_bfloat16() else "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


class TransformersEngine:
    """A model, loaded once.

    Args:
        folder: the model's folder.
        dtype: one of DTYPES, "auto" (see best_dtype), or "int8" (bitsandbytes, GPU only).
        sampling: how the next token is chosen.
        batch_size: maximum number of rows at a time; None means as many as fit into memory, at most MAX_ROWS.
        digest: the model's digest, under which the verdict of the self-check is kept; None means it is not kept.
        longest: maximum number of tokens of a prompt with its completion; None means unknown.
        device: "cpu", "cuda" or "cuda:N"; None means all GPUs if there are any, otherwise the CPU.
        label: the command, for its line in the log.

    Attributes:
        dtype: the data type that is used.
        verdict: how the model is computed: in batches, or one prompt at a time by the library.
        rows_filled, steps: the sum of the rows of all decoding steps, and the number of steps; their ratio is the mean
            number of rows.

    Raises:
        UserError: the model is refused; see loading.py and self_check.py.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        sampling: Sampling,
        batch_size: int | None = None,
        digest: str | None = None,
        longest: int | None = None,
        device: str | None = None,
        label: str = "enhance",
    ):
        self.folder, self.sampling, self.longest, self.on = folder, sampling, longest, device
        self.dtype = best_dtype() if dtype == "auto" else dtype
        self.tokenizer = load_tokenizer(folder)
        self.model = load_on(folder, self.dtype, device)
        self.device = self.model.device
        self.linears_packed = False
        self.rows_filled = self.steps = 0
        key = {"stage": "enhance", "model": digest, "dtype": self.dtype, "device": self.device.type}
        key["longest"] = window_beyond(self.model.config, longest)
        self.verdict = remembered(key if digest else None, self.find_path)
        self.shape_model(self.verdict.attention, self.verdict.plain_linears, self.verdict.path == "batched")
        config = self.model.config
        if self.verdict.path != PATHS[0]:
            print(f"{label}: {config.model_type}: computed {WORDS[self.verdict.path]} ({self.verdict.why})", flush=True)
        self.max_rows = 1 if self.verdict.path != "batched" else batch_size or MAX_ROWS
        self.memory = free_memory(self.device) * MEMORY_FRACTION
        self.window = position_count(config)
        self.vocabulary = vocabulary_size(config)
        end = self.model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        self.end_tokens = set(end) if isinstance(end, (list, tuple)) else {end}
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids))
        self.end_tokens |= {special[stop] for stop in sampling.stop if stop in special}  # texts have no special tokens
        self.column_bytes, self.layers = self.measure_cache() if self.verdict.path == "batched" else (0, 1)
        self.rows_filled = self.steps = 0  # the steps of the check do not count

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template, for prompts that are conversations."""
        return ChatTemplate(self.tokenizer, self.folder)

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the model's forward takes `position_ids`. BLOOM and state-space models do not take it."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def find_path(self) -> Verdict:
        """The first of PATHS whose logits agree with the library's plain forward pass."""
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
            # This path uses plain forward passes. The check shows whether packed linear layers compute them correctly.
            return fault_of(lambda: plain_logits(self.model, expected.texts), expected.whole, tolerance)

        return first_exact(PATHS, self.device.type == "cpu", fault, self.model.config, self.folder)

    def shape_model(self, attention: str, plain_linears: bool, batched: bool) -> None:
        """Set the model's attention (the decode attention for batches), and pack or restore its linear layers."""
        if self.linears_packed and plain_linears:
            self.model = load_on(self.folder, self.dtype, self.on)
            self.linears_packed = False
        set_attention(self.model, attention)
        if batched:
            use_decode_attention(self.model)
        if self.device.type == "cpu" and not plain_linears and not self.linears_packed:
            pack_linears(self.model)
            self.linears_packed = True

    @torch.inference_mode()
    def measure_cache(self) -> tuple[int, int]:
        """Return (bytes of the keys and values of one token, number of layers)."""
        cache = KeyValues()
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=cache)
        return cache.bytes_per_column, len(cache.layers)

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts. Each completion is yielded as soon as it ends."""
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
        """Take enough prompts to fill the batch. A prompt that fills the model's window fails."""
        while len(waiting) < batch.free_places():
            prompt = next(prompts, None)
            if prompt is None:
                return
            made = self.row_of(prompt)
            if isinstance(made, Failure):
                yield made
            else:
                waiting.append(made)

    def row_of(self, prompt: Prompt) -> Row | Failure:
        """The row of a prompt, or a Failure if the prompt is empty or too long.

        Raises:
            UserError: the tokenizer gives tokens for which the model has no embedding.
        """
        messages = prompt.messages
        tokens = self.template.encode(messages) if messages else encode_prompt(self.tokenizer, prompt.text)
        require_embeddings(tokens, self.vocabulary, f"record {prompt.index + 1}")
        if not tokens:
            return Failure(prompt, "the prompt has no tokens")
        if self.window is not None and len(tokens) >= self.window:
            return Failure(prompt, f"the prompt has {len(tokens)} tokens, but the model's window is {self.window}")
        return Row(prompt, tokens, torch.Generator(self.device))

    def guarded(self, batch: Batch, waiting: deque[Row], work: Any) -> Iterator[Completion | Failure]:
        """Do one piece of work. If memory runs out, all rows go back to the queue, and the maximum is halved.

        These rows start again and get the same text, because each row has a separate random generator.
        """
        fits = True
        try:
            batch.give_way(waiting)
            work()
        except torch.cuda.OutOfMemoryError:
            fits = False  # what follows has to wait: the error's traceback holds the tensors of the failed pass
        if not fits:
            batch.evict(len(batch.rows), waiting)
            torch.cuda.empty_cache()
            self.max_rows = max(1, batch.together // 2)
            if batch.together == 1:
                row = waiting.popleft()
                yield Failure(row.prompt, f"{len(row.tokens) + len(row.new)} tokens do not fit into the GPU's memory")
        yield from batch.retire()

    def ended(self, row: Row) -> str:
        """Why a row has ended: "stop" or "length"; "" if it goes on."""
        if row.new[-1] in self.end_tokens or (self.may_stop(row) and self.stop_position(row) >= 0):
            return "stop"
        full = self.window is not None and len(row.tokens) + len(row.new) >= self.window
        return "length" if full or len(row.new) >= self.sampling.num_tokens else ""

    def may_stop(self, row: Row) -> bool:
        """Whether the newest tokens may have a stop text, so that the whole text has to be looked at.

        A stop text that ends now lies in the last tokens, as each token has at least one byte. Decoding these alone may
        change their first characters, but not the stop text.
        """
        if not self.sampling.stop:
            return False
        last = max(len(stop.encode(errors="surrogatepass")) for stop in self.sampling.stop) + FURTHER
        if row.prompt.messages or len(row.new) <= last:
            return True
        tail = self.tokenizer.decode(row.new[-last:], skip_special_tokens=True)
        return any(stop.strip() in tail for stop in self.sampling.stop)

    def stop_position(self, row: Row) -> int:
        """Position of the first stop text in the row's new text; -1 if there is none. A stop text in what a chat model
        thinks before its answer does not count."""
        text = self.text(row)
        start = 0
        if row.prompt.messages and text.lstrip().startswith(THINKING):
            if ANSWER not in text:
                return -1
            start = text.rfind(ANSWER) + len(ANSWER)
        found = [position for stop in self.sampling.stop if (position := text.find(stop, start)) >= 0]
        return min(found, default=-1)

    def text(self, row: Row) -> str:
        new = row.new[:-1] if row.new[-1] in self.end_tokens else row.new  # the end token need not be a special token
        if row.prompt.messages:
            return self.template.decode(row.tokens, new)
        return decode_completion(self.tokenizer, row.tokens, new)

    def completion(self, row: Row) -> Completion:
        text = self.text(row)
        if self.sampling.stop and (position := self.stop_position(row)) >= 0:
            text = text[:position]
        return Completion(
            row.prompt, text, len(row.tokens), len(row.new), self.ended(row), top_logprobs=self.distribution(row)
        )

    def distribution(self, row: Row) -> str:
        """The field with the teacher's distribution at each new token; an empty text if it is not kept."""
        if not row.top:
            return ""
        ids_TK, logprobs_TK1 = (torch.stack(parts).numpy() for parts in zip(*row.top))
        return encode(TopLogprobs(self.vocabulary_digest, np.array(row.new), ids_TK, logprobs_TK1))

    @cached_property
    def vocabulary_digest(self) -> str:
        return vocabulary_digest(self.tokenizer)


def load_on(folder: Path, dtype: str, device: str | None) -> torch.nn.Module:
    """The model on a device, or on all GPUs: if there are several, it is spread over them."""
    if device is not None:
        return load_model(folder, dtype=DTYPES[dtype]).to(device).eval()
    gpus = torch.cuda.device_count()
    if dtype == "int8":
        if not gpus:
            raise UserError("--dtype int8 needs a GPU (bitsandbytes); use --dtype auto here")
        return load_model(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="auto").eval()
    if gpus > 1:
        return load_model(folder, dtype=DTYPES[dtype], device_map="auto").eval()
    return load_model(folder, dtype=DTYPES[dtype]).to("cuda" if gpus else "cpu").eval()


def free_memory(device: torch.device) -> int:
    """Number of free bytes on the GPU, or of available bytes of main memory."""
    if device.type == "cuda":
        return gpu.free_memory(device)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
