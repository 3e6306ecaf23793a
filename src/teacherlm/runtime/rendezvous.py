"""How the processes of one run meet, and what they tell one another.

torch's rendezvous has no password, and its broadcasts of objects are pickles, which run code when they are read. So on
one machine nothing listens but on the loopback interface, and objects are sent as JSON.
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
"""torch's variable: "True" lets every process be a client of the store at MASTER_ADDR, also the first one."""
LISTENS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables of gloo and NCCL: the network interface that they listen on."""

stores: list[dist.TCPStore] = []
"""The store of the first process; it is there as long as the process."""


def stay_on_this_machine() -> None:
    """Where all processes of a run are on one machine, let them listen on the loopback interface only.

    It is called before torch.distributed begins, with MASTER_ADDR, MASTER_PORT and RANK set. A MASTER_ADDR that is no
    loopback address means several machines: then nothing is changed. Left alone, torch's store listens on all
    interfaces, whatever MASTER_ADDR says; so the first process makes it, on a socket of its own.

    Raises:
        UserError: the port is taken.
    """
    if not is_loopback(os.environ["MASTER_ADDR"]):
        return
    for name in LISTENS:
        os.environ.setdefault(name, "lo")
    if os.environ.get(STORE_IS_THERE) == "True":  # of torchrun
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
    """What the first process gives, to all of them; as JSON has it (a tuple comes as a list), in the first one too.

    Args:
        value: a JSON value; the other processes' are ignored.
    """
    return json.loads(broadcast_bytes(json.dumps(value).encode() if dist.get_rank() == 0 else b""))


def broadcast_bytes(data: bytes) -> bytes:
    """The bytes that the first process gives, to all of them."""
    length = torch.tensor([len(data)], device=device())
    dist.broadcast(length, src=0)
    buffer = tensor_of(data) if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.uint8, device=device())
    dist.broadcast(buffer, src=0)
    return bytes_of(buffer)


def gather(value: Any) -> list[Any]:
    """What every process gives, to all of them in the order of the ranks; JSON values."""
    mine = json.dumps(value).encode()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device()) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(mine)], device=device()))
    longest = int(max(lengths))
    padded = [torch.empty(longest, dtype=torch.uint8, device=device()) for _ in lengths]
    dist.all_gather(padded, tensor_of(mine.ljust(longest)))  # blanks after a JSON value say nothing
    return [json.loads(bytes_of(one)) for one in padded]


def device() -> torch.device:
    """Where tensors must be for the processes to exchange them: NCCL takes those of a GPU only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device())


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
