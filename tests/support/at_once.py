"""Scripts that really run at once: forks of a process that has the libraries loaded, so that starting takes no time."""

import json
import subprocess
from pathlib import Path

from support.programs import STAGES, warm_python

SERVER = """
import io, json, os, runpy, signal, sys, time
os.nice(10)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import datasets
import teacherlm.dataset.main, teacherlm.enhance.main, teacherlm.enhance.merge, teacherlm.finetune.main
import teacherlm.runtime.generation.transformers_engine, teacherlm.scoring.main, teacherlm.scoring.evaluator
from teacherlm.finetune import arguments, checkpoints, dev, interrupts, samples, student, trainer, watching
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

def start(words, delay, output, encoding):
    child = os.fork()
    if child:
        return child
    sys.stdin.close()
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding=encoding, errors="strict", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding=encoding, errors="strict", line_buffering=True)
    time.sleep(delay)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(99)

for line in sys.stdin:
    asked = json.loads(line)
    children = [start(*one) for one in asked["runs"]]
    if asked["kill"]:
        number, delay = asked["kill"]
        time.sleep(delay)
        os.kill(children[number], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), file=answers, flush=True)
"""
"""A server program: for each line with runs to start, it prints their exit codes."""


class AtOnce:
    """Runs several stages' scripts at once, each in a process of its own."""

    def __init__(self, place: Path):
        self.place = place

    def __enter__(self) -> "AtOnce":
        command = [warm_python(), "-c", SERVER]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=self.place)
        return self

    def run(
        self,
        *commands: list[object],
        delays: list[float] | None = None,
        kill: tuple[int, float] | None = None,
        encoding: str = "utf-8",
    ) -> tuple[list[int], list[str]]:
        """Run commands, [stage, word, ...] each, to their ends, and return their exit codes and outputs.

        Args:
            delays: for each command, the seconds from the common start to its own start.
            kill: (index of a command, seconds from the common start): the time at which it gets a SIGKILL.
            encoding: the encoding of their output, as in PYTHONIOENCODING.
        """
        outputs = [self.place / f"output-{number}" for number in range(len(commands))]
        words = [[str(STAGES[stage]), *map(str, more)] for stage, *more in commands]
        starts = delays or [0.0] * len(commands)
        runs = [(*run, encoding) for run in zip(words, starts, map(str, outputs))]
        self.process.stdin.write(json.dumps({"runs": runs, "kill": kill}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline()), [path.read_text() for path in outputs]

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()
