"""The running batch's keys and values: rows leave and enter, columns are appended in place."""

import torch
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 32
"""Columns that a buffer grows by, so that most steps write in place instead of copying everything."""


class BufferedLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, columns, head size], in buffers with room at the right.

    The newest column is the same in every row; shorter rows begin later. What lies left of them and the room at the
    right are zeros that the attention mask hides. A model is given the buffers as they are: matrix products copy what
    is not contiguous, and that costs more than the few hidden columns.
    """

    end = 0
    """The column after the newest."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.end = key_states, value_states, key_states.shape[-2]
        else:
            self.keys[:, :, self.end : self.end + 1] = key_states
            self.values[:, :, self.end : self.end + 1] = value_states
            self.end += 1
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.keys.shape[-2] if self.is_initialized else query_length), 0


class KeyValues(Cache):
    """All layers' keys and values of a batch.

    The first forward pass puts prompts of one length in; each later one appends a column, for which there must be room
    (see `join`). The layers are rebuilt one by one, so that never more than one of them is there twice.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BufferedLayer)

    @property
    def end(self) -> int:
        return self.layers[0].end if self.layers else 0

    @property
    def rows(self) -> int:
        return self.layers[0].keys.shape[0] if self.layers else 0

    @property
    def width(self) -> int:
        return self.layers[0].keys.shape[-2] if self.layers else 0

    @property
    def bytes_per_column(self) -> int:
        """Bytes of the keys and values of one token in one row, over all layers."""
        return sum(part[0, :, 0].nbytes for layer in self.layers for part in (layer.keys, layer.values))

    def drop(self, rows: list[int]) -> None:
        """Drop these rows: the last ones take their places, in memory too."""
        moves, left = moves_to_drop(rows, self.rows)
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                for source, target in moves:
                    states[target] = states[source]
            layer.keys, layer.values = layer.keys[:left], layer.values[:left]

    def join(self, others: list["KeyValues"], columns: int) -> None:
        """Put the rows of others below these and take them out of the others; all end at one column.

        Args:
            others: empty to make room at the right only.
            columns: how many the longest row has; GROWTH more are free afterwards.
        """
        for position, layer in enumerate(self.layers):
            parts = [layer, *(other.layers[position] for other in others)]
            rows = sum(part.keys.shape[0] for part in parts)
            for name in ("keys", "values"):  # some models give them other sizes (DeepSeek-V3)
                _, heads, _, size = getattr(layer, name).shape
                joined = getattr(layer, name).new_zeros(rows, heads, columns + GROWTH, size)
                below = 0
                for part in parts:
                    states = getattr(part, name)[:, :, max(0, part.end - columns) : part.end]
                    joined[below : below + states.shape[0], :, columns - states.shape[2] : columns] = states
                    below += states.shape[0]
                    delattr(part, name)
                setattr(layer, name, joined)
            layer.end = columns


def moves_to_drop(rows: list[int], count: int) -> tuple[list[tuple[int, int]], int]:
    """The moves (from, to) after which those of `count` rows that stay are the first; and how many they are."""
    left = count - len(rows)
    leaving = set(rows)
    staying = (row for row in range(left, count) if row not in leaving)
    return list(zip(staying, (row for row in rows if row < left))), left
