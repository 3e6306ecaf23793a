"""Batches with a maximum number of tokens: the samples of a step are divided among device batches by best fit.

A step has the same samples as without it, and the same loss but for rounding, because the weights of tokens are those
of the whole step (trainer.py). Short samples share a large batch, which needs fewer and larger matrix products.
"""

from collections.abc import Callable, Sequence

Cost = Callable[[Sequence[int]], int]
"""Number of tokens, padding included, of a batch of samples, from their lengths."""


def packed_cost(lengths: Sequence[int]) -> int:
    return sum(lengths)


def padded_cost(lengths: Sequence[int]) -> int:
    return len(lengths) * max(lengths)


def best_fit(lengths: Sequence[int], most: int, cost: Cost) -> list[list[int]]:
    """Divide samples among batches of at most `most` tokens: each sample, the longest first, goes to the batch in which
    it leaves the least room (best-fit decreasing), or to a new one.

    Args:
        lengths: number of tokens of each sample. A sample with more than `most` tokens has a batch of its own.

    Returns:
        The indices of the samples of each batch.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = []
        for place, batch in enumerate(batches):
            room = most - cost([lengths[one] for one in (*batch, index)])
            if room >= 0:
                fits.append((room, place))
        if fits:
            batches[min(fits)[1]].append(index)
        else:
            batches.append([index])
    return [sorted(batch) for batch in batches]
