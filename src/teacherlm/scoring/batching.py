"""Group inputs into batches. Inputs with a common prefix share its computation.

Many inputs begin with the same few-shot examples, with MMLU's preamble, or with a question whose choices have several
tokens. Such a prefix is computed once, and all its inputs use its keys and values. The batches depend only on the
inputs. So any number of processes, each computing some of the batches, get the same numbers to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SHORTEST_PREFIX = 8
"""Minimum length of a shared prefix. A shorter one is not worth a separate forward pass."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Inputs with a common prefix.

    Attributes:
        prefix: length of the prefix in tokens; 0 means none.
        members: indices of the inputs.
    """

    prefix: int
    members: tuple[int, ...]


@dataclass
class Node:
    """Neighbours in sorted order, beginning at `left`, that share `common` tokens, and their best grouping.

    Attributes:
        gain: number of tokens that the grouping saves.
    """

    common: int
    left: int
    gain: int = 0
    groups: list[Group] = field(default_factory=list)


def make_batches(
    inputs: Sequence[Tokens], scored: Sequence[int], tokens: int, samples: int | None
) -> list[list[Group]]:
    """Split the work into batches. A batch is a list of groups.

    Args:
        inputs: the inputs, which must all differ.
        scored: for each input, the number of last positions that are scored; a prefix does not include them.
        tokens: maximum number of tokens per batch, unless a single input has more.
        samples: maximum number of inputs per batch; None means no maximum.
    """
    batches: list[list[Group]] = []
    size = count = 0
    for group in sorted(group_by_prefix(inputs, scored), key=lambda group: (group.prefix, group.members)):
        for part in cut(group, inputs, tokens, samples):
            cost = part.prefix + sum(len(inputs[member]) - part.prefix for member in part.members)
            full = size + cost > tokens or (samples is not None and count + len(part.members) > samples)
            # if a group is split over several batches, each of them holds only this group: then the prefix has the same
            # bits whether it is computed again or kept
            if not batches or full or len(part.members) < len(group.members):
                batches.append([])
                size = count = 0
            batches[-1].append(part)
            size, count = size + cost, count + len(part.members)
            if len(part.members) < len(group.members):
                size = tokens
    return batches


def cut(group: Group, inputs: Sequence[Tokens], tokens: int, samples: int | None) -> list[Group]:
    """Split a group into parts that fit into a batch; each part has inputs of similar length."""
    parts: list[list[int]] = []
    size = 0
    for member in sorted(group.members, key=lambda member: (len(inputs[member]), member)):
        cost = len(inputs[member]) - group.prefix
        if not parts or size + cost > tokens or len(parts[-1]) == samples:
            parts.append([])
            size = group.prefix
        parts[-1].append(member)
        size += cost
    return [Group(group.prefix, tuple(part)) for part in parts]


def group_by_prefix(inputs: Sequence[Tokens], scored: Sequence[int]) -> list[Group]:
    """A grouping that saves many tokens. Each input is in one group; inputs without a gain form a group of prefix 0.

    In sorted order, inputs with a common prefix are neighbours. The intervals with a common prefix form a tree, which
    is traversed once from the leaves to the root with a stack. At each node the better of two groupings is kept: the
    whole node as one group, which saves (members - 1) x prefix tokens, or the best groupings of its children. (Groups
    that cross the tree's intervals are not tried. They rarely save more.)
    """
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    room = [len(inputs[number]) - scored[number] for number in order]
    shared = [
        min(common_prefix(inputs[one], inputs[other]), room[place], room[place + 1])
        for place, (one, other) in enumerate(pairwise(order))
    ]
    shared = [length if length >= SHORTEST_PREFIX else 0 for length in shared]
    stack = [Node(0, 0)]
    for place, common in enumerate([*shared, 0] if order else []):
        done = Node(0, place, 0, [Group(0, (order[place],))])
        while stack[-1].common > common:
            node = stack.pop()
            absorb(node, done)
            done = best(node, order[node.left : place + 1])
        if stack[-1].common < common:
            stack.append(Node(common, done.left))
        absorb(stack[-1], done)
    groups = stack[0].groups
    alone = tuple(sorted(member for group in groups if not group.prefix for member in group.members))
    return [group for group in groups if group.prefix] + ([Group(0, alone)] if alone else [])


def common_prefix(one: Tokens, other: Tokens) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def absorb(node: Node, child: Node) -> None:
    node.gain += child.gain
    if len(child.groups) > len(node.groups):  # so that the shorter list is copied
        node.groups, child.groups = child.groups, node.groups
    node.groups.extend(child.groups)


def best(node: Node, members: Sequence[int]) -> Node:
    """The better grouping of a complete node: one group, or the groups of its children."""
    whole = (len(members) - 1) * node.common
    if whole >= node.gain:
        return Node(node.common, node.left, whole, [Group(node.common, tuple(sorted(members)))])
    return node
