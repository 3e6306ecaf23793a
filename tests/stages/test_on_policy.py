"""finetune.py --on_policy: the student writes texts, and learns the teacher's distribution at their tokens."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.finetuning import flags, read_log, weights
from support.programs import only_error
from support.tiny_models import exchange_two_tokens, make_other_model, make_tiny_model
from support.two_processes import finetune
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from teacherlm.finetune.chunked_loss import SCORES, use_chunked_loss
from teacherlm.finetune.collators import PackingCollator, PaddingCollator
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.on_policy import OnPolicy, question_of
from teacherlm.finetune.samples import tokenize
from teacherlm.finetune.single_samples import use_single_samples
from teacherlm.finetune.token_losses import jensen_shannon
from teacherlm.runtime.packed_attention import use_packing

STEP, TOKENS = 4, 7


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other_model(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples whose questions differ in length, with `text` and `cot_tail`."""
    folder = tmp_path_factory.mktemp("enhanced") / "SAMPLE"
    rows = []
    for number in range(12):
        question = f"Q: Is {number} odd{', or even' * (number % 3)}? (A) yes (B) no A: The answer is ("
        texts = {"text": f"{question}{'BA'[number % 2]}).", "cot_tail": f"{question}{'BA'[number % 2]}). Look."}
        tail = [["question", len(question)], ["answer", len(question) + 3], ["explanation", len(texts["cot_tail"])]]
        rows.append({**texts, "parts": json.dumps({"cot_tail": tail})})
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)).eval()


def policy(student: Any, teacher: Any, tokenizer: Any, together: int, num_tokens: int = TOKENS) -> OnPolicy:
    @contextlib.contextmanager
    def unprepared() -> Iterator[Any]:
        yield student

    ends = [tokenizer.eos_token_id]
    return OnPolicy(teacher, 0.5, num_tokens, 100, 3, ends, together, unprepared)


def tokens_of(enhanced: Path, tokenizer: Any, field: str = "cot_tail") -> Any:
    dataset = datasets.load_from_disk(str(enhanced))
    return tokenize(dataset, tokenizer, parse_fields(field), 2048, False, 0, with_parts=True)[0]


def divergence(student: Any, teacher: Any, ids: list[int], first: int) -> list[torch.Tensor]:
    """The Jensen-Shannon divergence at each token from `first` on, in float64 from its definition."""
    with torch.no_grad():
        p_TV = teacher(torch.tensor([ids])).logits[0, first - 1 : -1].double().softmax(-1)
    q_TV = student(torch.tensor([ids])).logits[0, first - 1 : -1].double().softmax(-1)
    m_TV = 0.5 * p_TV + 0.5 * q_TV
    found_T = 0.5 * (p_TV * (p_TV / m_TV).log()).sum(-1) + 0.5 * (q_TV * (q_TV / m_TV).log()).sum(-1)
    return list(found_T)


@pytest.mark.parametrize("path", ["packed", "padded", "padded-whole", "single"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_loss_and_its_gradient_are_those_of_the_definition(
    family: str, path: str, enhanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacherlm.finetune.chunked_loss.CHUNK", 5 * 90)  # a few places at a time
    student, tokenizer = loaded(make_tiny_model(family, tmp_path / "s")), AutoTokenizer.from_pretrained(tmp_path / "s")
    teacher = loaded(make_tiny_model("opt", tmp_path / "t"))
    on_policy = policy(student, teacher, tokenizer, 3)
    tokens = tokens_of(enhanced, tokenizer)
    samples = [tokens[number] for number in range(STEP)]
    written = on_policy.written(samples, step=2)
    losses = []
    for before, after in zip(samples, written, strict=True):
        question = question_of(before)
        assert after["input_ids"][: len(question)] == question and after["skipped"] == len(question)
        assert 0 < len(after["input_ids"]) - len(question) <= TOKENS
        losses += divergence(student, teacher, after["input_ids"], len(question))
    expected = torch.stack(losses).mean()
    parameters = [part for part in student.parameters() if part.requires_grad]
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    batch = (PackingCollator if path == "packed" else PaddingCollator)("token")(written)
    batch.pop("samples")
    batch["token_weights"] /= batch["token_weights"].sum()
    if path == "packed":
        assert use_packing(student, "sdpa")
    if path == "single":
        use_single_samples(student)
    else:
        use_chunked_loss(student, path == "padded-whole")
    width = None if path == "packed" else batch["input_ids"].shape[1]
    setattr(student, SCORES, on_policy.scores(written, width))
    loss = student(**batch, use_cache=False)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for found, wanted in zip(torch.autograd.grad(loss, parameters, allow_unused=True), gradients, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)


def test_the_divergence_against_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    student_NV, teacher_NV = (torch.randn(5, 30, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    teacher_NV[:, 25:] = -torch.inf
    for beta in (0.1, 0.5, 0.9):
        p_NV, q_NV = teacher_NV.softmax(-1), student_NV.softmax(-1)
        m_NV = beta * p_NV + (1 - beta) * q_NV
        kl = torch.nn.functional.kl_div
        expected = beta * kl(m_NV.log(), p_NV, reduction="none").sum(1)
        expected += (1 - beta) * kl(m_NV.log(), q_NV, reduction="none").sum(1)
        torch.testing.assert_close(jensen_shannon(student_NV, teacher_NV, beta), expected)
    assert jensen_shannon(student_NV, student_NV).abs().max() < 1e-12


def test_a_text_is_a_sample_of_the_student_and_does_not_depend_on_its_company(tiny_llama: Path, enhanced: Path) -> None:
    student, tokenizer = loaded(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokens_of(enhanced, tokenizer)
    samples = [tokens[number] for number in range(9)]
    together = policy(student, None, tokenizer, 8).written(samples, step=5)
    alone = policy(student, None, tokenizer, 1).written(samples[3:6], step=5)
    assert [one["input_ids"] for one in together[3:6]] == [one["input_ids"] for one in alone]
    other = policy(student, None, tokenizer, 8).written(samples, step=6)
    assert [one["input_ids"] for one in other] != [one["input_ids"] for one in together]
    twice = policy(student, None, tokenizer, 8).written([samples[0], samples[0]], step=5)
    assert twice[0]["input_ids"] == together[0]["input_ids"] != twice[1]["input_ids"]
    # the first token of many texts follows the student's distribution
    many = policy(student, None, tokenizer, 200, num_tokens=1).written([samples[0]] * 2000, step=1)
    question = question_of(samples[0])
    with torch.no_grad():
        expected_V = student(torch.tensor([question])).logits[0, -1].softmax(-1)
    counts_V = torch.bincount(torch.tensor([one["input_ids"][-1] for one in many]), minlength=len(expected_V))
    deviation_V = (counts_V - 2000 * expected_V) / (2000 * expected_V * (1 - expected_V)).sqrt()
    assert deviation_V.abs().max() < 5


def test_questions_that_leave_no_room_keep_their_texts(tiny_llama: Path, enhanced: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokens_of(enhanced, tokenizer)
    narrow = policy(loaded(tiny_llama), None, tokenizer, 8)
    narrow.window = len(question_of(tokens[0])) + 2
    short, long = narrow.written([tokens[0], tokens[2]], step=0)
    assert long["input_ids"] == tokens[2]["input_ids"]
    assert len(short["input_ids"]) <= narrow.window
    filler = {**tokens[0], "input_ids": tokens[0]["input_ids"][:1], "skipped": 1, "parts": [0]}
    assert narrow.written([filler], step=0)[0]["input_ids"] == filler["input_ids"]


def train(inside: Callable, model: Path, teacher: Path, dataset: Path, output: Path, *more: object) -> Path:
    words = flags(model, dataset, output)
    words[words.index("--task_type") + 1] = "cot_tail"
    own = ("--on_policy", 0.5, "--teacher", teacher, "--on_policy_tokens", TOKENS)
    done = inside("finetune", *words, "--num_train_epochs", 2, "--logging_steps", 1, *own, *more)
    assert done.returncode == 0, done.stderr
    return output


def test_however_a_step_is_cut_it_learns_the_same(
    tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    cuts = {
        "whole": (),
        "padded": ("--packing", "false"),
        "accumulated": ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2),
        "tokens": ("--tokens_per_batch", 90),
    }
    logs = {}
    for name, more in cuts.items():
        logs[name] = read_log(train(inside, tiny_llama, other_teacher, enhanced, tmp_path / name, *more))
    losses = [record["loss"] for record in logs["whole"]]
    assert min(losses) < 1 < max(losses)  # divergences of the student's texts, cross-entropies of the dataset's
    for name in cuts:
        assert [one["loss"] for one in logs[name]] == pytest.approx(losses, rel=1e-4), name


@pytest.mark.parametrize("how", ["zero2", "none"])
def test_two_processes_learn_the_same(
    how: str, tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path
) -> None:
    """22 samples: the last step of an epoch has 2, one for each process."""
    rows = datasets.load_from_disk(str(enhanced)).to_list()
    datasets.Dataset.from_list([*rows, *rows[:10]]).save_to_disk(str(tmp_path / "uneven"))
    words = ("--on_policy", 0.5, "--teacher", other_teacher, "--on_policy_tokens", TOKENS, "--task_type", "cot_tail")
    logs = []
    for processes, more in ((1, ()), (2, ("--deepspeed", how))):
        done = finetune(tiny_llama, tmp_path / "uneven", tmp_path / str(processes), processes, *words, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        logs.append([record["loss"] for record in read_log(tmp_path / str(processes) / "run")])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3) and min(logs[0]) < 1 < max(logs[0])


def test_zero3_is_refused(tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path) -> None:
    words = ("--on_policy", 0.5, "--teacher", other_teacher, "--deepspeed", "zero3")
    done = finetune(tiny_llama, enhanced, tmp_path, 2, *words)
    assert done.returncode == 2 and "--on_policy needs whole weights in each process" in done.stderr


def test_it_resumes_exactly_and_is_a_setting(
    tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ("--save_strategy", "steps", "--save_steps", 2)
    run = train(inside, tiny_llama, other_teacher, enhanced, tmp_path / "run", *words)
    expected, log = weights(run), read_log(run)
    for number in (4, 6):
        shutil.rmtree(run / f"checkpoint-{number}")
    (run / "manifest.json").unlink()
    train(inside, tiny_llama, other_teacher, enhanced, run, *words)
    assert weights(run) == expected and read_log(run) == log
    assert "teacher" in json.loads((run / "manifest.json").read_text())["inputs"]
    others = flags(tiny_llama, enhanced, run)
    others[others.index("--task_type") + 1] = "cot_tail"
    own = ("--on_policy", 0.5, "--teacher", tiny_llama, "--on_policy_tokens", TOKENS)
    said = only_error(inside("finetune", *others, "--num_train_epochs", 2, "--logging_steps", 1, *own, *words))
    assert "the teacher changed" in said


def test_the_student_comes_nearer_to_the_teacher(
    tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    more = ("--on_policy", 1, "--num_train_epochs", 15, "--save_total_limit", 1)
    [last] = train(inside, tiny_llama, other_teacher, enhanced, tmp_path / "run", *more).glob("checkpoint-*")
    tokenizer, teacher = AutoTokenizer.from_pretrained(tiny_llama), loaded(other_teacher)
    tokens = tokens_of(enhanced, tokenizer)
    distances = []
    for folder in (tiny_llama, last):
        student = loaded(folder)
        written = policy(student, teacher, tokenizer, 12).written([tokens[number] for number in range(12)], step=0)
        with torch.no_grad():
            found = [
                one
                for sample in written
                for one in divergence(student, teacher, sample["input_ids"], sample["skipped"])
            ]
        distances.append(float(torch.stack(found).mean()))
    assert distances[1] < 0.7 * distances[0]


def test_mistakes_are_one_line(
    tiny_llama: Path, other_teacher: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    def error(*own: object, task: str = "cot_tail") -> str:
        words = flags(tiny_llama, enhanced, tmp_path / "run")
        words[words.index("--task_type") + 1] = task
        return only_error(inside("finetune", *words, *own))

    own = ("--on_policy", 0.5, "--teacher", other_teacher)
    assert "--on_policy needs --teacher" in error("--on_policy", 0.5)
    assert "--teacher needs --on_policy" in error("--teacher", other_teacher)
    assert "leave out --on_policy or --loss_weights" in error(*own, "--loss_weights", "answer:1")
    assert "1 was expected" in error("--on_policy", 1.5, "--teacher", other_teacher)
    too_few = ("--tokens_per_batch", 100, "--on_policy_tokens", 90)
    assert "the longest sample, with what the student may write, has" in error(*own, *too_few)
    assert "no model" in error("--on_policy", 0.5, "--teacher", "nothing")
    strange = make_tiny_model("llama", tmp_path / "strange")
    exchange_two_tokens(strange)
    assert "its vocabulary is not the student's" in error("--on_policy", 0.5, "--teacher", strange)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
