"""Say what this machine has and lacks for each stage, and how to mend it. Runs without anything installed."""

import importlib.metadata
import io
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
OK, LACKS, NOTE = "ok", "LACKS", "note"

Finding = tuple[str, str, str]
"""(ok, LACKS or note; what was looked at; what was found, and how to mend it)"""


def main() -> int:
    try:
        Path.cwd()
    except FileNotFoundError:
        print("doctor: error: the current folder was deleted; change to another one (cd)", file=sys.stderr)
        return 2
    findings = [
        python(),
        packages(),
        torch(),
        disk("disk for runs", Path.cwd(), 10),
        disk("disk for caches", cache_home(), 10),
        memory(),
        writable("HF_HOME", Path(os.environ.get("HF_HOME") or cache_home() / "huggingface")),
        writable("cache of this project", Path(os.environ.get("TEACHERLM_CACHE") or cache_home() / "teacherlm")),
        hub(),
        command("Slurm", ["sbatch", "--version"], "chains run here, one stage after the other"),
        command("Apptainer", ["apptainer", "--version"], "stages run in .venv"),
    ]
    for state, name, text in findings:
        print(f"{state:5}  {name:22} {text}")
    lacking = [name for state, name, _ in findings if state == LACKS]
    print()
    print("enhance, finetune, evaluate: " + (f"mend first: {', '.join(lacking)}" if lacking else "ready"))
    return 1 if lacking else 0


def python() -> Finding:
    found = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        need = "3.11, 3.12, 3.13 or 3.14 is needed"
        return LACKS, "Python", f"{found}; {need}: install one, or make BASE_PYTHON=/path/to/python3.11 install"
    return OK, "Python", f"{found} ({sys.executable})"


def packages() -> Finding:
    """Are the installed versions those of requirements/?"""
    wanted: dict[str, str] = {}
    for file in ("torch.txt", "base.txt", "weights.txt"):
        text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        wanted |= dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    wrong = []
    for name, version in wanted.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or found.split("+")[0] != version:
            wrong.append(f"{name} {found or 'missing'}")
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        return LACKS, "packages", f"{shown}; run: make install"
    return OK, "packages", f"{len(wanted)} at their pinned versions"


def torch() -> Finding:
    try:
        import torch as library
    except ImportError:
        return LACKS, "torch", "not installed; run: make install"
    except Exception as error:  # of a variable that it reads, TORCH_LOGS for one, or of a damaged installation
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return LACKS, "torch", f"cannot be imported ({words[:200]!a}); mend the variable, or run: make install"
    if not library.cuda.is_available():
        return (
            NOTE,
            "torch",
            f"{library.__version__}, no GPU: stages run on the CPU ({os.cpu_count()} cores), small models only",
        )
    devices = []
    for index in range(library.cuda.device_count()):
        described = library.cuda.get_device_properties(index)
        devices.append(f"{described.name} {described.total_memory / GIB:.0f} GiB")
    return OK, "torch", f"{library.__version__}, {len(devices)} GPU: {', '.join(devices)}"


def disk(name: str, folder: Path, wanted_gib: int) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    text = f"{free:.0f} GiB free at {folder}"
    if free < wanted_gib:
        return (
            LACKS,
            name,
            f"{text}; the demo needs {wanted_gib}: free some, or set RUNS, HF_HOME, TEACHERLM_CACHE elsewhere",
        )
    return OK, name, text


def memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if total < 6:
        return (
            LACKS,
            "memory",
            f"{total:.0f} GiB; finetuning smollm2-135m on the CPU needs about 5: use another machine",
        )
    return OK, "memory", f"{total:.0f} GiB"


def cache_home() -> Path:
    """Where caches go by default; without a home folder, a place that cannot be written, which `writable` then says."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return Path("/no/home/folder")


def writable(name: str, folder: Path) -> Finding:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):  # os.access says yes to root everywhere
            return OK, name, f"{folder} can be written"
    except OSError:
        pass
    variable = "HF_HOME" if name == "HF_HOME" else "TEACHERLM_CACHE"
    return LACKS, name, f"{folder} cannot be written; set {variable} to a folder of yours"


def hub() -> Finding:
    """Can a connection to the hub be made? Names are not looked up when the user has switched the hub off."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    without = "give folders: STUDENT=/folder TEACHER=/folder CREAK_DATA=/folder; make demo needs none"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return NOTE, "network to the hub", f"switched off by HF_HUB_OFFLINE; {without}"
    try:
        parts = urllib.parse.urlsplit(endpoint)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return OK, "network to the hub", f"{endpoint} answers"
    except (OSError, ValueError) as error:
        return NOTE, "network to the hub", f"{endpoint} cannot be reached ({error}); {without}"


def command(name: str, words: list[str], without: str) -> Finding:
    if shutil.which(words[0]) is None:
        return NOTE, name, f"no {words[0]} here: {without}"
    try:
        shown = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return NOTE, name, f"{words[0]} is here but fails ({error}): {without}"
    return OK, name, next(iter((shown.stdout or shown.stderr).splitlines()), words[0])


if __name__ == "__main__":
    if sys.stdout is None:  # closed by the caller (>&-)
        sys.stdout = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may have letters that the terminal lacks
    sys.exit(main())
