"""`make install`: .venv is complete or made again, and a problem is one line. The tests install small packages."""

import base64
import hashlib
import os
import platform
import re
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.programs import ROOT

INSTALL = ["make", "install"]
UV = Path(sys.executable).with_name("uv")
STEPS = ("Python 3", "torch (", "the other packages", "the packages that are built from source", "this project")
BACKEND = """
import os, zipfile

def build_editable(folder, settings=None, metadata=None):
    about, name = "small-1.0.dist-info", "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as file:
        file.writestr("small.pth", os.getcwd())
        file.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
        file.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr(about + "/RECORD", "")
    return name
"""
"""A build backend that needs no packages."""


def make_wheel(folder: Path, name: str, version: str, more: str = "") -> Path:
    """A wheel with one module, which knows its version."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n{more}",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{about}/RECORD"] = "\n".join([*lines, f"{about}/RECORD,,", ""])
    with zipfile.ZipFile(wheel, "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
    return wheel


def lock(requirements: Path, name: str, wheel: Path) -> None:
    package, version, *_ = wheel.name.split("-")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    equals = "===" if name == "cuda" else "=="
    (requirements / f"{name}.lock").write_text(f"{package}{equals}{version} --hash=sha256:{digest}\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a space in its name. Each of its locks has one small package."""
    folder = tmp_path / "a checkout"
    requirements, wheels = folder / "requirements", tmp_path / "wheels"
    requirements.mkdir(parents=True)
    wheels.mkdir()
    shutil.copy(ROOT / "requirements" / "install.py", requirements)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "benchmarks").mkdir()
    (requirements / "torch.txt").write_text("torch==1.0\n")
    lock(requirements, "torch", make_wheel(wheels, "torch", "1.0+cpu"))
    lock(requirements, "cuda", make_wheel(wheels, "torch", "1.0"))
    lock(requirements, "wheels", make_wheel(wheels, "leaf", "1.0"))
    lock(requirements, "built", make_wheel(wheels, "stem", "1.0"))
    (folder / "backend.py").write_text(BACKEND)
    settings = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(settings + '[project]\nname = "small"\nversion = "1.0"\n')
    return folder


WITHOUT_NETWORK = {
    **dict.fromkeys(("PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_NO_INDEX", "UV_FIND_LINKS")),
    **dict.fromkeys(("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), "http://127.0.0.1:9/simple"),
}


def make(checkout: Path, **variables: object) -> subprocess.CompletedProcess:
    return subprocess.run(INSTALL, cwd=checkout, env=environment(checkout, **variables), capture_output=True, text=True)


def environment(checkout: Path, **variables: object) -> dict[str, str]:
    """The environment of make. By default uv installs packages, which makes a test ten times as fast."""
    others = ("PIP_", "TORCH", "INSTALLER", "MAKE", "MFLAGS")  # the last two are those of `make test`
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    wheels = checkout.parent / "wheels"
    of_pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(), "PIP_CONFIG_FILE": os.devnull}
    of_uv = {"UV_NO_INDEX": "1", "UV_FIND_LINKS": wheels, "PATH": f"{UV.parent}{os.pathsep}{os.environ['PATH']}"}
    added = {"BASE_PYTHON": sys.executable, "TORCH": "cpu", "INSTALLER": "uv", **of_pip, **of_uv, **variables}
    return {**kept, **{name: str(value) for name, value in added.items() if value is not None}}


def installed(checkout: Path) -> str:
    code = "import leaf, stem, torch, sys; print(leaf.version, stem.version, torch.version)"
    python = checkout / ".venv" / "bin" / "python"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def error(result: subprocess.CompletedProcess) -> str:
    """The line that says why nothing was installed. make adds another line."""
    assert result.returncode == 2, result.stdout + result.stderr
    line, of_make = result.stderr.splitlines()
    assert of_make.startswith("make: ***")
    return line


def test_it_installs_once_and_then_has_nothing_to_do(checkout: Path) -> None:
    first = make(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert installed(checkout) == "1.0 1.0 1.0+cpu"
    assert make(checkout).stdout.splitlines() in ([], ["make: Nothing to be done for 'install'."])
    (checkout / "pyproject.toml").touch()  # as git does with a file that it checks out again
    assert make(checkout).stdout == ""


def test_killed_at_any_step_the_same_command_makes_it_again(checkout: Path) -> None:
    for step in STEPS:
        process = subprocess.Popen(
            INSTALL, cwd=checkout, env=environment(checkout), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert any(line.startswith(f"make install: {step}") for line in process.stdout), step
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (checkout / ".venv" / "installed.txt").exists()
        (checkout / ".venv" / "half-made").touch()
    done = make(checkout)
    assert done.returncode == 0, done.stderr
    assert ".venv was interrupted while it was made: making it again" in done.stdout
    assert not (checkout / ".venv" / "half-made").exists()
    assert installed(checkout) == "1.0 1.0 1.0+cpu"


def test_what_was_moved_or_copied_is_made_again_and_the_original_stays(checkout: Path) -> None:
    assert make(checkout).returncode == 0
    copy = checkout.with_name("copy")
    shutil.copytree(checkout, copy, symlinks=True)
    done = make(copy)
    assert f".venv was made at {checkout}/.venv and then moved or copied" in done.stdout, done.stderr
    assert f"# venv: {copy}/.venv" in (copy / ".venv" / "installed.txt").read_text()
    assert f"# venv: {checkout}/.venv" in (checkout / ".venv" / "installed.txt").read_text()
    assert str(copy) not in next((checkout / ".venv").rglob("small.pth")).read_text()
    moved = checkout.rename(checkout.with_name("moved"))
    assert make(moved).returncode == 0
    assert next((moved / ".venv").rglob("small.pth")).read_text() == str(moved)


def test_the_venv_of_another_checkout_is_left_alone(checkout: Path) -> None:
    assert make(checkout).returncode == 0
    before = {path: path.lstat().st_mtime_ns for path in (checkout / ".venv").rglob("*")}
    other = checkout.with_name("other")
    shutil.copytree(checkout, other, ignore=shutil.ignore_patterns(".venv"))
    (other / ".venv").symlink_to(checkout / ".venv")
    line = error(make(other))
    assert f"is a link to {checkout}/.venv, which the checkout {checkout} made; nothing is installed through" in line
    assert {path: path.lstat().st_mtime_ns for path in (checkout / ".venv").rglob("*")} == before


def test_a_changed_lock_brings_it_up_to_date_in_place(checkout: Path) -> None:
    assert make(checkout).returncode == 0
    (checkout / ".venv" / "mine").touch()
    lock(checkout / "requirements", "wheels", make_wheel(checkout.parent / "wheels", "leaf", "2.0"))
    done = make(checkout, TORCH="")
    assert "the packages changed" in done.stdout, done.stderr
    assert installed(checkout) == "2.0 1.0 1.0+cpu"
    assert (checkout / ".venv" / "mine").exists()


def test_another_build_of_torch_is_another_venv(checkout: Path) -> None:
    assert make(checkout).returncode == 0
    (checkout / "pyproject.toml").touch()
    assert make(checkout, TORCH="cuda").returncode == 0
    assert installed(checkout) == "1.0 1.0 1.0"
    (checkout / "pyproject.toml").touch()
    assert make(checkout, TORCH="").stdout == ""  # what is there stays


def test_a_file_with_another_digest_is_refused(checkout: Path) -> None:
    make_wheel(checkout.parent / "wheels", "leaf", "1.0", "more = 'than the lock says'\n")
    line = error(make(checkout))
    assert line.startswith("make install: error: the other packages")
    assert "hash" in line.lower(), line
    assert not (checkout / ".venv" / "installed.txt").exists()


def test_a_second_one_waits_for_the_first(checkout: Path) -> None:
    start = {"cwd": checkout, "env": environment(checkout), "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(INSTALL, **start) for _ in range(2)]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("this project") for text in texts) == [0, 1]


def test_a_python_that_is_too_old_or_too_new_is_named_before_anything_is_made(checkout: Path, tmp_path: Path) -> None:
    for version, code in (("3.9.2", 1), ("3.15.0", 1)):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$1" = -V ] && {{ echo "Python {version}"; exit 0; }}\nexit {code}\n')
        python.chmod(0o755)
        line = error(make(checkout, BASE_PYTHON=python))
        assert line.startswith(f"error: Python 3.11, 3.12, 3.13 or 3.14 is needed, found Python {version}")
        assert not (checkout / ".venv").exists()


def test_python_without_venv_is_named_with_the_command_of_this_system(checkout: Path, tmp_path: Path) -> None:
    """A Python whose library lacks ensurepip, as Debian's does without python3-venv."""
    python = tmp_path / "python"
    hide = "import sys; sys.modules['ensurepip'] = None"
    code = f"import runpy; {hide}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = -c ] && exec {sys.executable} "$@"\nshift\nexec {sys.executable} -I -c "{code}" "$@"\n'
    )
    python.chmod(0o755)
    line = error(make(checkout, BASE_PYTHON=python, INSTALLER="pip"))
    assert "has no ensurepip, which is needed to make .venv; install it (" in line
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_too_small_is_named_before_anything_is_made(checkout: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], check=True)
    try:
        shutil.copytree(checkout, place / "checkout")
        line = error(make(place / "checkout"))
        assert ".venv needs" in line
        assert "are free on this disk; free some" in line
        assert not (place / "checkout" / ".venv").exists()
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_fills_up_meanwhile_is_named_and_freed_the_same_command_goes_through(
    checkout: Path, tmp_path: Path
) -> None:
    """What is installed is larger than was expected: on the smaller disk pip itself, on the larger one a package."""
    program = checkout / "requirements" / "install.py"
    program.write_text(re.sub('"cpu": [0-9.]+', '"cpu": 0.01', program.read_text(), count=1))
    leaf = make_wheel(checkout.parent / "wheels", "leaf", "1.0", f"more = {'x' * 2**25!r}\n")
    lock(checkout / "requirements", "wheels", leaf)
    wheels = {"PIP_FIND_LINKS": leaf.parent, "UV_FIND_LINKS": leaf.parent}
    place = tmp_path / "small"
    full = f"the disk of {place}/checkout is full; free some space, then run the same command again"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", place], check=True)
    try:
        shutil.copytree(checkout, place / "checkout")
        line = error(make(place / "checkout", INSTALLER="pip", **wheels))
        assert line == f"make install: error: pip for .venv: {full}"
        subprocess.run(["mount", "-o", "remount,size=24m", place], check=True)
        line = error(make(place / "checkout", **wheels))
        assert line == f"make install: error: the other packages (350 MB to download): {full}"
        assert not (place / "checkout" / ".venv" / "installed.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)
        done = make(place / "checkout", **wheels)
        assert done.returncode == 0, done.stderr
        assert ".venv was interrupted while it was made: making it again" in done.stdout
        assert installed(place / "checkout") == "1.0 1.0 1.0+cpu"
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_when_all_is_installed(checkout: Path) -> None:
    assert make(checkout).returncode == 0
    lock(checkout / "requirements", "wheels", make_wheel(checkout.parent / "wheels", "leaf", "2.0"))
    (checkout / ".venv" / "installed.partial").symlink_to("/dev/full")
    full = f"make install: error: the disk of {checkout} is full; free some space, then run the same command again"
    assert error(make(checkout)) == full
    done = make(checkout)
    assert done.returncode == 0, done.stderr
    assert ".venv was interrupted while it was made: making it again" in done.stdout
    assert installed(checkout) == "2.0 1.0 1.0+cpu"


def test_without_a_network_that_is_said_at_once(checkout: Path) -> None:
    line = error(make(checkout, TORCH="", **WITHOUT_NETWORK))
    assert line.startswith("make install: error: torch (190 MB to download): ")
    assert "Connection refused" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "NewConnectionError('<HTTPSConnection object at 0x7f>: Failed to establish a new connection: "
            "[Errno -3] Temporary failure in name resolution')",
            "Temporary failure in name resolution",
        ),
        (
            "NameResolutionError(\"HTTPSConnection(host='index.example', port=443): Failed to resolve 'index.example' "
            '([Errno -2] Name or service not known)")',
            "Name or service not known",
        ),
        (
            "ReadTimeoutError(\"HTTPSConnectionPool(host='index', port=443): Read timed out. (read timeout=15)\")",
            "Read timed out. (read timeout=15)",
        ),
        (
            "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 403 Forbidden'))",
            "Tunnel connection failed: 403 Forbidden",
        ),
    ],
)
def test_the_innermost_of_pip_s_errors_is_said(error: str, said: str) -> None:
    """As pip 23 to 26 write them."""
    retry = "Retry(total=0, connect=None, read=None, redirect=None, status=None)"
    line = f"WARNING: Retrying ({retry}) after connection broken by '{error}': /simple/torch/"
    assert runpy.run_path(str(ROOT / "requirements" / "install.py"))["cause"](line) == said


def test_an_installer_that_was_killed_is_named(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\nkill -KILL $$\n")
    (tmp_path / "uv").chmod(0o755)
    line = error(make(checkout, TORCH="", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"))
    assert "uv was ended by SIGKILL, as for lack of memory" in line


def test_why_the_small_build_of_torch_is_not_had_is_said(checkout: Path) -> None:
    next((checkout.parent / "wheels").glob("torch-*cpu*")).unlink()
    done = make(checkout, TORCH="auto")
    assert (done.returncode, done.stderr) == (0, "")
    here, at_pytorch = [line for line in done.stdout.splitlines() if line.startswith("make install: not found there: ")]
    assert "torch==1.0+cpu" in here
    assert "torch" in at_pytorch
    assert "the build for GPUs, which also runs on CPUs" in done.stdout
    assert installed(checkout) == "1.0 1.0 1.0"


def test_another_file_in_the_place_of_torch_is_refused_where_the_lock_has_its_digest(checkout: Path) -> None:
    make_wheel(checkout.parent / "wheels", "torch", "1.0+cpu", "more = 'than the lock says'\n")
    torch_lock = checkout / "requirements" / "torch.lock"
    tag = f"cp3{sys.version_info[1]}"
    name = f"# torch-1.0+cpu-{tag}-{tag}-manylinux_2_28_{platform.machine()}.whl\n"
    torch_lock.write_text(name + torch_lock.read_text())
    line = error(make(checkout, TORCH="cpu"))
    assert "torch: no index has the file whose digest is in requirements/torch.lock" in line
    assert not (checkout / ".venv" / "installed.txt").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TORCH": "rocm"}, "TORCH=rocm: cpu or cuda was expected"),
        ({"INSTALLER": "conda"}, "INSTALLER=conda: pip or uv was expected"),
        ({"INSTALLER": "uv", "PATH": "/usr/bin:/bin"}, "INSTALLER=uv: there is no uv here"),
    ],
)
def test_a_mistake_in_a_variable(variables: dict[str, str], words: str, checkout: Path) -> None:
    assert words in error(make(checkout, **variables))
    assert not (checkout / ".venv").exists()


def test_pip_installs_the_same_refuses_another_digest_and_says_that_there_is_no_network(checkout: Path) -> None:
    done = make(checkout, INSTALLER="pip")
    assert (done.returncode, done.stderr) == (0, "")
    assert installed(checkout) == "1.0 1.0 1.0+cpu"
    lock(checkout / "requirements", "wheels", make_wheel(checkout.parent / "wheels", "leaf", "2.0"))
    make_wheel(checkout.parent / "wheels", "leaf", "2.0", "more = 'than the lock says'\n")
    line = error(make(checkout, INSTALLER="pip"))
    assert line.startswith("make install: error: the other packages")
    assert "hash" in line.lower(), line
    lock(checkout / "requirements", "torch", make_wheel(checkout.parent / "wheels", "torch", "2.0+cpu"))
    line = error(make(checkout, INSTALLER="pip", **WITHOUT_NETWORK))
    said = "make install: error: torch (190 MB to download): no package index answers: Connection refused "
    assert line.startswith(said), line


def test_a_folder_that_is_no_venv_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").write_text("mine")
    assert "is not a virtual environment; move it away" in error(make(checkout))
    assert (checkout / ".venv" / "mine").read_text() == "mine"
