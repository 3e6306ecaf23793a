"""Write the locks: every package at its version, with the digests of its files.

Where the versions come from is requirements/: the CPU image has those of torch.txt, base.txt, weights.txt and
tracking.txt and nothing else; the GPU image has the project's direct dependencies at these versions, what gpu.txt adds
(vLLM, the CUDA compiler), and what pip finds that all of them need. `make install` has what the CPU image has and
dev.txt, in four files that are installed one after the other:

    requirements/torch.lock   torch's build for CPUs, which PyPI does not have; where pip does not find it:
    requirements/cuda.lock    torch's build for GPUs, with the libraries that it needs
    requirements/wheels.lock  all others
    requirements/built.lock   those that are built here from their source, with the others at hand
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.flags import Parser
from teacherlm.core.programs import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PINS = ROOT / "requirements"


@dataclass(frozen=True)
class Package:
    """A package as pip finds it: its version, and the address and sha256 of its file."""

    version: str
    address: str
    sha256: str

    @property
    def is_wheel(self) -> bool:
        return self.address.partition("#")[0].endswith(".whl")


Packages = dict[str, Package]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("lock", nargs="?", choices=["cpu", "gpu", "install"], help="(default: all)")
    asked = parser.parse_args().lock
    for one in [asked] if asked else ["cpu", "gpu", "install"]:
        if one == "install":
            install()
        else:
            packages = cpu() if one == "cpu" else gpu()
            write(HERE / f"{one}.lock", f"The packages of the {one.upper()} image", packages)


def install() -> None:
    """Write the four locks of `make install`."""
    torch = pins("torch.txt")["torch"]
    write(PINS / "torch.lock", "torch's build for CPUs", resolve(["--no-deps", f"torch=={torch}+cpu"], {}))
    others = resolve(["--no-deps", "-r", str(PINS / "dev.txt")], {}) | cpu()
    others.pop("torch")
    libraries = resolve([f"torch==={torch}"], {name: package.version for name, package in others.items()})
    libraries = {name: package for name, package in libraries.items() if name not in others}
    write(PINS / "cuda.lock", "torch's build for GPUs and the libraries that it needs", libraries)
    wheels = {name: package for name, package in others.items() if package.is_wheel}
    write(PINS / "wheels.lock", "The packages of `make install`", wheels)
    built = {name: package for name, package in others.items() if not package.is_wheel}
    write(PINS / "built.lock", "The packages of `make install` that are built from their source", built)


def cpu() -> Packages:
    torch = pins("torch.txt")["torch"]
    closure = resolve([f"torch=={torch}+cpu"], pins("base.txt"))
    listed = [word for name in ("base.txt", "weights.txt", "tracking.txt") for word in ("-r", str(PINS / name))]
    return closure | resolve(["--no-deps", *listed], {})


def gpu() -> Packages:
    """torch's build for CUDA is the one without a suffix, which `===` asks for."""
    torch = pins("torch.txt")["torch"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {normal(re.split(r"[=<>\[ ]", word)[0]) for word in project["dependencies"]}
    direct.remove("numpy")  # numba, under vLLM, wants an older one than the other images have
    known = {name: version for name, version in pins("base.txt").items() if name in direct} | pins("tracking.txt")
    wanted = [word for word in project["dependencies"] if not word.startswith("torch")]
    added = [f"{name}=={version}" for name, version in pins("gpu.txt").items()]
    found = resolve([f"torch==={torch}", *wanted, "wandb", "tensorboard", *added], known)
    return found | resolve(["--no-deps", "-r", str(PINS / "weights.txt")], {})


def pins(file: str) -> dict[str, str]:
    text = (PINS / file).read_text(encoding="utf-8")
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(words: list[str], constraints: dict[str, str]) -> Packages:
    """What pip would install for these requirements in an empty environment.

    Raises:
        UserError: pip cannot find them, or they contradict one another.
    """
    with tempfile.TemporaryDirectory() as folder:
        limits, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        limits.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        command = [sys.executable, "-I", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--constraint", str(limits), "--report", str(report), *words]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(f"pip cannot resolve {' '.join(words[:3])} ...: {' '.join(errors)}")
        found = json.loads(report.read_text())["install"]
    return {
        normal(item["metadata"]["name"]): Package(
            item["metadata"]["version"],
            item["download_info"]["url"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in found
    }


def write(path: Path, what: str, packages: Packages) -> None:
    """Write a lock; its head says what is in it."""
    lines = [f"{name}=={one.version} --hash=sha256:{one.sha256}\n" for name, one in sorted(packages.items())]
    with whole_file(path) as file:
        file.write(f"# {what}, for Python 3.11; `make lock` writes it (containers/lock.py).\n" + "".join(lines))
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    run(main)
