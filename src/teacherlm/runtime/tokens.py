"""Texts as token ids with the special tokens where a model expects them, and back.

A tokenizer says which special tokens belong around a text. Those before it (BOS) are put before prompts, before what is
scored and before what is trained on, so that all stages agree. Those after it (EOS) end a text that is trained on and
nothing else: a prompt that ended so would be continued after its end.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from teacherlm.core.errors import UserError

PROBES = ("a", "A", "1", ".", "(", "é", "的", "あ", "я", "ا")
"""Texts of which one has a token in any vocabulary."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text.

    Raises:
        UserError: no text shows them.
    """
    for probe in PROBES:
        bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    raise UserError(
        "it cannot be told which special tokens this tokenizer puts around a text; use a tokenizer.json whose "
        "post-processor says so"
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text that is to be continued: the special tokens that begin a text, and the text."""
    before, _ = special_tokens(tokenizer)
    return before + tokenizer(text, add_special_tokens=False)["input_ids"]


def decode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens as it follows the prompt's.

    Both are decoded together: decoders of SentencePiece's kind drop a blank at the beginning of what they are given, so
    that new tokens decoded alone would lose the blank between prompt and completion.
    """
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **how)
    whole = tokenizer.decode([*prompt, *new], **how)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(new), **how)


def require_embeddings(ids: Sequence[int], rows: int | None, where: str) -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        ids: of one text.
        rows: of the model's embedding; None: unknown, nothing is refused.
        where: the text's place, for the message.

    Raises:
        UserError: the tokenizer is larger than the model's vocabulary.
    """
    if rows is not None and ids and max(ids) >= rows:
        raise UserError(
            f"{where}: the tokenizer gives the token number {max(ids)}, but the model's embedding has {rows} rows, 0 "
            f"to {rows - 1}; use the tokenizer that belongs to the model"
        )
