"""Measure the reader on real MMLU questions against the reference's way of reading (a scenario of perf/atlas.py)."""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from perf import dictionary
from perf.measure import Contender, memory, reset_peak_memory

READ = [
    Contender("padded", "padded to text_maxlength, one prompt at a time", "float32", peer=True),
    Contender("ours", "this project", "float32"),
    Contender("ours-bf16", "this project", "bfloat16"),
]
N_CONTEXT, TEXT_MAXLENGTH, ASKED = 5, 512, 12


def read(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """Read MMLU questions in cyclic permutations with N_CONTEXT passages: everything that evaluate.py does after
    loading."""
    import torch

    from teacherlm.atlas.flags import read_evaluation
    from teacherlm.atlas.model import load_model

    precision = "bf16" if contender.endswith("bf16") else "fp32"
    flags = ["--reader_model_type", make_reader(), "--text_maxlength", TEXT_MAXLENGTH, "--n_context", N_CONTEXT]
    flags += ["--target_maxlength", 16, "--generation_max_length", 8, "--per_gpu_batch_size", 4, "--use_file_passages"]
    flags += ["--multiple_choice_eval_permutations", "cyclic"]
    flags = read_evaluation("", [str(flag) for flag in flags])
    model = load_model(flags, torch.device("cpu"), precision, trains=contender == "padded")
    questions = list(enumerate(questions_with_passages(args)))
    answer = {"padded": read_padded, "ours": read_ours}[contender.split("-")[0]]
    with torch.no_grad():
        answer(flags, model, questions[:1])
        before, started = reset_peak_memory(), time.perf_counter()
        logits = answer(flags, model, questions)
    seconds = time.perf_counter() - started
    return {
        "value": len(questions) / seconds,
        "seconds": seconds,
        "added_memory_bytes": memory("VmHWM") - before,
        "numbers": logits,
    }


def questions_with_passages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """ASKED test questions of MMLU with N_CONTEXT passages each."""
    from teacherlm.catalog.benchmarks import load_benchmark
    from teacherlm.catalog.sources import read_split

    data = Path(args.mmlu) if args.mmlu else None
    samples = [sample for _, sample in read_split(load_benchmark("mmlu"), "test", data)]
    passages = two_entries(ASKED * N_CONTEXT)
    questions = []
    for number, sample in enumerate(random.Random(0).sample(samples, ASKED)):
        options = dict(zip("ABCD", sample["choices"]))
        given = passages[number * N_CONTEXT : (number + 1) * N_CONTEXT]
        questions.append({"question": sample["question"], "options": options, "answer": "A", "passages": given})
    return questions


def two_entries(count: int) -> list[dict[str, str]]:
    """Passages of about 80 words, like ATLAS's passages from Wikipedia. Each consists of two dictionary entries."""
    draw = random.Random(0)
    entries = dictionary.passages()
    texts = [" ".join(entry["text"] for entry in draw.sample(entries, 2)) for _ in range(count)]
    return [{"title": str(place), "text": text} for place, text in enumerate(texts)]


def read_ours(flags: Any, model: Any, questions: list[tuple[int, dict[str, Any]]]) -> list[float]:
    from teacherlm.atlas.answering import predict

    found = dict(predict(flags, questions, model, None))
    asked_of = [order for number, _ in questions for order in found[number]["prediction"]["permutations"]]
    return [logit for order in asked_of for logit in order["choice_logits"].values()]


def read_padded(flags: Any, model: Any, questions: list[tuple[int, dict[str, Any]]]) -> list[float]:
    """Read in the reference's way: one prompt at a time, with each of its texts padded to text_maxlength."""
    from transformers.modeling_outputs import BaseModelOutput

    from teacherlm.atlas import multiple_choice, reader

    made, found = model.reader, []
    letters = multiple_choice.choice_tokens(made.tokenizer, "ABCD")
    for _, question in questions:
        for order in multiple_choice.permutations(question, "cyclic"):
            query = multiple_choice.prompt(made.tokenizer, order)
            texts = [flags.encoder_format.format(query=query, **passage) for passage in question["passages"]]
            tokens = made.tokenizer(
                texts, padding="max_length", truncation=True, max_length=TEXT_MAXLENGTH, return_tensors="pt"
            )
            states = made.model.encoder(**tokens).last_hidden_state.flatten(0, 1)[None]
            there = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
            there["attention_mask"] = tokens["attention_mask"].flatten()[None]
            labels = reader.make_target(made, [multiple_choice.target(order)], 16).labels
            found += made.model(**there, labels=labels).logits[0, 1, letters].tolist()
            made.model.generate(**there, max_length=flags.generation_max_length)
    return found


SHAPES = {
    "small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
"""The shapes of T5 1.1."""


def make_reader(size: str = "small") -> Path:
    """The folder of a T5 with one of the SHAPES and random weights, and a tokenizer with as many pieces as T5's."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    from teacherlm.core.files import whole_folder
    from teacherlm.core.places import cache_folder

    folder = cache_folder() / "perf" / f"t5-{size}-shape-32k"
    if folder.is_dir():
        return folder
    tokenizer = make_tokenizer() if size == "small" else T5Tokenizer.from_pretrained(make_reader())
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128,
        d_kv=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        **SHAPES[size],
    )
    with whole_folder(folder) as partial:
        T5ForConditionalGeneration(config).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def make_tokenizer() -> Any:
    """A tokenizer of T5's kind with 32,000 pieces, learned from the dictionaries."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [passage["text"] for passage in dictionary.passages()[::2]] + ["question: options: (A) (B) (C) (D)"] * 99
    texts += [entry for _, entry in dictionary.entries("wn")]
    learner.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=31_900, show_progress=False))
    pieces = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    pieces += [(f"▁{letter}", -4.0) for letter in "ABCD" if f"▁{letter}" not in dict(pieces)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, *sentinels])
