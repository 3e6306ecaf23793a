"""The retriever: sentence encoders for queries and passages, which may be the same (Contriever, Izacard et al. 2021).

Any BERT that pools its last hidden states can be used: facebook/contriever (mean), minilm (mean, normalized to length
1).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from teacherlm.atlas import layer_norm
from teacherlm.atlas.layer_norm import use_described_norm
from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_json, require_object
from teacherlm.runtime.loading import check_weights, load_tokenizer, without_warnings
from teacherlm.runtime.model_config import load_config, loading_fault

POOLINGS = ("average", "sqrt", "cls")
MAXIMUM_LENGTH = 512
"""Maximum number of tokens of a BERT."""
CHUNK = 16_384
"""Number of texts that are tokenized and sorted by length at a time."""
TOKENS_ON_CPU = 2048
"""Maximum number of tokens that a CPU embeds together. The states of more tokens do not fit into its caches."""


class Retriever(nn.Module):
    """The encoders of queries and passages, and how their states are combined into one vector.

    Args:
        query: a BERT without its pooling layer.
        passage: the same object, or with query-side training a separate one.
        pooling: `average` of the states; `sqrt`, their sum divided by the root of their number; or `cls`, the first
            state.
        normalize: whether vectors are normalized to length 1.
    """

    def __init__(self, query: PreTrainedModel, passage: PreTrainedModel, pooling: str, normalize: bool):
        super().__init__()
        self.query, self.passage = query, passage
        self.pooling, self.normalize = pooling, normalize

    @property
    def dimension(self) -> int:
        return self.query.config.hidden_size

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, of_passages: bool) -> torch.Tensor:
        """Embeddings (B, D) of tokens (B, L)."""
        encoder = self.passage if of_passages else self.query
        states_BLD = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors_BD = pool(states_BLD, attention_mask, self.pooling)
        return nn.functional.normalize(vectors_BD, dim=-1) if self.normalize else vectors_BD


def pool(states_BLD: torch.Tensor, mask_BL: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per text (B, D) from the hidden states. Padding does not count."""
    if pooling == "cls":
        return states_BLD[:, 0]
    mask_BL1 = mask_BL[:, :, None].bool()
    sums_BD = states_BLD.masked_fill(~mask_BL1, 0).sum(dim=1)
    lengths_B1 = mask_BL.sum(dim=1, keepdim=True).to(sums_BD.dtype)
    return sums_BD / (lengths_B1.sqrt() if pooling == "sqrt" else lengths_B1)


def load_retriever(folder: Path, untied: bool) -> tuple[Retriever, Any]:
    """A retriever and its tokenizer.

    Args:
        folder: the folder of a BERT-like encoder, or of a saved retriever (with query_encoder/ and passage_encoder/).
        untied: whether the passage encoder gets separate weights.

    Raises:
        UserError: the retriever cannot be loaded, or its pooling is unknown.
    """
    query_folder = folder / "query_encoder" if (folder / "query_encoder").is_dir() else folder
    passage_folder = folder / "passage_encoder"
    query = load_encoder(query_folder)
    if passage_folder.is_dir():
        passage = load_encoder(passage_folder)
    else:
        passage = load_encoder(query_folder) if untied else query
    pooling, normalize = described_pooling(query_folder)
    return Retriever(query, passage, pooling, normalize), load_tokenizer(query_folder)


def empty_retriever(folder: Path, untied: bool) -> Retriever:
    """A retriever with the shape from a folder's configuration, without trained weights."""
    config = load_config(folder)
    query = AutoModel.from_config(config, add_pooling_layer=False, trust_remote_code=False)
    passage = AutoModel.from_config(config, add_pooling_layer=False, trust_remote_code=False) if untied else query
    return Retriever(query, passage, *described_pooling(folder))


def load_encoder(folder: Path) -> PreTrainedModel:
    try:
        with without_warnings():  # check_weights reports problems; the unused pooling layer is none
            encoder, info = AutoModel.from_pretrained(
                folder,
                add_pooling_layer=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
    except Exception as error:  # a broken file can raise anything
        raise UserError(
            f"the retriever in {folder} cannot be loaded: {loading_fault(error)}; a BERT was expected"
        ) from error
    check_weights(encoder, info, folder)
    use_described_norm(encoder, folder)
    return encoder


def described_pooling(folder: Path) -> tuple[str, bool]:
    """(pooling, normalize) from a folder: from config.json for Contriever, otherwise from the modules of
    sentence-transformers."""
    config = read_json(folder / "config.json")
    if "pooling" in config:
        pooling, normalize = config["pooling"], bool(config.get("normalize", False))
    else:
        normalize = any(kind.endswith("Normalize") for kind in module_types(folder / "modules.json"))
        modes = read_json(folder / "1_Pooling" / "config.json")
        known = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_sqrt_len_tokens": "sqrt"}
        pooling = next((name for mode, name in known.items() if modes.get(mode)), "average")
        if modes and pooling == "average" and not modes.get("pooling_mode_mean_tokens", True):
            pooling = "another"
    if pooling not in POOLINGS:
        raise UserError(f"{folder}: pooling {pooling!r} is not supported; there are: {', '.join(POOLINGS)}")
    return pooling, normalize


def read_json(path: Path) -> Any:
    return require_object(path) if path.is_file() else {}


def module_types(path: Path) -> list[str]:
    """The types in a modules.json of sentence-transformers, which is a list; empty if there is no such file."""
    if not path.is_file():
        return []
    try:
        return [str(module["type"]) for module in load_json(path)]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read (a JSON list of objects with a type was expected); copy or make it again"
        ) from error


def fingerprint(retriever: Retriever, text_format: str, max_length: int) -> str:
    """A digest of everything that embeddings of passages depend on: the encoder's weights, pooling and input format."""
    form = [retriever.pooling, retriever.normalize, text_format, max_length]
    form += [norm] if (norm := getattr(retriever.passage.config, layer_norm.KEY, None)) else []
    digest = hashlib.sha256(json.dumps(form).encode())
    for name, tensor in sorted(retriever.passage.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def embed(
    retriever: Retriever, tokenizer: Any, texts: Sequence[str], max_length: int, batch_size: int, of_passages: bool
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Embed texts in batches of similar length, which need little padding.

    Args:
        texts: the N texts.
        max_length: maximum number of tokens per text; the rest is cut off.
        batch_size: maximum number of texts per batch; batches of long texts are smaller.

    Yields:
        (indices of the texts of a batch, their embeddings (B, D)). Each text occurs once.
    """
    device = next(retriever.parameters()).device
    tokens_at_a_time = batch_size * 128
    if device.type == "cpu":
        tokens_at_a_time = min(tokens_at_a_time, TOKENS_ON_CPU)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        tokens = tokenizer(list(chunk), truncation=True, max_length=min(max_length, MAXIMUM_LENGTH))["input_ids"]
        by_length = sorted(range(len(chunk)), key=lambda number: len(tokens[number]), reverse=True)
        while by_length:
            rows = min(batch_size, max(1, tokens_at_a_time // len(tokens[by_length[0]])))
            batch, by_length = by_length[:rows], by_length[rows:]
            padded = tokenizer.pad({"input_ids": [tokens[number] for number in batch]}, return_tensors="pt")
            vectors = retriever(padded["input_ids"].to(device), padded["attention_mask"].to(device), of_passages)
            yield [start + number for number in batch], vectors
