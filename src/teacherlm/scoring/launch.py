"""run_hf.sh: score a model in one process, or in several that share the questions, one for each GPU.

Only the standard library is needed here; see runtime/launcher.py.
"""

import os
import sys

from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import Command, processes_here, program, run_side_by_side


def main() -> int:
    if len(sys.argv) < 3:
        raise UserError("MODEL, TASK and flags were expected, as run_hf.sh takes them")
    model, tasks, *more = sys.argv[1:]
    processes = processes_here()
    words = [*program("evaluate"), "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", tasks]
    if processes <= 1:
        os.execvp(words[0], [*words, *more])
    # The last one to end writes the results; a failure of one ends all.
    shares = [["--shard", f"{share}/{processes}", "--device", str(share)] for share in range(processes)]
    return run_side_by_side([Command([*words, *share, *more]) for share in shares])
