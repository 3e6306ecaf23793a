"""One writer: whoever writes an output holds a lock beside it, and a second process waits until the first has ended.

A stage that has a manifest takes the lock through its StageRun (stage_run.py); whoever else writes uses `one_writer`:

    with one_writer(output):
        if output.exists():  # asked within the lock: the process that was waited for may have done the work
            return
        work, write the output

The lock is a POSIX record lock (fcntl) on the hidden file `.NAME.lock` beside the output. Such locks hold between the
nodes of a cluster on NFS and on Lustre (mounted with `flock`), and the kernel frees them when their process ends,
however it ends. The file says who holds the lock. Readers take no lock: what they read appears whole (files.py).

Whoever frees a lock removes its file first. So a process that gets a lock checks that the file which it has locked is
still the one of that name, and begins again when it is not.
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
"""Lock file -> the lock, of those that this process holds: the kernel does not tell a process from itself."""
os.register_at_fork(after_in_child=held.clear)  # a forked child holds none of its parent's locks


@contextlib.contextmanager
def one_writer(*outputs: Path) -> Iterator[None]:
    """Be the only process that writes these outputs, files or folders, for the length of the block.

    Waits for other processes, and prints once who holds the lock. All processes take locks in the order of the paths,
    so that no two of them wait for each other. A process may take a lock that it holds already.

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
    """Like `one_writer` of one output, but without waiting: yields whether this process has the lock."""
    lock = OutputLock(output)
    taken = lock.acquire(wait=False)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


def lock_file(output: Path) -> Path:
    """The file that is locked: beside the output itself, also where `output` is a symbolic link to it.

    Raises:
        UserError: the link leads nowhere.
    """
    target = Path(os.path.realpath(through_links(output)))
    return target.with_name(f".{target.name}.lock")


def lock_descriptor(file: int, path: Path, wait: bool = False) -> bool:
    """Lock an open file until the process ends or closes any of its descriptors of it; returns whether it was free.

    Raises:
        UserError: the file system of `path` has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise UserError(
                f"{path}: this file system has no file locks ({error.strerror}), without which two processes could "
                "write one output; mount it with locks (Lustre: -o flock), or choose another output folder"
            ) from error
        if error.errno == errno.ESTALE:  # removed by another node's process; `is_current` finds that
            return True
        if wait or error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


class OutputLock:
    """The lock of one output. `one_writer` takes it and waits; this is for those that must not block.

    Args:
        output: a file or folder, which need not be there.
    """

    def __init__(self, output: Path):
        self.output, self.path = output, lock_file(output)
        self.files: list[int] = []

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; returns whether this process has it now, which is always so after waiting.

        Raises:
            UserError: the file system has no locks, or a link stands where the lock's file is to be.
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
        """Whether the file that was opened is still the one of that name.

        The name is opened once more, as NFS asks its server then, and would answer `stat` from a cache. That descriptor
        stays open too: closing one of a file would free the process's locks of that file.
        """
        try:
            self.files.append(os.open(self.path, os.O_RDWR | os.O_NOFOLLOW))
            return os.path.samestat(os.fstat(file), os.fstat(self.files[-1]))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def sign(self, file: int) -> None:
        """Write into the file who holds the lock; on a full disk it stays unsaid."""
        command = [Path(sys.argv[0]).name, *redacted_command(sys.argv[1:])]
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": timestamp(time.time()), "command": command}
        with contextlib.suppress(OSError):  # it is another user's
            os.fchmod(file, 0o600)  # a command is for its own user to read
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(who).encode(), 0)
            os.fsync(file)

    def holder(self) -> str:
        """Who holds the lock, in words, as its file says."""
        for _ in range(20):  # the file is empty for an instant after the lock was taken
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                who = load_object(self.path)
                words = f"held by {who['host']} pid {who['pid']} since {who['since']} ({' '.join(who['command'])})"
                return printable(words)
            time.sleep(0.05)
        return "held by another process"

    def release(self) -> None:
        """Free the lock, if this process and this object took it."""
        if held.get(self.path) is self:
            with contextlib.suppress(OSError):  # its folder was removed, for example
                self.path.unlink()
            del held[self.path]
            self.close()

    def close(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []
