"""What is recorded while a student is trained: log.jsonl, wandb, speed and memory."""

import math
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from teacherlm.catalog.text_parts import PARTS
from teacherlm.core.errors import reason
from teacherlm.core.records import dump_line, write_records
from teacherlm.core.training_log import read_log
from teacherlm.finetune.wandb_server import server_address, without_settings_here
from teacherlm.runtime.processes import is_first, say

LOG = "log.jsonl"
PEAKS = {
    **{"B200": 2250e12, "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12},
    **{"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12},
    **{"A30": 165e12, "A10": 125e12, "V100": 125e12, "T4": 65e12},
}
"""Dense 16-bit operations per second according to the manufacturers' data sheets. A key must occur in the GPU's name as
whole words, and the first one that does counts: an "RTX A1000" is not an A100, and an "A10G" is not an A10."""


LOGGED = (*(f"{part}_loss" for part in PARTS), "tokens_per_second", "mfu", "memory_gib")
"""Further numbers of a line of the log, where the trainer gives them."""


class LossLog(TrainerCallback):
    """Appends the Trainer's logs to log.jsonl, one object per line. The end of an epoch is always logged.

    Args:
        path: the log file. Lines for steps after the checkpoint `last` are removed, because these steps are repeated.
        last: the checkpoint from which training resumes, or None.
    """

    def __init__(self, path: Path, last: Path | None):
        self.path = path
        self.step = 0
        if not is_first():
            return
        resumed_step = int(last.name.split("-")[1]) if last else 0
        kept = []
        if path.exists() and path.stat().st_size:
            kept = [record for record in read_log(path) if record["step"] <= resumed_step]
        if kept:
            self.step = max(record["step"] for record in kept)
        write_records(path, kept)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            self.append({"step": state.global_step, "epoch": round(state.epoch, 6), "dev_loss": logs["eval_loss"]})
        if "loss" not in logs:
            return
        steps, self.step = state.global_step - self.step, state.global_step
        norm = logs.get("grad_norm")
        record = {
            "step": state.global_step,
            "steps": steps,  # the loss is the mean over this number of steps
            "epoch": round(state.epoch, 6),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            # In float16 a step whose gradients overflow is left out; JSON has no number for its norm.
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            **{name: logs[name] for name in LOGGED if name in logs},
        }
        self.append(record)

    def append(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.time(), 3)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(dump_line(record) + "\n")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True


def start_wandb(training: Any) -> None:
    """Start wandb's run here instead of in the Trainer, so that a missing network cannot end the training.

    Runs are kept in STORE_DIR/wandb; sync_wandb.py sends the offline ones later. A training that resumes after an
    interruption is another run in the same group.
    """
    if "wandb" not in training.report_to or not is_first():
        return
    os.environ["PYTHONSAFEPATH"] = "1"  # wandb may start another Python with -m in the current folder
    import wandb

    store, name = Path(training.output_dir).parent, training.run_name
    kwargs = {"project": os.environ.get("WANDB_PROJECT"), "name": name, "group": name}
    kwargs["dir"] = str(Path(os.environ.get("WANDB_DIR", str(store))).absolute())
    with without_settings_here():
        wandb.setup()
    try:
        wandb.init(**kwargs, settings=wandb.Settings(silent=True, base_url=server_address()))
    except Exception as error:  # the network, the server or the key may be at fault
        say(f"finetune: wandb cannot be reached ({reason(error)})")
        wandb.init(**kwargs, mode="offline", settings=wandb.Settings(silent=True))
    if wandb.run.settings.mode == "offline":
        say(f"finetune: wandb: offline, in {kwargs['dir']}/wandb; sync_wandb.py sends it later")


def machine_memory() -> int:
    """The maximum number of bytes used so far: on the GPU if there is one, otherwise by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_flops_utilization(parameters: int, tokens_per_second: float) -> float | None:
    """The share of the GPU's peak performance that training uses; None on a CPU or a GPU that is not in PEAKS.

    A token takes 6 x parameters operations (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), without attention.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    return None if peak is None else 6 * parameters * tokens_per_second / peak
