"""--loss_weights: the loss is a weighted sum of the means over the parts, as computed sample by sample in float64."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.finetuning import flags, odd_or_even, read_log, weights
from support.programs import only_error
from support.tiny_models import make_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from teacherlm.catalog.text_parts import PARTS
from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import NO_LOSS, PackingCollator, PaddingCollator, token_weights
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.loss_parts import parse_shares, parts_of_tokens
from teacherlm.finetune.samples import tokenize
from teacherlm.finetune.single_samples import use_single_samples
from teacherlm.runtime.packed_attention import use_packing

BOTH = "answer:0.5,explanation:0.5"
STEP = 4  # samples


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve samples with the field `cot_tail`, whose explanations have different lengths."""
    return odd_or_even(tmp_path_factory.mktemp("enhanced") / "SAMPLE")


def means(model: torch.nn.Module, tokenizer: Any, texts: list[str], average: str) -> dict[str, float]:
    """The mean loss of each part over a step, one sample at a time in float64, from the texts alone."""
    found: dict[str, list[list[float]]] = {"answer": [], "explanation": [], "question": []}
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        ids_T = encoded["input_ids"][0]
        losses_T = torch.nn.functional.cross_entropy(
            model(input_ids=ids_T[None]).logits[0, :-1].double(), ids_T[1:], reduction="none"
        )
        letter = text.index("The answer is (") + len("The answer is (")
        of_sample: dict[str, list[float]] = {name: [] for name in found}
        ends = [end for _, end in encoded["offset_mapping"][0].tolist()]
        last = max(ends)
        for loss, end in zip(losses_T.tolist(), ends[1:]):
            end = end or last  # a special token at the end
            of_sample["question" if end <= letter else "answer" if end <= letter + 3 else "explanation"].append(loss)
        for name, losses in of_sample.items():
            found[name].append(losses)
    if average == "sample":
        per_sample = {name: [sum(one) / len(one) for one in of if one] for name, of in found.items()}
        return {name: sum(of) / len(of) for name, of in per_sample.items() if of}
    whole = {name: [loss for one in of for loss in one] for name, of in found.items()}
    return {name: sum(of) / len(of) for name, of in whole.items() if of}


@pytest.mark.parametrize("average", ["token", "sample"])
@pytest.mark.parametrize("path", ["packed", "padded", "padded-whole", "single"])
@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_the_loss_and_those_of_the_parts_are_the_reference_s(
    kind: str, path: str, average: str, enhanced: Path, tmp_path: Path
) -> None:
    folder = make_tiny_model(kind, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)).eval()
    dataset = datasets.load_from_disk(str(enhanced))
    shares = parse_shares("answer:0.25,explanation:2")
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("cot_tail"), 2048, False, 0, with_parts=True)
    expected = means(model, tokenizer, dataset["cot_tail"][:STEP], average)
    collate = (PackingCollator if path == "packed" else PaddingCollator)(average, shares)
    batch = collate([tokens[index] for index in range(STEP)])
    batch.pop("samples")
    sums = torch.zeros(len(PARTS)).index_add_(0, batch["parts"].flatten(), batch["token_weights"].flatten())
    batch["token_weights"] *= torch.where(sums > 0, torch.tensor(shares) / sums, 0)[batch["parts"]]
    if path == "packed":
        assert use_packing(model, "sdpa")
    if path == "single":
        use_single_samples(model)
    else:
        use_chunked_loss(model, whole=path == "padded-whole")
    loss = model(**batch, use_cache=False)["loss"]
    assert loss.item() == pytest.approx(0.25 * expected["answer"] + 2 * expected["explanation"], rel=1e-5)
    of_parts = dict(zip(PARTS, model.part_losses.tolist()))
    assert of_parts["answer"] == pytest.approx(0.25 * expected["answer"], rel=1e-5)
    assert of_parts["explanation"] == pytest.approx(2 * expected["explanation"], rel=1e-5)
    assert of_parts["question"] == 0


def train(inside: Callable, model: Path, dataset: Path, output: Path, *more: object, task: str = "cot_tail") -> Path:
    words = flags(model, dataset, output)
    words[words.index("--task_type") + 1] = task
    done = inside("finetune", *words, "--num_train_epochs", 2, "--logging_steps", 1, "--shuffle", "false", *more)
    assert done.returncode == 0, done.stderr
    return output


def test_the_log_has_the_mean_of_each_part(tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    """With a learning rate of 0 every step computes with the first weights."""
    output = train(inside, tiny_llama, enhanced, tmp_path / "run", "--loss_weights", BOTH, "--learning_rate", 0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    texts = datasets.load_from_disk(str(enhanced))["cot_tail"][:]
    log = read_log(output)
    assert len(log) == 6
    for number, record in enumerate(log):
        start = number % 3 * STEP
        expected = means(model, tokenizer, texts[start : start + STEP], "token")
        assert record["answer_loss"] == pytest.approx(expected["answer"], rel=1e-5)
        assert record["explanation_loss"] == pytest.approx(expected["explanation"], rel=1e-5)
        assert record["loss"] == pytest.approx((expected["answer"] + expected["explanation"]) / 2, rel=1e-5)
        assert "question_loss" not in record


@pytest.mark.parametrize(("batch", "accumulated"), [(2, 2), (1, 4)])
def test_however_a_step_is_cut_it_learns_the_same(
    batch: int, accumulated: int, tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    """Each part's mean is over the whole step, also where a batch has few tokens of it."""
    whole = train(inside, tiny_llama, enhanced, tmp_path / "whole", "--loss_weights", BOTH)
    more = ("--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulated)
    cut = train(inside, tiny_llama, enhanced, tmp_path / "cut", "--loss_weights", BOTH, *more)
    for name in ("loss", "answer_loss", "explanation_loss", "grad_norm"):
        assert [one[name] for one in read_log(cut)] == pytest.approx([one[name] for one in read_log(whole)], abs=2e-5)


def test_padded_is_packed(tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    for task in ("cot_tail", "text:1,cot_tail:1"):
        logs = []
        for name in ("true", "false"):
            more = ("--loss_weights", "answer:1,explanation:0.3", "--packing", name)
            logs.append(read_log(train(inside, tiny_llama, enhanced, tmp_path / f"{task}-{name}", *more, task=task)))
        for name in ("loss", "answer_loss", "grad_norm"):
            assert [one[name] for one in logs[0]] == pytest.approx([one[name] for one in logs[1]], abs=2e-5)


def test_the_answer_alone_is_the_completion_of_text(
    tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    one = train(inside, tiny_llama, enhanced, tmp_path / "one", "--loss_weights", "answer:1", task="text")
    two = train(inside, tiny_llama, enhanced, tmp_path / "two", "--loss_on", "completion", task="text")
    for name in ("loss", "grad_norm"):
        assert [record[name] for record in read_log(one)] == pytest.approx([r[name] for r in read_log(two)], abs=1e-6)


def test_a_run_that_was_interrupted_between_two_log_lines_goes_on(
    tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ("--loss_weights", BOTH, "--save_strategy", "steps", "--save_steps", 2, "--logging_steps", 3)
    whole = train(inside, tiny_llama, enhanced, tmp_path / "whole", *words)
    expected, log = weights(whole), read_log(whole)
    for number in (4, 6):
        shutil.rmtree(whole / f"checkpoint-{number}")
    (whole / "manifest.json").unlink()
    train(inside, tiny_llama, enhanced, tmp_path / "whole", *words)
    assert weights(whole) == expected
    assert read_log(whole) == log


def dev(enhanced: Path, tmp_path: Path) -> Path:
    """A dev split of five samples, one of which has no explanation in the loss."""
    rows = datasets.load_from_disk(str(enhanced)).select(range(5))
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(tmp_path / "dev"))
    return tmp_path / "dev"


def test_the_dev_loss_is_the_weighted_sum_over_all_dev_samples(
    tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    more = ("--loss_weights", BOTH, "--learning_rate", 0, "--dev_dataset", dev(enhanced, tmp_path))
    output = train(inside, tiny_llama, enhanced, tmp_path / "run", *more, "--per_device_eval_batch_size", 2)
    texts = datasets.load_from_disk(str(enhanced))["cot_tail"][:5]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    expected = means(AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer, texts, "token")
    losses = [record["dev_loss"] for record in read_log_lines(output) if "dev_loss" in record]
    assert losses == pytest.approx([(expected["answer"] + expected["explanation"]) / 2] * 2, rel=1e-5)


def read_log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_mistakes_are_one_line(tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    words = flags(tiny_llama, enhanced, tmp_path / "run")
    place = words.index("--task_type") + 1

    def error(weights: str, *more: object, task: str = "cot_tail", dataset: Path = enhanced) -> str:
        words[place], words[words.index("--dataset_name") + 1] = task, dataset
        return only_error(inside("finetune", *words, "--loss_weights", weights, *more))

    for said in ("answer", "answer:x", "answer:1,answer:1", "letter:1", "answer:0", "answer:-1", "answer:nan", ""):
        assert f"--loss_weights {said}: " in error(said)
    assert "--loss_on has no effect with --loss_weights" in error("answer:1", "--loss_on", "completion")
    assert "no text in the field text has the part explanation" in error(BOTH, task="text")
    rows = datasets.load_from_disk(str(enhanced)).to_list()
    for number, parts in enumerate(
        ('{"cot_tail": [["question", 9]]}', "3", '{"cot_tail": 3}', '{"cot_tail":[["x",1]]}')
    ):
        damaged = [{**row, "parts": parts if index == 3 else row["parts"]} for index, row in enumerate(rows)]
        datasets.Dataset.from_list(damaged).save_to_disk(str(tmp_path / str(number)))
        assert "sample 4: the field 'parts' does not fit" in error(BOTH, dataset=tmp_path / str(number))
    unknown = [{name: row[name] for name in ("text", "cot_tail")} for row in rows]
    datasets.Dataset.from_list(unknown).save_to_disk(str(tmp_path / "unknown"))
    assert "in the field 'cot_tail' is not known" in error(BOTH, dataset=tmp_path / "unknown")


def test_a_token_belongs_to_the_part_of_its_last_character() -> None:
    spans = [["question", 4], ["answer", 6], ["explanation", 9]]
    offsets = [(0, 3), (3, 4), (4, 5), (5, 7), (7, 9)]
    assert parts_of_tokens(spans, offsets, 1, 1) == [0, 0, 0, 1, 2, 2, 2]
    assert parts_of_tokens([["question", 4], ["answer", 6]], [(0, 5), (5, 6)], 0, 2) == [1, 1, 1, 1]


def test_each_part_has_a_mean() -> None:
    labels, parts = [[1, 2, 3, NO_LOSS], [4, NO_LOSS]], [[1, 2, 2, 0], [1, 0]]
    assert token_weights(labels, "token", parts) == [[1, 1, 1, 0], [1, 0]]
    assert token_weights(labels, "sample", parts) == [[1, 1 / 2, 1 / 2, 0], [1, 0]]
    assert token_weights(labels, "batch", parts) == [[1 / 2, 1 / 2, 1 / 2, 0], [1 / 2, 0]]
