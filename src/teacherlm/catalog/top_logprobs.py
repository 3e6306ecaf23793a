"""The teacher's distribution at each token of a text that it wrote: its K most likely tokens, and the rest as one.

It is a field of a record, `KIND_top_logprobs`, in base64: a head, then for each of T tokens the token that was written
(T numbers), the K most likely tokens (T x K numbers), and their log-probabilities at temperature 1 with that of all
other tokens together (T x (K + 1) numbers in float16). Numbers of tokens have 16 bits where the vocabulary allows it.
A token takes about 4 (K + 1) bytes. The order of bytes is little-endian.
"""

import base64
import binascii
import hashlib
import itertools
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = "_top_logprobs"
HEAD = struct.Struct("<4s8sBBHI")
"""The mark, the digest of the vocabulary, bytes of a token's number, 0, K, T."""
MARK = b"TLP1"
MOST = 1024
"""Maximum K."""
LEAST_LOGPROB = -60000.0
"""Smaller log-probabilities become this number, because float16 ends at -65504."""


@dataclass(frozen=True)
class TopLogprobs:
    """The teacher's distribution at each token of a text.

    Attributes:
        vocabulary: the digest of the teacher's vocabulary (`vocabulary_digest`).
        written_T: the tokens that the teacher wrote, int64.
        ids_TK: the most likely tokens, int64.
        logprobs_TK1: their log-probabilities, then that of all other tokens together, float32.
    """

    vocabulary: str
    written_T: np.ndarray
    ids_TK: np.ndarray
    logprobs_TK1: np.ndarray


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """16 hexadecimal digits, which are the same for two tokenizers with the same numbers for the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode(errors="surrogatepass")).hexdigest()[:16]


def encode(top: TopLogprobs) -> str:
    """The field's text."""
    count, k = top.ids_TK.shape
    highest = max([0, *top.written_T.tolist(), *top.ids_TK.max(1, initial=0).tolist()])
    size = 2 if highest < 2**16 else 4
    head = HEAD.pack(MARK, bytes.fromhex(top.vocabulary), size, 0, k, count)
    logprobs = np.clip(top.logprobs_TK1, LEAST_LOGPROB, 0).astype("<f2")
    numbers = [array.astype(f"<u{size}").tobytes() for array in (top.written_T, top.ids_TK)]
    return base64.b64encode(b"".join([head, *numbers, logprobs.tobytes()])).decode("ascii")


def decode(text: Any, tokens: int) -> TopLogprobs:
    """The distributions in a field.

    Args:
        tokens: number of tokens in the vocabulary.

    Raises:
        ValueError: the field is not such a text, or names a token that is not in the vocabulary.
    """
    try:
        data = base64.b64decode(text, validate=True)
        mark, vocabulary, size, _, k, count = HEAD.unpack_from(data)
    except (binascii.Error, struct.error, TypeError, ValueError) as error:
        raise ValueError("it is not in the form that enhance.py writes") from error
    if mark != MARK or size not in (2, 4) or not 0 < k <= MOST:
        raise ValueError("it is not in the form that enhance.py writes")
    ends = np.cumsum([HEAD.size, count * size, count * k * size, count * (k + 1) * 2])
    if len(data) != ends[-1]:
        raise ValueError(f"{ends[-1]} bytes were expected, found {len(data)}")
    written, ids, logprobs = (data[start:end] for start, end in itertools.pairwise(ends))
    numbers = [np.frombuffer(part, f"<u{size}").astype(np.int64) for part in (written, ids)]
    logprobs_TK1 = np.frombuffer(logprobs, "<f2").astype(np.float32).reshape(count, k + 1)
    if any(part.size and int(part.max()) >= tokens for part in numbers):
        raise ValueError(f"it names a token that is not among the vocabulary's {tokens}")
    if not (logprobs_TK1 <= 0).all():
        raise ValueError("a logarithm of a probability is above 0, or is not a number")
    return TopLogprobs(vocabulary.hex(), numbers[0], numbers[1].reshape(count, k), logprobs_TK1)
