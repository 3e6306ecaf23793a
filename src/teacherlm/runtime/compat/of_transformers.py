"""What this project uses of transformers (5.x) without a public interface for it, models and configurations.

The Trainer's are in of_trainer.py, which takes longer to import.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.integrations import deepspeed as zero
from transformers.models.auto import modeling_auto
from transformers.models.bloom import modeling_bloom
from transformers.trainer_pt_utils import safe_globals


def attention_of(config: PreTrainedConfig) -> str:
    """The name of the attention that a model computes with.

    `attn_implementation` is a public argument, and `set_attn_implementation` a public method, but the value can be read
    from `_attn_implementation` only.
    """
    return config._attn_implementation


def set_attention_name(config: PreTrainedConfig, name: str) -> None:
    """Set the attention of a model that `set_attn_implementation` leaves alone with a warning.

    Such a model has classes of its own for its attentions, or supports only eager attention, as BLOOM does, and reads
    the name when it makes its mask.
    """
    config._attn_implementation = name


def can_switch_attention(model: PreTrainedModel) -> bool:
    """Whether `set_attn_implementation` has an effect; the public method only warns where it has none."""
    return model._can_set_attn_implementation()


def forget_loss_function(model: PreTrainedModel) -> None:
    """Give a model whose `loss_function` was set the library's own back.

    The property can be set, but not deleted, and reading it beforehand, in order to set it again, warns of every model
    type that transformers knows no loss for.
    """
    del model._loss_function


def known_causal_types() -> Any:
    """The model types that transformers has a causal decoder for, as keys.

    The public mapping has classes of configurations as keys, some of which belong to several model types.
    """
    return modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def numpy_allowed() -> AbstractContextManager:
    """While it is entered, torch.load takes the classes that numpy's random state consists of in a checkpoint.

    transformers enters it itself to read the states that its Trainer saved; naming these classes here instead would
    need private names of numpy.
    """
    return safe_globals()


@contextlib.contextmanager
def whole_weights(training: TrainingArguments) -> Iterator[bool]:
    """Load models whole while the block runs, although ZeRO-3 is configured; yields whether it is.

    With ZeRO-3, `from_pretrained` gives each process a part of the weights, as soon as there is a configuration. The
    public interface has no way to leave that out for one model.
    """
    if not zero.is_deepspeed_zero3_enabled():
        yield False
        return
    zero.unset_hf_deepspeed_config()
    try:
        yield True
    finally:
        zero.set_hf_deepspeed_config(training.hf_deepspeed_config)


class BloomAttention(modeling_bloom.BloomAttention):
    """BLOOM's attention with public names for what a subclass needs of it.

    transformers supports only eager attention for BLOOM, which it computes in one method with everything around it. So
    the class has to be replaced; its parts have no public interface.
    """

    def heads(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of hidden states [B, T, hidden size], each [B, heads, T, head size]."""
        return self._reshape(self.query_key_value(hidden_states))

    def bias(self, positions_N: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """ALiBi's bias [heads, N] of keys at these positions."""
        ones_1T = torch.ones(1, int(positions_N.max()) + 1, dtype=torch.long, device=positions_N.device)
        return modeling_bloom.build_alibi_tensor(ones_1T, self.num_heads, dtype)[:, 0, positions_N]

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.inv_norm_factor

    @property
    def dropped(self) -> float:
        """The share of attention weights that is dropped at the moment."""
        return self.attention_dropout.p if self.training else 0.0

    def finish(self, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The layer's output: attended values [B, T, hidden size] through its last product, dropout, the residual."""
        return modeling_bloom.dropout_add(self.dense(mixed), residual, self.hidden_dropout, self.training)


def replace_bloom_attention(model: torch.nn.Module, kind: type[BloomAttention]) -> None:
    """Let BLOOM's attention layers be of another class; weights, hooks and settings stay."""
    for module in model.modules():
        if type(module) is modeling_bloom.BloomAttention:
            module.__class__ = kind


def restore_bloom_attention(model: torch.nn.Module) -> None:
    """Give BLOOM's attention layers their own class back."""
    for module in model.modules():
        if isinstance(module, BloomAttention):
            module.__class__ = modeling_bloom.BloomAttention


def cross_values(decoder: PreTrainedModel, states_BSD: torch.Tensor) -> Iterator[torch.Tensor]:
    """The values (B, S, heads, head size) that each block of a T5 decoder makes of the encoder's states.

    The public outputs have the weights of the cross-attention, but not its values.
    """
    for block in decoder.block:
        attention = block.layer[1].EncDecAttention
        yield attention.v(states_BSD).unflatten(-1, (attention.n_heads, -1))
