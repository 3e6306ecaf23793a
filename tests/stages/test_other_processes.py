"""A run goes on in another number of processes, with another stage of ZeRO or without DeepSpeed, as if it had not
changed."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from support.pickles_with_code import Evil
from support.programs import only_error
from support.two_processes import finetune

from teacherlm.finetune.whole_states import read_zero_states
from teacherlm.runtime.compat.of_deepspeed import WEIGHTS

RELATIVE = 1e-5
"""The difference of losses that sums in another order may make in float32. Weights have an absolute one."""
STEPS = 10  # 6 in an epoch: all changes are in the middle of one
FLAGS = ["--max_train_samples", 22, "--save_strategy", "steps", "--save_steps", 4, "--weight_decay", 0.1]
FLAGS += ["--learning_rate", 3e-3]
LORA = ["--peft", "lora", "--peft_rank", 4]


class Leg(NamedTuple):
    """A part of a run."""

    processes: int
    deepspeed: str
    until: int


def run(model: Path, dataset: Path, store: Path, batch: int, *legs: Leg, words: Sequence[object] = ()) -> list[str]:
    """Train a leg after the other with the same device batch, and return what each of them printed."""
    outputs = []
    for leg in legs:
        flags = ["--per_device_train_batch_size", batch, "--deepspeed", leg.deepspeed, "--max_steps", leg.until]
        done = finetune(model, dataset, store, leg.processes, *FLAGS, *flags, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "do not match the ones in" not in done.stderr  # the library's warning of another device batch
        outputs.append(done.stdout)
    return outputs


def curve(store: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (store / "run" / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def assert_equal(store: Path, expected: Path) -> None:
    assert list(curve(store)) == list(range(1, STEPS + 1))
    assert curve(store) == pytest.approx(curve(expected), rel=RELATIVE)
    [file] = (expected / "run" / f"checkpoint-{STEPS}").glob("*model.safetensors")
    whole, found = load_file(file), load_file(store / "run" / f"checkpoint-{STEPS}" / file.name)
    assert whole.keys() == found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, whole[name], rtol=RELATIVE, atol=RELATIVE)


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Path:
    return prepared / "SAMPLE"


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in one process, with 4 samples per step."""
    store = tmp_path_factory.mktemp("alone")
    run(tiny_llama, dataset, store, 4, Leg(1, "none", STEPS))
    return store


@pytest.mark.parametrize(
    "legs",
    [
        [Leg(2, "none", 4), Leg(1, "none", 8), Leg(2, "none", STEPS)],
        [Leg(2, "zero1", 4), Leg(1, "none", 8), Leg(2, "zero1", STEPS)],
        [Leg(2, "zero2", 4), Leg(4, "zero2", 8), Leg(1, "none", STEPS)],
        [Leg(2, "zero3", 4), Leg(1, "zero3", 8), Leg(2, "zero3", STEPS)],  # alone without a GPU it is torch
        [Leg(2, "zero2", 4), Leg(2, "zero3", 8), Leg(4, "zero1", STEPS)],
    ],
    ids=lambda legs: "-".join(f"{leg.processes}x{leg.deepspeed}" for leg in legs),
)
def test_other_processes_go_on_as_if_nothing_had_changed(
    legs: list[Leg], tiny_llama: Path, dataset: Path, alone: Path, tmp_path: Path
) -> None:
    outputs = run(tiny_llama, dataset, tmp_path, 2, *legs)
    assert_equal(tmp_path, alone)
    assert "made with" not in outputs[0]
    for leg, output in zip(legs, outputs):
        batches, each = (2, "1 process") if leg.processes == 1 else (1, "each of 4 processes")
        said = (
            f"the run here was made with 4 samples per step; to keep that, {each} computes {batches} batch"
            f"{'es' if batches > 1 else ''} of {2 if leg.processes == 1 else 1} per step in place of 1 of 2"
        )
        assert (said in output) == (leg.processes != 2)
    checkpoints = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert checkpoints == {"checkpoint-4", "checkpoint-8", f"checkpoint-{STEPS}"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2


def test_three_processes_become_two(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    run(tiny_llama, dataset, tmp_path / "alone", 6, Leg(1, "none", STEPS))
    legs = [Leg(3, "zero3", 3), Leg(2, "zero3", 6), Leg(3, "zero2", STEPS)]
    outputs = run(tiny_llama, dataset, tmp_path, 2, *legs)
    assert "each of 2 processes computes 3 batches of 1 per step in place of 1 of 2" in outputs[1]
    assert "checkpoint-3; its states were saved by DeepSpeed (ZeRO-3) in 3 processes" in outputs[1]
    assert_equal(tmp_path, tmp_path / "alone")


def test_adapters_go_on_in_other_processes(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    """DeepSpeed has only one group of parameters there: adapters have no biases and norms."""
    run(tiny_llama, dataset, tmp_path / "alone", 4, Leg(1, "none", STEPS), words=LORA)
    run(tiny_llama, dataset, tmp_path, 2, Leg(2, "zero3", 4), Leg(1, "none", 8), Leg(2, "zero2", STEPS), words=LORA)
    assert_equal(tmp_path, tmp_path / "alone")


# ------------------------------------------------------------------------------------------------ one run to go on from


@pytest.fixture(scope="module")
def begun(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two processes with a checkpoint at step 4, by stage of ZeRO."""
    found = {}
    for stage in ("zero2", "zero3"):
        found[stage] = tmp_path_factory.mktemp(stage)
        run(tiny_llama, dataset, found[stage], 2, Leg(2, stage, 4))
    return found


@pytest.fixture
def go_on(tiny_llama: Path, dataset: Path, inside: Callable) -> Callable:
    """Go on in one process, in the folder of a store."""

    def go(store: Path, *words: object) -> object:
        flags = ["--model_name_or_path", tiny_llama, "--dataset_name", dataset, "--task_type", "cot_text"]
        flags += ["--output_dir", store / "run", "--gradient_checkpointing", "true", "--lr", "constant"]
        flags += ["--logging_steps", 1, "--per_device_train_batch_size", 2, "--max_steps", STEPS]
        return inside("finetune", *flags, *FLAGS, *words)

    return go


def copied(store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder / "store")
    return folder / "store"


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_the_weights_are_those_that_deepspeed_s_own_script_finds(stage: str, begun: dict[str, Path]) -> None:
    checkpoint = begun[stage] / "run" / "checkpoint-4"
    found, expected = read_zero_states(checkpoint), get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    assert found.settings.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.whole(name, WEIGHTS, tensor.shape), tensor)
        assert found.settings[name]["weight_decay"] == (0 if "norm" in name else 0.1)


def test_states_that_are_lost_would_be_seen(
    begun: dict[str, Path], alone: Path, go_on: Callable, tmp_path: Path
) -> None:
    """The comparison fails without Adam's moments, and without the float32 weights of one process."""
    for number, key in enumerate(("exp_avg", "exp_avg_sq", "weights")):
        store = copied(begun["zero2"], tmp_path / str(number))
        [file] = store.glob("run/checkpoint-4/global_step4/zero_pp_rank_1_*_optim_states.pt")
        saved = torch.load(file, weights_only=False)
        states = saved["optimizer_state_dict"]
        lost = states["single_partition_of_fp32_groups"][0]
        lost = lost if key == "weights" else states["base_optimizer_state"]["state"][0][key]
        lost.data.mul_(0.9)
        torch.save(saved, file)
        assert go_on(store).returncode == 0
        with pytest.raises(AssertionError):
            assert_equal(store, alone)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("zero2", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("zero2", "mp_rank_00_model_states.pt"),
        ("zero3", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("zero3", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ],
)
def test_a_missing_file_is_named(
    stage: str, name: str, begun: dict[str, Path], go_on: Callable, tmp_path: Path
) -> None:
    store = copied(begun[stage], tmp_path)
    file = store / "run" / "checkpoint-4" / "global_step4" / name
    file.unlink()
    error = only_error(go_on(store))
    assert f"{file}: this file of the checkpoint is missing; remove this checkpoint, and training resumes" in error
    assert not (store / "run" / "manifest.json").exists() or curve(store) == curve(begun[stage])


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("damage", ["cut", "code", "other", "short", "number", "steps", "counters"])
def test_a_damaged_file_is_named(
    damage: str, stage: str, begun: dict[str, Path], go_on: Callable, tmp_path: Path
) -> None:
    store = copied(begun[stage], tmp_path)
    [file] = store.glob("run/checkpoint-4/global_step4/zero_pp_rank_1_*_optim_states.pt")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        expected = f"{file}: refused or damaged"
    elif damage == "code":
        torch.save({"optimizer_state_dict": Evil(tmp_path / "evil")}, file)
        expected = f"{file}: refused, its pickle asks for posix.mkdir"
    elif damage == "other":
        torch.save({"optimizer_state_dict": {"zero_stage": 2}}, file)
        expected = f"{file.parent}: these are not the states of DeepSpeed's ZeRO that were expected"
    elif damage == "number":  # one byte of a tensor
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        expected = f"{file}: damaged, "
    elif damage == "steps":
        saved = torch.load(file, weights_only=False)
        states = saved["optimizer_state_dict"]
        states = states["optimizer_state_dict" if stage == "zero3" else "base_optimizer_state"]["state"]
        states[0]["step"] += 1
        torch.save(saved, file)
        expected = "the processes differ in the steps of model." if stage == "zero3" else "or another number of steps"
    elif damage == "short":
        saved = torch.load(file, weights_only=False)
        states = saved["optimizer_state_dict"]
        flat = states["fp32_flat_groups" if stage == "zero3" else "single_partition_of_fp32_groups"]
        flat[0] = flat[0][:7].clone()
        torch.save(saved, file)
        expected = f"{file.parent}: these are not the states of DeepSpeed's ZeRO that were expected"
    else:
        file = min(store.glob("run/checkpoint-4/global_step4/*model_states.pt"))
        saved = torch.load(file, weights_only=False)
        torch.save({**saved, "dp_world_size": "two"}, file)
        expected = f"{file}: dp_world_size: a number of processes was expected, found 'two'"
    assert expected in only_error(go_on(store))
    assert not (tmp_path / "evil").exists()


def test_the_files_of_two_processes_that_are_exchanged_are_seen(
    begun: dict[str, Path], go_on: Callable, tmp_path: Path
) -> None:
    store = copied(begun["zero2"], tmp_path)
    one, other = sorted(store.glob("run/checkpoint-4/global_step4/zero_pp_rank_?_*_optim_states.pt"))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    assert "goes on in process 1 where another parameter begins" in only_error(go_on(store))


def test_samples_that_cannot_be_shared_equally_are_said(
    begun: dict[str, Path], tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    store = copied(begun["zero2"], tmp_path)
    words = [*FLAGS, "--per_device_train_batch_size", 2, "--deepspeed", "zero2", "--max_steps", STEPS]
    done = finetune(tiny_llama, dataset, store, 3, *words)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert (
        f"{store / 'run'}: the run here was made with 4 samples per step, which 3 processes cannot share equally; take "
        "1, 2 or 4 (NUM_GPUS x nodes), or choose another run name"
    ) in done.stderr
    assert not list((store / "run").glob("checkpoint-1?"))


def test_another_effective_batch_is_another_run(begun: dict[str, Path], go_on: Callable, tmp_path: Path) -> None:
    """With other settings too, or in the number of processes in which the run began."""
    store = copied(begun["zero2"], tmp_path)
    error = only_error(go_on(store, "--learning_rate", 1e-3))
    assert "there is another run here (effective_batch was 4, is 2; learning_rate was 0.003, is 0.001)" in error
    facts = json.loads((store / "run" / "run.json").read_text())
    (store / "run" / "run.json").write_text(json.dumps({**facts, "processes": 1}))
    assert "there is another run here (effective_batch was 4, is 2)" in only_error(go_on(store))


def test_the_processes_of_a_run_of_an_earlier_version_are_those_of_its_checkpoint(
    begun: dict[str, Path], go_on: Callable, tmp_path: Path
) -> None:
    store = copied(begun["zero2"], tmp_path)
    facts = json.loads((store / "run" / "run.json").read_text())
    assert facts.pop("processes") == 2
    (store / "run" / "run.json").write_text(json.dumps(facts))
    done = go_on(store)
    assert done.returncode == 0, done.stderr
    assert json.loads((store / "run" / "run.json").read_text())["processes"] == 2
    assert "nothing to do" in go_on(store).stdout  # the run that is done has the same effective batch
    assert go_on(store, "--list_missing").stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_other_optimizers_go_on(
    optimizer: str, tiny_llama: Path, dataset: Path, go_on: Callable, tmp_path: Path
) -> None:
    """SGD without momentum has no states; RMSprop has others than Adam."""
    words = ["--optim", optimizer]
    run(tiny_llama, dataset, tmp_path, 2, Leg(2, "zero2", 4), words=words)
    assert go_on(tmp_path, *words).returncode == 0
    alone = tmp_path / "alone"
    assert go_on(alone, *words, "--gradient_accumulation_steps", 2).returncode == 0
    assert_equal(tmp_path, alone)


def test_states_that_belong_to_whole_matrices_stay(
    tiny_llama: Path, dataset: Path, go_on: Callable, tmp_path: Path
) -> None:
    run(tiny_llama, dataset, tmp_path, 2, Leg(2, "zero2", 4), words=["--optim", "adafactor"])
    assert (
        "its optimizer states were saved by DeepSpeed (ZeRO-2) in 2 processes, and torch in 1 process cannot load them "
        "(the states of the optimizer adafactor cannot be divided); continue with --deepspeed zero2 and NUM_GPUS=2"
    ) in only_error(go_on(tmp_path, "--optim", "adafactor"))
