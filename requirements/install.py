"""Make .venv with every package at its pinned version: what `make install` and the first `make demo` run.

The packages are those of the locks in this folder, each checked by its digest. .venv is whole or is made again: its
installed.txt is written last, is removed before packages change, and says for which place, checkout, Python and locks
.venv was made. Only the standard library is needed here.

    INSTALLER=uv      uv, which has to be there already, installs in place of pip
    TORCH=cpu|cuda    which build of torch; by default that for GPUs where there is one, else the small one for CPUs
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"
RECORD = VENV / "installed.txt"
GIB = 2**30
SIZES = {"cpu": 2.7, "cuda": 8.0}
"""GiB that .venv takes, by the build of torch. The first was measured, the second is an estimate."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index, which has the builds for CPUs; PyPI has those for GPUs."""
TORCH_VERSION = re.search(r"^torch==(\S+)", (HERE / "torch.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]


def main() -> None:
    asked = os.environ.get("TORCH") or "auto"
    if asked not in ("auto", "cpu", "cuda"):
        fail(f"TORCH={asked}: cpu or cuda was expected")
    installer = os.environ.get("INSTALLER") or "pip"
    if installer not in ("pip", "uv"):
        fail(f"INSTALLER={installer}: pip or uv was expected")
    former = read_record()
    usable = bool(former) and is_at_its_place(former) and runs() and asked in ("auto", former["torch"])
    if usable and former["locks"] == digest_of_locks():
        RECORD.touch()
        return
    require_own_venv(former)
    require_machine()
    torch = asked
    if asked == "auto":
        torch = former.get("torch") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")
    require_space(torch)
    if usable:
        print("make install: the packages changed: bringing .venv up to date", flush=True)
        RECORD.unlink()
    else:
        require_installer(installer)
        make_venv(former, installer)
    write_record(installer, install(installer, torch, asked))


# --- what is there


def read_record() -> dict:
    """What .venv was made for; empty where it is not whole, or not there."""
    try:
        lines = RECORD.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return found if {"venv", "checkout", "python", "torch", "locks"} <= found.keys() else {}


def digest_of_locks() -> str:
    """Of all that decides which packages are installed."""
    digest = hashlib.sha256()
    for file in sorted([*HERE.glob("*.lock"), CHECKOUT / "pyproject.toml"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_at_its_place(record: dict) -> bool:
    """Whether .venv is still in the folder that its programs name. A folder may have several paths on a cluster."""
    try:
        return VENV.samefile(record["venv"]) and CHECKOUT.samefile(record["checkout"])
    except OSError:
        return False


def runs() -> bool:
    """Whether the python in .venv can be started: the one that it was made with may be gone."""
    try:
        return subprocess.run([PYTHON, "-I", "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


# --- what stands against it, said before anything is made


def require_own_venv(record: dict) -> None:
    """Refuse a .venv of another checkout, which would get this one's packages and code."""
    if VENV.is_symlink():
        whose = f", which the checkout {record['checkout']} made" if record.get("checkout") else ""
        fail(
            f"{VENV} is a link to {VENV.resolve()}{whose}; nothing is installed through a link: remove it, and the "
            "same command makes a .venv of its own here"
        )
    if VENV.is_dir() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists() and not record:
        fail(f"{VENV} is no virtual environment; take it away, and the same command makes one here")


def require_machine() -> None:
    """The packages have wheels for Linux with glibc 2.28 or newer, on processors of Intel, AMD and Arm."""
    name, version = platform.libc_ver()
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    image = "use the image (docs/how-to/container.md)"
    if sys.platform != "linux" or name != "glibc":
        fail(f"Linux with glibc was expected, found {sys.platform} with {name or 'another C library'}; {image}")
    if found < (2, 28):
        fail(f"glibc 2.28 or newer was expected, found {version}; {image}")
    if platform.machine() not in ("x86_64", "aarch64"):
        fail(f"a processor of the kind x86_64 or aarch64 was expected, found {platform.machine()}")


def require_installer(installer: str) -> None:
    if installer == "uv":
        if shutil.which("uv") is None:
            fail("INSTALLER=uv: there is no uv here; leave INSTALLER out, and pip installs")
        return
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        fail(
            f"{python} here has no {missing[0]}, with which .venv is made; install it "
            f"({how_to_install(python)}), then give the same command again"
        )


def how_to_install(python: str) -> str:
    """The command of this system that installs Python's venv and ensurepip."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        release = ""
    kinds = " ".join(re.findall(r'^(?:ID|ID_LIKE)="?([^"\n]*)', release, re.MULTILINE)).split()
    sudo = "" if os.geteuid() == 0 else "sudo "
    if "debian" in kinds or "ubuntu" in kinds:
        return f"{sudo}apt-get install {python}-venv"
    if {"fedora", "rhel", "centos"} & set(kinds):
        return f"{sudo}dnf install {python} {python}-pip"
    if "suse" in kinds or "opensuse" in kinds:
        return f"{sudo}zypper install {python.replace('.', '')} {python.replace('.', '')}-pip"
    return "your system's package of it, or another Python: BASE_PYTHON=/path/to/python3"


def require_space(torch: str) -> None:
    taken = 0
    if VENV.is_dir():  # it is overwritten or removed
        taken = sum(file.lstat().st_size for file in VENV.rglob("*") if not file.is_dir())
    free = (shutil.disk_usage(CHECKOUT).free + taken) / GIB
    if free < SIZES[torch]:
        small = "; TORCH=cpu takes less" if torch == "cuda" else ""
        fail(f"{CHECKOUT}: .venv needs {SIZES[torch]} GiB, and {free:.1f} are free on this disk; free some{small}")


# --- the work


def make_venv(record: dict, installer: str) -> None:
    if VENV.exists():
        why = "was interrupted while it was made"
        if record and not is_at_its_place(record):
            why = f"was made at {record['venv']}, from where it was moved or copied"
        elif record:
            why = f"is of Python {record['python']} with torch for {record['torch']}"
        print(f"make install: .venv {why}: making it again", flush=True)
        RECORD.unlink(missing_ok=True)
    words = ["--without-pip"] if installer == "uv" else []
    run([sys.executable, "-I", "-m", "venv", "--clear", *words, VENV], "making .venv")


def install(installer: str, torch: str, asked: str) -> str:
    """Install all packages.

    Returns:
        The build of torch that was installed.
    """
    print(
        f"make install: Python {sys.version.split()[0]}, torch for {'GPUs' if torch == 'cuda' else 'CPUs'}", flush=True
    )
    if torch == "cuda":
        install_cuda_torch(installer)
    else:
        torch = install_cpu_torch(installer, asked)
    hashed = ["--require-hashes", "-r"]
    step(installer, "the other packages (350 MB to fetch)", [*hashed, HERE / "wheels.lock"])
    step(installer, "the packages that come as source", ["--no-build-isolation", *hashed, HERE / "built.lock"])
    step(installer, "this project", ["--no-build-isolation", "--editable", CHECKOUT])
    return torch


def install_cpu_torch(installer: str, asked: str) -> str:
    """The build for CPUs, from where pip's settings say, else from PyTorch's own index.

    Returns:
        The build that was installed: that for GPUs where the small one cannot be had and nobody asked for it.
    """
    locked = ["--require-hashes", "-r", HERE / "torch.lock"]
    here = ["--extra-index-url", CPU_INDEX]
    if step(installer, "torch (190 MB to fetch)", locked, required=False):
        return "cpu"
    if step(installer, f"torch, from {CPU_INDEX}", [*locked, *here], required=False):
        return "cpu"
    if asked == "cpu":
        print(
            "make install: the lock has no digest of this file for this Python: it is taken as that index has it",
            flush=True,
        )
        step(installer, f"torch, from {CPU_INDEX}", [f"torch=={TORCH_VERSION}+cpu", *here])
        return "cpu"
    require_space("cuda")
    print(
        "make install: torch's build for CPUs cannot be had for this Python with a digest; that for GPUs runs on CPUs "
        "too",
        flush=True,
    )
    install_cuda_torch(installer)
    return "cuda"


def install_cuda_torch(installer: str) -> None:
    step(installer, "torch and CUDA's libraries (2.5 GB to fetch)", ["--require-hashes", "-r", HERE / "cuda.lock"])


def step(installer: str, what: str, words: list, required: bool = True) -> bool:
    """Install something, and show how far it is.

    Returns:
        Whether it went well; where it is required, the program ends otherwise.
    """
    if installer == "uv":
        command = ["uv", "pip", "install", "--python", PYTHON, "--quiet", "--no-deps", *words]
    else:
        command = [PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += [*(["--use-pep517"] if "--no-build-isolation" in words else []), *words]
    file = next((word for word in words if isinstance(word, Path) and word.suffix == ".lock"), None)
    total = len(re.findall("==", file.read_text(encoding="utf-8"))) if file else 1
    print(f"make install: {what}", flush=True)
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        done = 0
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("Collecting ", "Processing ", "Requirement already")) and total > 1:
                done = min(done + 1, total)
                show(f"{done} of {total}")
            if line.startswith("Installing collected"):
                show(f"{total} of {total}, unpacking")
    show("")
    if process.returncode and required:
        explain(what, lines)
    return process.returncode == 0


def show(text: str) -> None:
    """Write over the line before, on a terminal; elsewhere nothing is shown."""
    if sys.stdout.isatty():
        print(f"\r\033[K{'make install: ' + text if text else ''}", end="", flush=True)


def explain(what: str, lines: list) -> NoReturn:
    """End with the one line of the installer's output that says what went wrong; all of it is kept in a file."""
    log = VENV / "install.log"
    try:
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kept = f" (all of it: {log})"
    except OSError:
        kept = ""
    if any("No space left on device" in line for line in lines):
        fail(
            f"{what}: the disk of {CHECKOUT} or that of {tempfile.gettempdir()} is full; free some, then give the same "
            "command again"
        )
    first = next((number for number, line in enumerate(lines) if re.match(r"ERROR|error|\s*×", line)), -1)
    said = " ".join(" ".join(lines[first:]).split()) or "nothing was said"
    fail(f"{what}: {said[:400]}{kept}; mend it, then give the same command again")


def write_record(installer: str, torch: str) -> None:
    freeze = ["uv", "pip", "freeze", "--python", PYTHON] if installer == "uv" else [PYTHON, "-I", "-m", "pip", "freeze"]
    listed = subprocess.run(freeze, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    made_for = {
        "venv": VENV,
        "checkout": CHECKOUT,
        "python": sys.version.split()[0],
        "torch": torch,
        "locks": digest_of_locks(),
    }
    partial = VENV / "installed.partial"
    partial.write_text("".join(f"# {name}: {value}\n" for name, value in made_for.items()) + listed, encoding="utf-8")
    partial.rename(RECORD)


def run(command: list, what: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        explain(what, done.stdout.splitlines())


def fail(message: str) -> NoReturn:
    print(f"make install: error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


@contextlib.contextmanager
def only_one():
    """Hold the lock of this checkout's .venv; who comes second waits, and then finds it made."""
    try:
        file = open(CHECKOUT / ".venv.lock", "w", encoding="utf-8")
    except OSError as error:
        fail(
            f"{CHECKOUT} cannot be written ({error.strerror}), so no .venv can be made in it; let its owner run "
            "make install"
        )
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("make install: another process makes .venv here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        with only_one():
            main()
    except KeyboardInterrupt:
        print("\nmake install: interrupted; the same command makes .venv again", file=sys.stderr)
        sys.exit(130)
