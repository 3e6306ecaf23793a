"""Show the partitions with their nodes and limits, and write slurm/site.env from them if there is none."""

import getpass
import os
import shlex
from pathlib import Path

from teacherlm.chain.controller import as_user_errors, ask, seconds_of
from teacherlm.chain.graph import CPU_TIME
from teacherlm.chain.partitions import Partition, read_partitions, seconds_requested
from teacherlm.core import tables
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.places import ROOT

SITE = ROOT / "slurm" / "site.env"
GPU_ARGS = ("ENHANCE_ARGS", "FINETUNE_ARGS", "EVALUATE_ARGS")
GPU_TIME = "24:00:00"
"""The longest time that a model's YAML asks for."""


def main() -> None:
    parser = Parser(description=__doc__, epilog="example: teacherlm site --output slurm/site.env")
    parser.add_argument("--output", type=Path, help="the file to write (default: $SITE, or slurm/site.env)")
    file = parser.parse_args().output or Path(os.environ.get("SITE") or SITE)
    partitions = partitions_with_most_gpus()
    rows = [("partition", "nodes", "GPUs per node", "CPUs", "memory (MB)", "time limit")]
    rows += [(p.name + "*" * p.default, p.nodes, p.gpus or "-", p.cpus, p.memory, p.limit) for p in partitions]
    print(tables.table(rows))
    if file.exists():
        print(f"\n{file} exists already and stays as it is; remove it first to write it again")
        return
    text = site_env(partitions, read_accounts())
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as opened:
            opened.write(text)  # only this user can read it, because people put keys there
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    print(f"\n{file}:\n\n{text}", end="")


def partitions_with_most_gpus() -> list[Partition]:
    """The partitions, each with the kind of its nodes that has the most GPUs.

    Raises:
        UserError: Slurm does not answer.
    """
    found: dict[str, Partition] = {}
    with as_user_errors("sinfo"):
        for one in read_partitions():
            if one.name not in found or one.gpus_per_node > found[one.name].gpus_per_node:
                found[one.name] = one
    if not found:
        raise UserError("sinfo shows no partition")
    return list(found.values())


def read_accounts() -> list[str]:
    """The accounts that the user may charge. There are none on a site without accounting."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}"]
    try:
        return sorted({line.strip() for line in ask(*command, "format=account") if line.strip()})
    except UserError:
        return []


def site_env(partitions: list[Partition], accounts: list[str]) -> str:
    with_gpus = max(partitions, key=lambda partition: (partition.gpus_per_node, partition.default))
    without = [partition for partition in partitions if not partition.gpus_per_node] or [with_gpus]
    for_cpus = max(without, key=lambda partition: partition.default)
    account = shlex.quote(accounts[0]) if accounts else ""
    others = f" # one of: {', '.join(accounts)}" if accounts[1:] else ""
    lines = [
        "# The settings of this site, found by `make site`. slurm/site.env.example shows what else can be set here.",
        f"ACCOUNT={account}{others}",
        f"PARTITION={shlex.quote(with_gpus.name)} # {with_gpus.gpus or 'no GPUs'}, at most {with_gpus.limit}",
        f"CPU_PARTITION={shlex.quote(for_cpus.name)} # at most {for_cpus.limit}",
    ]
    for names, partition, usual in ((("CPU_ARGS",), for_cpus, CPU_TIME), (GPU_ARGS, with_gpus, GPU_TIME)):
        if seconds_of(partition.limit) < seconds_requested(usual):
            lines.append(f"# Some stages ask for up to {usual}, which is more than {partition.name} allows:")
            lines += [f"{name}=(--time={partition.limit})" for name in names]
    return "\n".join(lines) + "\n"
