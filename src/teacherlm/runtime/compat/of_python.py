"""The private interfaces of Python (3.11 to 3.14) that this project uses."""

import atexit
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

DATA_CODES = {
    code[0]
    for code in (
        *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.MEMOIZE),
        *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
        *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
        *(pickle.FLOAT, pickle.BINFLOAT, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
        *(pickle.GLOBAL, pickle.STACK_GLOBAL),  # find_class refuses these and names what they ask for
    )
}
"""Instructions of a pickle that `PlainUnpickler` accepts."""


class PlainUnpickler(pickle._Unpickler):
    """An unpickler for plain data only: lists, dictionaries, texts, numbers, and references to earlier values.

    It is based on the standard library's unpickler in Python, which keeps references in a dictionary. The public
    unpickler, written in C, keeps references in a list and extends the list to the highest reference number. So a
    pickle of 9 bytes can make it allocate 64 GB.
    """

    dispatch: ClassVar = {code: read for code, read in pickle._Unpickler.dispatch.items() if code in DATA_CODES}

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(
                f"instruction {error}; only texts in lists and dictionaries are read"
            ) from error

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only texts in lists and dictionaries are read")


@contextmanager
def exit_code_kept() -> Iterator[None]:
    """Keep the exit status of one of several processes: it ends without tearing the interpreter down.

    A gloo thread that frees a tensor while the interpreter is torn down aborts the process (PyTorch pull request
    179291). finetune.sh would then see the abort instead of status 75 ("interrupted, go on later"). Functions that were
    registered with `atexit` are still called; the public interface can register and unregister them, but not call them.
    """
    try:
        yield
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
