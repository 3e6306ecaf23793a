"""Batches: every input is computed once, common prefixes are shared, and the grouping saves the most tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from teacherlm.scoring.batching import SHORTEST_PREFIX, Group, Tokens, common_prefix, group_by_prefix, make_batches

TOKENS = st.integers(0, 1)  # few different tokens, so that prefixes are often common
BEGINNINGS = st.sampled_from([(), (0,) * SHORTEST_PREFIX, (0,) * (SHORTEST_PREFIX + 3), (1,) * (SHORTEST_PREFIX + 1)])
INPUTS = st.lists(
    st.builds(lambda beginning, rest: beginning + tuple(rest), BEGINNINGS, st.lists(TOKENS, min_size=1, max_size=12)),
    unique=True,
    min_size=1,
    max_size=9,
)


def saved(inputs: list[Tokens], scored: list[int], members: tuple[int, ...]) -> int:
    """The number of tokens that are saved by computing the members' common prefix once."""
    return (len(members) - 1) * shared_by(inputs, scored, members)


def shared_by(inputs: list[Tokens], scored: list[int], members: tuple[int, ...]) -> int:
    """The length of the members' common prefix; 0 if it is too short to be computed apart."""
    first = inputs[members[0]]
    longest = min(min(common_prefix(first, inputs[m]), len(inputs[m]) - scored[m]) for m in members)
    return longest if longest >= SHORTEST_PREFIX else 0


def most_saved(inputs: list[Tokens], scored: list[int]) -> int:
    """The maximum over all groupings that follow the tree of common prefixes, from the root to the leaves."""

    def best(members: tuple[int, ...]) -> int:
        if len(members) < 2:
            return 0
        common = [shared_by(inputs, scored, pair) for pair in pairwise(members)]
        borders = [0, *(place + 1 for place, one in enumerate(common) if one == min(common)), len(members)]
        return max(saved(inputs, scored, members), sum(best(members[a:b]) for a, b in pairwise(borders)))

    return best(tuple(sorted(range(len(inputs)), key=inputs.__getitem__)))


@given(INPUTS, st.data())
def test_groups_have_every_input_once_and_save_the_most_of_the_tree(inputs: list[Tokens], data: st.DataObject) -> None:
    scored = [data.draw(st.integers(1, len(tokens))) for tokens in inputs]
    groups = group_by_prefix(inputs, scored)
    assert sorted(member for group in groups for member in group.members) == list(range(len(inputs)))
    for group in groups:
        assert len({inputs[member][: group.prefix] for member in group.members}) == 1
        assert all(group.prefix <= len(inputs[member]) - scored[member] for member in group.members)
        assert group.prefix == 0 or (group.prefix >= SHORTEST_PREFIX and len(group.members) > 1)
    assert sum((len(group.members) - 1) * group.prefix for group in groups) == most_saved(inputs, scored)


@given(INPUTS, st.integers(1, 60), st.one_of(st.none(), st.integers(1, 4)))
def test_batches_have_every_input_once_within_the_limits(
    inputs: list[Tokens], tokens: int, samples: int | None
) -> None:
    batches = make_batches(inputs, [1] * len(inputs), tokens, samples)
    members = [member for batch in batches for group in batch for member in group.members]
    assert sorted(members) == list(range(len(inputs)))
    for batch in batches:
        sizes = [group.prefix + sum(len(inputs[m]) - group.prefix for m in group.members) for group in batch]
        count = sum(len(group.members) for group in batch)
        assert sum(sizes) <= tokens or count == 1
        assert samples is None or count <= samples


def test_a_prefix_of_several_batches_is_alone_in_each() -> None:
    shared = tuple(range(20))
    inputs = [(*shared, 100 + number) for number in range(10)] + [(7, number) for number in range(3)]
    batches = make_batches(inputs, [1] * len(inputs), 24, None)
    assert [batch for batch in batches if any(group.prefix for group in batch)] == [
        [Group(20, (0, 1, 2, 3))],
        [Group(20, (4, 5, 6, 7))],
        [Group(20, (8, 9))],
    ]
    assert [group for batch in batches for group in batch if not group.prefix] == [Group(0, (10, 11, 12))]


def test_many_inputs_that_begin_ever_longer_alike_take_no_recursion() -> None:
    inputs = [(0,) * length for length in range(9, 3000)]
    groups = group_by_prefix(inputs, [1] * len(inputs))
    assert sorted(member for group in groups for member in group.members) == list(range(len(inputs)))
