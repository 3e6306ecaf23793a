"""The locks hold every package that requirements/ names, with its digest, and `make install` takes nothing else."""

import re

from support.programs import ROOT

PINS = ROOT / "requirements"
LINE = re.compile(
    r"([a-z0-9-]+)={2,3}(\S+)( ; python_version [^#\\]+?)?((?: (?:\\\n    )?--hash=sha256:[0-9a-f]{64})+)\n"
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(*names: str) -> dict[str, str]:
    """The packages of locks, with their versions; each is there once, with its digests."""
    text = "".join(re.sub("^#.*\n", "", (PINS / f"{name}.lock").read_text(), flags=re.MULTILINE) for name in names)
    found = list(LINE.finditer(text))
    assert "".join(match[0] for match in found) == text, "each entry is a version and its digests"
    assert len({match[1] for match in found}) == len(found)
    return {match[1]: match[2] for match in found}


def pinned(*names: str) -> dict[str, str]:
    text = "\n".join((PINS / f"{name}.txt").read_text() for name in names)
    pairs = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_make_install_has_a_digest_of_every_package_that_is_pinned() -> None:
    """The packages in a lock that are not pinned are those with which torch builds packages from source."""
    found = {name: version.removesuffix("+cpu") for name, version in locked("torch", "wheels", "built").items()}
    wanted = pinned("torch", "base", "weights", "tracking", "dev")
    assert {name: version for name, version in found.items() if name != "setuptools"} == wanted
    assert set(found) & set(locked("cuda")) == {"torch"}


def test_make_install_takes_nothing_without_a_digest() -> None:
    """This holds for every installing step except that of the project itself, and that of TORCH=cpu without a digest in
    the lock."""
    text = (PINS / "install.py").read_text()
    steps = re.findall(r"^ +(?:if )?(?:step|tried)\((.*)\)", text, re.MULTILINE)
    assert len(steps) == 7
    checked = [step for step in steps if "--require-hashes" in step or "locked" in step or "*hashed" in step]
    (project, torch) = [step for step in steps if step not in checked]
    assert "torch=={TORCH_VERSION}+cpu" in torch
    assert '"--editable", CHECKOUT' in project
    assert '"--no-deps", *words' in text
    assert [step for step in checked if "built.lock" in step and "--no-build-isolation" in step]


def test_the_digests_are_those_of_each_python() -> None:
    """One package has separate wheels for each Python, and one is in the standard library of the newest Python."""
    text = (PINS / "wheels.lock").read_text()
    numpy = next(match for match in LINE.finditer(text) if match[1] == "numpy")
    assert numpy[4].count("--hash") == 2 * len(PYTHONS)  # x86_64 and aarch64
    zstd = next(match for match in LINE.finditer(text) if match[1] == "backports-zstd")
    assert re.findall(r"'(.*?)'", zstd[3]) == list(PYTHONS[:-1])


def test_docker_s_context_has_no_settings_data_or_results() -> None:
    """Whatever git ignores, and the settings that may have keys."""
    ignored = set((ROOT / ".dockerignore").read_text().split("\n"))
    assert {"slurm/site.env", "**/wandb", "data", "results", "runs", "**/.env", ".git", ".venv"} <= ignored
    for line in (ROOT / ".gitignore").read_text().splitlines():
        if not line.startswith("#"):
            name = line.strip("/")
            assert {name, f"{name}/", f"**/{name}", line.removeprefix("/")} & ignored, line
