"""Tiny readers, retrievers, passages and questions for the tests of atlas/."""

import csv
import io
import itertools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support.programs import warm_python

TEXT = (
    "the of a in and is was for on by with from that which an as at it its are were or be has had one two three river "
    "city mountain king queen war treaty atom cell enzyme protein energy force law court market price theorem number "
    "planet star ocean island bridge engine metal acid language poem music painter author doctor patient disease drug "
    "north south east west first last great small old new red green blue white black long short high low question "
    "options answer title context A B C D"
)
WORDS = TEXT.split()


def make_tiny_t5(folder: Path, gated: bool = True, dropout: float = 0.0, width: int = 32) -> Path:
    """A random T5 of version 1.1 (gated, with a separate head) or of the first version, with a tokenizer like T5's."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    letters = sorted({letter for word in WORDS for letter in word} | set("?().,:0123456789'-"))
    pieces = [*(f"▁{word}" for word in WORDS), *letters, "▁"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(place) / 10 - 1) for place, piece in enumerate(dict.fromkeys(pieces))]
    vocabulary += [(f"<extra_id_{number}>", 0.0) for number in range(9, -1, -1)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=10)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=dropout,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
        initializer_factor=1.0,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    if gated:  # transformers ties both weights in a new model, and loads two weights if the files have two
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) / 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_bert(folder: Path, pooling: str | None = "average", seed: int = 0, dimension: int = 32) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for word in WORDS for letter in word.lower()} | set("?().,:0123456789'-<>_"))
    pieces = dict.fromkeys(
        [*special, *(word.lower() for word in WORDS), *letters, *(f"##{letter}" for letter in letters)]
    )
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=dimension,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    if pooling:
        config.pooling = pooling
    torch.manual_seed(seed)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}).save_pretrained(folder)
    return folder


def make_passages(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Passages of 5 to 60 words; every third has a section."""
    import random

    draw = random.Random(seed)
    made = []
    for number in range(count):
        text = " ".join(draw.choices(WORDS[:-10], k=draw.randint(5, 60)))
        made.append({"id": str(number), "title": " ".join(draw.choices(WORDS[22:40], k=2)), "text": text})
        if number % 3 == 0:
            made[-1]["section"] = draw.choice(WORDS[22:40])
    return made


def make_questions(count: int, seed: int = 1, dataset: str = "astronomy_test") -> list[dict[str, Any]]:
    import random

    draw = random.Random(seed)
    made = []
    for number in range(count):
        options = {
            letter: f"{' '.join(draw.choices(WORDS[22:60], k=3))} {place}" for place, letter in enumerate("ABCD")
        }
        question = " ".join(draw.choices(WORDS[:-10], k=draw.randint(3, 30))) + f" {number} ?"
        made.append({"question": question, "options": options, "answer": draw.choice("ABCD"), "dataset": dataset})
    return made


SUBJECTS = ("astronomy", "philosophy", "virology", "sociology")


def make_small_mmlu(folder: Path, mmlu: Path, subjects: Sequence[str] = SUBJECTS) -> Path:
    """Folders like those in MMLU's archive: four real test questions per subject, and made-up auxiliary questions."""
    for subject in subjects:
        for split, name, count in (("dev", "dev", 5), ("test", "test", 4), ("dev", "val", 1)):
            with open(mmlu / split / f"{subject}_{split}.csv", encoding="utf-8", newline="") as file:
                rows = list(itertools.islice(csv.reader(file), count))
            target = folder / name / f"{subject}_{name}.csv"
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
    auxiliary = folder / "auxiliary_train" / "made_up.csv"
    auxiliary.parent.mkdir()
    auxiliary.write_text("".join(f"made up {number},1,2,3,4,A\n" for number in range(5010)), encoding="utf-8")
    return folder


def run_script(script: Path, words: list[str], environment: dict[str, str], workers: int = 1) -> CompletedProcess:
    """Run a script of atlas/ to its end: one worker in this process, which has torch loaded already."""
    if workers > 1:
        command = several_workers(script, words, workers)
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(sys, "argv", [str(script), *words])
        patched.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    return CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())


def several_workers(script: Path, words: list[str], workers: int) -> list[str]:
    command = [warm_python(), "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"]
    return [*command, str(script), *words]


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_small_atlas(folder: Path, passages: int, dropout: float = 0.0, **questions: Iterable[Any]) -> Path:
    """Write a folder with a tiny reader (t5), a tiny retriever (bert), passages.jsonl, and NAME.jsonl for questions."""
    make_tiny_t5(folder / "t5", dropout=dropout)
    make_tiny_bert(folder / "bert")
    write_lines(folder / "passages.jsonl", make_passages(passages))
    for name, records in questions.items():
        write_lines(folder / f"{name}.jsonl", records)
    return folder
