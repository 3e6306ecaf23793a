"""Chat students: trained on conversations, with the loss on the assistant's turn, and scored through the template."""

import functools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.chat_models import TEMPLATES, with_template
from support.files import read_lines
from support.finetuning import flags, odd_or_even, read_log, weights
from support.programs import ROOT, only_error, warm_python
from support.scoring import words
from support.tiny_models import make_other_model, make_tiny_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.catalog.chat_students import RECORD
from teacherlm.catalog.top_logprobs import decode
from teacherlm.core import manifests
from teacherlm.core.records import write_records
from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import PackingCollator, PaddingCollator
from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.samples import tokenize
from teacherlm.finetune.single_samples import use_single_samples
from teacherlm.finetune.soft_targets import TeacherTokens
from teacherlm.runtime.chat_student import ChatStudent
from teacherlm.runtime.packed_attention import use_packing

STEP = 4  # samples
TEMPLATE = TEMPLATES["with BOS"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template. The template writes the token that begins texts, and the tokenizer puts one
    before plain texts."""
    folder = tmp_path_factory.mktemp("student")
    made = with_template(make_tiny_model("llama", folder / "plain"), folder / "chatty", TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(made)
    begins = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begins[0]} $A", pair=f"{begins[0]} $A $B", special_tokens=[begins]
    )
    tokenizer.save_pretrained(made)
    assert AutoTokenizer.from_pretrained(made)("a")["input_ids"][0] == tokenizer.bos_token_id
    return made


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve samples with `text` and `cot_tail`, whose explanations have different lengths."""
    return odd_or_even(tmp_path_factory.mktemp("enhanced") / "SAMPLE")


def conversation(row: dict[str, str], field: str) -> tuple[str, str]:
    """(the user's turn, the assistant's turn) of a row of `enhanced`."""
    user, assistant = row[field].removeprefix("Q: ").split(" A: ")
    return user, assistant


def losses_of(
    model: torch.nn.Module, tokenizer: Any, row: dict[str, str], field: str
) -> list[tuple[str, torch.Tensor]]:
    """(the text up to the token's end, its loss) for each token of the assistant's turn and the one that ends it.

    They are computed from the library's own conversation.
    """
    user, assistant = conversation(row, field)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    ids = tokenizer.apply_chat_template(turns)["input_ids"]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert ids[: len(asked)] == asked and ids[-1] == tokenizer.eos_token_id
    logits_TV = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    losses_T = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(ids[1:]), reduction="none")
    found = []
    for place in range(len(asked), len(ids)):
        found.append((tokenizer.decode(ids[len(asked) : place + 1], skip_special_tokens=True), losses_T[place - 1]))
    return found


def means(model: torch.nn.Module, tokenizer: Any, rows: list[dict[str, str]], field: str) -> dict[str, torch.Tensor]:
    """The mean loss over the assistant's turns, and over their answers and explanations."""
    found: dict[str, list[torch.Tensor]] = {"all": [], "answer": [], "explanation": [], "letter": []}
    for row in rows:
        for text, loss in losses_of(model, tokenizer, row, field):
            found["all"].append(loss)
            found["answer" if len(text) <= len("The answer is (B).") else "explanation"].append(loss)
            if len(text) > len("The answer is ("):
                found["letter"].append(loss)
    return {name: torch.stack(losses).mean() for name, losses in found.items() if losses}


def rows_of(dataset: Path) -> list[dict[str, str]]:
    return datasets.load_from_disk(str(dataset)).to_list()


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("path", ["packed", "padded", "padded-whole", "single"])
def test_the_loss_and_its_gradient_are_those_of_single_conversations(path: str, student: Path, enhanced: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    exact = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    expected = means(exact, tokenizer, rows_of(enhanced)[:STEP], "cot_tail")["all"]
    expected.backward()
    model = AutoModelForCausalLM.from_pretrained(student)
    dataset = datasets.load_from_disk(str(enhanced))
    chat = ChatStudent(tokenizer, student)
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("cot_tail"), 2048, False, 0, chat=chat)
    batch = (PackingCollator if path == "packed" else PaddingCollator)("token")([tokens[n] for n in range(STEP)])
    batch.pop("samples")
    batch["token_weights"] /= batch["token_weights"].sum()
    if path == "packed":
        assert use_packing(model, "sdpa")
    use_single_samples(model) if path == "single" else use_chunked_loss(model, whole=path == "padded-whole")
    loss = model(**batch, use_cache=False)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, found), (_, sure) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        assert torch.allclose(found.grad.double(), sure.grad, rtol=1e-3, atol=1e-6), name


def train(inside: Callable, model: Path, dataset: Path, output: Path, *more: object, task: str = "cot_tail") -> Path:
    command = flags(model, dataset, output)
    command[command.index("--task_type") + 1] = task
    command += ["--chat", "true", "--num_train_epochs", 2, "--logging_steps", 1, "--shuffle", "false", *more]
    done = inside("finetune", *command)
    assert done.returncode == 0, done.stderr
    assert "each text is a conversation; only the assistant's turn has a loss" in done.stdout
    return output


def dev(enhanced: Path, folder: Path) -> Path:
    rows = datasets.load_from_disk(str(enhanced)).select(range(5))
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(folder / "dev"))
    return folder / "dev"


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], {"all": 1.0}),
        (["--loss_on", "completion"], {"letter": 1.0}),
        (["--loss_weights", "answer:0.25,explanation:2"], {"answer": 0.25, "explanation": 2.0}),
        (["--packing", "false", "--tokens_per_batch", "200"], {"all": 1.0}),
    ],
)
def test_the_log_and_the_dev_loss_are_those_of_single_conversations(
    more: list[str], parts: dict[str, float], student: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    """With a learning rate of 0 every step computes with the first weights."""
    more = [*more, "--learning_rate", 0, "--dev_dataset", dev(enhanced, tmp_path)]
    output = train(inside, student, enhanced, tmp_path / "run", *more)
    tokenizer, model = AutoTokenizer.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student)
    rows = rows_of(enhanced)

    def expected(first: int, count: int) -> float:
        found = means(model, tokenizer, rows[first : first + count], "cot_tail")
        return sum(weight * found[name].item() for name, weight in parts.items())

    log = read_lines(output / "log.jsonl")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses == pytest.approx([expected(number % 3 * STEP, STEP) for number in range(6)], rel=1e-5)
    assert [line["dev_loss"] for line in log if "dev_loss" in line] == pytest.approx([expected(0, 5)] * 2, rel=1e-5)


def test_checkpoints_record_it_and_training_resumes_byte_for_byte(
    student: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    more = ("--save_strategy", "steps", "--save_steps", 2, "--logging_steps", 3)
    whole = train(inside, student, enhanced, tmp_path / "whole", *more, task="text:1,cot_tail:1")
    expected, log = weights(whole), read_log(whole)
    records = sorted(path.parent.name for path in whole.glob(f"checkpoint-*/{RECORD}"))
    assert records == sorted(path.name for path in whole.glob("checkpoint-*")) and len(records) > 3
    assert manifests.read_manifest(whole / "manifest.json")["arguments"]["chat"] is True
    for number in (8, 10, 12):
        shutil.rmtree(whole / f"checkpoint-{number}")
    (whole / "manifest.json").unlink()
    train(inside, student, enhanced, tmp_path / "whole", *more, task="text:1,cot_tail:1")
    assert weights(whole) == expected
    assert read_log(whole) == log
    command = flags(student, enhanced, whole)
    command[command.index("--task_type") + 1] = "text:1,cot_tail:1"
    said = only_error(inside("finetune", *command, "--num_train_epochs", 2, "--shuffle", "false"))
    assert "there is another run here" in said and "chat was True, is False" in said


def test_another_token_than_the_end_of_text_may_end_a_turn(
    tiny_llama: Path, enhanced: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    """A checkpoint's generation settings have it, so that whatever generates with the checkpoint stops there."""
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATE.replace("</s>", "<pad>"))
    output = train(inside, folder, enhanced, tmp_path / "run", "--num_train_epochs", 1)
    [checkpoint] = output.glob("checkpoint-*")
    assert json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"] == [1, 0]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    dataset, chat = datasets.load_from_disk(str(enhanced)), ChatStudent(tokenizer, checkpoint)
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("text"), 2048, False, 0, chat=chat)
    assert {ids[-1] for ids in tokens["input_ids"]} == {tokenizer.convert_tokens_to_ids("<pad>")}


def test_a_written_answer_ends_with_the_assistant_s_turn(
    tiny_llama: Path, enhanced: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    """The untrained student's generation settings do not name the token, and the checkpoints' do."""
    folder = with_template(tiny_llama, tmp_path / "model", TEMPLATE.replace("</s>", "<pad>"))
    more = ("--learning_rate", 1e-2, "--num_train_epochs", 8, "--save_strategy", "steps", "--save_steps", 24)
    output = train(inside, folder, enhanced, tmp_path / "run", *more, task="text")
    command = words(folder, "sample", prepared / "tests", tmp_path / "out", "--limit", 5, "--chat", "true")
    command += ["--checkpoints", output, "--answer", "generate", "--num_tokens", 20]
    done = inside("evaluate", *command)
    assert done.returncode == 0, done.stderr
    [checkpoint] = output.glob("checkpoint-*")
    for model, name in ((folder, "model_chat"), (checkpoint, f"run/{checkpoint.name}")):
        [file] = (tmp_path / "out" / name).glob("*_samples.jsonl")
        exact, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        ended = set()
        for sample in read_lines(file):
            messages = [{"role": "user", "content": plain_question(f"{sample['prompt']} The answer is (")}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            made = exact.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=[1, 0], pad_token_id=1)
            expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            assert [text.strip() for text in sample["answers"]] == [expected.strip()]
            ended |= set(sample["ended"])
    assert ended == {"stop"}  # the checkpoint has learned to end its turn


def test_a_training_of_earlier_versions_is_found_done(
    student: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    command = flags(student, enhanced, tmp_path / "run")
    command[command.index("--task_type") + 1] = "text"
    command += ["--num_train_epochs", 1]
    assert inside("finetune", *command).returncode == 0
    assert not any((tmp_path / "run").glob(f"*/{RECORD}"))
    for name in ("run.json", "manifest.json"):
        content = json.loads((tmp_path / "run" / name).read_text())
        assert content["arguments"].pop("chat") is False
        (tmp_path / "run" / name).write_text(json.dumps(content))
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    done = inside("finetune", *command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before and "epoch" not in done.stdout


def test_adapters_record_it_too(student: Path, enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    more = ("--peft", "lora", "--peft_rank", 2, "--merge_adapters", "true", "--num_train_epochs", 1)
    output = train(inside, student, enhanced, tmp_path / "run", *more)
    [checkpoint] = output.glob("checkpoint-*")
    assert (checkpoint / RECORD).is_file() and (checkpoint / "merged" / RECORD).is_file()


def test_the_yaml_of_a_student_may_choose(
    student: Path, enhanced: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "chatty.yaml").write_text(f"path: {student}\nfinetune: {{chat: true}}\n")
    for number, (model, more) in enumerate([("chatty", []), (student, ["--chat", "auto"]), (student, [])]):
        command = [*flags(model, enhanced, tmp_path / str(number)), *more]
        command[command.index("--task_type") + 1] = "text"
        done = inside("finetune", *command, "--num_train_epochs", 1)
        assert done.returncode == 0, done.stderr
        assert any((tmp_path / str(number)).glob(f"*/{RECORD}")) == (number < 2)


def test_what_the_student_writes_itself_is_an_assistant_s_turn(
    student: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    from teacherlm.finetune.on_policy import question_of

    teacher = make_other_model(tmp_path / "teacher")
    more = ("--on_policy", 1, "--teacher", teacher, "--on_policy_tokens", 6, "--learning_rate", 0)
    output = train(inside, student, enhanced, tmp_path / "run", *more)
    assert all(0 < line["loss"] < math.log(2) for line in read_log(output))
    tokenizer = AutoTokenizer.from_pretrained(student)
    dataset, chat = datasets.load_from_disk(str(enhanced)), ChatStudent(tokenizer, student)
    how = {"with_parts": True, "chat": chat}
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("cot_tail"), 2048, False, 0, **how)
    for sample, row in zip(tokens, dataset):
        turns = [{"role": "user", "content": conversation(row, "text")[0]}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert question_of(sample) == asked


def test_a_teacher_s_distributions_are_found_in_the_assistant_s_turn(
    student: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    """The teacher completed plain prompts. The student's turn has its tokens, after another context."""
    enhance = ("--name", student, "--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "SAMPLE_cot.jsonl")
    enhance = (*enhance, "--task_type", "cot_text", "--num_tokens", 9, "--dtype", "float32", "--top_logprobs", 5)
    assert inside("enhance", *enhance, "--chat", "false").returncode == 0
    made = ("--benchmark", "sample", "--output_dir", tmp_path, "--test_dir", prepared / "tests", "--post_process")
    done = inside("data_prepare", *made, "--enhanced", tmp_path / "SAMPLE_cot.jsonl", "--limit", 24)
    assert done.returncode == 0, done.stderr
    train(inside, student, tmp_path / "SAMPLE", tmp_path / "run", "--kl_weight", 0.5, "--num_train_epochs", 1)
    dataset, tokenizer = datasets.load_from_disk(str(tmp_path / "SAMPLE")), AutoTokenizer.from_pretrained(student)
    how = {"teacher": TeacherTokens(dataset, tokenizer), "chat": ChatStudent(tokenizer, student)}
    tokens, _ = tokenize(dataset, tokenizer, parse_fields("cot_tail"), 2048, False, 0, **how)
    known = 0
    for row, sample in zip(dataset, tokens, strict=True):
        written = decode(row["cot_top_logprobs"], len(tokenizer)).written_T.tolist()
        for _, first, of_teacher, count in sample["blocks"]:
            assert first >= sample["skipped"]
            assert sample["input_ids"][first : first + count] == written[of_teacher : of_teacher + count]
            known += count
    assert known > 50


def test_mistakes_are_one_line(
    student: Path, tiny_llama: Path, enhanced: Path, tmp_path: Path, inside: Callable
) -> None:
    def error(*more: object, model: Path = student, task: str = "cot_tail") -> str:
        command = flags(model, enhanced, tmp_path / "run")
        command[command.index("--task_type") + 1] = task
        return only_error(inside("finetune", *command, *more))

    assert "has no chat template; use --chat false" in error("--chat", "true", model=tiny_llama)
    assert "--chat: auto or true or false was expected" in error("--chat", "yes")
    assert "sample 1: --chat: in the field 'cot' it is not known where" in error("--chat", "true", task="cot")
    assert "learns the assistant's turn only" in error("--chat", "true", "--loss_weights", "question:1,answer:1")
    broken = with_template(tiny_llama, tmp_path / "broken", "{{ raise_exception('no') }}")
    assert "the chat template in" in (said := error("--chat", "true", model=broken)) and "fails: no" in said
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------------------- scoring


@functools.lru_cache(maxsize=1)
def exact_model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def likelihoods(folder: Path, ids: list[int]) -> torch.Tensor:
    """The log-probabilities of the next token, [V], by a plain forward pass in float64."""
    model = exact_model(folder)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def letters(folder: Path, turns: list[tuple[str, str]]) -> dict[str, float]:
    """The log-likelihoods of A and B after the last turn, which the assistant began with `The answer is (`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids += tokenizer.encode("The answer is (", add_special_tokens=False)
    found = likelihoods(folder, ids)
    return {letter: found[tokenizer.encode(letter, add_special_tokens=False)[0]].item() for letter in "AB"}


def plain_question(prompt: str) -> str:
    return prompt.removeprefix("Q: ").removesuffix(" A: The answer is (")


def read_samples(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "sample_samples.jsonl")


@pytest.mark.parametrize("tokenization", ["apart", "joint"])
def test_letters_are_those_of_a_plain_pass_over_the_library_s_conversation(
    tokenization: str, student: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    command = words(student, "sample", prepared / "tests", tmp_path, "--limit", 6, "--tokenization", tokenization)
    done = inside("evaluate", *command, "--chat", "true")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "chatty_chat" / "sample.json").read_text())
    assert result["chat"] is True and result["fewshot_as_multiturn"] is False
    for sample in read_samples(tmp_path / "chatty_chat"):
        expected = letters(student, [("user", plain_question(sample["prompt"]))])
        assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert sample["conversation"].endswith("[assistant]The answer is (")


def test_letters_of_real_weights_are_those_of_a_plain_pass(
    smollm2: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    command = words(smollm2, "sample", prepared / "tests", tmp_path, "--limit", 3, "--chat", "true")
    done = inside("evaluate", *command)
    assert done.returncode == 0, done.stderr
    [folder] = tmp_path.glob("*_chat")
    for sample in read_samples(folder):
        expected = letters(smollm2, [("user", plain_question(sample["prompt"]))])
        assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)


def with_examples(tests: Path, folder: Path) -> Path:
    """The test sets, with few-shot examples for the benchmark `sample`."""
    shutil.copytree(tests, folder)
    questions = [("Is (A) good? (A) True (B) False", "(B)"), ("Is rain wet? (A) True (B) False", "(A)")]
    rows = [{"question": question, "answer": answer} for question, answer in questions]
    shutil.rmtree(folder / "sample" / "fewshot", ignore_errors=True)
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "sample" / "fewshot"))
    return folder


@pytest.mark.parametrize("as_turns", [False, True])
def test_examples_are_one_text_or_turns(
    as_turns: bool, student: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    tests = with_examples(prepared / "tests", tmp_path / "tests")
    command = words(student, "sample", tests, tmp_path / "out", "--limit", 4, "--chat", "true", "--num_fewshot", 2)
    done = inside("evaluate", *command, *(["--fewshot_as_multiturn"] if as_turns else []))
    assert done.returncode == 0, done.stderr
    first = "Is (A) good? (A) True (B) False", "The answer is (B)."
    second = "Is rain wet? (A) True (B) False", "The answer is (A)."
    for sample in read_samples(tmp_path / "out" / "chatty_chat"):
        *examples, question = sample["prompt"].split("\n\n")
        assert examples == [f"Q: {user} A: {assistant}" for user, assistant in (first, second)]
        turns = [("user", "\n\n".join([*examples, question]).removesuffix(" A: The answer is ("))]
        if as_turns:
            turns = [turn for pair in (first, second) for turn in zip(("user", "assistant"), pair)]
            turns.append(("user", plain_question(question)))
        assert sample["loglikelihoods"] == pytest.approx(letters(student, turns), abs=1e-4)


def test_all_orders_are_asked_in_conversations(student: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    command = words(student, "sample", prepared / "tests", tmp_path, "--limit", 4, "--permutations", "cyclic")
    done = inside("evaluate", *command, "--chat", "true")
    assert done.returncode == 0, done.stderr
    for sample in read_samples(tmp_path / "chatty_chat"):
        question = plain_question(sample["prompt"])
        other = question.replace("(A) True (B) False", "(A) False (B) True")
        expected = [letters(student, [("user", one)]) for one in (question, other)]
        assert sample["orders"] == pytest.approx([*expected[0].values(), *expected[1].values()], abs=1e-4)


def test_a_checkpoint_is_scored_as_it_was_trained_wherever_it_goes(
    student: Path, enhanced: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    run = train(inside, student, enhanced, tmp_path / "run", "--learning_rate", 0)
    first, second = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    command = words(student, "sample", prepared / "tests", tmp_path / "out", "--limit", 3, "--checkpoints", run)
    done = inside("evaluate", *command)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    results = {name: json.loads((out / name / "sample.json").read_text()) for name in ("chatty", f"run/{first.name}")}
    assert [result.get("chat") for result in results.values()] == [None, True]
    found = read_samples(out / "run" / second.name)
    for sample in found:
        expected = letters(student, [("user", plain_question(sample["prompt"]))])
        assert sample["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
    assert (
        "is done" in inside("evaluate", *command).stdout or "matches its inputs" in inside("evaluate", *command).stdout
    )
    copied = shutil.copytree(second, tmp_path / "elsewhere")
    command = words(copied, "sample", prepared / "tests", out, "--limit", 3)
    done = inside("evaluate", *command)
    assert done.returncode == 0, done.stderr
    assert [one["loglikelihoods"] for one in read_samples(out / "elsewhere_chat")] == [
        one["loglikelihoods"] for one in found
    ]
    done = inside("evaluate", *command, "--chat", "false")
    assert done.returncode == 0, done.stderr
    assert "was trained as a chat student; here it gets plain text" in done.stdout
    plain, untrained = read_samples(out / "elsewhere"), read_samples(out / "chatty")
    assert [one["loglikelihoods"] for one in plain] == [one["loglikelihoods"] for one in untrained]
    (copied / RECORD).unlink()
    shutil.rmtree(out / "elsewhere_chat")
    done = inside("evaluate", *command, "--chat", "true")
    assert "was trained on plain text; here it gets conversations (--chat)" in done.stdout


def test_an_earlier_result_of_a_plain_text_stays(
    student: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    command = words(student, "sample", prepared / "tests", tmp_path, "--limit", 2)
    assert inside("evaluate", *command).returncode == 0
    arguments = manifests.read_manifest(tmp_path / "chatty" / "sample.manifest.json")["arguments"]
    assert "chat" not in arguments and "fewshot_as_multiturn" not in arguments
    for chat in ("auto", "false"):
        assert "matches its inputs" in inside("evaluate", *command, "--chat", chat).stdout


def test_mistakes_of_scoring_are_one_line(
    student: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    def error(model: Path, *more: object, task: str = "sample") -> str:
        return only_error(inside("evaluate", *words(model, task, prepared / "tests", tmp_path / "out", *more)))

    assert "has no chat template; use --chat false" in error(tiny_llama, "--chat", "true")
    assert "is no chat student" in error(student, "--fewshot_as_multiturn", "--num_fewshot", 1)
    assert "needs --num_fewshot" in error(student, "--fewshot_as_multiturn", "--num_fewshot", 0, "--chat", "true")
    assert "has no effect without --num_fewshot" in error(student, "--fewshot_as_multiturn", "--chat", "true")
    own = ("--include_path", ROOT / "tests" / "support" / "old_tasks", "--chat", "true")
    assert "a context of the form `Q: ... A: ...` was expected" in error(student, *own, task="exams")
    assert not (tmp_path / "out" / "chatty_chat" / "sample.json").exists()


LIBRARY_TASK = """\
task: snowy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
description: "Answer about snow."
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list: [{{metric: acc}}]
metadata: {{version: 1}}
"""


@pytest.mark.parametrize("as_turns", [False, True])
def test_a_task_of_the_library_asks_as_the_library_does(
    as_turns: bool, student: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from teacherlm.scoring import find_tasks

    rows = [{"question": f"Is snow {word}?", "label": number % 2} for number, word in enumerate(["white", "cold"])]
    write_records(tmp_path / "test.jsonl", rows)
    write_records(tmp_path / "train.jsonl", [{"question": "Is it warm?", "label": 1}])
    (tmp_path / "snowy.yaml").write_text(LIBRARY_TASK.format(folder=tmp_path))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(find_tasks, "library", lambda: manager)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    more = ["--num_fewshot", 1, "--chat", "true", "--tokenization", "joint"]
    more += ["--fewshot_as_multiturn"] if as_turns else []
    done = inside("evaluate", *words(student, "snowy", tmp_path, tmp_path / "out", *more))
    assert done.returncode == 0, done.stderr
    model = HFLM(pretrained=str(student), device="cpu", dtype="float32", batch_size=1)
    library = simple_evaluate(
        model,
        tasks=["snowy"],
        num_fewshot=1,
        task_manager=manager,
        apply_chat_template=True,
        fewshot_as_multiturn=as_turns,
        bootstrap_iters=0,
    )
    expected = [[answer[0] for answer in one["filtered_resps"]] for one in library["samples"]["snowy"]]
    found = read_lines(tmp_path / "out" / "chatty_chat" / "snowy_samples.jsonl")
    assert [one["prompt"] for one in found] == [one["arguments"][0][0] for one in library["samples"]["snowy"]]
    assert [[*one["loglikelihoods"].values()] for one in found] == [pytest.approx(row, abs=1e-4) for row in expected]


def test_lm_eval_s_generation_goes_on_from_the_conversation(student: Path) -> None:
    from lm_eval.api.instance import Instance

    from teacherlm.scoring.language_model import LanguageModel

    model = LanguageModel(student, "cpu", "float32")
    tokenizer, exact = AutoTokenizer.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student)
    model.use_chat(ChatStudent(tokenizer, student))
    claims = [f"Is {claim}?" for claim in ("snow white", "coal as white as snow", "it")]
    turns = [[{"role": "user", "content": claim}] for claim in claims]
    prompts = [model.apply_chat_template(one) for one in turns]
    until = {"until": ["\n\n"], "max_gen_toks": 9}
    asked = [Instance("generate_until", {}, (prompt, until), number) for number, prompt in enumerate(prompts)]
    for one, found in zip(turns, model.generate_until(asked), strict=True):
        ids = tokenizer.apply_chat_template(one, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        made = exact.generate(ids, max_new_tokens=9, do_sample=False)
        assert found == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
    prefix = [*turns[0], {"role": "assistant", "content": "The answer"}]
    assert model.apply_chat_template(prefix, add_generation_prompt=False) == prompts[0] + "The answer"


def test_a_long_conversation_keeps_what_the_template_writes_before_it(student: Path) -> None:
    from teacherlm.scoring.language_model import LanguageModel

    model = LanguageModel(student, "cpu", "float32")
    chat = ChatStudent(AutoTokenizer.from_pretrained(student), student)
    model.use_chat(chat)
    whole = [*chat.tokens(chat.asked([("user", "snow " * 600)], "The answer is (")), 5]
    head = chat.tokens(chat.head)
    kept = model.cut(whole)
    assert len(kept) == model.max_length and model.truncated == 1
    assert list(kept[: len(head)]) == head and list(kept[len(head) :]) == whole[len(head) - model.max_length - 1 : -1]


# ---------------------------------------------------------------------------------------------------------------- chain

RULE = """\
title: RULE
hub: nobody/rule
splits: {train: train, test: test}
files: {train: train.jsonl, test: test.jsonl}
question: "{{ sentence }}"
choices: ["True", "False"]
answer: "{{ label }}"
labels: {"true": A, "false": B}
"""


def test_a_chat_student_learns_through_a_chain(student: Path, tmp_path: Path) -> None:
    """A claim about snow is true, and one about coal is false. The test asks about other numbers."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "rule.yaml").write_text(RULE)
    for name, numbers in (("train", range(64)), ("test", range(64, 104))):
        claims = [("The snow is", "true") if number % 2 else ("The coal is", "false") for number in numbers]
        rows = [{"sentence": f"{what} {number}.", "label": label} for (what, label), number in zip(claims, numbers)]
        write_records(tmp_path / f"{name}.jsonl", rows)
    settings = {
        "STUDENT": student,
        "TASK": "text",
        "EPOCHS": 6,
        "BATCH": 8,
        "LEARNING_RATE": "1e-2",
        "RULE_DATA": tmp_path,
    }
    settings |= {"PYTHON": warm_python(), "LAUNCHER": "local", "NUM_GPUS": 1, "RUNS": tmp_path / "runs"}
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}, "STUDENT_CHAT": "true"}
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "chain.sh", "rule"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "rule" / "all"
    [checkpoints] = (run / "finetune").glob("*")
    assert checkpoints.name == "chatty_text_lr1e-2_chat-student_seed0" or "_chat-student_" in checkpoints.name
    results = [json.loads(path.read_text()) for path in (run / "evaluate" / checkpoints.name).glob("*/rule.json")]
    assert len(results) == 6 and all(result["chat"] for result in results)
    assert max(result["value"] for result in results) > 0.9
    untrained = json.loads((run / "evaluate" / "chatty_chat" / "rule.json").read_text())
    assert untrained["chat"] is True and untrained["value"] < 0.8
    assert "(untrained)" in (run / "report" / "index.html").read_text()
    assert "chatty_chat" in (run / "report" / "index.html").read_text()
