"""What is chosen by the GPUs of a machine, with GPUs that are only said to be there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from teacherlm.atlas import workers
from teacherlm.core.errors import UserError
from teacherlm.core.training_log import read_log
from teacherlm.finetune import processes, student, this_machine, trainer, watching
from teacherlm.runtime import gpu, packed_attention
from teacherlm.runtime.generation import transformers_engine
from teacherlm.runtime.loading import load_model
from teacherlm.scoring.language_model import LanguageModel


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torch say that there are GPUs: gpus(2, "NVIDIA H100 80GB HBM3", 9)."""

    def show(count: int, name: str = "NVIDIA H100 80GB HBM3", major: int = 9) -> None:
        properties = SimpleNamespace(name=name, major=major, total_memory=80 * 2**30)
        found = {"is_available": lambda: count > 0, "device_count": lambda: count, "current_device": lambda: 0}
        found |= {"get_device_properties": lambda device=None: properties, "get_device_name": lambda device=None: name}
        found |= {"_check_bf16_tensor_supported": lambda device: True}  # as torch's emulation says of each GPU
        for function, fake in found.items():
            monkeypatch.setattr(torch.cuda, function, fake)

    return show


@pytest.mark.parametrize(
    ("name", "major", "dtype"),
    [("NVIDIA H100 80GB HBM3", 9, "bfloat16"), ("NVIDIA A100-SXM4-80GB", 8, "bfloat16"), ("Tesla T4", 7, "float16")],
)
def test_the_dtype_is_one_that_the_gpu_computes_in(name: str, major: int, dtype: str, gpus: Callable) -> None:
    gpus(1, name, major)
    assert torch.cuda.is_bf16_supported()  # which is why this is not what is asked
    assert transformers_engine.best_dtype() == dtype
    chosen = {"bfloat16": "--bf16", "float16": "--fp16"}[dtype]
    assert chosen in this_machine.for_this_machine([], print)


@pytest.mark.parametrize("words", [["--bf16", "false"], ["--fp16", "true"], ["--bf16", "true"]])
def test_what_was_asked_for_counts(words: list[str], gpus: Callable) -> None:
    gpus(1)
    found = this_machine.for_this_machine([*words, "--tf32", "true"], print)
    assert [word for word in found if word in ("--fp16", "--bf16")] == [word for word in words[:1] if "true" in words]
    assert found[found.index("--tf32") + 1] == "true"
    assert "--use_cpu" not in found


@pytest.mark.parametrize(
    ("seen", "local", "task", "expected"), [(4, "3", None, 3), (1, "0", None, 0), (1, "3", "3", 0), (2, "1", "1", 1)]
)
def test_each_process_has_its_gpu(
    seen: int, local: str, task: str | None, expected: int, gpus: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(seen)
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    if task is not None:
        monkeypatch.setenv("SLURM_LOCALID", task)
    assert gpu.own_gpu() == expected


@pytest.mark.parametrize("join", [processes.join_processes, lambda: workers.join_workers(-1)])
def test_two_processes_on_one_gpu_are_refused_before_nccl_does(
    join: Callable, gpus: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("SLURM_LOCALID", "0")  # a batch script has it, whose processes srun did not start
    with pytest.raises(UserError, match=r"^process 1 of this machine has no GPU of its own; start at most 1 here$"):
        join()


def test_a_gpu_that_is_not_there_is_refused(gpus: Callable, tiny_llama: Path) -> None:
    gpus(2)
    with pytest.raises(UserError, match=r"--device 5: the GPUs here are 0 to 1"):
        LanguageModel(tiny_llama, "5", "float32")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H20", None),
    ],
)
def test_the_share_of_the_peak_is_of_this_gpu(name: str, peak: float | None, gpus: Callable) -> None:
    gpus(1, name)
    found = watching.model_flops_utilization(10**9, 1000.0)
    assert found == (None if peak is None else pytest.approx(6e12 / peak))


def test_numbers_in_4_bits_are_all_counted() -> None:
    packed = torch.nn.Parameter(torch.zeros(32, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size((8, 8)))
    assert trainer.numbers(packed) == 64
    assert trainer.numbers(torch.nn.Parameter(torch.zeros(3, 4))) == 12


def test_a_norm_that_overflowed_in_float16_can_be_read_again(tmp_path: Path) -> None:
    """GradScaler begins with a factor of 65536, whose first gradients overflow, and leaves these steps out."""
    log = watching.LossLog(tmp_path / "log.jsonl", None)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, epoch=0.5)
    for norm in (float("inf"), float("nan"), 2.5):
        log.on_log(None, state, None, {"loss": 1.5, "grad_norm": norm, "learning_rate": 1e-3})
    assert [line["grad_norm"] for line in read_log(tmp_path / "log.jsonl")] == [None, None, 2.5]
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])


def test_a_single_process_tells_deepspeed_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    met = []
    monkeypatch.setattr(
        processes, "stay_on_this_machine", lambda: met.append({name: os.environ[name] for name in names})
    )
    processes.meet_alone()
    (found,) = met
    assert int(found.pop("MASTER_PORT")) > 0
    assert found == {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(("bf16", "path"), [(True, "packed"), (False, "padded")])
def test_flash_attention_is_checked_in_the_16_bits_that_its_kernels_have(
    bf16: bool, path: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in that refuses float32 as the kernels do; the library casts for them under autocast."""

    def attend(module: torch.nn.Module, query: torch.Tensor, *args: object, **kwargs: object) -> object:
        if query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return packed_attention.attend(module, query, *args, **kwargs)

    AttentionInterface.register("sixteen_bits", attend)
    AttentionMaskInterface.register("sixteen_bits", packed_attention.no_mask)
    own = SimpleNamespace(attention="flash_attention_2", packing=True, peft="none")
    training = SimpleNamespace(bf16=bf16, fp16=False, gradient_checkpointing=False, gradient_checkpointing_kwargs=None)
    model = load_model(tiny_llama, dtype=torch.float32)
    half = student.half_precision(own, training)
    assert half == (torch.bfloat16 if bf16 else None)
    monkeypatch.setitem(packed_attention.KINDS, "flash_attention_2", "sixteen_bits")
    monkeypatch.setattr(student, "half_precision", lambda own, training: half)  # which has looked at KINDS
    assert student.find_path(model, own, training, tiny_llama, 64).path == path
