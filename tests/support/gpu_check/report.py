"""The file for a bug report: versions, the GPUs, each test's outcome, the figures; no secrets, no names."""

import contextlib
import getpass
import importlib.metadata
import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.gpu_check.run_tests import Outcome
from support.programs import ROOT
from teacherlm.core.files import whole_file
from teacherlm.core.redaction import redacted

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "accelerate", "deepspeed", "peft"),
    *("bitsandbytes", "flash-attn", "vllm", "datasets", "lm_eval", "faiss-cpu", "huggingface_hub", "numpy", "pytest"),
)
GIB = 2**30


def write_report(path: Path, outcomes: Sequence[Outcome], figures: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Write all that is known as one JSON file, whole."""
    known = {
        "made": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "beyond_bounds": beyond_bounds(),
        "counts": counts(outcomes),
        "tests": [asdict(outcome) for outcome in outcomes],
        "figures": list(figures),
    }
    clean = without_names(known)
    with whole_file(path) as file:
        json.dump(clean, file, indent=1, ensure_ascii=False)
        file.write("\n")


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    kinds = ("passed", "failed", "skipped", "cut")
    return {kind: sum(outcome.outcome == kind for outcome in outcomes) for kind in kinds}


def machine() -> dict[str, Any]:
    """The system and its GPUs."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": found.name,
                "memory_gib": round(found.total_memory / GIB, 1),
                "capability": f"{found.major}.{found.minor}",
                "processors": found.multi_processor_count,
            }
        )
    return {
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "processor": platform.machine(),
        "gpus": gpus,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, by nvidia-smi or the kernel's module."""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else None


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that the numbers depend on; None: not installed."""
    import torch

    found = {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
    return found | {"torch": str(torch.__version__)}  # the package's version may lack the build (+cpu, +cu130)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def beyond_bounds() -> list[str]:
    """Installed packages that pyproject.toml does not allow: the tests say whether they work all the same."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = map(Requirement, tomllib.load(file)["project"]["dependencies"])
    found = []
    for one in wanted:
        version = version_of(one.name)
        if version is not None and not one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} {version}, {one.specifier} is what was tested")
    return found


def without_names(value: Any, hide: Callable[[str], str] | None = None) -> Any:
    """A JSON value whose texts have no secrets, no user's and no host's name, and no path outside of the checkout."""
    hide = hide or hider()
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):  # a test's name is the project's
        return {name: one if name == "name" else without_names(one, hide) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_names(one, hide) for one in value]
    return value


def hider() -> Callable[[str], str]:
    """What takes names out of a text."""
    places = [(str(ROOT), "."), (sys.prefix, "PREFIX"), (sys.base_prefix, "PREFIX"), (tempfile.gettempdir(), "TMP")]
    host = socket.gethostname()
    names = [(host, "HOST"), (host.split(".")[0], "HOST")]
    with contextlib.suppress(RuntimeError):  # a user without a home
        places.append((str(Path.home()), "HOME"))
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        names.append((getpass.getuser(), "USER"))

    def hide(text: str) -> str:
        text = redacted(text)
        for place, shown in places:
            if len(place) > 1:
                text = text.replace(place, shown)
        for name, shown in names:
            if len(name) > 1:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", shown, text)
        return text

    return hide
