"""The partitions of this site's Slurm, and what of a request is more than a partition has."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from teacherlm.chain.controller import FOR_EVER, lines_of, seconds_of

MEMORY = re.compile(r"([0-9]{1,9})([KMGT]?)")
MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Partition:
    """A partition with the properties of one kind of its nodes, as sinfo prints them."""

    name: str
    default: bool
    gpus: str
    cpus: str
    memory: str
    limit: str
    nodes: str

    @property
    def gpus_per_node(self) -> int:
        """4 for `gpu:a100:4`."""
        last = self.gpus.rpartition(":")[2]
        return int(last) if last.isdigit() else 0


def read_partitions() -> list[Partition]:
    """The partitions. One whose nodes differ occurs once for each kind of its nodes.

    Raises:
        NoAnswer: Slurm does not answer.
    """
    found = []
    for line in lines_of("sinfo", "--noheader", "--format=%P|%G|%c|%m|%l|%D"):
        name, gres, cpus, memory, limit, nodes = line.split("|")
        gpus = ",".join(part.split("(")[0] for part in gres.split(",") if part.startswith("gpu"))
        found.append(Partition(name.rstrip("*"), name.endswith("*"), gpus, cpus, memory, limit, nodes))
    return found


def excess(request: Sequence[str], partitions: Sequence[Partition]) -> str:
    """What a request asks for that no node of its partition has: `--time=04:00:00 (at most 1:00:00), ...`.

    Only what is certain is named. A request in another form than `--name=value`, or for an unknown partition, has no
    excess.
    """
    if not all(word.startswith("--") for word in request):
        return ""
    asked = dict(word.split("=", 1) for word in request if "=" in word)  # of an argument that is repeated, the last
    name = asked.get("--partition")
    kinds = [one for one in partitions if (one.name == name if name else one.default)]
    if not kinds:
        return ""
    found: list[tuple[str, float, dict[str, float]]] = [
        ("--time", seconds_requested(asked.get("--time", "")), {one.limit: seconds_of(one.limit) for one in kinds}),
        ("--mem", megabytes(asked.get("--mem", "")), {f"{one.memory}M": whole(one.memory) for one in kinds}),
        ("--cpus-per-task", processors(asked), {one.cpus: whole(one.cpus) for one in kinds}),
    ]
    said = []
    for argument, amount, there in found:
        most = max(there, key=lambda shown: there[shown])
        if amount > there[most]:
            said.append(f"{argument}={asked[argument]} (at most {most})")
    return ", ".join(said)


def seconds_requested(time: str) -> int:
    """The seconds in sbatch's `minutes[:seconds]`, `hours:minutes:seconds` or `days-hours[:minutes[:seconds]]`.

    A time in no such form, which sbatch refuses, gives 0.
    """
    if time in ("0", "UNLIMITED", "infinite"):
        return FOR_EVER
    if not re.fullmatch(r"([0-9]{1,6}-)?[0-9]{1,9}(:[0-9]{1,9}){0,2}", time):
        return 0
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def megabytes(memory: str) -> float:
    """The amount of `--mem`. 0 means all memory of a node, and so does not exceed it."""
    found = MEMORY.fullmatch(memory)
    return int(found[1]) * MEGABYTES[found[2]] if found else 0


def processors(asked: Mapping[str, str]) -> int:
    """The number of processors that a request needs on a node."""
    words = asked.get("--cpus-per-task", ""), asked.get("--ntasks-per-node", "1")
    return int(words[0]) * int(words[1]) if all(word.isdecimal() and len(word) < 9 for word in words) else 0


def whole(text: str) -> float:
    """sinfo's amount. `16+` means that some nodes have more, nobody says how much."""
    return int(text) if text.isdecimal() else float("inf")
