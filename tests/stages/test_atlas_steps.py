"""Training steps compared with float64 code of this test: dropout, gradients that are not finite, and accumulation."""

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.atlas_models import make_passages, make_questions, make_small_atlas, make_tiny_t5, run_script, write_lines
from support.files import read_lines
from support.plain_models import PlainBert, PlainT5
from support.programs import ROOT, only_error

from teacherlm.atlas import learner, multiple_choice
from teacherlm.atlas.flags import TrainFlags, read_training
from teacherlm.atlas.layer_norm import use_mean_square
from teacherlm.atlas.model import load_model

TRAIN = ROOT / "atlas" / "train.py"
N = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_atlas(tmp_path_factory.mktemp("atlas"), 12)


def words(place: Path, output: Path, *more: object) -> list[str]:
    flags = ["--reader_model_type", place / "t5", "--retriever_model_path", place / "bert", "--name", "run"]
    flags += ["--checkpoint_dir", output, "--text_maxlength", 80, "--target_maxlength", 16, "--warmup_steps", 0]
    flags += ["--scheduler", "fixed", "--lr", 1e-3, "--lr_retriever", 1e-3, "--log_freq", 1, "--save_freq", 2]
    return [str(word) for word in [*flags, *more]]


def train(place: Path, output: Path, *more: object, workers: int = 1) -> subprocess.CompletedProcess:
    return run_script(TRAIN, words(place, output, *more), {"TEACHERLM_CACHE": str(place / "cache")}, workers)


# --- query-side training: only the query encoder has dropout


def flags_of(place: Path, *more: object) -> TrainFlags:
    needed = ["--train_data", place / "passages.jsonl", "--passages", place / "passages.jsonl"]
    return read_training("", words(place, place / "out", *needed, *map(str, more)))


def drawn_masks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The factors of every dropout from now on, in order. The library draws them, and this list keeps them."""
    masks: list[torch.Tensor] = []
    library = torch.nn.functional.dropout

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        masks.append(library(torch.ones_like(x), p, training=True).detach())
        return x * masks[-1]

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    return masks


def mask_of(masks: list[torch.Tensor], row: int, length: int) -> Iterator[torch.Tensor]:
    """The masks of one text of a padded batch: those of states (B, L, D) and those of attention (B, H, L, L)."""
    for mask in masks:
        yield mask[row, :, :length, :length] if mask.dim() == 4 else mask[row, :length]


@pytest.mark.parametrize("norm", ["variance", "mean_square"])
def test_query_side_training_with_dropout(place: Path, monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    """The retriever's loss and gradient: passages are encoded without dropout, and queries with the drawn masks."""
    more = ["--train_retriever", "--query_side_retriever_training", "--dropout", 0.3, "--retriever_n_context", N]
    flags = flags_of(place, *more, "--n_context", N, "--temperature_gold", 0.1, "--temperature_score", 0.2)
    model = load_model(flags, torch.device("cpu"), "fp32", trains=True)
    if norm == "mean_square":
        use_mean_square(model.retriever.query)
        use_mean_square(model.retriever.passage)
    model.retriever.double().query.set_attn_implementation("eager")
    model.reader.model.double()
    passages = [{"title": p["title"], "text": p["text"]} for p in make_passages(2 * N)]
    examples = [{**q, "passages": passages[i * N : i * N + N]} for i, q in enumerate(make_questions(2))]
    batch = learner.Batch(flags, model, examples, None, learns=True)
    trainee = learner.Trainee(flags, model).train()
    masks = drawn_masks(monkeypatch)
    torch.manual_seed(7)
    _, loss = trainee(batch)
    loss.backward()

    tokenizer, of_query = model.retriever_tokenizer, masks[: 1 + 3 * model.retriever.query.config.num_hidden_layers]
    query, passage = (PlainBert(encoder, norm) for encoder in (model.retriever.query, model.retriever.passage))
    for weight in query.weights.values():
        weight.requires_grad_()
    t5 = PlainT5(model.reader.model)
    expected = torch.zeros((), dtype=torch.float64)
    for row, example in enumerate(examples):
        prompt = multiple_choice.prompt(model.reader_tokenizer, example)
        tokens = tokenizer(prompt, truncation=True, max_length=80)["input_ids"]
        query.masks = mask_of(of_query, row, len(tokens))
        vector = query.states(tokens).mean(0)
        target = model.reader_tokenizer(multiple_choice.target(example))["input_ids"]
        scores, gold = [], []
        for one in example["passages"]:
            with torch.no_grad():
                ids = tokenizer(f"{one['title']} {one['text']}", truncation=True, max_length=80)["input_ids"]
                of_passage = passage.states(ids).mean(0)
                text = f"{prompt} title: {one['title']} context: {one['text']}"
                states = t5.encode(model.reader_tokenizer(text, truncation=True, max_length=80)["input_ids"])
                logprobs = torch.log_softmax(t5.decode(states, [0, *target[:-1]]), dim=-1)
            scores.append(vector @ of_passage / math.sqrt(len(vector)))
            gold.append(logprobs[range(len(target)), target].mean())
        p, q = torch.log_softmax(torch.stack(scores) / 0.2, 0), torch.softmax(torch.stack(gold) / 0.1, 0)
        expected = expected + (q * (q.log() - p)).sum() / (2 * N)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, weight in model.retriever.query.named_parameters():
        torch.testing.assert_close(weight.grad, query.weights[name].grad, atol=1e-6, rtol=1e-4)
    assert all(weight.grad is None for weight in model.retriever.passage.parameters())
    assert trainee.training and not model.retriever.passage.training


# --- gradients that are not finite

BAD = "poem"


def good_and_bad(kinds: str) -> list[dict]:
    """Questions, of which only question B has a word whose gradient is not finite."""
    made = make_questions(len(kinds))
    for question in made:
        question["question"] = question["question"].replace(BAD, "river")
        question["options"] = {letter: text.replace(BAD, "river") for letter, text in question["options"].items()}
    for question, kind in zip(made, kinds):
        question["question"] = f"{BAD} {question['question']}" if kind == "B" else question["question"]
    return made


@pytest.fixture(scope="module")
def bad_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with finite weights and losses, but twice the embedding of one word exceeds the range of float32."""
    folder = tmp_path_factory.mktemp("bad")
    make_tiny_t5(folder / "t5")
    (folder / "bert").symlink_to(place / "bert")
    from teacherlm.runtime.loading import load_tokenizer

    weights = load_file(folder / "t5" / "model.safetensors")
    weights["shared.weight"][load_tokenizer(folder / "t5").convert_tokens_to_ids(f"▁{BAD}")] = 3e38
    save_file(weights, folder / "t5" / "model.safetensors", {"format": "pt"})
    return folder


def saved(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "run" / "checkpoint" / f"step-{step}" / "reader" / "model.safetensors")


def plain_steps(folder: Path, questions: list[dict], taken: list[int]) -> dict[str, torch.Tensor]:
    """AdamW by its formulas (Loshchilov & Hutter 2019, with clipping to 1) on the questions of some steps."""
    from teacherlm.atlas import reader
    from teacherlm.runtime.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    plain = PlainT5(reader.load_reader(folder))
    used = {name: w.clone().requires_grad_() for name, w in plain.weights.items() if "embed_tokens" not in name}
    plain.weights = used
    moments = {name: SimpleNamespace(m=torch.zeros_like(w), v=torch.zeros_like(w)) for name, w in used.items()}
    for count, number in enumerate(taken, start=1):
        states = plain.encode(tokenizer(multiple_choice.prompt(tokenizer, questions[number]))["input_ids"])
        target = tokenizer(multiple_choice.target(questions[number]))["input_ids"]
        logprobs = torch.log_softmax(plain.decode(states, [0, *target[:-1]]), dim=-1)
        gradients = torch.autograd.grad(-logprobs[range(len(target)), target].mean(), list(used.values()))
        norm = torch.sqrt(sum(gradient.pow(2).sum() for gradient in gradients))
        with torch.no_grad():
            for (name, weight), gradient in zip(used.items(), gradients):
                gradient = gradient * min(1.0, 1 / (norm.item() + 1e-6))
                of = moments[name]
                of.m, of.v = 0.9 * of.m + 0.1 * gradient, 0.999 * of.v + 0.001 * gradient**2
                step = (of.m / (1 - 0.9**count)) / ((of.v / (1 - 0.999**count)).sqrt() + 1e-6)
                weight -= 1e-3 * (0.1 * weight + step)
    return used


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(bad_place: Path, tmp_path: Path) -> None:
    """The other steps equal those of float64 code that omits this question."""
    questions = good_and_bad("gBgg")
    file = write_lines(tmp_path / "train.jsonl", questions)
    done = train(bad_place, tmp_path, "--train_data", file, "--closed_book", "--dropout", 0, "--total_steps", 4)
    assert done.returncode == 0, done.stderr
    assert "train: step 2 skipped: its gradient is not finite (1 in a row)" in done.stdout
    assert [line.get("skipped_steps", 0) for line in read_lines(tmp_path / "run" / "log.jsonl")] == [0, 1, 0, 0]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]["skipped_steps"] == 1
    found, expected = saved(tmp_path, 4), plain_steps(bad_place / "t5", questions, [0, 2, 3])
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].double(), weight.detach(), atol=1e-5, rtol=1e-5)


def test_too_many_in_a_row_end_the_run(bad_place: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "train.jsonl", good_and_bad("ggBBgBBBBBBB"))
    more = ["--train_data", file, "--closed_book", "--dropout", 0, "--total_steps", 12]
    done = train(bad_place, tmp_path, *more)
    message = only_error(done)
    assert "skipped 5 steps in a row, up to step 10, because the gradient is not finite" in message
    assert "checkpoint/step-8; use a lower --lr" in message
    assert not (tmp_path / "run" / "manifest.json").exists()
    after = saved(tmp_path, 8)
    assert all(weight.isfinite().all() for weight in after.values())
    assert torch.equal(after["lm_head.weight"], saved(tmp_path, 6)["lm_head.weight"])  # step 5 was the last one taken
    assert not torch.equal(after["lm_head.weight"], saved(tmp_path, 4)["lm_head.weight"])


def test_a_run_all_of_whose_steps_are_skipped_fails(bad_place: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "train.jsonl", good_and_bad("BB"))
    done = train(bad_place, tmp_path, "--train_data", file, "--closed_book", "--dropout", 0, "--total_steps", 2)
    assert "skipped 2 steps in a row, up to step 2" in only_error(done)
    assert not list(tmp_path.glob("run/checkpoint/*"))


def test_workers_with_shared_out_states_skip_together(bad_place: Path, tmp_path: Path) -> None:
    """One of the two workers has the bad question. Both together learn the same as one worker."""
    file = write_lines(tmp_path / "train.jsonl", good_and_bad("gggBgg"))
    more = ["--train_data", file, "--closed_book", "--dropout", 0, "--total_steps", 3]
    two = train(bad_place, tmp_path / "two", *more, "--shard_optim", "--shard_grads", workers=2)
    assert two.returncode == 0, two.stderr[-3000:]
    one = train(bad_place, tmp_path / "one", *more, "--per_gpu_batch_size", 2)
    assert one.returncode == 0, one.stderr
    for output in ("one", "two"):
        lines = read_lines(tmp_path / output / "run" / "log.jsonl")
        assert [line.get("skipped_steps", 0) for line in lines] == [0, 1, 0]
    found, expected = saved(tmp_path / "two", 3), saved(tmp_path / "one", 3)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-5)


# --- accumulation


def test_warm_up_and_total_are_both_counted_in_batches(place: Path, tmp_path: Path) -> None:
    """A step has two batches, and the learning rate of its first batch."""
    file = write_lines(tmp_path / "train.jsonl", make_questions(8))
    more = ["--closed_book", "--train_data", file, "--total_steps", 8, "--accumulation_steps", 2]
    done = train(place, tmp_path, *more, "--scheduler", "linear", "--warmup_steps", 4)
    assert done.returncode == 0, done.stderr
    rates = [line["learning_rates"][0] for line in read_lines(tmp_path / "run" / "log.jsonl")]
    shares = [0.1, 0.1 + 0.9 * 2 / 4, 1.0, 1 - 0.9 * 2 / 4]
    assert rates == pytest.approx([1e-3 * share for share in shares for _ in range(2)])
