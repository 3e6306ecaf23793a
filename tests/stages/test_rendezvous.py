"""How the processes of a run meet: on one machine nothing listens on the network, and objects are not pickled."""

import json
import os
import socket
import subprocess
import textwrap

import pytest
from support.own_code import source_files
from support.programs import warm_python

from teacherlm.core.errors import UserError
from teacherlm.runtime import rendezvous
from teacherlm.runtime.launcher import free_port

MEETING = """
import json, os, pickle, sys
import psutil, torch.distributed as dist
if {how!r} == "finetune":
    from teacherlm.finetune.processes import join_processes
    join_processes()
    dist.init_process_group("gloo")
else:
    from teacherlm.atlas import workers
    workers.join_workers(-1)
from teacherlm.runtime.rendezvous import broadcast, broadcast_bytes, gather

def refuse(*_, **__):
    raise AssertionError("an object was pickled")

pickle.loads = pickle.dumps = pickle.Unpickler = pickle.Pickler = refuse
rank = dist.get_rank()
told = broadcast({{"from": rank, "name": "\\udcff", "none": [None, 1.5, 2**60], "pair": (1, 2)}})
data = broadcast_bytes(b"\\x00\\xff" * 1000 if rank == 0 else b"")
everyone = gather(["x" * 100 * rank, rank])
dist.barrier()
sockets = psutil.Process().net_connections("tcp")
listening = [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
dist.barrier()
print(json.dumps([told, data.hex()[:8], len(data), everyone, listening]))
sys.stdout.flush()
os._exit(0)
"""


def meet(how: str, **environment: str) -> list[subprocess.CompletedProcess]:
    """Two processes that meet, and report the values that they received and the addresses on which they listen."""
    code = MEETING.format(how=how)
    base = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": str(free_port("127.0.0.1")), **environment}
    running = [
        subprocess.Popen(
            [warm_python(), "-c", textwrap.dedent(code)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=-1,
            stderr=-1,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, ended, strict=True)
    ]


@pytest.mark.parametrize("how", ["finetune", "atlas"])
def test_on_one_machine_nothing_listens_on_the_network(how: str) -> None:
    for done in meet(how, MASTER_ADDR="localhost" if how == "atlas" else "127.0.0.1"):
        assert done.returncode == 0, done.stderr
        told, begin, length, everyone, listening = json.loads(done.stdout)
        assert told == {"from": 0, "name": "\udcff", "none": [None, 1.5, 2**60], "pair": [1, 2]}
        assert (begin, length) == ("00ff00ff", 2000)
        assert everyone == [["", 0], ["x" * 100, 1]]
        assert listening
        assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_port_that_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("RANK", "0")
        for name in (rendezvous.STORE_IS_THERE, *rendezvous.LISTENS):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv(name, "")  # put back afterwards, whatever the function sets
            monkeypatch.delenv(name)
        with pytest.raises(UserError, match="MASTER_PORT: the processes cannot meet at port"):
            rendezvous.stay_on_this_machine()


def test_no_part_of_the_project_sends_pickles() -> None:
    for file in source_files():
        text = file.read_text(encoding="utf-8")
        for call in ("broadcast_object_list", "all_gather_object", "gather_object(", "scatter_object"):
            assert call not in text, f"{file}: {call}"
