"""Flat search gives the same result as sorting all scores, for blocks of any size. FAISS gives nearly the same."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacherlm.atlas import compressed_search, flat_search
from teacherlm.atlas.flat_search import FlatVectors, above


def sorted_scores(queries: torch.Tensor, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores, rows = torch.sort(queries.float() @ vectors.float().T, dim=1, descending=True, stable=True)
    return scores[:, :k], rows[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 700),
    queries=st.integers(0, 12),
    k=st.integers(1, 40),
    block=st.sampled_from([1, 33, 64, 4096]),
    cuts=st.lists(st.integers(0, 700), max_size=3),
    values=st.sampled_from([3, 100]),
)
def test_it_is_what_sorting_all_scores_gives(
    count: int, queries: int, k: int, block: int, cuts: list[int], values: int
) -> None:
    """The numbers are small and whole, so sums are exact, and many scores are equal."""
    generator = torch.Generator().manual_seed(count)
    vectors = torch.randint(-values, values + 1, (count, 5), generator=generator).half()
    asked = torch.randint(-values, values + 1, (queries, 5), generator=generator).float()
    bounds = sorted([0, count, *(min(cut, count) for cut in cuts)])  # equal bounds give an empty segment
    segments = [vectors[low:high] for low, high in itertools.pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(flat_search.BLOCK_VALUES, "cpu", block * 5)
        scores, rows = FlatVectors(segments, first_row=1000).search(asked, k)
    expected_scores, expected_rows = sorted_scores(asked, vectors, min(k, count))
    assert torch.equal(scores, expected_scores)
    assert torch.equal(rows, expected_rows + 1000)


def test_scores_above_a_bound_are_all_found_and_in_order() -> None:
    scores = torch.randn(7, 1001)
    bound = torch.tensor([[-torch.inf], [9.0], [0.0], [1.0], [2.0], [3.0], [torch.inf]])
    query, column = above(scores, bound)
    found = sorted(zip(query.tolist(), column.tolist()))
    assert found == [tuple(pair) for pair in torch.nonzero(scores > bound).tolist()]


def test_it_is_what_faiss_finds_among_real_numbers() -> None:
    import faiss

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5000, 48, generator=generator).half()
    asked = torch.randn(70, 48, generator=generator)
    index = faiss.IndexFlatIP(48)
    index.add(vectors.float().numpy())
    expected_scores, expected_rows = index.search(asked.numpy(), 10)
    scores, rows = FlatVectors([vectors], 0).search(asked, 10)
    torch.testing.assert_close(scores, torch.from_numpy(expected_scores), atol=1e-4, rtol=0)
    assert (rows == torch.from_numpy(expected_rows)).float().mean() > 0.999  # except scores that rounding makes equal


@pytest.mark.parametrize(
    ("kind", "code_size", "least"),
    [("flat", None, 1.0), ("ivfflat", None, 1.0), ("ivfsq", None, 0.8), ("pq", 16, 0.3), ("ivfpq", 16, 0.3)],
)
def test_compressed_indices_find_most_of_it(kind: str, code_size: int | None, least: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 32, generator=generator).half()
    asked = torch.randn(50, 32, generator=generator)
    index = compressed_search.train(kind, code_size, 3000, vectors.float().numpy())
    compressed_search.add(index, [vectors[:1000], vectors[1000:]], rows=300)
    scores, rows = compressed_search.CompressedVectors(index, first_row=7).search(asked, 10)
    _, expected = sorted_scores(asked, vectors, 10)
    recall = sum(len({*a} & {*b}) for a, b in zip(rows.tolist(), (expected + 7).tolist())) / 500
    assert recall >= least
    assert scores.shape == (50, 10) and (scores.diff(dim=1) <= 0).all()
