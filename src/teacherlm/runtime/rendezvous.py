"""How the processes of one run meet and exchange values.

torch's rendezvous has no password, and it broadcasts objects as pickles, which run code when they are read. So on a
single machine everything listens on the loopback interface only, and objects are sent as JSON.
"""

import ipaddress
import json
import os
import socket
from typing import Any

import torch
import torch.distributed as dist

from teacherlm.core.errors import UserError

LOOPBACK = "127.0.0.1"
STORE_IS_THERE = "TORCHELASTIC_USE_AGENT_STORE"
"""torch's environment variable: with "True", all ranks, including rank 0, are clients of the store at MASTER_ADDR."""
LISTENS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that name the network interface on which gloo and NCCL listen."""

stores: list[dist.TCPStore] = []
"""Holds the store of rank 0, so that it lives as long as the process."""


def stay_on_this_machine() -> None:
    """If all processes of a run are on one machine, let them listen on the loopback interface only.

    Call this before torch.distributed begins, with MASTER_ADDR, MASTER_PORT and RANK set. If MASTER_ADDR is not a
    loopback address, the run has several machines, and nothing is changed. By default torch's store listens on all
    interfaces, whatever MASTER_ADDR says, so rank 0 creates the store here, with a socket that it opened itself.

    Raises:
        UserError: the port is taken or invalid.
    """
    if not is_loopback(os.environ["MASTER_ADDR"]):
        return
    for name in LISTENS:
        os.environ.setdefault(name, "lo")
    if os.environ.get(STORE_IS_THERE) == "True":  # torchrun has created the store
        return
    os.environ["MASTER_ADDR"], os.environ[STORE_IS_THERE] = LOOPBACK, "True"
    if os.environ["RANK"] != "0":
        return
    port = os.environ["MASTER_PORT"]
    try:
        listener = socket.create_server((LOOPBACK, int(port)))
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"MASTER_PORT: the processes cannot meet at port {port} of this machine ({error}); leave MASTER_PORT out, "
            "or set it to a port that is free"
        ) from error
    stores.append(
        dist.TCPStore(LOOPBACK, int(port), is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    )


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def broadcast(value: Any) -> Any:
    """Return rank 0's value in all ranks. It passes through JSON in rank 0 too, so a tuple becomes a list.

    Args:
        value: a JSON value; the values of the other ranks are ignored.
    """
    return json.loads(broadcast_bytes(json.dumps(value).encode() if dist.get_rank() == 0 else b""))


def broadcast_bytes(data: bytes) -> bytes:
    """Return rank 0's bytes in all ranks."""
    length = torch.tensor([len(data)], device=device())
    dist.broadcast(length, src=0)
    buffer = tensor_of(data) if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.uint8, device=device())
    dist.broadcast(buffer, src=0)
    return bytes_of(buffer)


def gather(value: Any) -> list[Any]:
    """The JSON values of all ranks, in the order of the ranks."""
    mine = json.dumps(value).encode()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device()) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(mine)], device=device()))
    longest = int(max(lengths))
    padded = [torch.empty(longest, dtype=torch.uint8, device=device()) for _ in lengths]
    dist.all_gather(padded, tensor_of(mine.ljust(longest)))  # JSON allows trailing spaces
    return [json.loads(bytes_of(one)) for one in padded]


def device() -> torch.device:
    """The device of tensors that processes exchange. NCCL accepts only tensors on a GPU."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device())


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
