"""Write slurm/site.env from what Slurm reports (partitions, GPUs per node, time limits, accounts), and print it."""

import getpass
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from teacherlm.chain.controller import ask
from teacherlm.core import tables
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.places import ROOT

SITE = ROOT / "slurm" / "site.env"


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


def main() -> None:
    parser = Parser(description=__doc__, epilog="example: teacherlm site --output slurm/site.env")
    parser.add_argument("--output", type=Path, default=SITE, help="the file to write (default: slurm/site.env)")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists already; remove it first to write it again")
    partitions = read_partitions()
    rows = [("partition", "nodes", "GPUs per node", "CPUs", "memory (MB)", "time limit")]
    rows += [(p.name + "*" * p.default, p.nodes, p.gpus or "-", p.cpus, p.memory, p.limit) for p in partitions]
    print(tables.table(rows))
    text = site_env(partitions, read_accounts())
    with open(os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)  # only this user can read it, because people put keys there
    print(f"\n{args.output}:\n\n{text}", end="")


def read_partitions() -> list[Partition]:
    """The partitions, each with the kind of its nodes that has the most GPUs."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--format=%P|%G|%c|%m|%l|%D"):
        name, gres, cpus, memory, limit, nodes = line.split("|")
        gpus = ",".join(part.split("(")[0] for part in gres.split(",") if part.startswith("gpu"))
        one = Partition(name.rstrip("*"), name.endswith("*"), gpus, cpus, memory, limit, nodes)
        if one.name not in found or count(one) > count(found[one.name]):
            found[one.name] = one
    if not found:
        raise UserError("sinfo shows no partition")
    return list(found.values())


def count(partition: Partition) -> int:
    """The number of GPUs per node: 4 for `gpu:a100:4`."""
    last = partition.gpus.rpartition(":")[2]
    return int(last) if last.isdigit() else 0


def read_accounts() -> list[str]:
    """The accounts that the user may charge. There are none on a site without accounting."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}"]
    try:
        return sorted({line.strip() for line in ask(*command, "format=account") if line.strip()})
    except UserError:
        return []


def site_env(partitions: list[Partition], accounts: list[str]) -> str:
    with_gpus = max(partitions, key=lambda partition: (count(partition), partition.default))
    without = [partition for partition in partitions if not count(partition)] or [with_gpus]
    for_cpus = max(without, key=lambda partition: partition.default)
    account = shlex.quote(accounts[0]) if accounts else ""
    others = f" # one of: {', '.join(accounts)}" if accounts[1:] else ""
    lines = [
        "# The settings of this site, found by `make site`. slurm/site.env.example shows what else can be set here.",
        f"ACCOUNT={account}{others}",
        f"PARTITION={shlex.quote(with_gpus.name)} # {with_gpus.gpus or 'no GPUs'}, at most {with_gpus.limit}",
        f"CPU_PARTITION={shlex.quote(for_cpus.name)} # at most {for_cpus.limit}",
    ]
    return "\n".join(lines) + "\n"
