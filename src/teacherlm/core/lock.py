"""Locks of outputs: a process that writes an output holds a lock beside it, and a second process waits for the first.

A stage that has a manifest takes the lock through its StageRun (stage_run.py). All other code uses `one_writer`:

    with one_writer(output):
        if output.exists():  # checked while the lock is held: the other process may have done the work
            return
        work, write the output

The lock is a POSIX record lock (fcntl) on the hidden file `.NAME.lock` beside the output. Such locks work between the
nodes of a cluster on NFS and on Lustre (mounted with `flock`), and the kernel frees them when their process ends for
any reason. The file says who holds the lock. Readers take no lock, because an output appears complete (files.py).

A process removes the lock's file before it frees the lock. So a process that gets a lock checks that the file which it
has locked still has that name, and tries again if it does not.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_object
from teacherlm.core.manifests import timestamp
from teacherlm.core.opening import open_unlinked
from teacherlm.core.outputs import through_links
from teacherlm.core.redaction import redacted_command
from teacherlm.core.terminal import printable

NOT_SUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
held: dict[Path, "OutputLock"] = {}
"""Lock file -> lock, for the locks that this process holds. The kernel grants a process its own lock a second time."""
os.register_at_fork(after_in_child=held.clear)  # a forked child holds none of its parent's locks


@contextlib.contextmanager
def one_writer(*outputs: Path) -> Iterator[None]:
    """Be the only process that writes these outputs (files or folders) until the block ends.

    Waits for other processes, and prints once who holds the lock. All processes take locks in the order of their paths,
    so no two of them wait for each other. A process may take a lock that it already holds.

    Raises:
        UserError: the file system has no locks.
    """
    with contextlib.ExitStack() as taken:
        for _, output in sorted({lock_file(output): output for output in outputs}.items()):
            lock = OutputLock(output)
            lock.acquire()
            taken.callback(lock.release)
        yield


@contextlib.contextmanager
def if_free(output: Path) -> Iterator[bool]:
    """Like `one_writer` for one output, but without waiting. It yields whether this process has the lock."""
    lock = OutputLock(output)
    taken = lock.acquire(wait=False)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


def lock_file(output: Path) -> Path:
    """The file that is locked. If `output` is a symbolic link, the file is beside the link's target.

    Raises:
        UserError: the link leads nowhere.
    """
    target = Path(os.path.realpath(through_links(output)))
    return target.with_name(f".{target.name}.lock")


def lock_descriptor(file: int, path: Path, wait: bool = False) -> bool:
    """Lock an open file until the process ends or closes any descriptor of that file; return whether it was free.

    Raises:
        UserError: the file system of `path` has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise UserError(
                f"{path}: this file system has no file locks ({error.strerror}), so two processes could write one "
                "output; mount it with locks (Lustre: -o flock), or choose another output folder"
            ) from error
        if error.errno == errno.ESTALE:  # another node's process removed the file; `is_current` notices that
            return True
        if wait or error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


class OutputLock:
    """The lock of one output. `one_writer` waits for it; `acquire` can also return without waiting.

    Args:
        output: a file or folder, which need not exist.
    """

    def __init__(self, output: Path):
        self.output, self.path = output, lock_file(output)
        self.files: list[int] = []

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; return whether this process now has it. With `wait`, that is always true.

        Raises:
            UserError: the file system has no locks, or the lock's file is a link.
        """
        if self.path in held:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        said = False
        while True:
            file = open_unlinked(self.path)
            self.files = [file]
            try:
                taken = lock_descriptor(file, self.path)
                if not taken and not wait:
                    self.close()
                    return False
                if not taken:
                    if not said:
                        print(f"waiting for {self.output}, {self.holder()}", flush=True)
                        said = True
                    lock_descriptor(file, self.path, wait=True)
                if self.is_current(file):
                    break
            except BaseException:
                self.close()
                raise
            self.close()
        held[self.path] = self
        self.sign(file)
        return True

    def is_current(self, file: int) -> bool:
        """Whether the file that was opened still has the lock's name.

        The name is opened again because NFS then contacts its server, while it may answer `stat` from a cache. The new
        descriptor stays open too: closing any descriptor of a file frees the process's locks on that file.
        """
        try:
            self.files.append(os.open(self.path, os.O_RDWR | os.O_NOFOLLOW))
            return os.path.samestat(os.fstat(file), os.fstat(self.files[-1]))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def sign(self, file: int) -> None:
        """Write into the file who holds the lock. If the disk is full, the file stays empty."""
        command = [Path(sys.argv[0]).name, *redacted_command(sys.argv[1:])]
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": timestamp(time.time()), "command": command}
        with contextlib.suppress(OSError):  # the file belongs to another user
            os.fchmod(file, 0o600)  # only this user may read the command
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(who).encode(), 0)
            os.fsync(file)

    def holder(self) -> str:
        """A text that says who holds the lock, read from its file."""
        for _ in range(20):  # the file is empty for an instant after the lock is taken
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                who = load_object(self.path)
                words = f"held by {who['host']} pid {who['pid']} since {who['since']} ({' '.join(who['command'])})"
                return printable(words)
            time.sleep(0.05)
        return "held by another process"

    def release(self) -> None:
        """Free the lock if this object took it."""
        if held.get(self.path) is self:
            with contextlib.suppress(OSError):  # for example, the folder was removed
                self.path.unlink()
            del held[self.path]
            self.close()

    def close(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []
