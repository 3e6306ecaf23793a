"""What this project uses of Python (3.11 to 3.14) without a public interface for it."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def run_exit_functions() -> None:
    """Call what is registered with `atexit`, the last one first.

    The public interface can register and unregister functions, but only the interpreter's own end calls them.
    """
    atexit._run_exitfuncs()


@contextmanager
def exit_code_kept() -> Iterator[None]:
    """End one of several processes with the status that it exits with, without tearing the interpreter down.

    A thread of gloo that frees a tensor while the interpreter is torn down aborts the process (PyTorch pull request
    179291), and finetune.sh would see that in place of 75, "interrupted, go on later".
    """
    try:
        yield
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        run_exit_functions()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)  # type: ignore[arg-type]
