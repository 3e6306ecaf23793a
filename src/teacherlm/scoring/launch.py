"""run_hf.sh: score a model in one process, or in several that share the questions, one for each GPU.

Only the standard library is needed here; see runtime/launcher.py.
"""

import os
import sys

from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import Command, processes_here, program, run_side_by_side

USAGE = """\
usage: teacherlm evaluate-shares MODEL TASK[,TASK ...] [FLAG ...]      (the same as run_hf.sh)
       FLAG ... as teacherlm evaluate --help lists them; NUM_GPUS is the number of processes

example:
  teacherlm evaluate-shares smollm2-135m creak --limit 100
"""


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
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
