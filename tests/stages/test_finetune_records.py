"""What identifies a finetuning run: each flag that changes its numbers is recorded; one without effect is refused."""

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from support.files import contents
from support.finetuning import STEPS, flags, read_log, weights
from support.programs import ROOT, STAGES, only_error, warm_python
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainingArguments

from teacherlm.core.errors import UserError
from teacherlm.finetune.arguments import FinetuneArguments, parse_arguments
from teacherlm.finetune.known_flags import DERIVED, FORMER, HARMLESS, REFUSED
from teacherlm.finetune.recorded import deepspeed_settings, recorded_flags

RECORDED = {
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "tf32", "gradient_checkpointing_kwargs", "use_cache",
    "neftune_noise_alpha", "full_determinism", "seed",
}  # fmt: skip
VALUES = {
    "label_smoothing_factor": "0.1", "average_tokens_across_devices": "false", "logging_nan_inf_filter": "false",
    "dataloader_in_order": "false", "data_seed": "7", "train_sampling_strategy": "sequential", "fsdp": "full_shard",
    "length_column_name": "tokens", "eval_strategy": "epoch", "eval_steps": "5", "eval_delay": "1",
    "eval_accumulation_steps": "2", "eval_do_concat_batches": "false", "hub_strategy": "end",
    "metric_for_best_model": "loss",
}  # fmt: skip
"""Values of refused flags that differ from the default; it is "true" for the others. Two flags cannot be given in a
shell."""
NEEDED = ["--model_name_or_path", "model", "--dataset_name", "data", "--task_type", "text", "--output_dir", "run"]


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Path:
    return prepared / "SAMPLE"


@pytest.fixture(scope="module")
def done(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    run = tmp_path_factory.mktemp("done") / "run"
    command = [warm_python(), STAGES["finetune"], *one_epoch(tiny_llama, dataset, run)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return run


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def one_epoch(model: Path, dataset: Path, output: Path) -> list[object]:
    return [*flags(model, dataset, output), "--num_train_epochs", 1]


def test_every_flag_of_transformers_is_recorded_harmless_or_refused() -> None:
    """This fails if another version of the library has a new flag. Then decide how to treat the flag."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    groups = [RECORDED, HARMLESS, DERIVED, set(REFUSED)]
    assert fields == set.union(*groups)
    assert sum(map(len, groups)) == len(fields)
    assert set(recorded_flags(TrainingArguments)) == RECORDED
    assert not FORMER.keys() & (fields | {field.name for field in dataclasses.fields(FinetuneArguments)})


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"parallelism_config", "liger_kernel_config"}))
def test_a_flag_without_effect_is_refused(name: str) -> None:
    value = VALUES.get(name, "true")
    with pytest.raises(UserError, match=f"--{name} is not supported here: "):
        parse_arguments([*NEEDED, f"--{name}", value])
    with pytest.raises(UserError, match=f"--{name} is not supported here: "):
        parse_arguments([*NEEDED, f"--{name.replace('_', '-')}={value}"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--optim", "sgd"), "optim was 'adamw_torch_fused', is 'sgd'"),
        (("--adam_beta2", 0.95), "adam_beta2 was 0.999, is 0.95"),
        (("--adam_epsilon", 1e-6), "adam_epsilon was 1e-08, is 1e-06"),
        (("--lr", "constant_with_warmup"), "lr_scheduler_type was 'constant', is 'constant_with_warmup'"),
        (("--lr", "constant_with_warmup", "--warmup_steps", 3), "warmup_steps was 0, is 3.0"),
        (("--full_determinism",), "full_determinism was False, is True"),
        (("--packing", "false"), "packing was True, is False"),
        (("--packing", "false", "--neftune_noise_alpha", 5), "neftune_noise_alpha was None, is 5.0"),
        (("--attention", "eager"), "attention was 'sdpa', is 'eager'"),
        (("--shuffle", "false"), "shuffle was True, is False"),
        (("--per_device_train_batch_size", 8), "effective_batch was 4, is 8"),
        (("--bf16",), "precision was 'fp32', is 'bf16'"),
        (("--num_train_epochs", 2, "--optim", "sgd"), "optim was 'adamw_torch_fused', is 'sgd'"),
        (("--num_train_epochs", 2, "--lr", "linear"), "lr_scheduler_type was 'constant', is 'linear'"),
    ],
    ids=lambda words: " ".join(map(str, words)) if isinstance(words, tuple) else "",
)
def test_a_flag_that_changes_numbers_makes_another_run(
    words: tuple[object, ...], named: str, tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    before = contents(again)
    error = only_error(inside("finetune", *one_epoch(tiny_llama, dataset, again), *words))
    assert f"{again}: there is another run here" in error
    assert named in error
    assert contents(again) == before


def test_a_flag_that_changes_no_number_leaves_the_run_done(
    tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    before = contents(again)
    words = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--logging_steps", 3]
    words += ["--gradient_checkpointing", "false", "--dataloader_num_workers", 1, "--save_total_limit", 3]
    words += ["--run_name", "other", "--save_only_model", "--max_target_length", 9, "--per_device_eval_batch_size", 3]
    result = inside("finetune", *one_epoch(tiny_llama, dataset, again), *words)
    assert "done already, nothing to do" in result.stdout, result.stderr
    assert contents(again) == before


def test_a_run_older_than_a_flag_had_its_default(
    tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    path = again / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("optim", "adam_beta2", "packing", "deepspeed", "shuffle"):
        del manifest["arguments"][name]
    path.write_text(json.dumps(manifest))
    words = one_epoch(tiny_llama, dataset, again)
    assert "done already" in inside("finetune", *words).stdout
    assert inside("finetune", *words, "--list_missing").stdout.splitlines()[-1] == ""
    assert inside("finetune", *words, "--list_missing", "--adam_beta2", 0.9).stdout.splitlines()[-1] == "0"
    manifest["command"] += ["--optim=adagrad"]  # so it is not known what it means now
    path.write_text(json.dumps(manifest))
    assert inside("finetune", *words, "--list_missing").stdout.splitlines()[-1] == "0"


def test_a_login_node_cannot_tell_what_the_nodes_have(
    tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    path = again / "manifest.json"
    manifest = json.loads(path.read_text())
    there = {"effective_batch": 64, "precision": "bf16", "tf32": True, "deepspeed": {"optimizer": {"type": "AdamW"}}}
    manifest["arguments"] |= there
    path.write_text(json.dumps(manifest))
    words = one_epoch(tiny_llama, dataset, again)
    assert inside("finetune", *words, "--list_missing").stdout.splitlines()[-1] == ""
    assert inside("finetune", *words, "--list_missing", "--seed", 7).stdout.splitlines()[-1] == "0"


def test_more_epochs_of_a_schedule_that_depends_on_them_are_another_run(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    words = [*one_epoch(tiny_llama, dataset, tmp_path / "run"), "--lr", "linear"]
    assert inside("finetune", *words).returncode == 0
    assert "num_train_epochs was 1.0, is 2.0" in only_error(inside("finetune", *words, "--num_train_epochs", 2))
    assert "done already" in inside("finetune", *words).stdout


def test_fewer_epochs_than_there_are_checkpoints_of_are_refused(
    tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    error = only_error(inside("finetune", *one_epoch(tiny_llama, dataset, again), "--max_steps", 3))
    assert f"checkpoint-{STEPS}: the run is already longer (6) than --max_steps 3;" in error


def test_checkpoints_without_optimizer_are_not_continued_from(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    """A new optimizer in the middle of a run would give other numbers than an uninterrupted run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert inside("finetune", *one_epoch(tiny_llama, dataset, whole), "--num_train_epochs", 2).returncode == 0
    assert inside("finetune", *one_epoch(tiny_llama, dataset, parts), "--save_only_model").returncode == 0
    result = inside("finetune", *one_epoch(tiny_llama, dataset, parts), "--num_train_epochs", 2)
    assert "has no optimizer states (--save_only_model); training begins again" in result.stdout, result.stderr
    assert weights(parts) == weights(whole)
    assert read_log(parts) == read_log(whole)


def test_states_of_deepspeed_are_not_left_out_silently(
    tiny_llama: Path, dataset: Path, again: Path, inside: Callable
) -> None:
    (again / f"checkpoint-{STEPS}" / "optimizer.pt").unlink()
    folder = again / f"checkpoint-{STEPS}" / "global_step6"
    folder.mkdir()
    (folder.parent / "latest").write_text(folder.name)
    error = only_error(inside("finetune", *one_epoch(tiny_llama, dataset, again), "--num_train_epochs", 2))
    assert f"{folder / 'mp_rank_00_model_states.pt'}: this file of the checkpoint is missing" in error
    torch.save({"dp_world_size": 1, "optimizer": {}}, folder / "mp_rank_00_model_states.pt")  # without ZeRO
    error = only_error(inside("finetune", *one_epoch(tiny_llama, dataset, again), "--num_train_epochs", 2))
    assert (
        "its optimizer states were saved by DeepSpeed in 1 process, and torch in 1 process cannot load them (DeepSpeed "
        "without ZeRO); continue with --deepspeed NAME and NUM_GPUS=1"
    ) in error


def test_of_a_deepspeed_configuration_what_changes_numbers_is_recorded(tmp_path: Path) -> None:
    folder = ROOT / "finetune" / "deepspeed"
    assert [deepspeed_settings(folder / f"zero{stage}.json") for stage in (1, 2, 3)] == [{}, {}, {}]
    assert deepspeed_settings(folder / "zero3_offload.json") == {"optimizer": {"type": "AdamW"}}
    own = {"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}, "communication_data_type": "fp16"}
    (tmp_path / "own.json").write_text(json.dumps(own))
    expected = {"zero_optimization": {"zero_quantized_gradients": True}, "communication_data_type": "fp16"}
    assert deepspeed_settings(str(tmp_path / "own.json")) == expected


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    numbers = {a.dest for a in HfArgumentParser((FinetuneArguments, TrainingArguments))._actions if a.type is float}
    assert {"learning_rate", "num_train_epochs", "weight_decay", "warmup_steps", "adam_beta1"} <= numbers
    for name in sorted(numbers):
        with pytest.raises(UserError, match=f"--{name}"):
            parse_arguments([*NEEDED, f"--{name}={value}"])


@pytest.mark.parametrize(
    "words",
    [
        ("--num_train_epochs", "0"),
        ("--max_steps", "0"),
        ("--seed", "-1"),
        ("--seed", str(2**32)),
        ("--adam_beta2", "1"),
        ("--save_total_limit", "0"),
        ("--save_strategy", "no"),
        ("--save_strategy", "best"),
        ("--optim", "lomo"),
        ("--optim", "schedule_free_adamw"),
        ("--optim_args", "momentum=0.9"),
        ("--optim_args", "momentum", "--optim", "sgd"),
        ("--optim_args", "momentum=nan", "--optim", "sgd"),
        ("--optim_args", "momentum=0.9,beta=1", "--optim", "sgd"),
        ("--adam_beta2", "0.9", "--optim", "sgd"),
        ("--warmup_steps", "5", "--lr", "constant"),
        ("--lr_scheduler_kwargs", '{"num_cycles": 2}', "--lr", "constant"),
        ("--lr", "cosine", "--lr_scheduler_kwargs", '{"bogus": 2}'),
        ("--lr", "reduce_lr_on_plateau"),
        ("--lr", "warmup_stable_decay"),
        ("--early_stop", "2"),
        ("--gradient_checkpointing_kwargs", '{"use_reentrant": false}'),
        ("--attention", "eager", "--packing", "false"),
        ("--neftune_noise_alpha", "5"),
    ],
    ids=" ".join,
)
def test_flags_that_cannot_act_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=words[0]):
        parse_arguments([*NEEDED, *words])


def test_the_reference_s_flags_are_taken_or_their_replacement_is_named() -> None:
    accepted = ["--max_target_length", "2048", "--ignore_pad_token_for_loss", "true", "--overwrite_cache"]
    accepted += ["--use_fast_tokenizer", "--pad_to_max_length", "False", "--preprocessing_num_workers", "8"]
    own, _ = parse_arguments([*NEEDED, *accepted])
    assert own.max_source_length == 2048
    for words, replacement in (
        (["--overwrite_output_dir"], "--restart"),
        (["--model_revision", "step1000"], "revision"),
        (["--cache_dir=x"], "HF_HOME"),
        (["--pad-to-max-length"], "--packing false"),
        (["--train_file", "x.jsonl"], "--dataset_name"),
        (["--warmup_ratio", "0.1"], "--warmup_steps"),
        (["--no_cuda"], "--use_cpu"),
        (["--evaluation_strategy", "epoch"], "--dev_dataset"),
    ):
        with pytest.raises(UserError) as error:
            parse_arguments([*NEEDED, *words])
        assert replacement in str(error.value)


def plain_losses(model: Path, texts: list[list[str]]) -> list[float]:
    """For each step, the mean loss over all tokens of its texts by the library, computed one text at a time."""
    student, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    means = []
    for step in texts:
        total = count = 0
        for text in step:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.inference_mode():
                total += float(student(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        means.append(total / count)
    return means


@pytest.mark.parametrize("task", ["text", "text:1,cot_text:2", "text,cot_text"])
def test_without_shuffling_each_step_has_the_dataset_s_next_samples(
    task: str, tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    """With a learning rate of 0 the loss of a step tells which samples it had."""
    train = datasets.load_from_disk(str(dataset))["train"].select(range(10))
    if task == "text":
        epoch = list(train["text"])
    elif ":" in task:
        epoch = [row[field] for row in train for field in ("text", "cot_text", "cot_text")]
    else:
        epoch = [*train["text"], *train["cot_text"]]
    steps = [epoch[first : first + 4] for first in range(0, len(epoch), 4)]
    words = ["--task_type", task, "--shuffle", "false", "--learning_rate", 0, "--logging_steps", 1]
    words += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--max_train_samples", 10]
    result = inside("finetune", *flags(tiny_llama, dataset, tmp_path / "run"), *words, "--num_train_epochs", 2)
    assert result.returncode == 0, result.stderr
    losses = [record["loss"] for record in read_log(tmp_path / "run")]
    assert losses == pytest.approx(plain_losses(tiny_llama, steps) * 2, rel=1e-5)


def test_neftune_adds_its_noise_to_padded_batches(
    tiny_llama: Path, dataset: Path, tmp_path: Path, inside: Callable
) -> None:
    losses = {}
    for name, words in (("plain", []), ("noisy", ["--neftune_noise_alpha", 200])):
        words += ["--packing", "false", "--learning_rate", 0, "--logging_steps", 1]
        result = inside("finetune", *one_epoch(tiny_llama, dataset, tmp_path / name), *words)
        assert result.returncode == 0, result.stderr
        losses[name] = [record["loss"] for record in read_log(tmp_path / name)]
    assert all(abs(plain - noisy) > 1e-4 for plain, noisy in zip(losses["plain"], losses["noisy"]))
