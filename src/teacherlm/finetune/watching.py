"""What is written down while a student is trained: log.jsonl, speed and memory."""

import math
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

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
"""Dense 16-bit operations a second, by the makers' data sheets. They are looked for in a GPU's name as whole words, in
this order: an "RTX A1000" is no A100, an "A10G" no A10."""


class LossLog(TrainerCallback):
    """Appends what the Trainer logs to log.jsonl, one object a line; an epoch's end is always logged.

    Args:
        path: of the log. Lines after the checkpoint `last` are dropped: those steps are done again.
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
            "steps": steps,  # that the loss is the mean of
            "epoch": round(state.epoch, 6),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            # In float16 a step whose gradients overflow is left out; JSON has no number for its norm.
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            **{name: logs[name] for name in ("tokens_per_second", "mfu", "memory_gib") if name in logs},
        }
        self.append(record)

    def append(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.time(), 3)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(dump_line(record) + "\n")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True


def start_wandb(training: Any) -> None:
    """Begin wandb's run here rather than in the Trainer, so that a network that is not there cannot end the training.

    Runs, and those that stay offline until sync_wandb.py sends them, are kept in STORE_DIR/wandb. A training that goes
    on after an interruption is another run in the same group.
    """
    if "wandb" not in training.report_to or not is_first():
        return
    os.environ["PYTHONSAFEPATH"] = "1"  # wandb may start a Python of its own, with -m in the current folder
    import wandb

    store, name = Path(training.output_dir).parent, training.run_name
    options = {"project": os.environ.get("WANDB_PROJECT"), "name": name, "group": name}
    options["dir"] = str(Path(os.environ.get("WANDB_DIR", str(store))).absolute())
    with without_settings_here():
        wandb.setup()
    try:
        wandb.init(**options, settings=wandb.Settings(silent=True, base_url=server_address()))
    except Exception as error:  # of the network, of the server, of the key
        say(f"finetune: wandb cannot be reached ({reason(error)})")
        wandb.init(**options, mode="offline", settings=wandb.Settings(silent=True))
    if wandb.run.settings.mode == "offline":
        say(f"finetune: wandb: offline, in {options['dir']}/wandb; sync_wandb.py sends it later")


def machine_memory() -> int:
    """The most bytes held so far: on the GPU if there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_flops_utilization(parameters: int, tokens_per_second: float) -> float | None:
    """The share of a GPU's peak that 6 x parameters operations a token make (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B, without the attention's); None on a CPU or a GPU that PEAKS lacks."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    return None if peak is None else 6 * parameters * tokens_per_second / peak
