"""Tiny models of other kinds than the paper's, with weights that are large enough for every part to matter."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from support.files import sample_claims

SPECIAL = ["<pad>", "<s>", "</s>"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

HEADS_OF_64 = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Sizes for vLLM, whose kernels want heads of common widths."""


def byte_tokenizer(around: str = "$A", size: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the sample benchmark.

    Args:
        around: the template of special tokens around a text, such as "<s> $A </s>".
        size: the size of its vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    return finish(tokenizer, trainer, around)


def sentencepiece_tokenizer(around: str = "<s> $A", size: int = 400) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's: it puts a space before each text, and drops that space in decoding."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, "<unk>"], initial_alphabet=list("()ABCDE.")
    )
    return finish(tokenizer, trainer, around)


def finish(tokenizer: Tokenizer, trainer: Any, around: str) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator((sample["sentence"] for sample in sample_claims()), trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, pair=f"{around} $B", special_tokens=ends)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: AddedToken(text, special=True) for name, text in special.items()}
    )


def llama_config(**changed: Any) -> LlamaConfig:
    return LlamaConfig(**{"vocab_size": 600, **SIZES, **changed})


def save(folder: Path, model: PreTrainedModel, tokenizer: Any = None, without: tuple[str, ...] = ()) -> Path:
    """Save a tokenizer and a model with weights of standard deviation 0.3, without some of its tensors."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, part in sorted(model.named_parameters()):
            part.normal_(0.0, 0.3)
            if "norm" in name:
                part.add_(1.0)
    state = {name: part for name, part in model.state_dict().items() if name not in without}
    model.save_pretrained(folder, state_dict=state)
    (tokenizer or byte_tokenizer(size=model.config.get_text_config().vocab_size)).save_pretrained(folder)
    return folder


@torch.no_grad()
def reference(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Log-probabilities [T, V] from the library's plain forward pass: eager attention, one sample alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
    return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
