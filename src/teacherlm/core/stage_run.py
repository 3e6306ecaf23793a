"""A run of a stage: what it was asked to make, whether that is made already, and the manifest that says so.

    with StageRun("quality", output) as run:
        run.compare(arguments, describe_inputs(run.known))
        if run.is_done:
            run.say_done()
            return
        run.say_again()
        work, write the output
        run.finish({"quality": output}, counts)

The block holds the locks of the outputs (lock.py), and the manifest is read within it: the process that was waited for
may have done the work. `finish` writes the manifest after all outputs, so work that was interrupted or killed leaves
none, and the next call does it again. Without `with`, a run only looks (--list_missing), or works under a lock that its
caller holds.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from teacherlm.core.lock import one_writer
from teacherlm.core.manifests import (
    Description,
    Manifest,
    changes,
    describe,
    manifest_of,
    read_manifest,
    write_manifest,
)


class Processes(Protocol):
    """The processes that do the work of a stage together. The first one looks, prints and writes for all of them.

    A module with these functions is one too (atlas/workers.py).
    """

    def is_first(self) -> bool:
        """Whether this process is the first."""

    def say(self, text: str) -> None:
        """Print a line once, not in every process."""

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Let the first process do something, and give its result, a JSON value, to all of them."""

    def only_writer(self, *outputs: Path) -> contextlib.AbstractContextManager[None]:
        """Hold the locks of these outputs for the length of the block, for all of them."""


class OneProcess:
    """A stage whose work is done by one process."""

    def is_first(self) -> bool:
        return True

    def say(self, text: str) -> None:
        print(text, flush=True)

    def from_first(self, work: Callable[[], Any]) -> Any:
        return work()

    def only_writer(self, *outputs: Path) -> contextlib.AbstractContextManager[None]:
        return one_writer(*outputs)


class StageRun:
    """One call of a stage for one output.

    Args:
        stage: its name in the manifest.
        output: the file or folder that the manifest belongs to.
        locks: what is locked, where that is not the output alone: further outputs, or inputs that must not be made anew
            while they are read.
        says: the word that its lines begin with, where it is not the stage's name.
        read: reads its manifests, where a stage asks more of them, or fills in what older ones lack.
        processes: where several processes do the work. All of them call `compare`, `look_again` and `finish` together.

    Attributes:
        started: seconds since the epoch; the time at which the locks were held, or at which the object was made. A
            stage whose work began earlier sets it.
        arguments, inputs, why: see `compare`; they are there after it.
    """

    arguments: Mapping[str, Any]
    inputs: Mapping[str, Description]
    why: list[str]

    def __init__(
        self,
        stage: str,
        output: Path,
        *,
        locks: Sequence[Path] | None = None,
        says: str | None = None,
        read: Callable[[Path], Manifest | None] = read_manifest,
        processes: Processes | None = None,
    ):
        self.stage, self.output, self.manifest_path = stage, output, manifest_of(output)
        self.locks = [output] if locks is None else list(locks)
        self.says = says or stage
        self.read = read
        self.processes = processes or OneProcess()
        self.started = time.time()
        self.is_compared = False
        self.held = contextlib.ExitStack()

    # --- the locks

    def __enter__(self) -> Self:
        self.held.enter_context(locked(self))
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def begin(self) -> None:
        """Forget what was read before the locks were held."""
        self.forget_manifest()
        if not self.is_compared:
            self.started = time.time()

    # --- is it done, and if not, why

    @cached_property
    def manifest(self) -> Manifest | None:
        """What the output was made with, or None where there is no manifest."""
        return self.read(self.manifest_path)

    @property
    def known(self) -> dict[str, Description]:
        """The inputs as the manifest describes them: what is unchanged since then need not be read again."""
        inputs: dict[str, Description] = (self.manifest or {}).get("inputs", {})
        return inputs

    @property
    def counts(self) -> dict[str, Any]:
        """The counts of the manifest."""
        counts: dict[str, Any] = (self.manifest or {}).get("counts", {})
        return counts

    def compare(self, arguments: Mapping[str, Any], inputs: Mapping[str, Description]) -> None:
        """Say what this work is; from now on `is_done` and `why` tell what keeps the manifest from being that of it.

        Args:
            arguments: what the outputs depend on, JSON values; nothing secret, and nothing that only says where or how
                fast.
            inputs: descriptions by name (see `manifests.describe`), taken before the work begins.
        """
        self.arguments, self.inputs, self.is_compared = arguments, inputs, True
        self.why = self.processes.from_first(lambda: changes(self.manifest, self.stage, arguments, inputs))

    def look_again(self) -> None:
        """Compare the same work with the manifest and the outputs as they are now: another process may have done it."""
        self.forget_manifest()
        self.compare(self.arguments, self.inputs)

    def forget_manifest(self) -> None:
        self.__dict__.pop("manifest", None)

    @property
    def is_done(self) -> bool:
        return not self.why

    @property
    def work(self) -> dict[str, Any]:
        """What identifies the work, for the files that keep its parts: the arguments, and the digest of each input."""
        return {**self.arguments, **{name: described["sha256"] for name, described in self.inputs.items()}}

    # --- the line that says what happened

    def say_done(self, of: object = "", because: str = "") -> None:
        """Say that nothing is to do.

        Args:
            of: what is done, where the stage does several things in one call.
            because: what shows it; as a rule that the manifest matches the inputs.
        """
        subject = f"{self.says}: {of}" if of else self.says
        because = because or f"{self.manifest_path} matches its inputs"
        self.processes.say(f"{subject}: done already, nothing to do ({because})")

    def say_again(self) -> None:
        """Say why something that the stage has done before is done again; of the first time nothing is said."""
        if self.manifest is not None and self.manifest["stage"] == self.stage:
            self.processes.say(f"{self.says}: again, because {'; '.join(self.why)}")

    # --- the end

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, for its counts."""
        return round(time.time() - self.started, 1)

    def finish(
        self, outputs: Mapping[str, Path | Description], counts: Mapping[str, Any], within: Path | None = None
    ) -> None:
        """Write the manifest. The outputs are written before; where there are several processes, the first does it.

        Args:
            outputs: what was written, by name: where it is, or its description.
            counts: numbers for people (records, tokens, seconds).
            within: a folder that takes the output's place as a whole, the manifest in it, when the caller is done.
        """
        if not self.processes.is_first():
            return
        write_manifest(
            self.manifest_path if within is None else manifest_of(within),
            stage=self.stage,
            arguments=self.arguments,
            inputs=self.inputs,
            outputs={name: describe(made) if isinstance(made, Path) else made for name, made in outputs.items()},
            counts=counts,
            started=self.started,
        )


@contextlib.contextmanager
def locked(*runs: StageRun) -> Iterator[None]:
    """Hold the locks of several runs of the same processes, taken together so that no two calls wait for each other."""
    with runs[0].processes.only_writer(*(place for run in runs for place in run.locks)):
        for run in runs:
            run.begin()
        yield
