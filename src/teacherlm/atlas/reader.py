"""The reader: fusion-in-decoder over T5 (Izacard & Grave 2021, arXiv 2007.01282).

Each passage is encoded separately together with the query, and the decoder attends to the states of all passages. T5's
cross-attention has no positions, so the states can be concatenated without padding.
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
"""Maximum number of tokens that are encoded together, including padding. Larger batches need more padding. On a CPU
this number keeps all cores busy and fits into the caches."""
IGNORED = -100
"""The label of a position without a target."""


@dataclass
class Reader:
    """A T5, its tokenizer, and the maximum number of tokens of a query with its passage."""

    model: PreTrainedModel
    tokenizer: Any
    text_maxlength: int

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_reader(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A T5 from a folder.

    Raises:
        UserError: the model cannot be loaded, is not a T5, or its weights are incomplete (see check_weights).
    """
    require_t5(folder)
    try:
        with without_warnings():  # check_weights reports these problems instead
            model, info = T5ForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except Exception as error:  # a broken file can raise anything
        raise UserError(
            f"the reader in {folder} cannot be loaded: {loading_fault(error)}; is the copy complete?"
        ) from error
    if says_own_head(folder) and model.lm_head.weight is model.shared.weight:  # the library tied a missing head
        info["missing_keys"] = {*info["missing_keys"], "lm_head.weight"}
    check_weights(model, info, folder)
    return model


def says_own_head(folder: Path) -> bool:
    """Whether the configuration in a folder says that the T5's output layer is separate from its embedding.

    The configurations on the hub say this correctly. The library changes the value when it loads or saves a T5: a T5
    that it creates always uses its embedding as the output layer.
    """
    return require_object(folder / "config.json").get("tie_word_embeddings") is False


def has_own_head(config: Any) -> bool:
    """Whether a released T5 has a separate output layer. Only the first version of T5 uses its embedding instead."""
    return not getattr(config, "scale_decoder_outputs", True)


def empty_reader(folder: Path) -> PreTrainedModel:
    """A T5 with the shape from a folder's configuration, without trained weights."""
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
    """The states to which the decoder attends. Each of B questions has the states of all its texts, concatenated.

    Attributes:
        states: the states (B, S, D); S is the number of the longest question.
        passage: (B, S), the index of the text to which a state belongs; -1 for padding.
    """

    states: torch.Tensor
    passage: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return (self.passage >= 0).long()


def encode(reader: Reader, texts_BN: Sequence[Sequence[str]]) -> Encoded:
    """Encode each question's texts (its query with each of its passages), and concatenate their states.

    A repeated text is encoded once. Texts are batched by length, and padding is dropped.
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
    """The targets of B questions; T is the number of tokens of the longest one.

    Attributes:
        tokens: (B, T), the decoder's prompt, the target and the end-of-text token, then padding.
        labels: (B, T), the same tokens, but IGNORED at the prompt and the padding.
    """

    tokens: torch.Tensor
    labels: torch.Tensor


def make_target(
    reader: Reader, texts: Sequence[str], target_maxlength: int | None, prompts: Sequence[str] | None = None
) -> Target:
    """The tokens of targets, each with an end-of-text token.

    Args:
        texts: the targets.
        target_maxlength: maximum number of tokens of a target with its prompt; None means no maximum.
        prompts: the texts with which the decoder begins and which it need not predict (--decoder_prompt_format).

    Raises:
        UserError: the end of a prompt and the beginning of its target form one token.
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
                "--decoder_prompt_format: its end and the beginning of the target form one token; choose another end"
            )
        row[: len(prompt)] = IGNORED
    return Target(tokens["input_ids"], labels)


def prompt_tokens(reader: Reader, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of decoder prompts alone, as in the reference."""
    return reader.tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []


def decode(reader: Reader, encoded: Encoded, target: Target, **kwargs: Any) -> Any:
    """The output of the T5 for given targets: logits (B, T, V), and what `kwargs` ask for.

    With use_cache=True, `generate` can reuse the past_key_values.
    """
    return reader.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
        attention_mask=encoded.mask,
        decoder_input_ids=reader.model.prepare_decoder_input_ids_from_labels(target.tokens),
        **{"use_cache": False, **kwargs},
    )


def target_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The loss of each target token (B, T) in float32; 0 if there is no token."""
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
    """The texts that the reader generates, with at most `max_length` tokens.

    Args:
        decoded: the past_key_values from `decode` for the same states, of which the cross-attention part is reused.
        num_beams: number of beams of the beam search; 1 is greedy.
        length_penalty: in beam search, a text's log-probability is divided by its length to this power.
        min_length: minimum number of tokens, including the first one (<pad>), as in the reference.
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
    """The text that the reader generates after the decoder prompt of each question. Lengths do not include the prompt.

    Each question is decoded separately, because texts after prompts of different lengths end at different positions.
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
    """The tokens (B, T) from the library's generation, including the first token. `known` is passed to the library."""
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
