"""What is measured of each stage: tokens a second, the most memory, and the share of the device's own matrix products.

`python -m support.gpu_check.stages STAGE DEVICE SIZE` measures one in its process and prints a line of JSON. A model's
operations are 2 a weight and token, 6 where it learns (Chowdhery et al. 2022, arXiv 2204.02311, appendix B, without the
attention's). The peak is not a data sheet's: it is the speed of one large matrix product on this device, in the same
dtype.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from support.files import sample_claims

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        matrix: rows and columns of the product that is the peak.
        prompts: that a teacher writes for, each some new tokens.
        steps: of a training, with so many samples each.
        questions: that are scored, and that a reader reads with its passages.
        texts: that are embedded.
        vectors: that are searched.
        layers: of models that are made here, with a small vocabulary; None: as many as the real ones have.
    """

    matrix: int
    prompts: int
    new_tokens: int
    steps: int
    samples: int
    questions: int
    texts: int
    vectors: int
    layers: int | None = None


SIZES = {
    "whole": Size(8192, 256, 128, 30, 32, 2048, 8192, 2_000_000),
    "small": Size(256, 4, 4, 3, 2, 4, 16, 5_000, layers=1),
}


@dataclass(frozen=True)
class Measured:
    """What a stage did.

    Attributes:
        operations: floating-point operations a token.
        memory: the most bytes on the device; None: those of this process.
    """

    what: str
    dtype: torch.dtype
    tokens: float
    seconds: float
    operations: float
    memory: int | None = None


def measure(stage: str, device: str, size: Size) -> dict[str, Any]:
    """One stage's figures."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
        found = STAGES[stage](device, size, Path(folder))
    memory = found.memory if found.memory is not None else peak_memory(device)
    peak = product_speed(device, found.dtype, size.matrix)
    rate = found.tokens / found.seconds
    return {
        "stage": stage,
        "what": found.what,
        "dtype": str(found.dtype).removeprefix("torch."),
        "tokens_per_second": round(rate, 1),
        "tokens": round(found.tokens),
        "seconds": round(found.seconds, 3),
        "memory_gib": round(memory / GIB, 2),
        "tflops": round(rate * found.operations / 1e12, 3),
        "peak_tflops": round(peak / 1e12, 3),
        "mfu": round(rate * found.operations / peak, 4),
    }


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_speed(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second of one product of two square matrices, the best of several."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(clock(device, lambda: left @ right) for _ in range(8))
    return 2 * size**3 / best


def clock(device: str, work: Callable[[], Any]) -> float:
    """Seconds of some work, its end on the device included."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def half(device: str) -> torch.dtype:
    """The 16-bit dtype that the device computes in; on a CPU float32."""
    from teacherlm.runtime.generation.transformers_engine import best_dtype

    return getattr(torch, best_dtype()) if device == "cuda" else torch.float32


def language_model(size: Size, place: Path) -> tuple[Path, str]:
    """(a folder with SmolLM2-135M, what it is): its weights where they are in the user's cache, else its shape."""
    from teacherlm.core.places import cache_folder

    made = sorted((cache_folder() / "models").glob("smollm2-135m-*/config.json"))
    if made and size.layers is None:
        return made[-1].parent, "SmolLM2-135M"
    from transformers import LlamaConfig, LlamaForCausalLM

    from support.any_models import byte_tokenizer

    config = LlamaConfig(
        vocab_size=49152 if size.layers is None else 600,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=size.layers or 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    return place / "model", "the shape of SmolLM2-135M, random weights"


def texts(count: int, sentences: int = 6) -> list[str]:
    """Texts of several sentences of the sample benchmark, each another one."""
    claims = [claim["sentence"] for claim in sample_claims()]
    return [
        " ".join(claims[(number + 7 * place) % len(claims)] for place in range(sentences)) for number in range(count)
    ]


def weights(model: torch.nn.Module) -> int:
    return sum(part.numel() for part in model.parameters())


def enhance(device: str, size: Size, place: Path) -> Measured:
    """New tokens of a teacher; those of the prompts are in the time, but not counted."""
    from teacherlm.runtime.generation import Completion, Prompt, Sampling
    from teacherlm.runtime.generation.transformers_engine import TransformersEngine

    folder, what = language_model(size, place)
    dtype = half(device)
    engine = TransformersEngine(folder, str(dtype).removeprefix("torch."), Sampling(size.new_tokens, 1.0, 1.0))

    def write(count: int) -> int:
        asked = (Prompt("cot_text", number, 0, text, number) for number, text in enumerate(texts(count, 2)))
        return sum(made.new_tokens for made in engine.complete(asked) if isinstance(made, Completion))

    write(min(2, size.prompts))
    new: list[int] = []
    seconds = clock(device, lambda: new.append(write(size.prompts)))
    return Measured(f"{what}, {engine.verdict.path}", dtype, new[0], seconds, 2 * weights(engine.model))


def finetune(device: str, size: Size, place: Path) -> Measured:
    """Tokens of the samples that the stage's own program learns from; the first steps are not in the time."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from teacherlm.core.training_log import read_log
    from teacherlm.finetune.main import main

    folder, what = language_model(size, place)
    Dataset.from_dict({"text": texts(size.samples * 4, 12)}).save_to_disk(place / "samples")
    dtype = half(device)
    sys.argv = ["finetune.py", "--model_name_or_path", str(folder), "--dataset_name", str(place / "samples")]
    sys.argv += ["--task_type", "text", "--output_dir", str(place / "run"), "--max_steps", str(size.steps)]
    sys.argv += ["--per_device_train_batch_size", str(size.samples), "--logging_steps", str(max(1, size.steps // 6))]
    if status := main():
        raise SystemExit(status)
    lines = [line for line in read_log(place / "run" / "log.jsonl") if "tokens_per_second" in line][1:]
    best = sorted(lines, key=lambda line: line["tokens_per_second"])[len(lines) // 2]
    with torch.device("meta"):
        counted = weights(AutoModelForCausalLM.from_config(config_of(folder)))
    memory = round(best["memory_gib"] * GIB)
    rate = best["tokens_per_second"]
    return Measured(f"{what}, {size.samples} samples a step", dtype, rate, 1.0, 6 * counted, memory)


def config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def evaluate(device: str, size: Size, place: Path) -> Measured:
    """Tokens of the inputs whose choices are scored."""
    from support.asked_models import ask
    from teacherlm.scoring.language_model import LanguageModel

    folder, what = language_model(size, place)
    dtype = half(device)
    model = LanguageModel(folder, device, str(dtype).removeprefix("torch."))
    contexts = [f"Q: {text} (A) True (B) False A: The answer is (" for text in texts(size.questions, 3)]
    contexts = [f"{number}. {context}" for number, context in enumerate(contexts)]  # none is there twice
    model.loglikelihood(ask(*((context, letter) for context in contexts[:2] for letter in "AB")))
    asked = ask(*((context, letter) for context in contexts for letter in "AB"))
    seconds = clock(device, lambda: model.loglikelihood(asked))
    tokens = sum(len(model.tok_encode(context)) for context in contexts)
    return Measured(f"{what}, {model.scored.verdict.path}", dtype, tokens, seconds, 2 * weights(model.model))


def atlas_read(device: str, size: Size, place: Path) -> Measured:
    """Tokens of queries with passages that a reader like t5-v1_1-small encodes; its decoder's work is in the time."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    from support.atlas_models import make_tiny_t5
    from teacherlm.atlas import reader as readers

    tokenizer = T5Tokenizer.from_pretrained(make_tiny_t5(place / "tiny"))
    layers = size.layers or 8
    config = T5Config(
        **{"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": layers},
        **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
    )
    torch.manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = T5ForConditionalGeneration(config).to(device, dtype).eval()
    reader = readers.Reader(model, tokenizer, 512)
    passages = 10 if size.layers is None else 2
    asked = [[f"{number} {text}" for text in texts(passages, 8)] for number in range(max(1, size.questions // 64))]

    @torch.inference_mode()
    def read() -> None:
        for start in range(0, len(asked), 8):
            encoded = readers.encode(reader, asked[start : start + 8])
            target = readers.make_target(reader, ["A"] * len(asked[start : start + 8]), 16)
            readers.decode(reader, encoded, target)

    read()
    seconds = clock(device, read)
    tokens = tokenizer([text for texts in asked for text in texts], truncation=True, max_length=512).input_ids
    what = "a reader of the shape of t5-v1_1-small, random weights"
    return Measured(what, dtype, sum(map(len, tokens)), seconds, 2 * weights(model.encoder))


def atlas_embed(device: str, size: Size, place: Path) -> Measured:
    """Tokens of passages that a retriever of the shape of MiniLM embeds, as for an index."""
    from transformers import BertConfig, BertModel, BertTokenizer

    from support.atlas_models import make_tiny_bert
    from teacherlm.atlas.retriever import Retriever, embed

    tokenizer = BertTokenizer.from_pretrained(make_tiny_bert(place / "tiny"))
    config = BertConfig(
        **{"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": size.layers or 6, "num_attention_heads": 12},
        **{"intermediate_size": 1536},
    )
    torch.manual_seed(0)
    encoder = BertModel(config, add_pooling_layer=False)
    retriever = Retriever(encoder, encoder, "average", normalize=False).to(device).eval()
    passages = [f"{number} {text}" for number, text in enumerate(texts(size.texts, 4))]

    @torch.inference_mode()
    def work() -> None:
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            for _ in embed(retriever, tokenizer, passages, 128, 512, True):
                pass

    work()
    seconds = clock(device, work)
    tokens = sum(map(len, tokenizer(passages, truncation=True, max_length=128).input_ids))
    dtype = torch.float16 if device == "cuda" else torch.float32
    counted = weights(encoder.encoder)
    return Measured("a retriever of the shape of MiniLM, random weights", dtype, tokens, seconds, 2 * counted)


def atlas_search(device: str, size: Size, place: Path) -> Measured:
    """Queries that are searched for exactly; a query counts as a token, a number of the index as a weight."""
    from teacherlm.atlas.flat_search import FlatVectors

    torch.manual_seed(0)
    vectors = FlatVectors([torch.randn(size.vectors, 384, device=device).half()], 0)
    queries = torch.randn(512, 384, device=device)
    vectors.search(queries, 10)
    seconds = clock(device, lambda: [vectors.search(queries, 10) for _ in range(4)])
    what = f"exact search in {size.vectors} vectors of 384 numbers, 512 queries at a time"
    return Measured(what, torch.float32, 4 * len(queries), seconds, 2 * size.vectors * 384)


STAGES = {
    "enhance": enhance,
    "finetune": finetune,
    "evaluate": evaluate,
    "atlas-read": atlas_read,
    "atlas-embed": atlas_embed,
    "atlas-search": atlas_search,
}


if __name__ == "__main__":
    name, kind, amount = sys.argv[1:]
    print(json.dumps(measure(name, kind, SIZES[amount])))
