"""Print what this machine has and lacks for each stage, how to fix it, and which way of installing to choose here.

This program needs no packages. It also runs on a login node's old Python (3.6), to report that the Python is too old.
So it uses no features of later Pythons.
"""

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
OLDEST, NEWEST = (3, 11), (3, 14)
"""The oldest and the newest Python for which there are packages (pyproject.toml)."""
GLIBC = (2, 28)
"""The oldest C library with which the packages' wheels run."""
DRIVER = 580
"""The oldest NVIDIA driver that supports CUDA 13.0, which torch's build for GPUs uses."""
CHECK_PYTHON = "import sys; print('%d.%d' % sys.version_info[:2]); import venv, ensurepip"

Finding = tuple
"""(ok, LACKS or note; what was checked; what was found, and how to fix it)"""


USAGE = """\
usage: make doctor      (or: teacherlm doctor)

Say what this machine has and lacks for each stage, how to mend it, and which way of installing to take here.

example:
  make doctor"""


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    try:
        Path.cwd()
    except FileNotFoundError:
        print("doctor: error: the current folder was deleted; change to another one (cd)", file=sys.stderr)
        return 2
    fit = pythons()
    of_site = modules()
    findings = [
        python(fit, of_site),
        c_library(),
        packages(),
        torch(),
        driver(),
        disk("disk for runs", Path.cwd(), 10),
        disk("disk for caches", cache_home(), 10),
        scratch(),
        quota(),
        memory(),
        writable("HF_HOME", Path(os.environ.get("HF_HOME") or cache_home() / "huggingface")),
        writable("cache of this project", Path(os.environ.get("TEACHERLM_CACHE") or cache_home() / "teacherlm")),
        hub(),
        slurm(),
        apptainer(),
        user_namespaces(),
    ]
    for state, name, text in findings:
        print("{:5}  {:22} {}".format(state, name, text))
    lacking = [name for state, name, _ in findings if state == LACKS]
    print()
    print("to install here: " + way(findings, fit, of_site))
    print("enhance, finetune, evaluate: " + ("fix first: " + ", ".join(lacking) if lacking else "ready"))
    return 1 if lacking else 0


def way(findings: list, fit: list, of_site: list) -> str:
    """The way of installing to choose: with a Python in PATH or from a module, with the image, or with uv's Python.

    Args:
        fit: the names of the suitable Pythons in PATH.
        of_site: the site's modules with a suitable Python.
    """
    states = {name: state for state, name, _ in findings}
    if os.environ.get("CONTAINER"):
        return "nothing: CONTAINER names an image, and the stages run in it (docs/how-to/container.md)"
    if states["packages"] == OK:
        return "nothing: the packages are installed"
    if states["C library"] == OK:
        for name in fit[:1]:
            return "make install, with {}".format(name)
        for module in of_site[:1]:
            words = "module load {0} && make BASE_PYTHON=python3 install; and MODULES=({0}) in slurm/site.env"
            return words.format(module)
        if shutil.which("uv"):
            return "uv python install 3.12 && make BASE_PYTHON=$(uv python find 3.12) INSTALLER=uv install"
    if states["Apptainer"] == OK:
        return (
            "the image: make container, here or where you are root, then CONTAINER=FILE.sif (docs/how-to/container.md)"
        )
    if states["C library"] != OK:
        return "with this C library only the image works, and there is no Apptainer: ask the site to install Apptainer"
    return "Python 3.11 to 3.14 with venv: ask the site, or install uv (one file, no root needed), which brings one"


def pythons() -> list:
    """The names of the suitable Pythons in PATH that have venv and ensurepip."""
    found = []
    for name in ["python3"] + ["python3.%d" % minor for minor in range(OLDEST[1], NEWEST[1] + 1)]:
        path = shutil.which(name)
        if path and is_fit(said([path, "-I", "-c", CHECK_PYTHON])):
            found.append(name)
    return found


def is_fit(version: str) -> bool:
    numbers = tuple(int(number) for number in re.findall("[0-9]+", version)[:2])
    return OLDEST <= numbers <= NEWEST


def modules() -> list:
    """The site's modules with a suitable Python, from the files of Lmod or Environment Modules below MODULEPATH."""
    found = []
    for folder in os.environ.get("MODULEPATH", "").split(":"):
        if folder and Path(folder).is_dir():
            for file in sorted(Path(folder).glob("[Pp]ython*/*")):
                name = file.name[: -len(".lua")] if file.name.endswith(".lua") else file.name
                if re.match(r"3\.1[1-4]\b", name):
                    found.append(file.parent.name + "/" + name)
    return found


def python(fit: list, of_site: list) -> Finding:
    found = platform.python_version()
    others = [name for name in fit if name != "python3"] + of_site
    also = "; also here: " + ", ".join(others[:5]) if others else ""
    if is_fit(found):
        return OK, "Python", "{} ({}){}".format(found, sys.executable, also)
    if others:
        return NOTE, "Python", "{} does not work with the packages, 3.11 to 3.14 do{}".format(found, also)
    need = "3.11, 3.12, 3.13 or 3.14 is needed"
    return LACKS, "Python", "{}; {}: install one, or make BASE_PYTHON=/path/to/python3.11 install".format(found, need)


def c_library() -> Finding:
    name, version = platform.libc_ver()
    text = "{} {}".format(name or "no glibc", version).strip()
    if name == "glibc" and tuple(int(part) for part in re.findall("[0-9]+", version)[:2]) >= GLIBC:
        return OK, "C library", text
    return LACKS, "C library", text + "; the packages need glibc 2.28: use the image (docs/how-to/container.md)"


def driver() -> Finding:
    """Check NVIDIA's driver, whose version decides which builds of torch run."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        if Path("/dev/kfd").exists():
            return NOTE, "GPU driver", "AMD's; the packages are for NVIDIA's GPUs, so stages run on the CPU"
        if os.environ.get("SLURM_JOB_ID"):  # srun make doctor
            words = "none on this node ({}); does it have GPUs? make site shows which partitions do"
            return NOTE, "GPU driver", words.format(socket.gethostname())
        return NOTE, "GPU driver", "none here; on a cluster, check a node with GPUs: srun --gres=gpu:1 make doctor"
    found = re.search(r"Kernel Module\D+([0-9]+)([0-9.]*)", text)
    if found is None:
        return NOTE, "GPU driver", "NVIDIA's, of an unknown version"
    version = "NVIDIA " + found.group(1) + found.group(2)
    if int(found.group(1)) < DRIVER:
        return LACKS, "GPU driver", "{}; torch for CUDA 13 needs {} or newer: ask the site".format(version, DRIVER)
    return OK, "GPU driver", version


def scratch() -> Finding:
    """Check the large folder that a site gives its users, which an environment variable usually names."""
    for name in ("SCRATCH", "SCRATCHDIR", "WORK", "WORKDIR", "PROJECT"):
        folder = os.environ.get(name)
        if folder and Path(folder).is_dir():
            state, _, text = disk("scratch folder", Path(folder), 10)
            return state, "scratch folder", "${}: {}; RUNS=${}/teacherlm puts results there".format(name, text, name)
    return (
        NOTE,
        "scratch folder",
        "no variable names one (SCRATCH, WORK); runs and caches go below this folder and HOME",
    )


def quota() -> Finding:
    """Check how much the user may still write: the space that `quota` reports, and the number of files."""
    home = Path(os.environ.get("HOME") or "/")
    files = os.statvfs(str(home if home.is_dir() else Path("/"))).f_favail
    text = said(["quota", "-s"]) if shutil.which("quota") else ""
    lines = [
        " ".join(line.split()) for line in text.splitlines() if re.search("[0-9]", line) and "Disk quotas" not in line
    ]
    shown = "; ".join(lines[:2]) if lines else "quota reports none"
    if 0 < files < 200000:
        return (
            LACKS,
            "quota",
            "only {} more files may be made in HOME; .venv has 60,000 (the image is one file)".format(files),
        )
    return OK, "quota", shown


def slurm() -> Finding:
    """Check the features of Slurm that the chain uses."""
    if shutil.which("sbatch") is None:
        return NOTE, "Slurm", "no sbatch here: chains run on this machine, one stage after the other"
    settings = dict(re.findall(r"^(\w+)\s+= (.*)$", said(["scontrol", "show", "config"]), re.MULTILINE))
    if not settings:
        return NOTE, "Slurm", "sbatch is here, but no controller answers: LAUNCHER=local runs a chain on this machine"
    gpus = sorted(set(re.findall(r"gpu(?::\w+)?:[0-9]+", said(["sinfo", "--noheader", "--format=%G"]))))
    parts = ["Slurm " + settings.get("SLURM_VERSION", "?"), "GPUs per node: " + (", ".join(gpus[:4]) or "none")]
    parts.append("arrays of up to {} tasks".format(settings.get("MaxArraySize", "?")))
    if settings.get("JobRequeue") == "0":
        parts.append("jobs are not requeued: after a time limit, run the same make again to continue")
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        parts.append("no accounting: make status does not know the exit codes of old jobs")
    return OK, "Slurm", "; ".join(parts)


def apptainer() -> Finding:
    for name in ("apptainer", "singularity", str(cache_home() / "teacherlm" / "apptainer" / "bin" / "apptainer")):
        version = said([name, "--version"])
        if version:
            return OK, "Apptainer", version.splitlines()[0]
    return NOTE, "Apptainer", "no apptainer here: stages run in .venv"


def user_namespaces() -> Finding:
    """Check user namespaces. Without them Apptainer needs setuid, which only the site can install."""
    done = (
        subprocess.run(["unshare", "--user", "--map-root-user", "true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if shutil.which("unshare")
        else None
    )
    if done is not None and done.returncode == 0:
        return OK, "user namespaces", "allowed: images run without root"
    return NOTE, "user namespaces", "not allowed: images run only with an Apptainer that the site installed with setuid"


def said(words: list) -> str:
    """The output of a program, or an empty text if it fails."""
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def packages() -> Finding:
    """Check that the versions pinned in requirements/ are installed."""
    try:
        import importlib.metadata
    except ImportError:  # older than 3.8
        return LACKS, "packages", "not installed; run: make install"
    wanted: dict = {}
    for file in ("torch.txt", "base.txt", "weights.txt"):
        text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        wanted.update(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    if sys.version_info >= (3, 14):
        del wanted["backports.zstd"]  # from 3.14 on it is in the standard library
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
    except Exception as error:  # because of a variable such as TORCH_LOGS, or of a damaged installation
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return LACKS, "torch", f"cannot be imported ({words[:200]!a}); fix the variable, or run: make install"
    if not library.cuda.is_available():
        return (
            NOTE,
            "torch",
            f"{library.__version__}, no GPU: stages run on the CPU ({os.cpu_count()} cores), for small models only",
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
            f"{text}; the demo needs {wanted_gib}: free some, or set RUNS, HF_HOME, TEACHERLM_CACHE to another disk",
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
    """The default folder of caches. Without a home folder, it is a path that `writable` reports as not writable."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return Path("/no/home/folder")


def writable(name: str, folder: Path) -> Finding:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):  # os.access always returns True for root
            return OK, name, f"{folder} can be written"
    except OSError:
        pass
    variable = "HF_HOME" if name == "HF_HOME" else "TEACHERLM_CACHE"
    return LACKS, name, f"{folder} cannot be written; set {variable} to a folder of yours"


def hub() -> Finding:
    """Check the connection to the hub. If the user has switched the hub off, no host name is looked up."""
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


if __name__ == "__main__":
    if sys.stdout is None:  # closed by the caller (>&-)
        sys.stdout = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may be unable to encode a folder's name
    sys.exit(main())
