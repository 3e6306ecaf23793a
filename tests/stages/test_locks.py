"""The locks hold every package that requirements/ names, with its digest, and `make install` takes nothing else."""

import re
import subprocess

from support.programs import ROOT

PINS = ROOT / "requirements"
LINE = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")


def locked(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (PINS / f"{name}.lock").read_text().splitlines() if line[0] != "#"]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), "each line is a version and its digests"
    assert len({match[1] for match in found}) == len(found)
    return {match[1]: match[2] for match in found}


def pinned(*names: str) -> dict[str, str]:
    text = "\n".join((PINS / f"{name}.txt").read_text() for name in names)
    pairs = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_make_install_has_a_digest_of_every_package_that_is_pinned() -> None:
    """What is in a lock and not pinned is what torch needs to build packages from their source."""
    found = {name: version.removesuffix("+cpu") for name, version in locked("torch", "wheels", "built").items()}
    wanted = pinned("torch", "base", "weights", "tracking", "dev")
    assert {name: version for name, version in found.items() if name != "setuptools"} == wanted
    assert set(found) & set(locked("cuda")) == {"torch"}


def test_make_install_takes_nothing_without_a_digest() -> None:
    """Every line that installs, but that of the project itself, checks; and no build fetches tools of its own."""
    done = subprocess.run(["make", "-C", ROOT, "-n", "-W", "pyproject.toml", "install"], capture_output=True, text=True)
    lines = [line for line in done.stdout.replace("\\\n", " ").splitlines() if "pip install" in line]
    lines = [command for line in lines for command in line.split("||")]
    assert len(lines) == 5, done.stderr
    for line in lines:
        assert "--no-deps" in line
        assert "--require-hashes" in line or line.endswith("--no-build-isolation --editable .")
    assert [line for line in lines if "built.lock" in line and "--no-build-isolation" in line]


def test_docker_s_context_has_no_settings_data_or_results() -> None:
    """Whatever git ignores, and the settings that may have keys."""
    ignored = set((ROOT / ".dockerignore").read_text().split("\n"))
    assert {"slurm/site.env", "**/wandb", "data", "results", "runs", "**/.env", ".git", ".venv"} <= ignored
    for line in (ROOT / ".gitignore").read_text().splitlines():
        if not line.startswith("#"):
            name = line.strip("/")
            assert {name, f"{name}/", f"**/{name}", line.removeprefix("/")} & ignored, line
