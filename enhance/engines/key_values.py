"""The running batch's keys and values: rows leave and enter, columns are appended in place."""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 128
"""Columns that a buffer grows by, so that most steps write in place instead of copying everything."""


class BufferedLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, columns, head size], in buffers with room at the right.

    The newest column is the last in every row; shorter rows begin later, and the attention mask hides what lies left of
    them. So all rows are written at one column, and dropping columns at the left copies nothing.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.buffers: list[torch.Tensor] = []
        self.start = self.end = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        if not self.buffers or self.end + new > self.buffers[0].shape[-2]:
            self.rebuild(new, key_states, value_states)
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, self.end : self.end + new] = states
        self.end += new
        self.set_views()
        return self.keys, self.values

    def rebuild(self, new: int, *likes: torch.Tensor) -> None:
        width = self.end - self.start
        grown = []
        for position, like in enumerate(likes):
            rows, heads, _, size = like.shape
            buffer = like.new_empty(rows, heads, width + new + GROWTH, size)
            if self.buffers:
                buffer[:, :, :width] = self.buffers[position][:, :, self.start : self.end]
            grown.append(buffer)
        self.buffers, self.start, self.end = grown, 0, width

    def set_views(self) -> None:
        self.keys, self.values = (buffer[:, :, self.start : self.end] for buffer in self.buffers)

    def keep(self, rows: torch.Tensor, width: int) -> None:
        """Keep these rows, and of the columns the last `width`."""
        first = self.end - width
        self.buffers = [pad_right(buffer[rows, :, first : self.end], GROWTH) for buffer in self.buffers]
        self.start, self.end = 0, width
        self.set_views()

    def join(self, other: "BufferedLayer") -> None:
        """Put the rows of another layer below these; the narrower of the two gets zeros at its left."""
        width = max(self.keys.shape[-2], other.keys.shape[-2])
        joined = []
        for mine, its in ((self.keys, other.keys), (self.values, other.values)):
            rows, heads, _, size = mine.shape
            buffer = mine.new_zeros(rows + its.shape[0], heads, width + GROWTH, size)
            buffer[:rows, :, width - mine.shape[-2] : width] = mine
            buffer[rows:, :, width - its.shape[-2] : width] = its
            joined.append(buffer)
        self.buffers, self.start, self.end = joined, 0, width
        self.set_views()


def pad_right(states: torch.Tensor, columns: int) -> torch.Tensor:
    rows, heads, width, size = states.shape
    buffer = states.new_empty(rows, heads, width + columns, size)
    buffer[:, :, :width] = states
    return buffer


class KeyValues(Cache):
    """All layers' keys and values of a batch."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BufferedLayer)

    def keep(self, rows: torch.Tensor, width: int) -> None:
        for layer in self.layers:
            layer.keep(rows, width)

    def join(self, other: "KeyValues") -> None:
        for mine, its in zip(self.layers, other.layers):
            mine.join(its)


def bytes_per_column(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in one row, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_size * dtype.itemsize
