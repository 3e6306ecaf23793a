"""The teacher's distribution as a field of a record, and where its tokens are in a sample."""

import base64

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacherlm.catalog.top_logprobs import HEAD, MARK, TopLogprobs, decode, encode
from teacherlm.finetune.soft_targets import common_blocks
from teacherlm.runtime.sampling import top_tokens


@given(st.integers(0, 9), st.integers(1, 6), st.sampled_from([90, 2**16, 2**16 + 1, 300_000]), st.integers(0, 99))
def test_what_is_written_is_read(count: int, k: int, vocabulary: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    ids_TK = draw.integers(0, vocabulary, (count, k))
    logprobs_TK1 = -draw.exponential(3, (count, k + 1)).astype(np.float32)
    top = TopLogprobs("0123456789abcdef", draw.integers(0, vocabulary, count), ids_TK, logprobs_TK1)
    text = encode(top)
    found = decode(text, vocabulary)
    assert found.vocabulary == top.vocabulary
    assert (found.written_T == top.written_T).all() and (found.ids_TK == ids_TK).all()
    np.testing.assert_allclose(found.logprobs_TK1, logprobs_TK1, rtol=2**-11)
    highest = max([0, *top.written_T.tolist(), *ids_TK.flatten().tolist()])
    size = 2 if highest < 2**16 else 4
    assert len(base64.b64decode(text)) == HEAD.size + count * (size * (k + 1) + 2 * (k + 1))
    if highest:
        with pytest.raises(ValueError, match="names a token that is not among the vocabulary's"):
            decode(text, highest)


def test_an_outcome_without_probability_stays_one() -> None:
    top = TopLogprobs("0" * 16, np.array([1]), np.array([[1]]), np.array([[0.0, -np.inf]], np.float32))
    found = decode(encode(top), 2).logprobs_TK1
    assert found[0, 0] == 0 and found[0, 1] < -50_000


def head(**changed: int) -> bytes:
    values = {"size": 2, "k": 1, "count": 1} | changed
    return HEAD.pack(MARK, bytes(8), values["size"], 0, values["k"], values["count"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"TLP1",
        head(),
        head() + bytes(7),
        head() + bytes(9),
        head(size=3) + bytes(8),
        head(k=0) + bytes(8),
        head(k=2000) + bytes(8),
        head(count=2**31) + bytes(8),
        b"XXXX" + head()[4:] + bytes(8),
        head() + bytes(4) + np.array([0.5, -1], "<f2").tobytes(),
        head() + bytes(4) + np.array([np.nan, -1], "<f2").tobytes(),
    ],
)
def test_a_damaged_field_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(base64.b64encode(data).decode(), 90)


@pytest.mark.parametrize("value", [None, 3, "é", "abc!", ["a"]])
def test_another_value_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"not in the form that enhance\.py writes"):
        decode(value, 90)


def test_the_most_likely_tokens_and_the_rest() -> None:
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    ids_BK, logprobs_BK1 = top_tokens(logits_BV, 5)
    probs_BV = logits_BV.softmax(-1)
    assert (ids_BK == probs_BV.topk(5).indices).all()
    expected = torch.cat([probs_BV.topk(5).values, 1 - probs_BV.topk(5).values.sum(1, keepdim=True)], 1)
    torch.testing.assert_close(logprobs_BK1.double().exp(), expected, rtol=1e-5, atol=1e-7)
    assert top_tokens(logits_BV, 90)[0].shape == (3, 39)


def test_the_tokens_that_two_texts_have_in_common() -> None:
    question, text = list(range(100, 120)), [5, 6, 7, 8, 9, 10, 11]
    assert common_blocks([*question, *text], text) == [(20, 0, 7)]
    assert common_blocks([*question, 4, *text[1:], 1], [*text, 2]) == [(21, 1, 6)]
    assert common_blocks([*question, *text[:4], 99, *text[5:]], text) == [(20, 0, 4)]  # the last two may be by chance
    assert common_blocks(question, text) == []
    assert common_blocks([*question, 5, 6], [5, 6]) == [(20, 0, 2)]
    assert common_blocks(question, []) == []
