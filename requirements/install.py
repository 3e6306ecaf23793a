"""Make .venv with every package at its pinned version. `make install` and the first `make demo` run this script.

The packages are those of the locks in this folder, and their digests are checked. An incomplete .venv is made again:
its installed.txt is written last, is removed before packages change, and names the place, checkout, Python and locks
for which .venv was made. This script needs only the standard library.

    INSTALLER=uv      install with uv, which must already be there, instead of pip
    TORCH=cpu|cuda    the build of torch; by default the one for GPUs if there is a GPU, otherwise that for CPUs
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"
RECORD = VENV / "installed.txt"
TEMPORARY = VENV / "temporary"
"""Where files are unpacked and built: /tmp is in memory on many systems, and then often too small."""
GIB = 2**30
SIZES = {"cpu": 3.1, "cuda": 7.0}
"""Build of torch -> maximum number of GiB of .venv during the installation; afterwards it takes 0.4 GiB less."""
FULL = (errno.ENOSPC, errno.EDQUOT)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index, which has the builds for CPUs. PyPI has the builds for GPUs."""
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


# --- the existing .venv


def read_record() -> dict:
    """What .venv was made for, from its installed.txt; empty if .venv is missing or incomplete."""
    try:
        lines = RECORD.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return found if {"venv", "checkout", "python", "torch", "locks"} <= found.keys() else {}


def digest_of_locks() -> str:
    """The digest of all files that decide which packages are installed."""
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
    """Whether the Python in .venv can be started. The Python that it was made with may be gone."""
    try:
        return subprocess.run([PYTHON, "-I", "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


# --- what prevents an installation, checked before anything is made


def require_own_venv(record: dict) -> None:
    """Refuse a .venv of another checkout, which would get this one's packages and code."""
    if VENV.is_symlink():
        whose = f", which the checkout {record['checkout']} made" if record.get("checkout") else ""
        fail(
            f"{VENV} is a link to {VENV.resolve()}{whose}; nothing is installed through a link: remove it, and run the "
            "same command again to make a new .venv here"
        )
    if VENV.is_dir() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists() and not record:
        fail(f"{VENV} is not a virtual environment; move it away, and run the same command again to make one here")


def require_machine() -> None:
    """Refuse a machine for which the packages have no wheels. They need Linux, glibc 2.28, and x86_64 or aarch64."""
    name, version = platform.libc_ver()
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    image = "use the image (docs/how-to/container.md)"
    if sys.platform != "linux" or name != "glibc":
        fail(f"Linux with glibc was expected, found {sys.platform} with {name or 'another C library'}; {image}")
    if found < (2, 28):
        fail(f"glibc 2.28 or newer was expected, found {version}; {image}")
    if platform.machine() not in ("x86_64", "aarch64"):
        fail(f"an x86_64 or aarch64 processor was expected, found {platform.machine()}")


def require_installer(installer: str) -> None:
    if installer == "uv":
        if shutil.which("uv") is None:
            fail("INSTALLER=uv: there is no uv here; omit INSTALLER to install with pip")
        return
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        fail(
            f"{python} here has no {missing[0]}, which is needed to make .venv; install it "
            f"({how_to_install(python)}), then run the same command again"
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
    if VENV.is_dir():  # its space will be freed or reused
        taken = sum(file.lstat().st_size for file in VENV.rglob("*") if not file.is_dir())
    free = (shutil.disk_usage(CHECKOUT).free + taken) / GIB
    if free < SIZES[torch]:
        small = "; TORCH=cpu takes less" if torch == "cuda" else ""
        fail(f"{CHECKOUT}: .venv needs {SIZES[torch]} GiB, but {free:.1f} are free on this disk; free some{small}")


# --- the work


def make_venv(record: dict, installer: str) -> None:
    if VENV.exists():
        why = "was interrupted while it was made"
        if record and not is_at_its_place(record):
            why = f"was made at {record['venv']} and then moved or copied"
        elif record:
            why = f"is of Python {record['python']} with torch for {record['torch']}"
        print(f"make install: .venv {why}: making it again", flush=True)
        RECORD.unlink(missing_ok=True)
    run([sys.executable, "-I", "-m", "venv", "--clear", "--without-pip", VENV], "making .venv")
    if installer == "pip":  # venv would do the same, and keep to itself why it failed
        run([PYTHON, "-I", "-m", "ensurepip", "--upgrade", "--default-pip"], "pip for .venv")


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
    step(installer, "the other packages (350 MB to download)", [*hashed, HERE / "wheels.lock"])
    step(installer, "the packages that are built from source", ["--no-build-isolation", *hashed, HERE / "built.lock"])
    step(installer, "this project", ["--no-build-isolation", "--editable", CHECKOUT])
    shutil.rmtree(TEMPORARY)
    return torch


def install_cpu_torch(installer: str, asked: str) -> str:
    """Install torch's build for CPUs, from the index in pip's settings or else from PyTorch's index.

    Returns:
        The build that was installed. It is the one for GPUs if that for CPUs cannot be found and was not requested.
    """
    locked = ["--require-hashes", "-r", HERE / "torch.lock"]
    here = ["--extra-index-url", CPU_INDEX]
    if tried(installer, "torch (190 MB to download)", locked):
        return "cpu"
    if tried(installer, f"torch, from {CPU_INDEX}", [*locked, *here]):
        return "cpu"
    if asked == "cpu":
        if has_digest():
            fail(
                "torch: no index has the file whose digest is in requirements/torch.lock; check pip's settings, or run "
                "TORCH=cuda make install: the build for GPUs also runs on CPUs"
            )
        print(
            "make install: the lock has no digest of torch for this Python: it is installed without checking a digest",
            flush=True,
        )
        step(installer, f"torch, from {CPU_INDEX}", [f"torch=={TORCH_VERSION}+cpu", *here])
        return "cpu"
    require_space("cuda")
    print(
        "make install: torch's build for CPUs cannot be found for this Python with a digest of the lock; the build for "
        "GPUs, which also runs on CPUs, is installed instead",
        flush=True,
    )
    install_cuda_torch(installer)
    return "cuda"


def has_digest() -> bool:
    """Whether torch.lock has the digest of a file for this Python and this processor."""
    files = re.findall(r"^# (torch-.*\.whl)$", (HERE / "torch.lock").read_text(encoding="utf-8"), re.MULTILINE)
    mine = f"-cp3{sys.version_info[1]}-"
    return any(mine in file and file.endswith(f"{platform.machine()}.whl") for file in files)


def install_cuda_torch(installer: str) -> None:
    step(installer, "torch and CUDA's libraries (2.5 GB to download)", ["--require-hashes", "-r", HERE / "cuda.lock"])


def step(installer: str, what: str, words: list) -> None:
    """Install packages and show the progress. A failure ends the program."""
    lines = failure(installer, what, words)
    if lines is not None:
        explain(what, lines)


def tried(installer: str, what: str, words: list) -> bool:
    """Install packages that may be missing from the index, and print why they could not be installed.

    A reason that would also stop every other step (a full disk, no network, a killed installer) ends the program.

    Returns:
        Whether they were installed.
    """
    lines = failure(installer, what, words, tries_again=False)
    if lines is None:
        return True
    if is_disk_full(lines) or is_offline(lines) or KILLED in "".join(lines[-1:]):
        explain(what, lines)
    print(f"make install: not found there: {reason(lines)[:200]}", flush=True)
    return False


def failure(installer: str, what: str, words: list, tries_again: bool = True) -> list | None:
    """Install packages and show the progress.

    Returns:
        The lines that the installer printed if it failed, else None.
    """
    environment = {**os.environ, "TMPDIR": os.environ.get("TMPDIR") or str(TEMPORARY)}
    TEMPORARY.mkdir(exist_ok=True)
    if installer == "uv":
        command = ["uv", "pip", "install", "--python", PYTHON, "--quiet", "--no-deps", *words]
        environment |= {} if tries_again else {"UV_HTTP_RETRIES": "1"}
    else:
        command = [PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += [] if tries_again else ["--retries", "1"]
        command += [*(["--use-pep517"] if "--no-build-isolation" in words else []), *words]
    file = next((word for word in words if isinstance(word, Path) and word.suffix == ".lock"), None)
    total = len(re.findall("==", file.read_text(encoding="utf-8"))) if file else 1
    print(f"make install: {what}", flush=True)
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        done, waited = 0, False
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("Collecting ", "Processing ", "Requirement already")) and total > 1:
                done = min(done + 1, total)
                show(f"{done} of {total}")
            if line.startswith("Installing collected"):
                show(f"{total} of {total}, unpacking")
            if NO_ANSWER.search(line) and not waited:
                show("")
                print(f"make install: no answer ({cause(line)}); pip tries again", flush=True)
                waited = True
    show("")
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        lines.append(f"ERROR: {installer}{KILLED}{name}{', as for lack of memory' if name == 'SIGKILL' else ''}")
    return lines if process.returncode else None


def show(text: str) -> None:
    """Replace the current line on a terminal. Nothing is shown elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\033[K{'make install: ' + text if text else ''}", end="", flush=True)


# --- why an installer failed


KILLED = " was ended by "
NO_ANSWER = re.compile(r"Retrying \(Retry\(.* after connection broken by (.*): /")
"""pip's word for an index that it cannot reach; it then goes on with the other indexes."""
BROKEN = re.compile(r"^ERROR: .*(?:Max retries exceeded|timed out|Connection (?:broken|aborted|reset))", re.M | re.I)
"""pip's words for a file that it could not fetch to its end."""
UNREACHED = re.compile(rf"Failed to fetch: `?(?!`?{re.escape(CPU_INDEX)}).*client error \(Connect\)", re.DOTALL)
"""uv's words for an index that it cannot reach. Many sites reach no other index than their own."""


def is_offline(lines: list) -> bool:
    """Whether no index answered, or a file could not be fetched to its end."""
    text = "\n".join(lines)
    unreached = NO_ANSWER.search(text) and "(from versions: none)" in text
    return bool(unreached or BROKEN.search(text) or UNREACHED.search(text))


def is_disk_full(lines: list) -> bool:
    return any("No space left on device" in line or "Disk quota exceeded" in line for line in lines)


def cause(line: str) -> str:
    """The innermost of the errors that pip names in a line."""
    found = NO_ANSWER.search(line)[1]
    inner = re.search(r"\[Errno -?\d+\] ([^'\")]*)", found) or re.search(r"['\"]([^'\"]+)['\")]*$", found)
    return inner[1].rsplit("): ", 1)[-1] if inner else found


def reason(lines: list) -> str:
    """What an installer said of its failure, in one line."""
    causes = [cause(line) for line in lines if NO_ANSWER.search(line)]
    if causes and is_offline(lines):
        return f"no package index answers: {causes[-1]}"
    first = next((number for number, line in enumerate(lines) if re.match(r"ERROR|error|\s*×", line)), -1)
    said = [" ".join(line.split()).removeprefix("cause: ") for line in lines[first:]]
    if said and lines[-1].startswith("  cause: "):  # uv goes from the outermost cause to the innermost
        said = [f"{line}:" for line in said[:2]] + said[2:][-1:]
    text = re.sub("^(ERROR|error): ", "", " ".join(said)).strip(" :") or "nothing was said"
    return text + (f" (an index does not answer: {causes[-1]})" if causes else "")


def explain(what: str, lines: list) -> NoReturn:
    """End with the line of the installer's output that says what went wrong, and keep the complete output in a file."""
    if is_disk_full(lines):
        fail(f"{what}: {full_disk()}")
    log = VENV / "install.log"
    try:
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kept = f" (complete output: {log})"
    except OSError:
        kept = ""
    fail(f"{what}: {reason(lines)[:400]}{kept}; fix this, then run the same command again")


def full_disk() -> str:
    """The message that names the full disks, or those whose quota is used up, and says what to do."""
    places = dict.fromkeys([str(CHECKOUT), os.environ.get("TMPDIR") or str(CHECKOUT)])
    return f"the disk of {' or of '.join(places)} is full; free some space, then run the same command again"


def write_record(installer: str, torch: str) -> None:
    freeze = ["uv", "pip", "freeze", "--python", PYTHON] if installer == "uv" else [PYTHON, "-I", "-m", "pip", "freeze"]
    listed = run(freeze, "listing what was installed")
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


def run(command: list, what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        explain(what, (done.stdout + done.stderr).splitlines())
    return done.stdout


def fail(message: str) -> NoReturn:
    print(f"make install: error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


@contextlib.contextmanager
def only_one():
    """Hold the lock of this checkout's .venv. A second process waits, and then finds .venv complete."""
    try:
        file = open(CHECKOUT / ".venv.lock", "w", encoding="utf-8")
    except OSError as error:
        if error.errno in FULL:
            raise
        fail(
            f"{CHECKOUT} cannot be written ({error.strerror}), so .venv cannot be made in it; ask its owner to run "
            "make install"
        )
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("make install: another process is making .venv here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        with only_one():
            main()
    except KeyboardInterrupt:
        print("\nmake install: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        fail(full_disk() if error.errno in FULL else f"{error.filename or CHECKOUT}: {error.strerror}")
