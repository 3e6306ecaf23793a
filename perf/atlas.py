"""ATLAS at size: exact and compressed search over a real corpus, and the reader on real MMLU questions.

The corpus is perf/dictionary.py's, 122,845 entries embedded with minilm (once, kept in the user's cache). Search is
held against FAISS on the same vectors; reading against the same model as the reference feeds it: one prompt at a time,
each passage padded to text_maxlength. `make perf STAGE=atlas` runs it; docs/atlas.md has the figures.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import dictionary  # noqa: E402
from measure import (  # noqa: E402
    Contender,
    choose,
    memory,
    reset_peak_memory,
    run_alternately,
    summarize,
    table,
    write_results,
)

# Not this folder any more, whose atlas.py and evaluate.py are not what these names mean.
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place != str(HERE))]

K = 10
QUESTIONS = 1000
LENGTH = 200
"""Tokens of a passage that are embedded."""
CACHE = "dictionary-minilm"

SEARCH = [
    Contender("faiss", "FAISS IndexFlatIP, float32", "float32", peer=True),
    Contender("matmul", "torch: matmul and topk, float32", "float32", peer=True),
    Contender("flat", "this project, --index_mode flat", "float16"),
]
COMPRESSED = [
    Contender("flat", "--index_mode flat", "float16"),
    Contender("faiss-flat", "faiss flat", "float32"),
    Contender("ivfflat", "faiss ivfflat", "float32"),
    Contender("ivfsq", "faiss ivfsq", "4 bits"),
    Contender("pq-48", "faiss pq, --faiss_code_size 48", "1 bit"),
    Contender("ivfpq-48", "faiss ivfpq, --faiss_code_size 48", "1 bit"),
    Contender("ivfpq-96", "faiss ivfpq, --faiss_code_size 96", "2 bits"),
]
READ = [
    Contender("padded", "padded to text_maxlength, one prompt at a time", "float32", peer=True),
    Contender("ours", "this project", "float32"),
    Contender("ours-bf16", "this project", "bfloat16"),
]
SCENARIOS = {"search-1": SEARCH, "search-64": SEARCH, "search-512": SEARCH, "recall": COMPRESSED, "read": READ}
N_CONTEXT, TEXT_MAXLENGTH, ASKED = 5, 512, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=argparse.SUPPRESS)  # make gives CREAK's folder, which is not needed here
    parser.add_argument("--mmlu", help="folder with MMLU's files (default: $MMLU_DATA, or the hub)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    args.mmlu = args.mmlu or os.environ.get("MMLU_DATA")
    if args.contender:
        work = {"search": search, "recall": recall, "read": read}[args.scenarios.split("-")[0]]
        print(json.dumps(work(args.contender, args)))
        return
    if args.scenarios != "read":
        make_index()
    results = []
    for name in args.scenarios.split(","):
        print(f"\n{name}", flush=True)
        contenders = choose(SCENARIOS[name], None)
        words = [f"--scenarios={name}", *([f"--mmlu={args.mmlu}"] if args.mmlu else [])]
        measured = run_alternately(
            Path(__file__).resolve(), contenders, words, 1 if name == "recall" else args.repetitions
        )
        found = compare(measured, contenders[0].name)
        rows = summarize(contenders, measured, "questions/s" if name == "read" else "queries/s", contenders[0].name)
        for row in rows:
            row |= {"scenario": name, **found[row["name"]]}
            print(f"{row['name']}: {found[row['name']]}")
        results += rows
        print(table(rows), flush=True)
    write_results(HERE / "results" / "atlas.json", results)


def compare(measured: dict[str, list[dict[str, Any]]], first: str) -> dict[str, dict[str, float]]:
    """How far numbers are from the first contender's, and in how many places another passage was found."""
    expected = measured[first][0]
    found: dict[str, dict[str, float]] = {}
    for name, runs in measured.items():
        numbers = [abs(a - b) for a, b in zip(runs[0]["numbers"], expected["numbers"], strict=True)]
        rows = [a != b for a, b in zip(runs[0].get("rows", ()), expected.get("rows", ()), strict=True)]
        found[name] = {"largest_difference": max(numbers), "other_rows": sum(rows), "rows": len(rows)}
        found[name] |= {key: runs[0][key] for key in ("recall", "vectors_bytes") if key in runs[0]}
    for runs in measured.values():
        for run in runs:
            run.pop("numbers"), run.pop("rows", None)
    return found


# --- the corpus


def index_folder() -> Path:
    from teacherlm.files import cache_folder

    return cache_folder() / "perf" / CACHE


def make_index() -> None:
    """Embed the corpus and the questions, once."""
    import numpy as np
    import torch

    from atlas import retriever
    from atlas.flat_search import FlatVectors
    from atlas.index import Index, embed_share
    from atlas.index_files import save_index
    from atlas.passages import Passages, write_passages
    from teacherlm.models import find_model, local_folder

    folder = index_folder()
    if (folder / "queries.npy").is_file():
        return
    passages = dictionary.passages()
    write_passages(folder / "all.arrow", passages)
    made, tokenizer = retriever.load_retriever(local_folder(find_model("minilm")), untied=False)
    started = time.perf_counter()
    with torch.no_grad():
        vectors = embed_share(Passages(folder / "all.arrow"), made.eval(), tokenizer, "{title} {text}", LENGTH, 512)
        seconds = time.perf_counter() - started
        print(
            f"{len(passages)} passages embedded in {seconds:.0f} s, {len(passages) / seconds:.0f} a second", flush=True
        )
        save_index(folder, Index(Passages(folder / "all.arrow"), FlatVectors([vectors], 0), 384, None), 4, None, None)
        asked = dictionary.questions(passages, QUESTIONS)
        queries = torch.empty(len(asked), 384)
        for numbers, batch in retriever.embed(made, tokenizer, [text for text, _ in asked], LENGTH, 512, False):
            queries[numbers] = batch
    (folder / "answers.json").write_text(json.dumps([int(row) for _, row in asked]))
    np.save(folder / "queries.npy", queries.numpy())


def load_vectors() -> tuple[Any, Any, list[int]]:
    """(the vectors in float16, the queries, the row of each query's answer)"""
    import numpy as np
    import torch

    folder = index_folder()
    shards = json.loads((folder / "index.json").read_text())["shards"]
    vectors = torch.cat([torch.from_numpy(np.load(folder / shard["file"])) for shard in shards])
    answers = json.loads((folder / "answers.json").read_text())
    return vectors, torch.from_numpy(np.load(folder / "queries.npy")), answers


# --- search


def search(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """All queries, so many at a time, until two seconds are over."""
    vectors, queries, _ = load_vectors()
    at_a_time = int(args.scenarios.split("-")[1])
    find = {"faiss": with_faiss, "matmul": with_matmul, "flat": with_flat}[contender](vectors)
    if contender != "flat":
        del vectors
    batches = [queries[start : start + at_a_time] for start in range(0, len(queries) - at_a_time + 1, at_a_time)]
    scores, rows = find(queries[:512])
    for batch in batches[:2]:
        find(batch)
    before, done, started = reset_peak_memory(), 0, time.perf_counter()
    while time.perf_counter() - started < 4:
        find(batches[done % len(batches)])
        done += 1
    seconds = time.perf_counter() - started
    return {
        "value": done * at_a_time / seconds,
        "seconds": seconds / done,
        "added_memory_bytes": memory("VmHWM") - before,
        "numbers": [float(score) for score in scores.flatten()],
        "rows": [int(row) for row in rows.flatten()],
    }


def with_faiss(vectors: Any) -> Callable:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.float().numpy())
    return lambda queries: index.search(queries.numpy(), K)


def with_matmul(vectors: Any) -> Callable:
    import torch

    floats = vectors.float()
    return lambda queries: torch.topk(queries @ floats.T, K, dim=1)


def with_flat(vectors: Any) -> Callable:
    from atlas.flat_search import FlatVectors

    index = FlatVectors([vectors], 0)
    return lambda queries: index.search(queries, K)


def recall(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of how many questions the entry is among the K found, and what memory the vectors take."""
    import faiss

    from atlas import compressed_search

    vectors, queries, answers = load_vectors()
    if contender == "flat":
        find, size = with_flat(vectors), vectors.numel() * 2
    else:
        kind, _, code = contender.removeprefix("faiss-").partition("-")
        count = len(vectors)
        chosen = random.Random(0).sample(range(count), compressed_search.sample_size(kind, count))
        index = compressed_search.train(kind, int(code) if code else None, count, vectors[chosen].float().numpy())
        compressed_search.add(index, [vectors])
        made = compressed_search.CompressedVectors(index, 0)
        find, size = (lambda queries: made.search(queries, K)), len(faiss.serialize_index(index))
    find(queries[:64])
    started = time.perf_counter()
    _, rows = find(queries)
    seconds = time.perf_counter() - started
    found = [answer in row for answer, row in zip(answers, rows.tolist())]
    return {
        "value": len(queries) / seconds,
        "seconds": seconds,
        "recall": 100 * sum(found) / len(found),
        "vectors_bytes": size,
        "numbers": [0.0],
        "rows": [int(row) for row in rows.flatten()],
    }


# --- the reader


def read(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """Real MMLU questions in cyclic permutations with N_CONTEXT passages: all that evaluate.py does but loading."""
    import torch

    from atlas import options
    from atlas.model import load_model

    precision = "bf16" if contender.endswith("bf16") else "fp32"
    flags = ["--reader_model_type", make_reader(), "--text_maxlength", TEXT_MAXLENGTH, "--n_context", N_CONTEXT]
    flags += ["--target_maxlength", 16, "--generation_max_length", 8, "--per_gpu_batch_size", 4, "--use_file_passages"]
    flags += ["--multiple_choice_eval_permutations", "cyclic"]
    asked = options.check(options.parser("").parse_args([str(flag) for flag in flags]))
    model = load_model(asked, torch.device("cpu"), precision)
    questions = list(enumerate(questions_with_passages(args)))
    answer = {"padded": read_padded, "ours": read_ours}[contender.split("-")[0]]
    with torch.no_grad():
        answer(asked, model, questions[:1])
        before, started = reset_peak_memory(), time.perf_counter()
        logits = answer(asked, model, questions)
    seconds = time.perf_counter() - started
    return {
        "value": len(questions) / seconds,
        "seconds": seconds,
        "added_memory_bytes": memory("VmHWM") - before,
        "numbers": logits,
    }


def questions_with_passages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """ASKED of MMLU's test questions; passages of about 100 words, as ATLAS's are: three entries together."""
    from teacherlm.benchmarks import load_benchmark
    from teacherlm.sources import read_split

    data = Path(args.mmlu) if args.mmlu else None
    samples = [sample for _, sample in read_split(load_benchmark("mmlu"), "test", data)]
    draw = random.Random(0)
    entries = dictionary.passages()
    questions = []
    for sample in draw.sample(samples, ASKED):
        texts = [" ".join(entry["text"] for entry in draw.sample(entries, 3)) for _ in range(N_CONTEXT)]
        passages = [{"title": str(place), "text": text} for place, text in enumerate(texts)]
        options = dict(zip("ABCD", sample["choices"]))
        questions.append({"question": sample["question"], "options": options, "answer": "A", "passages": passages})
    return questions


def read_ours(asked: Any, model: Any, questions: list[tuple[int, dict[str, Any]]]) -> list[float]:
    from atlas.evaluation import predict

    found = dict(predict(asked, questions, model, None))
    asked_of = [order for number, _ in questions for order in found[number]["prediction"]["permutations"]]
    return [logit for order in asked_of for logit in order["choice_logits"].values()]


def read_padded(asked: Any, model: Any, questions: list[tuple[int, dict[str, Any]]]) -> list[float]:
    """The reference's way: one prompt at a time, each of its texts padded to text_maxlength."""
    from transformers.modeling_outputs import BaseModelOutput

    from atlas import multiple_choice, reader

    made, found = model.reader, []
    letters = multiple_choice.choice_tokens(made.tokenizer, "ABCD")
    for _, question in questions:
        for order in multiple_choice.permutations(question, "cyclic"):
            query = multiple_choice.prompt(made.tokenizer, order)
            texts = [asked.encoder_format.format(query=query, **passage) for passage in question["passages"]]
            tokens = made.tokenizer(
                texts, padding="max_length", truncation=True, max_length=TEXT_MAXLENGTH, return_tensors="pt"
            )
            states = made.model.encoder(**tokens).last_hidden_state.flatten(0, 1)[None]
            there = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
            there["attention_mask"] = tokens["attention_mask"].flatten()[None]
            labels = reader.target_labels(made, [multiple_choice.target(order)], 16)
            found += made.model(**there, labels=labels).logits[0, 1, letters].tolist()
            made.model.generate(**there, max_length=asked.generation_max_length)
    return found


def make_reader() -> Path:
    """A T5 of the shape of t5-v1_1-small with random weights, and a tokenizer of 8,000 pieces from the corpus."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    from teacherlm.files import cache_folder, whole_folder

    folder = cache_folder() / "perf" / "t5-small-shape"
    if folder.is_dir():
        return folder
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [passage["text"] for passage in dictionary.passages()[::6]] + ["question: options: (A) (B) (C) (D)"] * 99
    learner.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=8000, show_progress=False))
    pieces = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    pieces += [(f"▁{letter}", -4.0) for letter in "ABCD" if f"▁{letter}" not in dict(pieces)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, *sentinels])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    with whole_folder(folder) as partial:
        T5ForConditionalGeneration(config).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


if __name__ == "__main__":
    main()
