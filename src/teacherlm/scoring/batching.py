"""What is computed together: inputs that begin alike share a prefix, and a batch has so many tokens.

Few-shot examples, MMLU's preamble, or a question whose choices have several tokens are the beginning of many inputs: a
prefix is computed once and its keys and values serve all of them. What is computed with what follows from the inputs
alone, so that any number of processes, each doing some of the batches, gets the same numbers to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SHORTEST_PREFIX = 8
"""Fewer common tokens are not worth a forward pass of their own."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Inputs with a common prefix.

    Attributes:
        prefix: its length in tokens, 0 for none.
        members: numbers of the inputs.
    """

    prefix: int
    members: tuple[int, ...]


@dataclass
class Node:
    """Neighbours in sorted order, from `left` on, that have `common` tokens in common, and their best grouping."""

    common: int
    left: int
    gain: int = 0
    groups: list[Group] = field(default_factory=list)


def make_batches(
    inputs: Sequence[Tokens], scored: Sequence[int], tokens: int, samples: int | None
) -> list[list[Group]]:
    """Cut the work into batches; a batch is some groups, prefixes first, then what remains of their members.

    Args:
        inputs: all different.
        scored: how many of the last positions of each input are scored: they are not in a prefix.
        tokens: that a batch has at most, unless a single input has more.
        samples: inputs that a batch has at most; None: any number.
    """
    batches: list[list[Group]] = []
    size = count = 0
    for group in sorted(group_by_prefix(inputs, scored), key=lambda group: (group.prefix, group.members)):
        for part in cut(group, inputs, tokens, samples):
            cost = part.prefix + sum(len(inputs[member]) - part.prefix for member in part.members)
            full = size + cost > tokens or (samples is not None and count + len(part.members) > samples)
            # a prefix of several batches is alone in each: computed again or kept, it has the same bits
            if not batches or full or len(part.members) < len(group.members):
                batches.append([])
                size = count = 0
            batches[-1].append(part)
            size, count = size + cost, count + len(part.members)
            if len(part.members) < len(group.members):
                size = tokens
    return batches


def cut(group: Group, inputs: Sequence[Tokens], tokens: int, samples: int | None) -> list[Group]:
    """A group in parts that fit into a batch, of inputs of like length."""
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
    """The grouping that saves the most tokens: each input is in one group, and those without a gain are in one of
    prefix 0.

    In sorted order, inputs that share a prefix stand side by side; the intervals of a longest common prefix form a
    tree, which is walked once from its leaves to its root with a stack. At each node the better of two is kept: all of
    it as one group, which saves (members - 1) x prefix, or what is best within its children.
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
    if len(child.groups) > len(node.groups):  # the shorter list is the one that is copied
        node.groups, child.groups = child.groups, node.groups
    node.groups.extend(child.groups)


def best(node: Node, members: Sequence[int]) -> Node:
    """A node whose members are all known: one group, or the groups of its children."""
    whole = (len(members) - 1) * node.common
    if whole >= node.gain:
        return Node(node.common, node.left, whole, [Group(node.common, tuple(sorted(members)))])
    return node
