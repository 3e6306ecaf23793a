"""enhance.py --top_logprobs and finetune.py --kl_weight: the teacher's distribution is kept, and is a target."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.files import read_lines
from support.finetuning import flags, read_log, weights
from support.programs import only_error
from support.tiny_models import exchange_two_tokens, make_other_model, make_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from teacherlm.catalog.top_logprobs import TopLogprobs, decode, encode, vocabulary_digest
from teacherlm.core.records import write_records
from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import PackingCollator, PaddingCollator
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.samples import tokenize
from teacherlm.finetune.sets import TrainingRows, TrainingSet
from teacherlm.finetune.single_samples import use_single_samples
from teacherlm.finetune.soft_targets import TeacherTokens
from teacherlm.runtime.packed_attention import use_packing

SHARE, STEP = 0.3, 4


def enhance(inside: Callable, teacher: Path, prepared: Path, output: Path, *more: object) -> list[dict[str, Any]]:
    words = ("--name", teacher, "--input", prepared / "SAMPLE.jsonl", "--output", output, "--task_type", "cot_text")
    done = inside("enhance", *words, "--num_tokens", 9, "--dtype", "float32", *more)
    assert done.returncode == 0, done.stderr
    return read_lines(output)


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other_model(tmp_path_factory.mktemp("teacher") / "model")


@pytest.mark.parametrize("family", ["llama", "bloom", "opt"])
def test_the_distribution_is_that_of_a_plain_forward_pass(
    family: str, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    teacher = make_tiny_model(family, tmp_path / "model")
    records = enhance(inside, teacher, prepared, tmp_path / "SAMPLE_cot.jsonl", "--top_logprobs", 5)
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModelForCausalLM.from_pretrained(teacher)
    prompts = [json.loads(line)["cot_text"] for line in (prepared / "SAMPLE.jsonl").read_text().splitlines()]
    for prompt, record in zip(prompts, records, strict=True):
        top = decode(record["cot_top_logprobs"], len(tokenizer))
        assert top.vocabulary == vocabulary_digest(tokenizer)
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = [*prompt_ids, *top.written_T.tolist()]
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids])).logits[0, len(prompt_ids) - 1 : -1].double()
        expected_TV = logits_TV.log_softmax(-1).numpy()
        found_TK = np.take_along_axis(expected_TV, top.ids_TK, 1)
        np.testing.assert_allclose(top.logprobs_TK1[:, :-1], found_TK, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found_TK, np.sort(expected_TV, 1)[:, ::-1][:, :5], rtol=1e-5)
        rest_T = 1 - np.exp(found_TK).sum(1)
        np.testing.assert_allclose(np.exp(top.logprobs_TK1[:, -1]), rest_T, rtol=5e-3)
    plain = enhance(inside, teacher, prepared, tmp_path / "plain_cot.jsonl")
    assert [one["cot"] for one in plain] == [one["cot"] for one in records]
    assert "cot_top_logprobs" not in plain[0]


def test_other_numbers_of_tokens_are_another_setting(
    tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    output = tmp_path / "SAMPLE_cot.jsonl"
    enhance(inside, tiny_llama, prepared, output, "--top_logprobs", 2, "--num_completions", 2)
    words = ("--name", tiny_llama, "--input", prepared / "SAMPLE.jsonl", "--output", output, "--task_type", "cot_text")
    more = ("--num_tokens", 9, "--num_completions", 2, "--dtype", "float32", "--top_logprobs", 3)
    assert "top_logprobs was 2, is 3" in only_error(inside("enhance", *words, *more))
    record = read_lines(output)[0]
    assert record["cot_top_logprobs"] == record["cot_completions"][0]["top_logprobs"]
    assert record["cot_completions"][1]["top_logprobs"] != record["cot_top_logprobs"]
    for name in ("http://127.0.0.1:9/model", "field:sentence"):
        words = ("--name", name, *words[2:])
        assert "--top_logprobs needs the teacher's own tokens" in only_error(inside("enhance", *words, *more[4:]))


@pytest.fixture(scope="module")
def enhanced(other_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve samples with `cot_tail`, whose explanations come with distributions of a teacher.

    Samples differ in K. The first has no distribution; one has that of a text that the sample does not have.
    """
    tokenizer = AutoTokenizer.from_pretrained(other_teacher)
    model = AutoModelForCausalLM.from_pretrained(other_teacher)
    rows = []
    for number in range(12):
        text = f"Q: Is {number} odd? (A) yes (B) no A: The answer is ({'BA'[number % 2]})."
        explanation = f" It is {number}, and boats are on the water." * (number % 3 + 1)
        row = {"text": text, "cot_tail": text + explanation, "cot_shuffled": text, "cot_top_logprobs": ""}
        if number:
            prompt = tokenizer(text + " Let's think step by step.")["input_ids"]
            written = tokenizer(" none of these" if number == 5 else explanation)["input_ids"]
            with torch.no_grad():
                logits_TV = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1].double()
            probs_TV = logits_TV.softmax(-1)
            top = probs_TV.topk(3 + number % 2)
            rest_T1 = 1 - top.values.sum(1, keepdim=True)
            logprobs = torch.cat([top.values, rest_T1], 1).log().float().numpy()
            known = TopLogprobs(vocabulary_digest(tokenizer), np.array(written), top.indices.numpy(), logprobs)
            row["cot_top_logprobs"] = encode(known)
        rows.append(row)
    folder = tmp_path_factory.mktemp("enhanced") / "SAMPLE"
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def expected_loss(model: torch.nn.Module, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """The mean loss of the tokens, one sample at a time in float64, from the texts and the fields alone."""
    losses = []
    for row in rows:
        ids = tokenizer(row["cot_tail"])["input_ids"]
        logprobs_TV = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        of_sample = [-logprobs_TV[place, token] for place, token in enumerate(ids[1:])]
        if row["cot_top_logprobs"] and "none of" not in row["cot_tail"]:
            top = decode(row["cot_top_logprobs"], len(tokenizer))
            written = top.written_T.tolist()
            if written == ids[-len(written) :]:
                for index, place in enumerate(range(len(ids) - len(written) - 1, len(ids) - 1)):
                    teacher_K1 = torch.tensor(top.logprobs_TK1[index]).double().exp()
                    teacher_K1 = teacher_K1 / teacher_K1.sum()
                    student_K = logprobs_TV[place, torch.tensor(top.ids_TK[index])].exp()
                    student_K1 = torch.cat([student_K, 1 - student_K.sum()[None]])
                    divergence = torch.nn.functional.kl_div(student_K1.log(), teacher_K1, reduction="sum")
                    of_sample[place] = (1 - SHARE) * of_sample[place] + SHARE * divergence
        losses += of_sample
    return torch.stack(losses).mean()


@pytest.mark.parametrize("path", ["packed", "padded", "padded-whole", "single"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_loss_and_its_gradient_are_those_of_the_definition(
    family: str, path: str, enhanced: Path, tmp_path: Path
) -> None:
    folder = make_tiny_model(family, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)).eval()
    dataset = datasets.load_from_disk(str(enhanced))
    teacher = TeacherTokens(dataset, tokenizer)
    rows = TrainingRows(dataset, (TrainingSet(enhanced),), (0,))
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("cot_tail"), 2048, False, 0, None, False, rows, teacher)
    known = [sum(count for *_, count in blocks) for blocks in tokens["blocks"]]
    assert known[0] == known[5] == 0 and all(count > 4 for count in known[1:5] + known[6:])
    numbers = [0, 1, 2, 5, 6, 7]
    expected = expected_loss(model, tokenizer, [dataset[number] for number in numbers])
    parameters = [part for part in model.parameters() if part.requires_grad]
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    collate = (PackingCollator if path == "packed" else PaddingCollator)("token", None, teacher)
    batch = collate([tokens[number] for number in numbers])
    batch.pop("samples")
    batch["token_weights"] /= batch["token_weights"].sum()
    if path == "packed":
        assert use_packing(model, "sdpa")
    if path == "single":
        use_single_samples(model, SHARE)
    else:
        use_chunked_loss(model, path == "padded-whole", SHARE)
    loss = model(**batch, use_cache=False)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(torch.autograd.grad(loss, parameters, allow_unused=True), gradients, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)


def test_with_the_whole_vocabulary_it_is_the_divergence() -> None:
    from teacherlm.finetune.token_losses import loss_and_gradient

    generator = torch.Generator().manual_seed(3)
    logits_NV = torch.randn(6, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher_NV = torch.randn(6, 30, generator=generator, dtype=torch.float64).softmax(-1)
    labels_N = torch.randint(30, (6,), generator=generator)
    weight_N1 = torch.rand(6, 1, generator=generator, dtype=torch.float64)
    ids_NK = teacher_NV.topk(29).indices
    rest_N1 = teacher_NV.sort(1).values[:, :1]
    probs_NK1 = torch.cat([teacher_NV.gather(1, ids_NK), rest_N1], 1)
    whole_N = torch.nn.functional.kl_div(logits_NV.log_softmax(-1), teacher_NV, reduction="none").sum(1)
    cross_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    rows = torch.tensor([0, 2, 3])
    is_soft = torch.zeros(6, dtype=torch.bool).index_fill(0, rows, value=True)
    expected_N = torch.where(is_soft, 0.4 * cross_N + 0.6 * whole_N, cross_N) * weight_N1[:, 0]
    (gradient,) = torch.autograd.grad(expected_N.sum(), logits_NV)
    of_teacher = (rows, ids_NK[rows], probs_NK1[rows], 0.6)
    found, grad = loss_and_gradient(logits_NV.detach().clone(), labels_N, weight_N1, of_teacher)
    torch.testing.assert_close(found[:, 0], expected_N.detach())
    torch.testing.assert_close(grad, gradient)


def train(inside: Callable, model: Path, dataset: Path, output: Path, *more: object) -> Path:
    words = flags(model, dataset, output)
    words[words.index("--task_type") + 1] = "cot_tail"
    done = inside("finetune", *words, "--num_train_epochs", 2, "--logging_steps", 1, "--shuffle", "false", *more)
    assert done.returncode == 0, done.stderr
    return output


def test_the_log_has_the_loss_of_the_definition_however_a_step_is_cut(
    tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    dataset = datasets.load_from_disk(str(enhanced))
    expected = [
        expected_loss(model, tokenizer, [dataset[row] for row in range(first, first + STEP)]).item()
        for first in (0, 4, 8)
    ]
    cuts = {
        "whole": (),
        "padded": ("--packing", "false"),
        "accumulated": ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 4),
        "tokens": ("--tokens_per_batch", 90),
    }
    for name, more in cuts.items():
        still = ("--kl_weight", SHARE, "--learning_rate", 0, *more)
        log = read_log(train(inside, tiny_llama, enhanced, tmp_path / name, *still))
        assert [record["loss"] for record in log] == pytest.approx(expected * 2, rel=1e-5), name


def test_it_resumes_exactly_and_is_a_setting(
    tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ("--kl_weight", SHARE, "--save_strategy", "steps", "--save_steps", 2)
    run = train(inside, tiny_llama, enhanced, tmp_path / "run", *words)
    expected, log = weights(run), read_log(run)
    for number in (4, 6):
        shutil.rmtree(run / f"checkpoint-{number}")
    (run / "manifest.json").unlink()
    train(inside, tiny_llama, enhanced, run, *words)
    assert weights(run) == expected and read_log(run) == log
    plain = train(inside, tiny_llama, enhanced, tmp_path / "plain", *words[2:])
    assert weights(plain)["checkpoint-6"] != expected["checkpoint-6"]
    other = flags(tiny_llama, enhanced, run)
    other[other.index("--task_type") + 1] = "cot_tail"
    said = only_error(inside("finetune", *other, "--num_train_epochs", 2, "--shuffle", "false", *words[2:]))
    assert "kl_weight was 0.3, is 0.0" in said


def test_the_student_comes_nearer_to_the_distributions_than_with_the_words_alone(
    tiny_llama: Path, enhanced: Path, inside: Callable, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = [row for row in datasets.load_from_disk(str(enhanced)).to_list() if row["cot_top_logprobs"]]
    distances = []
    for share in (0, 1):
        more = ("--kl_weight", share, "--loss_on", "completion", "--num_train_epochs", 12, "--save_total_limit", 1)
        [last] = train(inside, tiny_llama, enhanced, tmp_path / f"run{share}", *more).glob("checkpoint-*")
        student = AutoModelForCausalLM.from_pretrained(last)
        with torch.no_grad():
            found = [distance(student, tokenizer, row) for row in rows]
        distances.append(np.mean([one for one in found if one is not None]))
    assert distances[1] < 0.5 * distances[0]


def distance(model: torch.nn.Module, tokenizer: Any, row: dict[str, Any]) -> float | None:
    """The mean KL divergence from the kept distributions, if the text ends with what the teacher wrote."""
    ids, top = tokenizer(row["cot_tail"])["input_ids"], decode(row["cot_top_logprobs"], len(tokenizer))
    written = top.written_T.tolist()
    if ids[-len(written) :] != written:
        return None
    probs_TV = model(torch.tensor([ids])).logits[0, -len(written) - 1 : -1].double().softmax(-1)
    found_TK = probs_TV.gather(1, torch.tensor(top.ids_TK))
    student_TK1 = torch.cat([found_TK, 1 - found_TK.sum(1, keepdim=True)], 1)
    teacher_TK1 = torch.tensor(top.logprobs_TK1).double().exp()
    return torch.nn.functional.kl_div(student_TK1.log(), teacher_TK1, reduction="batchmean").item()


def test_post_processing_hands_the_distributions_on(
    other_teacher: Path, tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "work")
    records = enhance(inside, other_teacher, prepared, tmp_path / "work" / "SAMPLE_cot.jsonl", "--top_logprobs", 3)
    words = ("--benchmark", "sample", "--output_dir", tmp_path / "work", "--test_dir", tmp_path / "work" / "tests")
    done = inside("data_prepare", *words, "--post_process")
    assert done.returncode == 0, done.stderr
    rows = datasets.load_from_disk(str(tmp_path / "work" / "SAMPLE"))
    assert rows["cot_top_logprobs"][:] == [record["cot_top_logprobs"] for record in records]
    words = flags(tiny_llama, tmp_path / "work" / "SAMPLE", tmp_path / "run")
    words[words.index("--task_type") + 1] = "text:1,cot_tail:1"
    done = inside("finetune", *words, "--num_train_epochs", 1, "--kl_weight", 0.5)
    assert done.returncode == 0 and "finetune: the teacher's distribution is known for " in done.stdout, done.stderr


def test_mistakes_are_one_line(tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    def error(dataset: Path, task: str = "cot_tail", model: Path = tiny_llama) -> str:
        words = flags(model, dataset, tmp_path / "run")
        words[words.index("--task_type") + 1] = task
        return only_error(inside("finetune", *words, "--kl_weight", 0.5))

    rows = datasets.load_from_disk(str(enhanced))
    assert "has the explanations of other samples" in error(enhanced, "cot_shuffled")
    rows.remove_columns("cot_top_logprobs").save_to_disk(str(tmp_path / "none"))
    assert "enhance.py --top_logprobs K keeps the teacher's distribution" in error(tmp_path / "none")
    rows.select([0, 5]).save_to_disk(str(tmp_path / "few"))
    assert "no text has tokens that the teacher wrote" in error(tmp_path / "few")
    for name, text, why in (
        ("damaged", rows[1]["cot_top_logprobs"][:-8], "bytes were expected"),
        ("strange", "a", "not in the form that enhance.py writes"),
    ):
        changed = rows.to_list()
        changed[1]["cot_top_logprobs"] = text
        datasets.Dataset.from_list(changed).save_to_disk(str(tmp_path / name))
        said = error(tmp_path / name)
        assert "sample 2: the field 'cot_top_logprobs': " in said and why in said
    other = make_tiny_model("llama", tmp_path / "other")
    exchange_two_tokens(other)
    assert "the teacher that wrote this text has another vocabulary" in error(enhanced, model=other)
    assert not (tmp_path / "run").exists()


def test_shards_have_the_same_distributions(tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path) -> None:
    whole = enhance(inside, tiny_llama, prepared, tmp_path / "whole_cot.jsonl", "--top_logprobs", 4)
    for shard in ("0/2", "1/2"):
        output = tmp_path / "parts_cot.jsonl"
        words = ("--name", tiny_llama, "--input", prepared / "SAMPLE.jsonl", "--output", output)
        more = ("--task_type", "cot_text", "--num_tokens", 9, "--dtype", "float32", "--top_logprobs", 4)
        assert inside("enhance", *words, *more, "--shard", shard).returncode == 0
    words = ("--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "parts_cot.jsonl", "--shards", 2)
    assert inside("merge", *words).returncode == 0
    write_records(tmp_path / "expected.jsonl", whole)
    for one, other in zip(whole, read_lines(tmp_path / "parts_cot.jsonl"), strict=True):
        first, second = (decode(record["cot_top_logprobs"], 10**6) for record in (one, other))
        assert (first.written_T == second.written_T).all()
        np.testing.assert_allclose(first.logprobs_TK1, second.logprobs_TK1, rtol=2e-3)
