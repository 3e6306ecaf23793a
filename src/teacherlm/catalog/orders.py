"""The orders in which the choices of a question are asked, to take out a model's liking for a letter.

A model that likes one letter, whatever stands behind it, is wrong as often as not. Following Izacard et al. 2022 (arXiv
2208.03299, section 4.3), a question is asked in several orders of its choices, and a choice's probability is averaged
over the orders, whatever its letter was in each.
"""

import itertools


def orders(n: int, kind: str) -> list[tuple[int, ...]]:
    """`orders[o][place]` is the choice that stands there in order o; the first order is the question's own.

    Args:
        n: number of choices.
        kind: `single` (the question's own order), `cyclic` (n orders, turned by one place each, as the reference turns
            them), or `all` n! orders.
    """
    places = tuple(range(n))
    if kind == "cyclic":
        return [places[n - shift :] + places[: n - shift] for shift in range(n)]
    return list(itertools.permutations(places)) if kind == "all" else [places]
