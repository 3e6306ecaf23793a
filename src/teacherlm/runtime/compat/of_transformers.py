"""The private interfaces of transformers (5.x) that this project uses: those of models and configurations.

Those of the Trainer are in of_trainer.py, which takes longer to import.
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

    `attn_implementation` is a public argument and `set_attn_implementation` is a public method, but only the private
    `_attn_implementation` can be read.
    """
    return config._attn_implementation


def set_attention_name(config: PreTrainedConfig, name: str) -> None:
    """Set the attention of a model for which `set_attn_implementation` only warns.

    Such a model has a separate class for each attention, or supports only eager attention, as BLOOM does. It still
    reads the name when it makes its mask.
    """
    config._attn_implementation = name


def can_switch_attention(model: PreTrainedModel) -> bool:
    """Whether `set_attn_implementation` has an effect. The public method only warns when it has none."""
    return model._can_set_attn_implementation()


def forget_loss_function(model: PreTrainedModel) -> None:
    """Restore the library's `loss_function` of a model for which another one was set.

    The property can be set, but not deleted. Saving its value beforehand is no way out: reading it prints a warning for
    every model type that transformers knows no loss for.
    """
    del model._loss_function


def known_causal_types() -> Any:
    """A mapping whose keys are the model types for which transformers has a causal decoder.

    The keys of the public mapping are configuration classes, some of which belong to several model types.
    """
    return modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def numpy_allowed() -> AbstractContextManager:
    """A context in which torch.load accepts the classes of numpy's random state in a checkpoint.

    transformers uses this context to read the states that its Trainer saved. Naming the classes here instead would need
    private names of numpy.
    """
    return safe_globals()


@contextlib.contextmanager
def whole_weights(training: TrainingArguments) -> Iterator[bool]:
    """Within the block, load whole models even if ZeRO-3 is configured. Yields whether ZeRO-3 is configured.

    As soon as a ZeRO-3 configuration exists, `from_pretrained` gives each process only a part of the weights. The
    public interface cannot turn this off for one model.
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
    """BLOOM's attention with public names for the parts that a subclass needs.

    transformers supports only eager attention for BLOOM and computes it in one method together with the projections. So
    the class has to be replaced, and its parts have no public interface.
    """

    def heads(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of hidden states [B, T, hidden size], each [B, heads, T, head size]."""
        return self._reshape(self.query_key_value(hidden_states))

    def bias(self, positions_N: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The ALiBi bias [heads, N] for keys at these positions."""
        ones_1T = torch.ones(1, int(positions_N.max()) + 1, dtype=torch.long, device=positions_N.device)
        return modeling_bloom.build_alibi_tensor(ones_1T, self.num_heads, dtype)[:, 0, positions_N]

    @property
    def scale(self) -> float:
        """The factor by which products of queries and keys are multiplied."""
        return self.inv_norm_factor

    @property
    def dropped(self) -> float:
        """The current dropout rate of the attention weights: 0 outside of training."""
        return self.attention_dropout.p if self.training else 0.0

    def finish(self, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The layer's output: attended values [B, T, hidden size] after the output projection, dropout and residual."""
        return modeling_bloom.dropout_add(self.dense(mixed), residual, self.hidden_dropout, self.training)


def replace_bloom_attention(model: torch.nn.Module, kind: type[BloomAttention]) -> None:
    """Change the class of BLOOM's attention layers. Weights, hooks and settings stay."""
    for module in model.modules():
        if type(module) is modeling_bloom.BloomAttention:
            module.__class__ = kind


def restore_bloom_attention(model: torch.nn.Module) -> None:
    """Restore the original class of BLOOM's attention layers."""
    for module in model.modules():
        if isinstance(module, BloomAttention):
            module.__class__ = modeling_bloom.BloomAttention


def cross_values(decoder: PreTrainedModel, states_BSD: torch.Tensor) -> Iterator[torch.Tensor]:
    """The cross-attention values (B, S, heads, head size) that each block of a T5 decoder computes from encoder states.

    The public outputs contain the weights of the cross-attention, but not its values.
    """
    for block in decoder.block:
        attention = block.layer[1].EncDecAttention
        yield attention.v(states_BSD).unflatten(-1, (attention.n_heads, -1))
