"""The program behind run_hf.sh: score a model in one process, or in one process per GPU, which split the questions.

This module needs only the standard library; see runtime/launcher.py.
"""

import os
import sys

from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import Command, processes_here, program, run_side_by_side

USAGE = """\
usage: teacherlm evaluate-shards MODEL TASK[,TASK ...] [FLAG ...]      (the same as run_hf.sh)
       FLAG ... as teacherlm evaluate --help lists them; NUM_GPUS is the number of processes

example:
  teacherlm evaluate-shards smollm2-135m creak --limit 100
"""


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(sys.argv) < 3:
        raise UserError(f"MODEL and TASK were expected, found {len(sys.argv) - 1} arguments; see run_hf.sh --help")
    model, tasks, *more = sys.argv[1:]
    processes = processes_here()
    words = [*program("evaluate"), "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", tasks]
    if processes <= 1:
        os.execvp(words[0], [*words, *more])
    # The process that ends last writes the results. If one fails, all are terminated.
    shards = [["--shard", f"{index}/{processes}", "--device", str(index)] for index in range(processes)]
    return run_side_by_side([Command([*words, *shard, *more]) for shard in shards])
