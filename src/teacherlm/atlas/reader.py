"""The reader: fusion-in-decoder over T5 (Izacard & Grave 2021, arXiv 2007.01282).

Each passage is encoded with the query, apart from the others; the decoder attends to the states of all of them. T5 has
no positions in its cross-attention, so states can be put side by side without their padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, DynamicCache, EncoderDecoderCache, PreTrainedModel, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from teacherlm.core.errors import UserError
from teacherlm.core.json_files import require_object
from teacherlm.runtime.loading import check_weights, without_warnings
from teacherlm.runtime.model_config import loading_fault

TOKENS_AT_A_TIME = {"cpu": 2048, "cuda": 65_536}
"""Tokens that are encoded together, padding included. More of them need more padding; a CPU's cores have enough to do
with these, and its caches hold what belongs to them."""
IGNORED = -100
"""The label of a place without a target."""


@dataclass
class Reader:
    """A T5, its tokenizer, and how long a query with its passage may be (in tokens)."""

    model: PreTrainedModel
    tokenizer: Any
    text_maxlength: int

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_reader(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A T5 from a folder.

    Raises:
        UserError: it cannot be loaded, is no T5, or its weights are not whole (see check_weights).
    """
    require_t5(folder)
    try:
        with without_warnings():  # check_weights says what the library would warn of
            model, info = T5ForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except Exception as error:  # a broken file raises whatever its parser does
        raise UserError(
            f"the reader in {folder} cannot be loaded: {loading_fault(error)}; is the copy whole?"
        ) from error
    if says_own_head(folder) and model.lm_head.weight is model.shared.weight:  # as the library makes it without one
        info["missing_keys"] = {*info["missing_keys"], "lm_head.weight"}
    check_weights(model, info, folder)
    return model


def says_own_head(folder: Path) -> bool:
    """Whether a folder's configuration says that its T5 has an output layer of its own, as those of the hub say.

    The library reads and writes another value: a T5 that it made has its embedding for a head, whatever its kind.
    """
    return require_object(folder / "config.json").get("tie_word_embeddings") is False


def has_own_head(config: Any) -> bool:
    """Whether a released T5 has an output layer of its own: all but the first kind, whose head is its embedding."""
    return not getattr(config, "scale_decoder_outputs", True)


def empty_reader(folder: Path) -> PreTrainedModel:
    """A T5 of the shape that a folder's configuration gives, to be filled with a checkpoint's weights."""
    return T5ForConditionalGeneration(require_t5(folder))


def require_t5(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"the reader in {folder} cannot be loaded: {loading_fault(error)}") from error
    if config.model_type != "t5":
        raise UserError(f"the reader in {folder} is a {config.model_type}; a T5 was expected")
    return config


class Encoded(NamedTuple):
    """What the decoder attends to: B questions, the states of all texts of each side by side, S for the longest.

    Attributes:
        states: (B, S, D).
        passage: (B, S), which of the question's texts a state is of; -1 where there is none.
    """

    states: torch.Tensor
    passage: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return (self.passage >= 0).long()


def encode(reader: Reader, texts_BN: Sequence[Sequence[str]]) -> Encoded:
    """Encode each question's texts (its query with each of its passages), and put their states side by side.

    A text that is there several times is encoded once. Texts are batched by length; padding is dropped.
    """
    unique = {text: number for number, text in enumerate(dict.fromkeys(text for texts in texts_BN for text in texts))}
    tokens = reader.tokenizer(list(unique), truncation=True, max_length=reader.text_maxlength)["input_ids"]
    states = encode_tokens(reader, tokens)
    rows = [torch.cat([states[unique[text]] for text in texts]) for texts in texts_BN]
    places = [[place for place, text in enumerate(texts) for _ in tokens[unique[text]]] for texts in texts_BN]
    passage_BS = nn.utils.rnn.pad_sequence(list(map(torch.tensor, places)), batch_first=True, padding_value=-1)
    return Encoded(nn.utils.rnn.pad_sequence(rows, batch_first=True), passage_BS.to(reader.device))


def encode_tokens(reader: Reader, tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The encoder's states (length, D) of each text."""
    states: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
    by_length = sorted(range(len(tokens)), key=lambda number: len(tokens[number]), reverse=True)
    while by_length:
        rows = max(1, TOKENS_AT_A_TIME[reader.device.type] // len(tokens[by_length[0]]))
        batch, by_length = by_length[:rows], by_length[rows:]
        padded = reader.tokenizer.pad({"input_ids": [tokens[number] for number in batch]}, return_tensors="pt")
        padded = padded.to(reader.device)
        encoded_BLD = reader.model.encoder(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
        ).last_hidden_state
        for number, encoded_LD in zip(batch, encoded_BLD):
            states[number] = encoded_LD[: len(tokens[number])]
    return states


class Target(NamedTuple):
    """What the decoder is to write for B questions, T tokens for the longest.

    Attributes:
        tokens: (B, T), the decoder's prompt, the target and its end of text, then padding.
        labels: (B, T), the same tokens where the reader learns or is scored; IGNORED at the prompt and the padding.
    """

    tokens: torch.Tensor
    labels: torch.Tensor


def make_target(
    reader: Reader, texts: Sequence[str], target_maxlength: int | None, prompts: Sequence[str] | None = None
) -> Target:
    """The tokens of targets, each with its end of text.

    Args:
        texts: the targets.
        target_maxlength: tokens of a target with its prompt, at most; None: any number.
        prompts: what the decoder begins each target with and is not asked to predict (--decoder_prompt_format).

    Raises:
        UserError: the end of a prompt and the beginning of its target are one token.
    """
    begun = ["".join(pair) for pair in zip(prompts or [""] * len(texts), texts, strict=True)]
    whole = [text if text.endswith("</s>") else text + "</s>" for text in begun]
    cut: dict[str, Any] = {"truncation": True, "max_length": target_maxlength} if target_maxlength else {}
    tokens = reader.tokenizer(whole, add_special_tokens=False, padding=True, return_tensors="pt", **cut).to(
        reader.device
    )
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
    for row, prompt in zip(labels, prompt_tokens(reader, prompts or [])):
        if row[: len(prompt)].tolist() != prompt[: len(row)]:
            raise UserError(
                "--decoder_prompt_format: its end and the target's beginning are one token; end it otherwise"
            )
        row[: len(prompt)] = IGNORED
    return Target(tokens["input_ids"], labels)


def prompt_tokens(reader: Reader, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of decoder prompts, by themselves, as the reference counts them."""
    return reader.tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []


def decode(reader: Reader, encoded: Encoded, target: Target, **options: Any) -> Any:
    """The output of the T5 whose decoder is given the target: logits (B, T, V), and what `options` ask for.

    With use_cache=True its past_key_values save `generate` the work that both have in common.
    """
    return reader.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
        attention_mask=encoded.mask,
        decoder_input_ids=reader.model.prepare_decoder_input_ids_from_labels(target.tokens),
        **{"use_cache": False, **options},
    )


def target_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The loss of each target token (B, T) in float32; 0 where there is none."""
    losses = nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels_BT.shape)


def generate(
    reader: Reader,
    encoded: Encoded,
    max_length: int,
    decoded: EncoderDecoderCache | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    min_length: int | None = None,
) -> list[str]:
    """What the reader writes by itself, at most `max_length` tokens.

    Args:
        decoded: past_key_values of `decode` on the same states, whose keys and values of the states are used again.
        num_beams: of beam search; 1: greedy.
        length_penalty: of beam search, the power of its length by which a text's log-probability is divided.
        min_length: tokens that are written at least, the first one (<pad>) included, as in the reference.
    """
    known: dict[str, Any] = {}
    if decoded is not None and num_beams == 1:
        known["past_key_values"] = EncoderDecoderCache(DynamicCache(), decoded.cross_attention_cache)
    tokens = write(reader, encoded, max_length, num_beams, length_penalty, min_length, **known)
    return reader.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def generate_after(
    reader: Reader,
    encoded: Encoded,
    prompts: Sequence[str],
    max_length: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    min_length: int | None = None,
) -> list[str]:
    """What the reader writes after a decoder prompt for each question; lengths count what comes after the prompt.

    Each question is decoded by itself: prompts of different lengths end their texts at different places.
    """
    written = []
    for question, prompt in enumerate(prompt_tokens(reader, prompts)):
        alone = Encoded(encoded.states[question, None], encoded.passage[question, None])
        begun = torch.tensor([[reader.model.config.decoder_start_token_id, *prompt]], device=reader.device)
        longest, shortest = max_length + len(prompt), min_length and min_length + len(prompt)
        tokens = write(reader, alone, longest, num_beams, length_penalty, shortest, decoder_input_ids=begun)
        written.append(tokens[0, begun.shape[1] :])
    return reader.tokenizer.batch_decode(written, skip_special_tokens=True)


def write(
    reader: Reader,
    encoded: Encoded,
    max_length: int,
    num_beams: int,
    length_penalty: float,
    min_length: int | None,
    **known: Any,
) -> torch.Tensor:
    """The tokens (B, T) that the library's generation gives, with its first token; `known` goes to the library."""
    if num_beams > 1:
        known["length_penalty"] = length_penalty
    if min_length is not None:
        known["min_length"] = min_length
    return reader.model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
        attention_mask=encoded.mask,
        max_length=max_length,
        num_beams=num_beams,
        do_sample=False,
        **known,
    )
