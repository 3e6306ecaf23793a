"""The flags of finetune.py that this machine can use: precision, DeepSpeed, wandb."""

import argparse
import importlib.util
import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import torch

from teacherlm.catalog.models import find_model
from teacherlm.core.errors import UserError, reason
from teacherlm.core.json_files import load_json
from teacherlm.core.places import ROOT
from teacherlm.core.redaction import secret_settings
from teacherlm.core.terminal import shown
from teacherlm.finetune.processes import meet_alone
from teacherlm.runtime import gpu

CONFIGS = ROOT / "finetune" / "deepspeed"


def for_this_machine(argv: list[str], tell: Callable[[str], None]) -> list[str]:
    """The flags without those that this machine cannot use, and with those that it needs or can use."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--fp16", nargs="?", const="true")
    early.add_argument("--bf16", nargs="?", const="true")
    early.add_argument("--tf32")
    early.add_argument("--deepspeed")
    early.add_argument("--report_to", default="none")
    early.add_argument("--model_name_or_path")
    known, rest = early.parse_known_args(argv)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = [name for name in ("fp16", "bf16") if (getattr(known, name) or "").lower() in ("true", "1", "yes")]
    if torch.cuda.is_available():
        if known.fp16 is None and known.bf16 is None:
            wanted = ["bf16" if gpu.computes_bfloat16() else "fp16"]
    else:
        left = [name for name in wanted if name == "fp16" or processes > 1]
        wanted = [name for name in wanted if name not in left]
        left += ["tf32"] if known.tf32 else []
        left += ["deepspeed"] if known.deepspeed and processes == 1 else []
        what = f"; --{' and --'.join(left)} left out" if left else ""
        where = "in one process" if processes == 1 else f"in {processes} processes"
        precision = "bfloat16" if wanted else "float32"
        tell(f"finetune: no GPU here: training {where} on the CPU, in {precision}{what}")
    rest += [word for name in wanted for word in (f"--{name}", "true")]
    if known.tf32 and torch.cuda.is_available():
        rest += ["--tf32", known.tf32]
    config = None
    if torch.cuda.is_available() or processes > 1:
        config = deepspeed_config(known.deepspeed, known.model_name_or_path, processes)
    if config is not None:
        if processes == 1:
            meet_alone()
        rest += ["--deepspeed", str(config)]
    elif not torch.cuda.is_available():
        rest += ["--use_cpu", "true"]  # not with DeepSpeed: accelerate would switch DeepSpeed off
    tracker = known.report_to
    if tracker in ("wandb", "tensorboard") and importlib.util.find_spec(tracker) is None:
        how = "to install it: pip install -e .[tracking]"
        tell(f"finetune: {tracker} is not installed: the losses go to log.jsonl only ({how})")
        tracker = "none"
    if tracker == "wandb" and os.environ.get("WANDB_MODE") == "disabled":
        tracker = "none"
    if tracker == "wandb" and not has_wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")  # without a key, wandb would ask for one and wait
    if known.model_name_or_path is not None:
        rest += ["--model_name_or_path", known.model_name_or_path]
    interactive = sys.stderr.isatty()
    return [*rest, "--report_to", tracker, "--disable_tqdm", str(not interactive)]


def has_wandb_key() -> bool:
    """Whether wandb finds a key in the environment or where `wandb login` stores it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def deepspeed_config(wanted: str | None, model: str | None, processes: int) -> Path | None:
    """The DeepSpeed configuration to use, or None to train without DeepSpeed.

    Args:
        wanted: the flag --deepspeed: a path, a name in finetune/deepspeed, or "none". Without the flag, several
            processes use the configuration that the student's YAML names.
        model: the flag --model_name_or_path.
        processes: number of processes.

    Raises:
        UserError: there is no such configuration, or DeepSpeed is not installed.
    """
    if wanted == "none":
        return None
    if wanted is None and processes > 1 and model is not None:
        wanted = find_model(model).recommended("finetune.deepspeed")
    if wanted is None:
        return None
    places = (Path(wanted), CONFIGS / wanted, CONFIGS / f"{wanted}.json", CONFIGS / Path(wanted).name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        raise UserError(f"--deepspeed {wanted}: no such file; there are: {names}")
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("--deepspeed: the package deepspeed is not installed; install it with make install")
    require_no_secrets(found)
    return found


def require_no_secrets(file: Path) -> None:
    """Refuse a file that is not a DeepSpeed configuration, or that holds a secret, which every checkpoint would keep.

    Raises:
        UserError: the message names the file and the setting.
    """
    try:
        settings = load_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed {file}: a JSON object was expected ({reason(error)})") from error
    if not isinstance(settings, dict):
        raise UserError(f"--deepspeed {file}: a JSON object was expected, found {shown(settings)}")
    for name in secret_settings(settings):
        raise UserError(
            f"--deepspeed {file}: {name}: a secret does not belong there, because checkpoints keep these settings; "
            "leave it out and set the variable that the library reads (COMET_API_KEY, WANDB_API_KEY)"
        )
