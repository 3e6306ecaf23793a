"""Write the images' locks, cpu.lock and gpu.lock: every package at its version, with the digest of its file.

Where the versions come from is requirements/: the CPU image has those of torch.txt, base.txt, weights.txt and
tracking.txt and nothing else; the GPU image has the project's direct dependencies at these versions, what gpu.txt adds
(vLLM, the CUDA compiler), and what pip finds that all of them need.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from teacherlm.errors import Parser, UserError, run
from teacherlm.files import whole_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PINS = ROOT / "requirements"
Packages = dict[str, tuple[str, str]]
"""name -> (version, sha256 of the file)"""


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("image", nargs="?", choices=["cpu", "gpu"], help="(default: both)")
    asked = parser.parse_args().image
    for image in [asked] if asked else ["cpu", "gpu"]:
        packages = cpu() if image == "cpu" else gpu()
        with whole_file(HERE / f"{image}.lock") as file:
            file.write(lock(image, packages))
        print(f"containers/{image}.lock: {len(packages)} packages")


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
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--constraint", str(limits), "--report", str(report), *words]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(f"pip cannot resolve {' '.join(words[:3])} ...: {' '.join(errors)}")
        found = json.loads(report.read_text())["install"]
    return {
        normal(item["metadata"]["name"]): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in found
    }


def lock(image: str, packages: Packages) -> str:
    head = (
        f"# The packages of the {image.upper()} image, for Python 3.11; `make lock` writes it (containers/lock.py).\n"
    )
    lines = [f"{name}=={version} --hash=sha256:{digest}\n" for name, (version, digest) in sorted(packages.items())]
    return head + "".join(lines)


if __name__ == "__main__":
    run(main)
