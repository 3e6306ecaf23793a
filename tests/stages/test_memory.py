"""What a process keeps of the memory that it freed, and gives back."""

import subprocess
import sys

from support.programs import ROOT

KEEPS = """
from teacherlm.runtime.memory import give_back_freed_memory, keep_freed_memory

def held():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

keep_freed_memory()
blocks = [bytearray(b"1" * 2**23) for _ in range(40)]
full = held()
del blocks[::2]
kept = held()
give_back_freed_memory()
print(full - kept, kept - held())
"""


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    """160 MiB of gaps between blocks that are in use."""
    done = subprocess.run([sys.executable, "-c", KEEPS], cwd=ROOT, capture_output=True, text=True, check=True)
    freed_at_once, given_back = map(int, done.stdout.split())
    assert freed_at_once < 20 and given_back > 140
