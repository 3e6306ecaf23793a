"""A Python that has the libraries loaded: each program is a fork of one process, so that starting takes no time.

`WarmPython` starts that process and makes an executable that takes the arguments of `python`, for tests of scripts that
start many programs (PYTHON=...). Each program is a separate process with the environment, the folder, the files and the
address limit (`ulimit -v`) of its caller. The executable forwards signals to it, and `kill` forwards SIGKILL. Variables
that a library reads when it is imported (HF_HOME, OMP_NUM_THREADS) are those of the tests. A test that changes such a
variable needs `plain_python` of programs.py, or `sys.executable`.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import os
import pickle
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "torch.distributed", "torch.distributed.run", "safetensors.torch", "datasets", "accelerate", "peft"),
    *("transformers", "transformers.generation", "transformers.integrations.deepspeed", "transformers.trainer"),
    *("transformers.models.llama.modeling_llama", "transformers.models.t5.modeling_t5", "lm_eval.evaluator"),
    *("transformers.models.bert.modeling_bert", "transformers.models.bloom.modeling_bloom", "scipy.stats"),
    *("lm_eval.models.huggingface", "jinja2", "yaml", "deepspeed", "pydantic", "jsonlines", "py3langid"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imported when ATLAS shards its optimizer; it loads the compiler
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "wandb", "wandb.sdk.launch"),
)
NEUTRAL = (
    *("numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "fsspec", "httpx", "aiohttp", "requests", "filelock"),
    *("pydantic", "yaml", "jsonlines", "jinja2", "dill", "multiprocess", "xxhash"),
)
"""Libraries that read no variable of the hub when they are imported. `datasets` takes most of its time for these."""
OWN = ("chain", "dataset", "enhance", "finetune", "report", "scoring")
"""Rooms of this project whose programs import the same forty modules, a tenth of a second for each start."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
KILL = signal.SIGRTMAX
"""This signal is forwarded as SIGKILL. A SIGKILL to the executable itself would reach the program a little later.

It is blocked in the process of the tests, and thereby in the executable until it can forward it.
"""
CLIENT = """#!{python} -IS
import os, resource, signal, socket, sys
place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
place.connect({address!r})
limits = " ".join(map(str, resource.getrlimit(resource.RLIMIT_AS)))
words = [sys.argv[0], os.getcwd(), limits, str(len(sys.argv)), *sys.argv[1:]]
words += [f"{{k}}={{v}}" for k, v in os.environ.items()]
text = b"\\0".join(os.fsencode(word) for word in words)
socket.send_fds(place, [len(text).to_bytes(8, "little")], [0, 1, 2])
place.sendall(text)
child = int.from_bytes(place.recv(8, socket.MSG_WAITALL), "little")
def hand_on(number, _):
    try:
        os.kill(child, signal.SIGKILL if number == {kill} else number)
    except ProcessLookupError:
        pass
for number in ({kill}, *{forwarded!r}):
    signal.signal(number, hand_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [{kill}])
for stream in (0, 1, 2):
    os.close(stream)  # the child's own end of a pipe has to be the last one
status = place.recv(8, socket.MSG_WAITALL)
code = int.from_bytes(status, "little", signed=True) if status else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class WarmPython:
    """The process with the libraries, as a context manager.

    Args:
        libraries: the modules that it imports.

    Attributes:
        executable: the executable that takes the arguments of `python`.
    """

    def __init__(self, libraries: tuple[str, ...] = LIBRARIES):
        self.libraries = libraries

    def __enter__(self) -> "WarmPython":
        take_over()
        self.folder = tempfile.TemporaryDirectory(prefix="warm-")  # pytest's folders are too long for a socket's name
        address = str(Path(self.folder.name) / "socket")
        self.executable = Path(self.folder.name) / "python"
        numbers = {"forwarded": tuple(map(int, FORWARDED)), "kill": int(KILL)}
        text = CLIENT.format(python=sys.executable, address=address, **numbers)
        self.executable.write_text(text)
        self.executable.chmod(0o755)
        self.server = subprocess.Popen([sys.executable, __file__, address, *self.libraries], stdin=-1, stdout=-1)
        self.server.stdout.readline()  # it listens
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()
        self.folder.cleanup()


def take_over() -> None:
    """Let this process start the executable, which has to begin with KILL blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [KILL])


def kill(started: subprocess.Popen) -> int:
    """Send SIGKILL to the program that the executable runs, and return its status when it has ended."""
    started.send_signal(KILL)
    return started.wait()


def serve(listening: socket.socket) -> list[str] | None:
    """Fork a process for each caller until stdin ends. Returns the arguments of `python` in each fork, else None."""
    watched = selectors.DefaultSelector()
    watched.register(listening, selectors.EVENT_READ)
    watched.register(sys.stdin, selectors.EVENT_READ)
    children: dict[socket.socket, tuple[int, int]] = {}  # maps each caller to the child's process id and its pidfd
    while True:
        for key, _ in watched.select():
            if key.fileobj is sys.stdin:
                for child, _ in children.values():
                    os.kill(child, signal.SIGKILL)
                return None
            if key.fileobj is listening:
                caller, _ = listening.accept()
                begun = receive(caller)
                if begun is None:
                    caller.close()
                    continue
                words, streams = begun
                child = os.fork()
                if not child:
                    watched.close()
                    for other in (listening, caller, *children):
                        other.close()
                    become(words, streams)
                    return words[4 : 3 + int(words[3])]
                for stream in streams:
                    os.close(stream)
                with contextlib.suppress(OSError):  # the caller is gone
                    caller.sendall(child.to_bytes(8, "little"))
                children[caller] = (child, os.pidfd_open(child))
                watched.register(caller, selectors.EVENT_READ, caller)
                watched.register(children[caller][1], selectors.EVENT_READ, caller)
            else:
                caller = key.data
                child, descriptor = children.pop(caller)
                if key.fileobj is caller:  # it was killed
                    os.kill(child, signal.SIGKILL)
                watched.unregister(caller)
                watched.unregister(descriptor)
                _, status = os.waitpid(child, 0)
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    caller.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "little", signed=True))
                caller.close()
                break  # other keys of this round may be this child's


def receive(caller: socket.socket) -> tuple[list[str], list[int]] | None:
    """The caller's data (name, folder, limits, number of arguments, arguments, environment) and its three files."""
    head, streams, _, _ = socket.recv_fds(caller, 8, 3)
    size, text = int.from_bytes(head, "little"), b""
    while len(text) < size:
        more = caller.recv(size - len(text))
        if not more:
            return None
        text += more
    return [os.fsdecode(word) for word in text.split(b"\0")], streams


def become(words: list[str], streams: list[int]) -> None:
    """Take over a caller's files, folder, limits and environment."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    modes = ("r", "w", "w")
    for name, number, mode in zip(("stdin", "stdout", "stderr"), range(3), modes):
        made: Any = open(
            number, mode, encoding="utf-8", errors="surrogateescape" if mode == "r" else None, closefd=False
        )
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    os.chdir(words[1])
    soft, hard = map(int, words[2].split())
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    os.environ.clear()
    os.environ.update(word.partition("=")[::2] for word in words[3 + int(words[3]) :])
    sys.executable = words[0]
    tempfile.tempdir = None  # TMPDIR is read again
    sys.path[0:0] = parts = [part for part in os.environ.get("PYTHONPATH", "").split(":") if part]
    if any(Path(part, "teacherlm").is_dir() for part in parts):  # another version of this project
        for name in [name for name in sys.modules if name.partition(".")[0] == "teacherlm"]:
            del sys.modules[name]
    for number in FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def execute(words: list[str]) -> None:
    """Do what `python` does with these arguments."""
    safe = False
    while words and words[0] in ("-u", "-P", "-I", "-S", "-E"):
        safe |= words.pop(0) in ("-P", "-I")
    if words[:1] == ["-c"]:
        sys.argv = ["-c", *words[2:]]
        sys.path[0:0] = [] if safe else [""]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[:1] == ["-m"]:
        sys.argv = words[1:]
        sys.path[0:0] = [] if safe else [str(Path.cwd())]
        sys.modules.pop(words[1], None)  # otherwise runpy warns that it was imported before
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[:1] == ["-"] or not words:
        sys.argv = ["-", *words[1:]]
        sys.path[0:0] = [] if safe else [""]
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0:0] = [] if safe else [str(Path(words[0]).resolve().parent)]
        runpy.run_path(words[0], run_name="__main__")


def leave_operators() -> None:
    """Let torch keep its operators at a program's end. Deleting each of them takes a tenth of a second in all."""
    delete = sys.modules["torch.library"]._del_library
    for finalizer in list(weakref.finalize._registry):
        if (alive := finalizer.peek()) and alive[1] is delete:
            finalizer.atexit = False


def keep_languages() -> None:
    """Read the model of py3langid once. Decompressing it takes half a second."""
    langid = importlib.import_module("py3langid.langid")
    langid._load_model_file = functools.cache(langid._load_model_file)
    langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def keep_tasks(file: Path) -> None:
    """Let the first process that lists lm-eval's tasks keep the list in a file. It reads 14,000 YAML files."""
    index = importlib.import_module("lm_eval.tasks._index")
    build = index.TaskIndex.build

    def build_once(paths: Any, **kwargs: Any) -> Any:
        paths = list(paths)
        if paths != [Path(index.__file__).parent] or kwargs:
            return build(paths, **kwargs)
        if not file.is_file():
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(pickle.dumps(build(paths)))
            partial.rename(file)
        return pickle.loads(file.read_bytes())

    index.TaskIndex.build = staticmethod(build_once)


def end(words: list[str]) -> None:
    """Execute, and exit as `python` does, but without tearing down the modules."""
    status: Any = 0
    try:
        execute(words)
    except SystemExit as ended:
        status = ended.code
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit((status or 0) & 255)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests
    place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    place.bind(sys.argv[1])
    place.listen(64)
    print("ready: who calls waits for the libraries", flush=True)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for library in sys.argv[2:]:
        importlib.import_module(library)
    if "transformers" in sys.modules:
        sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")  # kept from now on
    for room in OWN:
        importlib.import_module(f"teacherlm.{room}.main")
    if "torch" in sys.modules:
        leave_operators()
    if "py3langid" in sys.modules:
        keep_languages()
    if "lm_eval" in sys.modules:
        keep_tasks(Path(sys.argv[1]).with_name("tasks"))
    inspect.stack()  # looks through all modules; torchrun and pydantic call it, and what it found is kept
    gc.collect()
    gc.freeze()  # a collection would write to, and so copy, all pages that a fork shares with this process
    if (asked := serve(place)) is not None:
        end(asked)
