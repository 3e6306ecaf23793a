"""Damaged files go to the code that reads them, in forked children; what is neither read nor refused in a line is said.

A subject has a valid example, a way to damage it, and the function that a stage reads it with. Each damage is made anew
from the subject's name, a seed and a number, so that a fault can be had again. Right is a result, or a UserError of one
short line that names the file. A fault is anything else: a traceback, a signal, a file that was written or changed
outside the folders that are the subject's to write, a program that was started, a connection to another machine, more
than MEMORY in use, more than SECONDS of a processor, or control characters on the terminal.
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
"""Damaged files that were once read wrongly: SUBJECT-WORDS.json (see `save_case`)."""

MEMORY = 2**30
"""Bytes that a process may have in use, libraries included."""
ADDRESSES = 2 * 2**30
"""Bytes that a child may take beyond what it begins with, so that a bomb ends it and not the machine."""
SECONDS = 10
"""Of a processor, for one damaged example."""
PATIENCE = 60
"""Seconds of the clock after which a child is ended."""
BATCH = 200
"""Examples that a child reads before another takes its place."""
OWN = ("cache", "tmp")
"""Folders of a place that every subject may write."""
VICTIM = {"victim/README": b"nobody may write here\n"}

Case = int | str
"""A number of a damage; -1: the example as it is; or the path of a file of FOUND."""


@dataclass(frozen=True)
class Subject:
    """What is damaged, and what reads it.

    Attributes:
        name: of its module.
        example: writes the valid files into a folder.
        read: reads them as the stage does; it is given the folder with the files in it, which is also the current one.
        damage: of the files; by default of one of them.
        writes: folders of the place that reading may write.
        at_once: children for each worker, where they mostly wait.
    """

    name: str
    example: Callable[[Path], None]
    read: Callable[[Path], None]
    damage: Callable[[Files, random.Random], Files] = damage_one
    writes: tuple[str, ...] = ("output",)
    at_once: int = 1


@dataclass
class Fault:
    """What went wrong, where, and the smallest case that shows it, with the bytes of its changed files."""

    what: str
    where: str
    case: Case
    size: int = 0


@dataclass
class Summary:
    """Of a subject: how many examples came out how, the faults, the greatest memory and the time it took."""

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
    """Keep what a damage changed: a text as it is, bytes in base 64, null for a file that it removed."""
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
    """The folders of a place in which a file is not that of the example, so that only its readers need to run; all of
    them where none is changed."""
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
    """What Python code does that no reading of data may do, as the interpreter's audit events tell it."""

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
        """Of absolute paths; a relative one may be below an open folder, and is in the place, which is compared."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if text.startswith("/") and not text.startswith("/dev/"):
            real = os.path.realpath(text)
            if not any(real == allowed or real.startswith(f"{allowed}/") for allowed in self.allowed):
                self.seen.append(f"{event} {text}")


def child(subject: Subject, files: Files, cases: Sequence[Case], seed: int, place: Path, hub: Path, pipe: int) -> None:
    """Read the cases one after the other, and tell each one's beginning and end on a pipe, a line of JSON each."""
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
    """{"outcome", "what", "where", "peak"} of one damaged example."""
    printed = io.StringIO()
    what = where = ""
    reset_peak()
    most = max(MEMORY, status()["VmHWM"] + MEMORY // 2)  # a test's process may have more than MEMORY to begin with
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
    """What `errors.run` makes of an error that ends a command, if it is a user's mistake."""
    return error if isinstance(error, UserError) else disk_error(error) or locale_error(error)


def wrong_line(printed: str, place: Path, given: Files) -> str:
    """What is wrong with a refusal, the last line that was printed, if anything is."""
    line = printed.rstrip("\n").rpartition("\n")[2]
    try:
        line.encode()
    except UnicodeEncodeError:
        return "cannot be written"
    if len(line) > LONGEST + 100:  # with the program's name before it
        return "is too long"
    names = {Path(name).name for name in given}
    return "" if str(place) in line or any(name in line for name in names) else "names no file"


def changed_outside(place: Path, given: Files, writes: Sequence[str]) -> list[str]:
    """Files of a place that are not as they were given, or that nobody gave; but for those that may be written."""
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
    """The error's kind and the last line of this project's own code that it went through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    own = [frame for frame in own if ".venv" not in frame.filename] or traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {os.path.relpath(own[-1].filename, ROOT)}:{own[-1].lineno} {own[-1].name}"


def status() -> dict[str, int]:
    """VmSize and VmHWM (the greatest part in memory) of this process, in bytes."""
    lines = (line.split() for line in open("/proc/self/status", encoding="ascii", errors="replace"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0] in ("VmSize:", "VmHWM:")}


def reset_peak() -> None:
    """Let the kernel count VmHWM anew."""
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
    """Read all cases of a subject, some children at a time; the first case of each fault is kept as a file.

    Args:
        work: an empty folder.
        keep: where cases of faults go.
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
    """Note a child's death, and give the cases that it has not read."""
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
    """Keep a fault; of several at one place, the one of the smallest case. Cases of FOUND are each a fault."""
    equal = [known for known in summary.faults if known.where == fault.where and isinstance(known.case, int)]
    if isinstance(fault.case, str) or not equal:
        summary.faults.append(fault)
    elif fault.size < equal[0].size:
        summary.faults[summary.faults.index(equal[0])] = fault


def chunks(cases: list[Case], size: int) -> Iterator[list[Case]]:
    for begin in range(0, len(cases), size):
        yield cases[begin : begin + size]
