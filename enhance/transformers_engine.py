"""The teacher on this machine: transformers' `generate`, in batches, on a CPU or one GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from teacherlm.errors import UserError
from teacherlm.loading import load_model, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        num_tokens: at most so many new tokens.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: only the likeliest tokens whose probabilities sum to this are sampled from.
        seed: with a record's prompt it decides that record's draws.
    """

    num_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Prompt:
    """A prompt with the number of its record and the seed of its draws."""

    index: int
    text: str
    seed: int


@dataclass(frozen=True)
class Completion:
    """What the teacher wrote after a prompt. `tokens` counts the new ones, the end of text included."""

    index: int
    text: str
    tokens: int


def best_dtype() -> str:
    """bfloat16 where the device computes in it, float32 elsewhere."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


class TransformersEngine:
    """A teacher, loaded once.

    Args:
        folder: the model's folder.
        dtype: one of DTYPES, or "int8" (bitsandbytes, GPU only).
        sampling: see Sampling.
    """

    def __init__(self, folder: Path, dtype: str, sampling: Sampling):
        self.sampling = sampling
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(folder, padding_side="left")
        self.model = load_teacher(folder, dtype, self.device).eval()
        own = self.model.generation_config
        self.config = GenerationConfig(
            max_new_tokens=sampling.num_tokens,
            do_sample=False,  # RecordSampler has chosen by then, or the likeliest token is wanted
            eos_token_id=own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id,
            bos_token_id=own.bos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    @property
    def window(self) -> int | None:
        """How many tokens the model takes; None where its config sets no bound (BLOOM's ALiBi)."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """Complete one batch of prompts; whatever the batch, a record's draws are its own.

        Raises:
            UserError: a prompt leaves the model's window no room (its record is named).
        """
        inputs = self.tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True)
        lengths = inputs.attention_mask.sum(1).tolist()
        for prompt, length in zip(prompts, lengths):
            if self.window is not None and length >= self.window:
                raise UserError(
                    f"record {prompt.index + 1}: the prompt has {length} tokens and the teacher's window is "
                    f"{self.window}; shorten or remove this record"
                )
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        processors = LogitsProcessorList()
        if self.sampling.temperature > 0:
            processors.append(RecordSampler(prompts, self.sampling, self.device))
        with torch.inference_mode():
            outputs = self.model.generate(**inputs, generation_config=self.config, logits_processor=processors)
        new_BT = outputs[:, inputs["input_ids"].shape[1] :]
        for prompt, new_T in zip(prompts, new_BT.tolist()):
            ended = [position for position, token in enumerate(new_T) if token in self.end_tokens]
            length = ended[0] if ended else len(new_T)
            text = self.tokenizer.decode(new_T[:length], skip_special_tokens=True)
            yield Completion(prompt.index, text, length + bool(ended))

    @property
    def end_tokens(self) -> set[int]:
        end = self.config.eos_token_id
        return set(end) if isinstance(end, (list, tuple)) else {end}


def load_teacher(folder: Path, dtype: str, device: torch.device) -> torch.nn.Module:
    if dtype != "int8":
        return load_model(folder, dtype=DTYPES[dtype]).to(device)
    if device.type != "cuda":
        raise UserError("--dtype int8 needs a GPU (bitsandbytes); use --dtype auto here")
    return load_model(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": 0})


class RecordSampler(LogitsProcessor):
    """Samples each row with its own record's random numbers, by the Gumbel-max trick (Maddison et al. 2014, 1411.0030).

    argmax(logit / temperature - log e), e exponential, is a sample of the softmax; so the scores are changed such that
    the arg max that `generate` takes is the sample. The draws depend on the record and the seed, never on the other
    rows. Inverting the cumulative distribution would need one draw a token only, but there a rounding error of the
    logits, which batches of another shape bring, moves every boundary between tokens after it.
    """

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling, device: torch.device):
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.generators = [torch.Generator(device).manual_seed(prompt.seed) for prompt in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits_BV = scores.float() / self.temperature
        if self.top_p < 1:
            logits_BV = keep_nucleus(logits_BV, self.top_p)
        noise_BV = torch.empty_like(logits_BV)
        for noise_V, generator in zip(noise_BV, self.generators):
            noise_V.exponential_(generator=generator)
        return logits_BV - noise_BV.log()


def keep_nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Minus infinity for all but the smallest set of likeliest tokens that reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True)
    outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), -torch.inf)
