"""The model in vLLM, the fastest way on GPUs. vLLM is an optional extra, and only this module imports it."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teacherlm.catalog.chat_templates import THINKING
from teacherlm.catalog.top_logprobs import TopLogprobs, encode, vocabulary_digest
from teacherlm.core.errors import UserError, reason
from teacherlm.runtime.chat_template import ChatTemplate
from teacherlm.runtime.compat.of_vllm import BATCH_INVARIANT, ask_for_batch_invariance, engine_within, window_of
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling, cut_at
from teacherlm.runtime.tokens import encode_prompt

UNDER_WAY = 1024
"""Maximum number of prompts that vLLM gets at a time. It batches as many of them as it can."""


class VLLMEngine:
    """A model, loaded once.

    Args:
        folder: the model's folder.
        dtype: "auto" (that of the model's weights), "float32", "bfloat16" or "float16".
        sampling: how the next token is chosen.
        gpus: number of GPUs that the model is divided among.

    Attributes:
        is_batch_invariant: whether a text does not depend on the texts that are written with it.

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, folder: Path, dtype: str, sampling: Sampling, gpus: int = 1):
        # `complete` runs the steps in this process. With an engine in a second process, the CPU build waited for ever.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            self.is_batch_invariant = ask_for_batch_invariance()
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise UserError(
                f"--engine vllm needs the package vllm ({reason(error)}): install it with pip install -e .[gpu], "
                "or use --engine transformers"
            ) from error
        if dtype == "int8":
            raise UserError("--dtype int8 works only with --engine transformers")
        self.folder, self.sampling, self.parameters, self.dtype = folder, sampling, SamplingParams, dtype
        try:
            most = {"max_logprobs": sampling.top_logprobs} if sampling.top_logprobs else {}
            made = LLM(model=str(folder), dtype=dtype, trust_remote_code=False, tensor_parallel_size=gpus, **most)
            self.engine = engine_within(made)
        except (ValueError, OSError, RuntimeError) as error:
            without = f"{BATCH_INVARIANT}=0 or " if self.is_batch_invariant else ""
            raise UserError(
                f"vLLM cannot load the model in {folder}: {reason(error)}; {without}--engine transformers (in a chain "
                "ENGINE=transformers) may load it"
            ) from error
        self.window = window_of(self.engine)
        self.tokenizer = self.engine.get_tokenizer()
        self.end_tokens: set[int] = set()  # tokens that end a text, beside those of the model's generation settings

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template, for prompts that are conversations."""
        return ChatTemplate(self.tokenizer, self.folder)

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts. Each completion is yielded as soon as it ends."""
        under_way: dict[str, Prompt] = {}
        count = 0
        exhausted = False
        while under_way or not exhausted:
            while not exhausted and len(under_way) < UNDER_WAY:
                prompt = next(prompts, None)
                if prompt is None:
                    exhausted = True
                    break
                messages = prompt.messages
                tokens = self.template.encode(messages) if messages else encode_prompt(self.tokenizer, prompt.text)
                if len(tokens) >= self.window:
                    yield Failure(
                        prompt, f"the prompt has {len(tokens)} tokens, but the model's window is {self.window}"
                    )
                    continue
                name, count = str(count), count + 1
                under_way[name] = prompt
                self.engine.add_request(name, {"prompt_token_ids": tokens}, self.settings(prompt, len(tokens)))
            for output in self.engine.step():
                if output.finished:
                    prompt = under_way.pop(output.request_id)
                    yield self.completion(prompt, output)

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"batch_invariant": self.is_batch_invariant}

    def completion(self, prompt: Prompt, output: Any) -> Completion:
        made = output.outputs[0]
        text = made.text
        if prompt.messages and self.template.marks:  # vLLM drops special tokens
            text = cut_at(self.template.decode(output.prompt_token_ids, made.token_ids), self.sampling.stop)
        elif prompt.messages and self.template.opens_thinking:
            text = THINKING + text
        ended = "length" if made.finish_reason == "length" else "stop"
        top = self.distribution(made) if self.sampling.top_logprobs else ""
        return Completion(prompt, text, len(output.prompt_token_ids), len(made.token_ids), ended, top_logprobs=top)

    def distribution(self, made: Any) -> str:
        """The field with the teacher's distribution at each new token. vLLM also lists the token that was chosen."""
        ids, logprobs = [], []
        for place in made.logprobs:
            top = sorted(place.items(), key=lambda item: (-item[1].logprob, item[0]))[: self.sampling.top_logprobs]
            found = np.array([one.logprob for _, one in top], np.float32)
            others = np.log(max(1 - float(np.exp(found.astype(np.float64)).sum()), 1e-12))
            ids.append([token for token, _ in top])
            logprobs.append([*found, others])
        written = np.array(made.token_ids)
        return encode(TopLogprobs(self.vocabulary_digest, written, np.array(ids), np.array(logprobs, np.float32)))

    @cached_property
    def vocabulary_digest(self) -> str:
        return vocabulary_digest(self.tokenizer)

    def settings(self, prompt: Prompt, prompt_tokens: int) -> object:
        return self.parameters(
            max_tokens=min(self.sampling.num_tokens, self.window - prompt_tokens),
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=prompt.seed,
            stop=list(self.sampling.stop),
            stop_token_ids=sorted(self.end_tokens) or None,
            logprobs=self.sampling.top_logprobs or None,
        )
