"""Write slurm/site.env from what Slurm says of this site (partitions, GPUs a node, limits, accounts), and show it."""

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
    """A partition, as sinfo describes the nodes in it that are alike."""

    name: str
    default: bool
    gpus: str
    cpus: str
    memory: str
    limit: str
    nodes: str


def main() -> None:
    parser = Parser(description=__doc__, epilog="example: teacherlm site --output slurm/site.env")
    parser.add_argument("--output", type=Path, default=SITE, help="(default: site.env beside this script)")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} is there already; remove it to have it written anew")
    partitions = read_partitions()
    rows = [("partition", "nodes", "GPUs a node", "CPUs", "memory (MB)", "time limit")]
    rows += [(p.name + "*" * p.default, p.nodes, p.gpus or "-", p.cpus, p.memory, p.limit) for p in partitions]
    print(tables.table(rows))
    text = site_env(partitions, read_accounts())
    with open(os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)  # only for this user: people put keys there
    print(f"\n{args.output}:\n\n{text}", end="")


def read_partitions() -> list[Partition]:
    """Of each partition one kind of nodes, those with the most GPUs."""
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
    """GPUs a node: of `gpu:a100:4`, 4."""
    last = partition.gpus.rpartition(":")[2]
    return int(last) if last.isdigit() else 0


def read_accounts() -> list[str]:
    """Accounts that the user may charge; none where the site keeps no account of jobs."""
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
    others = f" # of: {', '.join(accounts)}" if accounts[1:] else ""
    lines = [
        "# This site, as `make site` found it; slurm/site.env.example says what else can stand here.",
        f"ACCOUNT={account}{others}",
        f"PARTITION={shlex.quote(with_gpus.name)} # {with_gpus.gpus or 'no GPUs'}, at most {with_gpus.limit}",
        f"CPU_PARTITION={shlex.quote(for_cpus.name)} # at most {for_cpus.limit}",
    ]
    return "\n".join(lines) + "\n"
