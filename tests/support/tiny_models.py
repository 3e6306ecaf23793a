"""A tiny random model of each common kind, with its tokenizer."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from support.files import sample_claims


def make_tiny_model(family: str, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, OPTConfig

    from support.tiny_architectures import make_tokenizer

    tokenizer = make_tokenizer(sample["sentence"] for sample in sample_claims())
    size = len(tokenizer)
    common = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    configs = {
        "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **common),
        "opt": lambda: OPTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
            **common,
        ),
        "llama": lambda: LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            **common,
        ),
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configs[family]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_teachers(tiny_llama: Path, folder: Path, kinds: Iterable[str]) -> dict[str, Path]:
    """TEACHER_KIND -> a tiny model for each kind of explanation, which differs from the others."""
    from safetensors.torch import load_file, save_file

    made = {}
    for number, kind in enumerate(kinds, 1):
        copy = folder / f"of-{kind}"
        shutil.copytree(tiny_llama, copy)
        [weights] = copy.glob("*.safetensors")
        changed = {name: value * (1 + number / 10) for name, value in load_file(weights).items()}
        save_file(changed, weights, metadata={"format": "pt"})
        made[f"TEACHER_{kind.upper()}"] = copy
    return made


def make_other_model(folder: Path) -> Path:
    """A Llama with the vocabulary of the tiny models, and weights that differ from theirs: a teacher for them."""
    import torch
    from transformers import AutoModelForCausalLM

    make_tiny_model("llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder


def exchange_two_tokens(folder: Path) -> None:
    """Give a model another vocabulary of the same size: two tokens exchange their numbers."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
