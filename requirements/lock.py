"""Write the locks: the version of every package, with the digests of its files.

The versions are in the *.txt files of this folder. The CPU image has exactly the packages of torch.txt, base.txt,
weights.txt and tracking.txt. The GPU image has the project's direct dependencies at these versions, the packages of
gpu.txt (vLLM, the CUDA compiler), and the dependencies of all of them. `make install` has the packages of the CPU image
and of dev.txt for each Python that pyproject.toml allows. Its locks are four files, installed one after the other:

    torch.lock   torch's build for CPUs, which PyPI does not have
    cuda.lock    torch's build for GPUs, with the libraries that it needs
    wheels.lock  all other packages that have wheels
    built.lock   the packages that are built from source, after the others are installed

uv resolves them for all these Pythons at the same time. The images' locks, containers/cpu.lock and containers/gpu.lock,
have one file per package, the one for the image's Python.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from teacherlm.core.errors import UserError, one_line
from teacherlm.core.files import whole_file
from teacherlm.core.flags import Parser
from teacherlm.core.programs import run

PINS = Path(__file__).resolve().parent
ROOT = PINS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MINORS = [minor for minor in range(100) if f"3.{minor}.0" in SpecifierSet(PROJECT["requires-python"])]
IMAGE_MINOR = 11
MACHINES = ("x86_64", "aarch64")
"""The processors that `make install` supports. The images are for the first one."""


@dataclass(frozen=True)
class File:
    name: str
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package of a resolution.

    Attributes:
        marker: a marker of PEP 508 that says where the package is needed. If it is empty, it is needed everywhere.
        files: the files that the Pythons of the resolution can install. The source is included only if a Python has no
            wheel.
    """

    version: str
    marker: str
    files: tuple[File, ...]

    @property
    def is_built(self) -> bool:
        return not all(file.name.endswith(".whl") for file in self.files)


Packages = dict[str, Package]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("lock", nargs="?", choices=["cpu", "gpu", "install"], help="the lock to write (default: all)")
    asked = parser.parse_args().lock
    for one in [asked] if asked else ["cpu", "gpu", "install"]:
        if one == "install":
            write_install()
        else:
            found = cpu_image() if one == "cpu" else gpu_image()
            packages = {name: replace(package, files=(best_file(package),)) for name, package in found.items()}
            write(ROOT / "containers" / f"{one}.lock", f"The packages of the {one.upper()} image", packages)


def write_install() -> None:
    """Write the four locks of `make install`."""
    listed = pins("base", "weights", "tracking", "dev")
    found = resolve(direct("dev", "tracking") + list(pins("weights")), listed | pins("torch"), MINORS, MACHINES)
    if missing := sorted(listed.keys() - found.keys()):
        raise UserError(f"pinned, but no package needs it: {', '.join(missing)}; remove it from requirements/*.txt")
    cuda = {name: one for name, one in found.items() if name == "torch" or name.startswith(CUDA)}
    others = {name: one for name, one in found.items() if name not in cuda}
    write(PINS / "torch.lock", "torch's build for CPUs", {"torch": cpu_torch(MINORS)})
    write(PINS / "cuda.lock", "torch's build for GPUs and the libraries that it needs", cuda)
    wheels = {name: one for name, one in others.items() if not one.is_built}
    write(PINS / "wheels.lock", "The packages of `make install`", wheels)
    built = {name: one for name, one in others.items() if one.is_built}
    write(PINS / "built.lock", "The packages of `make install` that are built from their source", built)


def cpu_image() -> Packages:
    listed = pins("base", "weights", "tracking")
    found = resolve(direct("tracking") + list(pins("weights")), listed | pins("torch"), [IMAGE_MINOR], MACHINES[:1])
    return {name: one for name, one in found.items() if not name.startswith(CUDA)} | {"torch": cpu_torch([IMAGE_MINOR])}


def gpu_image() -> Packages:
    """The packages of the GPU image. Their versions are those of the other locks, except numpy: vLLM needs numba, which
    needs an older numpy. Packages that no *.txt file names keep their version in containers/gpu.lock. Without that
    file, they get the newest version.
    """
    known = pins("base", "tracking")
    del known["numpy"]
    added = pins("gpu", "weights", "torch")
    former = ROOT / "containers" / "gpu.lock"
    kept = versions(former) if former.is_file() else {}
    return resolve(direct("tracking") + list(pins("gpu", "weights")), kept | known | added, [IMAGE_MINOR], MACHINES[:1])


CUDA = ("nvidia-", "cuda-", "triton")
"""The beginnings of the names of the packages that torch's build for GPUs needs."""


def direct(*extras: str) -> list[str]:
    """The requirements in pyproject.toml, including those of these extras."""
    words = [*PROJECT["dependencies"], *(word for name in extras for word in PROJECT["optional-dependencies"][name])]
    return [word for word in words if normal(word) != PROJECT["name"]]


def pins(*files: str) -> dict[str, str]:
    """The packages that *.txt files of this folder name, with their versions."""
    return {name: version for file in files for name, version in versions(PINS / f"{file}.txt").items()}


def versions(file: Path) -> dict[str, str]:
    """The packages that a file of requirements names, with their versions."""
    text = file.read_text(encoding="utf-8")
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def normal(requirement: str) -> str:
    """The name of the package in a requirement, normalized as in package indices."""
    return canonicalize_name(re.split(r"[^\w.-]", requirement)[0])


def resolve(wanted: list[str], constraints: Mapping[str, str], minors: list[int], machines: Sequence[str]) -> Packages:
    """The packages that an empty environment on Linux would get for these requirements.

    Args:
        constraints: name -> version.
        minors: the minor versions of Python 3.
        machines: types of processors, with the names that wheels use.

    Raises:
        UserError: uv cannot find the packages, or the requirements contradict each other.
    """
    lines = [f"{name}=={version}" for name, version in constraints.items()]
    project = {"name": "lock", "version": "0", "dependencies": wanted}
    project["requires-python"] = f">=3.{minors[0]},<3.{minors[-1] + 1}"
    places = [f"sys_platform == 'linux' and platform_machine == '{machine}'" for machine in machines]
    settings = {"constraint-dependencies": lines, "environments": places}
    with tempfile.TemporaryDirectory() as folder:
        text = [table("project", project), table("tool.uv", settings)]
        # These packages are installed only for their weights, without the dependencies of their code.
        for name, version in pins("weights").items():
            text.append(table("[tool.uv.dependency-metadata]", {"name": name, "version": version, "requires-dist": []}))
        Path(folder, "pyproject.toml").write_text("\n".join(text), encoding="utf-8")
        uv(folder, "lock", "--quiet")
        found = tomllib.loads(Path(folder, "uv.lock").read_text(encoding="utf-8"))["package"]
        listed = uv(folder, "export", "--quiet", "--frozen", "--no-hashes", "--no-annotate", "--no-header")
    markers = dict(re.findall(r"^([\w.-]+)==\S+ ; (.*)$", listed, re.MULTILINE))
    packages = {}
    for one in found:
        marker = markers.get(one["name"])
        needing = [minor for minor in minors if marker is None or is_true(marker, minor, machines)]
        if one["name"] != "lock" and needing:  # some packages are only for other implementations of Python
            only = "" if needing == minors else " or ".join(f"python_version == '3.{minor}'" for minor in needing)
            packages[one["name"]] = Package(one["version"], only, files_of(one, set(needing), set(machines)))
    return packages


def is_true(marker: str, minor: int, machines: Sequence[str]) -> bool:
    """Whether a marker holds for CPython 3.MINOR on Linux, on one of these processors."""
    python = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    python |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    system = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return any(Marker(marker).evaluate({**python, **system, "platform_machine": machine}) for machine in machines)


def table(name: str, values: Mapping[str, Any]) -> str:
    """A table in TOML. JSON's strings and lists of strings are valid TOML."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def uv(folder: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "uv", *words, "--directory", folder, "--python", sys.executable],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"uv {words[0]}: {one_line(done.stderr)[:1000]}")
    return done.stdout


def files_of(package: Mapping[str, Any], minors: set[int], machines: set[str]) -> tuple[File, ...]:
    """The files of a package in uv.lock that these Pythons can install: wheels, and the source if one has no wheel.

    Raises:
        UserError: there is no file for one of the Pythons.
    """
    wheels = package.get("wheels", [])
    chosen = [one for one in wheels if any(can_install(file_name(one), minor, machines) for minor in minors)]
    for minor in minors:
        if not any(can_install(file_name(one), minor, machines) for one in chosen):
            if "sdist" not in package:
                raise UserError(f"{package['name']} {package['version']}: it has no file for Python 3.{minor}")
            chosen.append(package["sdist"])
    files = {File(file_name(one), one["hash"].removeprefix("sha256:")) for one in chosen}
    return tuple(sorted(files, key=lambda file: file.name))


def file_name(entry: Mapping[str, str]) -> str:
    return unquote(entry["url"].rsplit("/", 1)[1])


def can_install(file: str, minor: int, machines: set[str]) -> bool:
    """Whether a file is a wheel that CPython 3.MINOR can install on Linux with glibc and one of these processors."""
    return file.endswith(".whl") and any(fits(tag, minor, machines) for tag in parse_wheel_filename(file)[3])


def fits(tag: Tag, minor: int, machines: set[str]) -> bool:
    is_linux = tag.platform.startswith(("manylinux", "linux_")) and tag.platform.endswith(tuple(machines))
    if tag.platform != "any" and not is_linux:
        return False
    least = re.fullmatch(r"(?:cp|py)3(\d*)", tag.interpreter)
    if least is None:
        return False
    if tag.abi == "abi3" or tag.interpreter.startswith("py"):
        return int(least[1] or 0) <= minor
    return int(least[1]) == minor and tag.abi in (tag.interpreter, "none")


OLD_NAMES = {17: "2014", 12: "2010", 5: "1"}
PLATFORMS = [
    f"manylinux{name}_{MACHINES[0]}"
    for glibc in range(36, 4, -1)
    for name in (f"_2_{glibc}", *([OLD_NAMES[glibc]] if glibc in OLD_NAMES else []))
]
"""The platforms of wheels that a Python of Debian 12 can install, the newest first."""
PREFERRED = [*cpython_tags((3, IMAGE_MINOR), platforms=PLATFORMS), *compatible_tags((3, IMAGE_MINOR), None, PLATFORMS)]


def best_file(package: Package) -> File:
    """The file that pip chooses for an image."""
    if package.is_built:
        return package.files[0]  # for a single Python, the files are either wheels or only the source
    ranks = {tag: rank for rank, tag in enumerate(PREFERRED)}
    return min(package.files, key=lambda file: min(ranks.get(tag, 10**6) for tag in parse_wheel_filename(file.name)[3]))


def cpu_torch(minors: list[int]) -> Package:
    """torch's build for CPUs, for the Pythons for which pip finds it with this machine's settings.

    Raises:
        UserError: pip finds it for none of them.
    """
    version, files = f"{pins('torch')['torch']}+cpu", []
    for minor, machine in itertools.product(minors, MACHINES):
        command = [sys.executable, "-I", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--report", "-"]
        command += ["--target", "unused", "--python-version", f"3.{minor}", "--platform", f"manylinux_2_28_{machine}"]
        done = subprocess.run([*command, f"torch=={version}"], capture_output=True, text=True)
        if done.returncode:
            print(f"torch {version} for Python 3.{minor} on {machine}: pip cannot find it here")
            continue
        item = json.loads(done.stdout)["install"][0]["download_info"]
        name = unquote(item["url"].rsplit("/", 1)[1])
        files.append(File(name, item["archive_info"]["hashes"]["sha256"]))
    if not files:
        raise UserError(f"torch {version}: pip finds it for none of the Pythons; set PIP_FIND_LINKS or PIP_INDEX_URL")
    return Package(version, "", tuple(files))


def write(path: Path, what: str, packages: Packages) -> None:
    """Write a lock. Its first line says what it contains."""
    lines = []
    for name, one in sorted(packages.items()):
        marker = f" ; {one.marker}" if one.marker else ""
        digests = [f"--hash=sha256:{file.sha256}" for file in one.files]
        if path.name == "torch.lock":  # install.py looks there whether it has a digest for this Python
            lines += [f"# {file.name}\n" for file in one.files]
        apart = " " if len(digests) == 1 else " \\\n    "
        equals = "===" if path.name == "cuda.lock" else "=="  # `==2.13.0` would also accept 2.13.0+cpu
        lines.append(apart.join([f"{name}{equals}{one.version}{marker}", *digests]) + "\n")
    with whole_file(path) as file:
        file.write(f"# {what}; `make lock` writes it (requirements/lock.py).\n" + "".join(lines))
    print(f"{path.relative_to(ROOT)}: {len(packages)} packages")


if __name__ == "__main__":
    run(main)
