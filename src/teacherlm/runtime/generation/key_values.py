"""The keys and values of the running batch: rows join and leave, and columns are appended in place."""

import torch
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 32
"""Number of columns by which a buffer grows, so that most steps write in place instead of copying everything."""


class BufferedLayer(DynamicLayer):
    """The keys and values of one layer, [rows, heads, columns, head size], in buffers with free columns at the right.

    All rows end at the same column, and shorter rows begin later. The columns to the left of a row and the free columns
    are zeros, which the attention mask hides. The model gets the whole buffers: matrix products would copy a part that
    is not contiguous, which costs more than the few hidden columns.
    """

    end = 0
    """The index of the first free column."""

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
    """The keys and values of a batch in all layers.

    The first forward pass stores the prompts, padded to one length. Each later pass appends one column, for which there
    must be a free column (see `join`). The layers are rebuilt one by one, so that memory holds at most one layer twice.
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
        """Bytes of the keys and values of one token of one row in all layers."""
        return sum(part[0, :, 0].nbytes for layer in self.layers for part in (layer.keys, layer.values))

    def drop(self, rows: list[int]) -> None:
        """Drop these rows. The last rows move to their places in memory."""
        moves, left = moves_to_drop(rows, self.rows)
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                for source, target in moves:
                    states[target] = states[source]
            layer.keys, layer.values = layer.keys[:left], layer.values[:left]

    def join(self, others: list["KeyValues"], columns: int) -> None:
        """Append the rows of other caches, which are emptied. Afterwards all rows end at the same column.

        Args:
            others: the other caches; an empty list only adds free columns.
            columns: number of columns of the longest row. Afterwards GROWTH more columns are free.
        """
        for position, layer in enumerate(self.layers):
            parts = [layer, *(other.layers[position] for other in others)]
            rows = sum(part.keys.shape[0] for part in parts)
            for name in ("keys", "values"):  # their sizes differ in some models (DeepSeek-V3)
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
    """The moves (from, to) that bring the remaining rows to the front, and the number of remaining rows.

    Args:
        rows: the positions of the rows that are dropped, in ascending order.
        count: number of rows before.
    """
    left = count - len(rows)
    leaving = set(rows)
    staying = (row for row in range(left, count) if row not in leaving)
    return list(zip(staying, (row for row in rows if row < left))), left
