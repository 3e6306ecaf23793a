"""The orders in which a question's choices are presented, to remove a model's bias towards a letter.

Following Izacard et al. 2022 (arXiv 2208.03299, section 4.3), a question is presented in several orders of its choices.
The probability of a choice is averaged over the orders, whichever letter it has in each.
"""

import itertools


def orders(n: int, kind: str) -> list[tuple[int, ...]]:
    """`orders[o][place]` is the index of the choice at that place in order o. The first order is the question's own.

    Args:
        n: number of choices.
        kind: `single` (only the question's own order), `cyclic` (n orders, each rotated by one place more, in the
            reference's direction), or `all` (n! orders).
    """
    places = tuple(range(n))
    if kind == "cyclic":
        return [places[n - shift :] + places[: n - shift] for shift in range(n)]
    return list(itertools.permutations(places)) if kind == "all" else [places]
