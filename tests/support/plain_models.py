"""T5 and BERT in plain PyTorch, in float64 and for one text at a time. The fast code in atlas/ is compared with them.

They are written from the papers (Raffel et al. 2020, section 2.1; Devlin et al. 2019) and the names of the weights.
They have no padding, no cache and no batch. Dropout uses given factors.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch.nn.functional import gelu, softmax

Weights = Mapping[str, torch.Tensor]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: torch.Tensor) -> torch.Tensor:
    """Attention of (L, H) queries over (S, H) keys. bias (heads, L, S) is added to the scores."""
    split = [part.view(len(part), heads, -1).transpose(0, 1) for part in (query, key, value)]
    weights = softmax(split[0] @ split[1].transpose(1, 2) + bias, dim=-1)
    return (weights @ split[2]).transpose(0, 1).reshape(len(query), -1)


class PlainT5:
    def __init__(self, model: torch.nn.Module):
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.config = model.config

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_epsilon)
        return x * scale * self.weights[f"{name}.weight"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def position_bias(self, stack: str, queries: int, keys: int) -> torch.Tensor:
        """The learned bias per head for each bucket of (position of the key - position of the query)."""
        table = self.weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        buckets, longest = self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        bias = torch.empty(table.shape[1], queries, keys, dtype=torch.float64)
        for q in range(queries):
            for k in range(keys):
                distance, first, n = q - k, 0, buckets
                if stack == "encoder":
                    n //= 2
                    first = n if distance < 0 else 0
                    distance = abs(distance)
                distance = max(distance, 0)
                exact = n // 2
                if distance >= exact:
                    ratio = math.log(distance / exact) / math.log(longest / exact)
                    distance = min(exact + int(ratio * (n - exact)), n - 1)
                bias[:, q, k] = table[first + distance]
        return bias

    def attention(self, name: str, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.linear(f"{name}.{p}", s) for p, s in (("q", x), ("k", source), ("v", source)))
        return self.linear(f"{name}.o", attend(q, k, v, self.config.num_heads, bias))

    def feed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        inner = f"{name}.DenseReluDense"
        if self.config.is_gated_act:
            hidden = gelu(self.linear(f"{inner}.wi_0", x), approximate="tanh") * self.linear(f"{inner}.wi_1", x)
        else:
            hidden = torch.relu(self.linear(f"{inner}.wi", x))
        return self.linear(f"{inner}.wo", hidden)

    def encode(self, tokens: list[int]) -> torch.Tensor:
        x = self.weights["shared.weight"][tokens]
        bias = self.position_bias("encoder", len(tokens), len(tokens))
        for block in range(self.config.num_layers):
            name = f"encoder.block.{block}.layer"
            normed = self.norm(f"{name}.0.layer_norm", x)
            x = x + self.attention(f"{name}.0.SelfAttention", normed, normed, bias)
            x = x + self.feed_forward(f"{name}.1", self.norm(f"{name}.1.layer_norm", x))
        return self.norm("encoder.final_layer_norm", x)

    def decode(self, states: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """The logits (len(tokens), V) after each token of the decoder."""
        x = self.weights["shared.weight"][tokens]
        bias = self.position_bias("decoder", len(tokens), len(tokens))
        bias = bias + torch.full((len(tokens), len(tokens)), -math.inf, dtype=torch.float64).triu(1)
        nowhere = torch.zeros(1, 1, 1, dtype=torch.float64)
        for block in range(self.config.num_decoder_layers):
            name = f"decoder.block.{block}.layer"
            normed = self.norm(f"{name}.0.layer_norm", x)
            x = x + self.attention(f"{name}.0.SelfAttention", normed, normed, bias)
            normed = self.norm(f"{name}.1.layer_norm", x)
            x = x + self.attention(f"{name}.1.EncDecAttention", normed, states, nowhere)
            x = x + self.feed_forward(f"{name}.2", self.norm(f"{name}.2.layer_norm", x))
        x = self.norm("decoder.final_layer_norm", x)
        if self.config.scale_decoder_outputs:  # the first version of T5, which uses its embedding as the head
            return x * self.config.d_model**-0.5 @ self.weights["shared.weight"].T
        return self.linear("lm_head", x)


class PlainBert:
    """A BERT without its pooling layer.

    Args:
        norm: LayerNorm divides by the root of this: `variance`, as in BERT, or `mean_square`, as in released ATLAS
            checkpoints.
        masks: the factors of dropout (0 or 1 / (1 - p)) in the order in which they are drawn; without them there is no
            dropout.
    """

    def __init__(self, model: torch.nn.Module, norm: str = "variance", masks: Iterator[torch.Tensor] | None = None):
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
        self.config, self.kind, self.masks = model.config, norm, masks

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.masks is None else x * next(self.masks)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(-1, keepdim=True)
        squares = (centered if self.kind == "variance" else x).pow(2).mean(-1, keepdim=True)
        x = centered / torch.sqrt(squares + self.config.layer_norm_eps)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def states(self, tokens: list[int]) -> torch.Tensor:
        """The last hidden states (L, D)."""
        x = self.weights["embeddings.word_embeddings.weight"][tokens]
        x = x + self.weights["embeddings.position_embeddings.weight"][: len(tokens)]
        x = self.drop(self.norm("embeddings.LayerNorm", x + self.weights["embeddings.token_type_embeddings.weight"][0]))
        for layer in range(self.config.num_hidden_layers):
            name = f"encoder.layer.{layer}"
            attended = self.linear(f"{name}.attention.output.dense", self.attend(f"{name}.attention.self", x))
            x = self.norm(f"{name}.attention.output.LayerNorm", x + self.drop(attended))
            hidden = self.linear(f"{name}.output.dense", gelu(self.linear(f"{name}.intermediate.dense", x)))
            x = self.norm(f"{name}.output.LayerNorm", x + self.drop(hidden))
        return x

    def attend(self, name: str, x: torch.Tensor) -> torch.Tensor:
        heads = self.config.num_attention_heads
        q, k, v = (
            self.linear(f"{name}.{part}", x).view(len(x), heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        weights = self.drop(softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1))
        return (weights @ v).transpose(0, 1).reshape(len(x), -1)
