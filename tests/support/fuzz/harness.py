"""Pass damaged files to the code that reads them, in forked children, and report those neither read nor refused.

A subject has a valid example, a function that damages it, and the function with which a stage reads it. A damage
depends only on the subject's name, a seed and a number, so that a fault can be reproduced. The correct outcome is a
result, or a UserError of one short line that names the file. Anything else is a fault: a traceback, a signal, a file
that was written or changed outside of the subject's folders, a program that was started, a connection to another
machine, more memory than MEMORY, more processor time than SECONDS, or control characters on the terminal.
"""

import base64
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.fuzz.mutation import Files, damage_one
from tqdm import tqdm

from teacherlm.core.errors import UserError, disk_error, locale_error, one_line
from teacherlm.core.places import ROOT
from teacherlm.core.terminal import LONGEST

FOUND = Path(__file__).resolve().parent / "found"
"""The folder with damaged files that were once read wrongly: SUBJECT-WORDS.json (see `save_case`)."""

MEMORY = 2**30
"""Maximum number of bytes that a process may use, including libraries."""
ADDRESSES = 2 * 2**30
"""Maximum number of bytes that a child may allocate in addition to those at its start, so that a bomb ends only it."""
SECONDS = 10
"""Maximum processor time for one damaged example."""
PATIENCE = 60
"""Elapsed seconds after which a child is killed."""
BATCH = 200
"""Number of examples that a child reads before another child replaces it."""
OWN = ("cache", "tmp")
"""Folders of a place to which every subject may write."""
VICTIM = {"victim/README": b"nobody may write here\n"}

Case = int | str
"""The number of a damage, -1 for the undamaged example, or the path of a file in FOUND."""


@dataclass(frozen=True)
class Subject:
    """Files to damage, and the code that reads them.

    Attributes:
        name: the name of its module.
        example: a function that writes the valid files into a folder.
        read: a function that reads the files as the stage does. It gets their folder, which is also the current folder.
        damage: a function that damages the files; by default it damages one of them.
        writes: folders of the place to which reading may write.
        at_once: number of children per worker, if they mostly wait.
    """

    name: str
    example: Callable[[Path], None]
    read: Callable[[Path], None]
    damage: Callable[[Files, random.Random], Files] = damage_one
    writes: tuple[str, ...] = ("output",)
    at_once: int = 1


@dataclass
class Fault:
    """What went wrong and where, and the smallest case that shows it, with the bytes of its changed files."""

    what: str
    where: str
    case: Case
    size: int = 0


@dataclass
class Summary:
    """The results for a subject: the number of examples per outcome, the faults, the peak memory and the duration."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------- damaged examples


def damaged(subject: Subject, files: Files, case: Case, seed: int) -> Files:
    if isinstance(case, str):
        return load_case(Path(case), files)
    return files if case < 0 else subject.damage(dict(files), random.Random(f"{subject.name} {seed} {case}"))


def save_case(path: Path, files: Files, before: Files) -> None:
    """Save what a damage changed: texts unchanged, bytes in base 64, and null for a file that it removed."""
    changed: dict[str, Any] = {name: None for name in before.keys() - files.keys()}
    for name in sorted(name for name, content in files.items() if before.get(name) != content):
        try:
            changed[name] = files[name].decode("utf-8")
        except UnicodeDecodeError:
            changed[name] = {"base64": base64.b64encode(files[name]).decode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(changed, indent=1) + "\n", encoding="utf-8")


def load_case(path: Path, files: Files) -> Files:
    files = dict(files)
    for name, content in json.loads(path.read_text(encoding="utf-8")).items():
        if content is None:
            files.pop(name, None)
        else:
            files[name] = content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
    return files


def files_in(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed_folders(place: Path, example: Files) -> list[str]:
    """The folders of a place that have a changed file, so that only their readers need to run. If no file is changed,
    all folders."""
    now = {name: (place / name).read_bytes() for name in example if (place / name).is_file()}
    changed = {name for name, content in example.items() if now.get(name) != content} or set(example)
    return sorted({name.partition("/")[0] for name in changed})


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------- in a child


class Watch:
    """Watches the interpreter's audit events for actions that reading data must never cause."""

    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
    PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")

    def __init__(self, allowed: Sequence[Path]):
        self.allowed = [str(path) for path in allowed]
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & self.WRITING:
            self.require_allowed(event, arguments[0])
        elif event in self.CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                self.require_allowed(event, path)
        elif event in self.PROGRAMS:
            self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and "127.0.0.1" not in repr(arguments[1]):
            self.seen.append(f"{event} {arguments[1]!r}")

    def require_allowed(self, event: str, path: Any) -> None:
        """Check an absolute path. A relative path is in the place, whose files are compared afterwards."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if text.startswith("/") and not text.startswith("/dev/"):
            real = os.path.realpath(text)
            if not any(real == allowed or real.startswith(f"{allowed}/") for allowed in self.allowed):
                self.seen.append(f"{event} {text}")


def child(subject: Subject, files: Files, cases: Sequence[Case], seed: int, place: Path, hub: Path, pipe: int) -> None:
    """Read the cases one after the other, and write a line of JSON to a pipe at the beginning and end of each."""
    log = os.open(place.with_name(f"{place.name}.log"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    faulthandler.enable(log)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = status()["VmSize"] + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.environ |= {"HOME": str(place / "cache"), "TEACHERLM_CACHE": str(place / "cache"), "TMPDIR": str(place / "tmp")}
    writable = [*(place / name for name in (*subject.writes, *OWN)), hub]
    watch = Watch([Path(os.path.realpath(path)) for path in writable])

    def tell(**said: Any) -> None:
        os.write(pipe, json.dumps(said).encode() + b"\n")

    for number, case in enumerate(cases):
        given = damaged(subject, files, case, seed)
        size = sum(len(content) for name, content in given.items() if files.get(name) != content)
        tell(begin=number, size=size)
        shutil.rmtree(place, ignore_errors=True)
        write_files(place, given | VICTIM)
        for name in (*subject.writes, *OWN):
            (place / name).mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        tell(end=number, **read_one(subject, place, given, watch))


def read_one(subject: Subject, place: Path, given: Files, watch: Watch) -> dict[str, Any]:
    """Read one damaged example, and return {"outcome", "what", "where", "peak"}."""
    printed = io.StringIO()
    what = where = ""
    reset_peak()
    most = max(MEMORY, status()["VmHWM"] + MEMORY // 2)  # a test's process may already use more than MEMORY
    watch.seen, watch.on = [], True
    started = time.process_time()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            subject.read(place)
        outcome = "read"
    except SystemExit as error:
        outcome = {0: "read", None: "read", 2: "refused"}.get(error.code, "fault")
        what = where = f"exit status {error.code}" if outcome == "fault" else ""
    except BaseException as error:
        if mistake := mistake_of(error):
            outcome = "refused"
            print(one_line(mistake), file=printed)
        else:
            outcome, where = "fault", place_of(error)
            what = "".join(traceback.format_exception(error))[-3000:]
    seconds = time.process_time() - started
    watch.on = False
    peak = status()["VmHWM"]
    if outcome != "fault":
        if outside := [*watch.seen, *changed_outside(place, given, subject.writes)]:
            what, where = f"outside of what it may write: {outside[:5]}", f"outside {outside[0].split(' ')[0]}"
        elif outcome == "refused" and (wrong := wrong_line(printed.getvalue(), place, given)):
            what, where = f"{wrong}: {printed.getvalue()[-3000:]!r}", f"message {wrong}"
        elif unprintable := [one for one in printed.getvalue() if not one.isprintable() and one not in "\n\t\r"]:
            what, where = f"control characters on the terminal: {unprintable[:5]}", "control characters"
        elif peak > most:
            what, where = f"{peak / 2**20:.0f} MiB in use", "memory"
        elif seconds > SECONDS:
            what, where = f"{seconds:.0f} seconds", "time"
        outcome = "fault" if what else outcome
    return {"outcome": outcome, "what": what, "where": where, "peak": peak}


def mistake_of(error: BaseException) -> UserError | None:
    """The message of an error that `errors.run` treats as a user's mistake, or None."""
    return error if isinstance(error, UserError) else disk_error(error) or locale_error(error)


def wrong_line(printed: str, place: Path, given: Files) -> str:
    """What is wrong with a refusal, which is the last printed line; empty if nothing is."""
    line = printed.rstrip("\n").rpartition("\n")[2]
    try:
        line.encode()
    except UnicodeEncodeError:
        return "cannot be written"
    if len(line) > LONGEST + 100:  # the program's name precedes the message
        return "is too long"
    names = {Path(name).name for name in given}
    return "" if str(place) in line or any(name in line for name in names) else "names no file"


def changed_outside(place: Path, given: Files, writes: Sequence[str]) -> list[str]:
    """Files of a place that were changed or created, except those that may be written."""
    own = tuple(f"{name}/" for name in (*writes, *OWN))
    now: Files = {}
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder, name)
            relative = str(path.relative_to(place))
            if not relative.startswith(own):
                now[relative] = path.read_bytes() if path.is_file() else b""
    before = {name: content for name, content in (given | VICTIM).items() if not name.startswith(own)}
    return [f"file {name}" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def place_of(error: BaseException) -> str:
    """The kind of an error, and the innermost line of this project's code in its traceback."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    own = [frame for frame in own if ".venv" not in frame.filename] or traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {os.path.relpath(own[-1].filename, ROOT)}:{own[-1].lineno} {own[-1].name}"


def status() -> dict[str, int]:
    """VmSize and VmHWM (the peak of the resident memory) of this process in bytes."""
    lines = (line.split() for line in open("/proc/self/status", encoding="ascii", errors="replace"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0] in ("VmSize:", "VmHWM:")}


def reset_peak() -> None:
    """Let the kernel reset VmHWM."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# ---------------------------------------------------------------------------------------------------- the parent


@dataclass
class Child:
    pid: int
    pipe: int
    place: Path
    cases: Sequence[Case]
    text: bytes = b""
    current: int | None = None
    size: int = 0
    ended: int = 0
    since: float = field(default_factory=time.monotonic)
    late: bool = False


def run_subject(subject: Subject, cases: Iterable[Case], seed: int, work: Path, workers: int, keep: Path) -> Summary:
    """Read all cases of a subject with several children at a time. The first case of each fault is kept as a file.

    Args:
        work: an empty folder.
        keep: the folder for the cases of faults.
    """
    started = time.monotonic()
    summary = Summary(subject.name)
    (work / "example").mkdir()
    (work / "hub").mkdir(exist_ok=True)
    subject.example(work / "example")
    files = files_in(work / "example")
    cases = list(cases)
    bar = tqdm(total=len(cases), desc=subject.name, disable=None)  # on a terminal
    free = [work / f"place-{number}" for number in range(workers * subject.at_once)]
    each = BATCH if subject.at_once == 1 else min(BATCH, -(-len(cases) // len(free)))  # all wait at once
    waiting = deque(chunks(cases, each))
    children: dict[int, Child] = {}
    while waiting or children:
        while waiting and free:
            new = start(subject, files, waiting.popleft(), seed, free.pop(), work / "hub")
            children[new.pipe] = new
        ready, _, _ = select.select([*children], [], [], 1.0)
        for pipe in ready:
            one = children[pipe]
            said = os.read(pipe, 65536)
            one.text += said
            *lines, one.text = one.text.split(b"\n")
            for line in lines:
                hear(one, json.loads(line), summary)
            bar.update(sum(summary.outcomes.values()) - bar.n)
            if not said:
                os.close(pipe)
                del children[pipe]
                free.append(one.place)
                if rest := after_end(one, os.waitpid(one.pid, 0)[1], summary):
                    waiting.appendleft(rest)
        for one in children.values():
            if one.current is not None and time.monotonic() - one.since > PATIENCE:
                one.late = True
                os.kill(one.pid, signal.SIGKILL)
    bar.close()
    for fault in summary.faults:
        name = f"{subject.name}-{seed}-{fault.case}" if isinstance(fault.case, int) else Path(fault.case).stem
        save_case(keep / f"{name}.json", damaged(subject, files, fault.case, seed), files)
    summary.seconds = time.monotonic() - started
    return summary


def start(subject: Subject, files: Files, cases: Sequence[Case], seed: int, place: Path, hub: Path) -> Child:
    own, theirs = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(own)
            child(subject, files, cases, seed, place, hub, theirs)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(3)
    os.close(theirs)
    return Child(pid, own, place, cases)


def hear(one: Child, said: dict[str, Any], summary: Summary) -> None:
    if "begin" in said:
        one.current, one.size, one.since = said["begin"], said["size"], time.monotonic()
        return
    one.current, one.ended = None, said["end"] + 1
    summary.outcomes[said["outcome"]] += 1
    summary.peak = max(summary.peak, said["peak"])
    if said["outcome"] == "fault":
        note(summary, Fault(said["what"], said["where"], one.cases[said["end"]], one.size))


def after_end(one: Child, status: int, summary: Summary) -> Sequence[Case]:
    """Record the end of a child, and return the cases that it has not read."""
    if one.current is None and os.waitstatus_to_exitcode(status) == 0:
        return one.cases[one.ended :]
    code = os.waitstatus_to_exitcode(status)
    word = (
        f"no end within {PATIENCE} seconds" if one.late else signal.Signals(-code).name if code < 0 else f"exit {code}"
    )
    log = one.place.with_name(f"{one.place.name}.log").read_text(encoding="utf-8", errors="replace")
    if one.current is None:  # not a fault of what is read
        raise RuntimeError(f"{summary.name}: a child ended ({word}) outside of reading: {log[-3000:]}")
    own = [
        line.strip() for line in log.splitlines() if line.strip().startswith(f'File "{ROOT}') and "/.venv/" not in line
    ]
    where = own[0].replace(f"{ROOT}/", "") if own else ""
    summary.outcomes["fault"] += 1
    note(summary, Fault(f"{word}\n{log[-2000:]}", f"{word} {where}", one.cases[one.current], one.size))
    return one.cases[one.current + 1 :]


def note(summary: Summary, fault: Fault) -> None:
    """Keep a fault. Of several at one place, only that with the smallest case is kept, but each case of FOUND is."""
    equal = [known for known in summary.faults if known.where == fault.where and isinstance(known.case, int)]
    if isinstance(fault.case, str) or not equal:
        summary.faults.append(fault)
    elif fault.size < equal[0].size:
        summary.faults[summary.faults.index(equal[0])] = fault


def chunks(cases: list[Case], size: int) -> Iterator[list[Case]]:
    for begin in range(0, len(cases), size):
        yield cases[begin : begin + size]
