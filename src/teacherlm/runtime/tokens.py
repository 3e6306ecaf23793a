"""Convert texts to token ids, with the special tokens that a model expects, and back.

A tokenizer defines the special tokens around a text. Those before the text (BOS) come before prompts, scored texts and
training texts, so that all stages agree. Those after the text (EOS) end training texts only: with EOS at the end of a
prompt, the model would continue after the end of the text.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from teacherlm.core.errors import UserError

PROBES = ("a", "A", "1", ".", "(", "é", "的", "あ", "я", "ا")
"""Texts for finding the special tokens. Any vocabulary has a token for at least one of them."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text.

    Raises:
        UserError: the tokenizer encodes none of the probe texts in a way that shows its special tokens.
    """
    for probe in PROBES:
        bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    raise UserError(
        "the special tokens that this tokenizer puts around a text cannot be determined; use a tokenizer.json whose "
        "post-processor defines them"
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a prompt: the special tokens that begin a text, then the text."""
    before, _ = special_tokens(tokenizer)
    return before + tokenizer(text, add_special_tokens=False)["input_ids"]


def decode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens that follow a prompt.

    Prompt and new tokens are decoded together. SentencePiece decoders drop a space at the beginning, so the new tokens
    alone would lose the space between prompt and completion.
    """
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **how)
    whole = tokenizer.decode([*prompt, *new], **how)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(new), **how)


def require_embeddings(ids: Sequence[int], rows: int | None, where: str) -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        ids: the token ids of one text.
        rows: number of rows of the model's embedding; None means unknown, and nothing is refused.
        where: the place of the text, for the message.

    Raises:
        UserError: the tokenizer is larger than the model's vocabulary.
    """
    if rows is not None and ids and max(ids) >= rows:
        raise UserError(
            f"{where}: the tokenizer gives the token number {max(ids)}, but the model's embedding has {rows} rows, 0 "
            f"to {rows - 1}; use the tokenizer that belongs to the model"
        )
