"""A run of a stage: what it is to make, whether that is already made, and the manifest that says so.

    with StageRun("quality", output) as run:
        run.compare(arguments, describe_inputs(run.known))
        if run.is_done:
            run.say_done()
            return
        run.say_again()
        work, write the output
        run.finish({"quality": output}, counts)

The block holds the locks of the outputs (lock.py). The manifest is read within the block, because another process may
have done the work while this one waited. `finish` writes the manifest after all outputs. Interrupted work therefore
leaves no manifest, and the next call does the work again. Without `with`, a run only reads (--list_missing), or its
caller holds the lock.
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
    describe,
    manifest_of,
    read_manifest,
    reasons_not_done,
    write_manifest,
)


class Processes(Protocol):
    """The processes that do the work of a stage together. The first one reads, prints and writes for all of them.

    A module with these functions fits too (atlas/workers.py).
    """

    def is_first(self) -> bool:
        """Whether this process is the first."""

    def say(self, text: str) -> None:
        """Print a line in one process only."""

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Call `work` in the first process, and return its result, a JSON value, in all processes."""

    def only_writer(self, *outputs: Path) -> contextlib.AbstractContextManager[None]:
        """Hold the locks of these outputs for all processes until the block ends."""


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
        stage: the stage's name in the manifest.
        output: the file or folder that the manifest belongs to.
        locks: the paths to lock, by default the output. They may be more outputs, or inputs that must not be made again
            while they are read.
        label: the word at the beginning of the stage's printed lines, by default its name.
        read: the function that reads a manifest. A stage can check more there, or fill in what older manifests lack.
        processes: the processes that do the work, if there are several. All of them call `compare`, `compare_again` and
            `finish` together.

    Attributes:
        started: seconds since the epoch at which the locks were taken or the object was made. A stage whose work began
            earlier sets it.
        arguments, inputs, reasons: set by `compare`.
    """

    arguments: Mapping[str, Any]
    inputs: Mapping[str, Description]
    reasons: list[str]

    def __init__(
        self,
        stage: str,
        output: Path,
        *,
        locks: Sequence[Path] | None = None,
        label: str | None = None,
        read: Callable[[Path], Manifest | None] = read_manifest,
        processes: Processes | None = None,
    ):
        self.stage, self.output, self.manifest_path = stage, output, manifest_of(output)
        self.locks = [output] if locks is None else list(locks)
        self.label = label or stage
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
        """The manifest of the output, or None if there is none."""
        return self.read(self.manifest_path)

    @property
    def known(self) -> dict[str, Description]:
        """The manifest's descriptions of the inputs. Files that are unchanged since then are not read again."""
        inputs: dict[str, Description] = (self.manifest or {}).get("inputs", {})
        return inputs

    @property
    def counts(self) -> dict[str, Any]:
        """The counts of the manifest."""
        counts: dict[str, Any] = (self.manifest or {}).get("counts", {})
        return counts

    def compare(self, arguments: Mapping[str, Any], inputs: Mapping[str, Description]) -> None:
        """Compare this work with the manifest. Sets `reasons`, why the work is not done, and thus `is_done`.

        Args:
            arguments: the JSON values that the outputs depend on: no secrets, and no settings of place or speed.
            inputs: descriptions by name (see `manifests.describe`), taken before the work begins.
        """
        self.arguments, self.inputs, self.is_compared = arguments, inputs, True
        self.reasons = self.processes.from_first(lambda: reasons_not_done(self.manifest, self.stage, arguments, inputs))

    def compare_again(self) -> None:
        """Compare the same work again with the current manifest and outputs: another process may have done the work."""
        self.forget_manifest()
        self.compare(self.arguments, self.inputs)

    def forget_manifest(self) -> None:
        self.__dict__.pop("manifest", None)

    @property
    def is_done(self) -> bool:
        return not self.reasons

    @property
    def work(self) -> dict[str, Any]:
        """The arguments and the digest of each input. They identify the work in its progress files."""
        return {**self.arguments, **{name: described["sha256"] for name, described in self.inputs.items()}}

    # --- the line that says what happened

    def say_done(self, of: object = "", because: str = "") -> None:
        """Print that there is nothing to do.

        Args:
            of: what is done, if the stage does several things in one call.
            because: the reason, by default that the manifest matches the inputs.
        """
        subject = f"{self.label}: {of}" if of else self.label
        because = because or f"{self.manifest_path} matches its inputs"
        self.processes.say(f"{subject}: done already, nothing to do ({because})")

    def ends_here(self, list_missing: bool, is_done: bool | None = None) -> bool:
        """Whether the command has nothing more to do, which it says.

        Args:
            list_missing: the command only lists what is missing: 0 for its single task, or an empty line.
            is_done: whether the work is done, if more than the manifest decides it.
        """
        done = self.is_done if is_done is None else is_done
        if list_missing:
            print("" if done else "0")
        elif done:
            self.say_done()
        return list_missing or done

    def say_again(self) -> None:
        """Print why the stage does its work again. If it is the first time, nothing is printed."""
        if self.manifest is not None and self.manifest["stage"] == self.stage:
            self.processes.say(f"{self.label}: runs again, because {'; '.join(self.reasons)}")

    # --- the end

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken so far, for its counts."""
        return round(time.time() - self.started, 1)

    def finish(
        self, outputs: Mapping[str, Path | Description], counts: Mapping[str, Any], within: Path | None = None
    ) -> None:
        """Write the manifest, after all outputs are written. Of several processes, only the first one writes it.

        Args:
            outputs: the path or the description of each output, by name.
            counts: numbers for people to read (records, tokens, seconds).
            within: the folder to write the manifest into, if the caller renames that folder to the output afterwards.
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
    """Hold the locks of several runs of the same processes. All are taken at once, so no two calls block each other."""
    with runs[0].processes.only_writer(*(place for run in runs for place in run.locks)):
        for run in runs:
            run.begin()
        yield
