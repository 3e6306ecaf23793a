"""Who saved the optimizer states of a checkpoint, and whether another library or number of processes can load them."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from teacherlm.core.errors import UserError, reason
from teacherlm.core.json_files import require_object
from teacherlm.core.names import LONGEST_NAME
from teacherlm.core.opening import open_ordinary
from teacherlm.core.terminal import shown
from teacherlm.runtime.compat.of_deepspeed import model_states_file, optimizer_states_file, state_classes
from teacherlm.runtime.pickles import load_plain

TORCH, DEEPSPEED = "torch", "DeepSpeed"
LATEST = "latest"
"""DeepSpeed's file in a checkpoint with the name of the folder that holds its states."""
REMOVE = "remove this checkpoint, and training resumes from the one before"
PER_ELEMENT = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "Adam", "AdamW")
"""Optimizers that compute each weight by itself, as names of --optim and of DeepSpeed's configuration. The states of
others belong to whole matrices or blocks, which the processes of ZeRO do not have. ZeRO makes Adagrad anew, with one
group of parameters."""


OTHER_FORMS = ("elastic_checkpoint", "mics_shard_size", "data_types", "tensor_parallel", "sequence_parallel_size")
"""Settings of DeepSpeed's configuration with which states have another form than whole_states.py expects."""


class Saver(NamedTuple):
    """What saves or loads optimizer states.

    Attributes:
        library: TORCH or DEEPSPEED.
        processes: number of processes.
        stage: DeepSpeed's stage of ZeRO; 0 without it.
    """

    library: str
    processes: int
    stage: int = 0

    @property
    def form(self) -> tuple[object, ...]:
        """The form of the states. ZeRO 1 and 2 have the same form. The form of ZeRO depends on the processes."""
        return (self.library, self.stage == 3, self.processes) if self.stage else (self.library,)

    @property
    def described(self) -> str:
        zero = f" (ZeRO-{self.stage})" if self.stage else ""
        return f"{self.library}{zero} in {self.processes} process{'' if self.processes == 1 else 'es'}"

    @property
    def flags(self) -> str:
        """What makes this number of processes load states."""
        flag = (
            "--deepspeed none"
            if self.library == TORCH
            else f"--deepspeed {f'zero{self.stage}' if self.stage else 'NAME'}"
        )
        return f"{flag} and NUM_GPUS={self.processes}"


class Resumed(NamedTuple):
    """The checkpoint from which training resumes, and who saved its states."""

    checkpoint: Path
    saver: Saver


def saved_states(checkpoint: Path) -> str | None:
    """The library that saved the optimizer states of a checkpoint, or None if it has no states."""
    if (checkpoint / "optimizer.pt").is_file():
        return TORCH
    return DEEPSPEED if any(checkpoint.glob("global_step*")) else None


def saver_of(checkpoint: Path) -> Saver:
    """Who saved a checkpoint that has optimizer states.

    Raises:
        UserError: a file of DeepSpeed's is missing or damaged.
    """
    if saved_states(checkpoint) == TORCH:
        return Saver(TORCH, max(1, len(list(checkpoint.glob("rng_state*.pth")))))
    model_file, files = zero_files(checkpoint)
    return Saver(DEEPSPEED, read_processes(model_file), read_stage(files[0]) if files else 0)


def zero_files(checkpoint: Path) -> tuple[Path, list[Path]]:
    """DeepSpeed's file with the counters and shapes of a checkpoint, and the file of each process, by rank.

    Without ZeRO, the first file has all, and there are no others.

    Raises:
        UserError: a file is missing; the message names it.
    """
    folder = checkpoint / own_folder(checkpoint)
    model_file = require_there(model_states_file(folder, 0))
    processes = read_processes(model_file)
    files = [optimizer_states_file(folder, rank) for rank in range(processes)]
    if not any(file.is_file() for file in files) and load_zero(model_file).get("optimizer") is not None:
        return model_file, []
    for rank, file in enumerate(files):
        require_there(file)
        require_there(model_states_file(folder, rank))
    return model_file, files


def require_there(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: this file of the checkpoint is missing; {REMOVE}")
    return file


def own_folder(checkpoint: Path) -> str:
    """The name of the folder of DeepSpeed's states, which the checkpoint's file `latest` has.

    Raises:
        UserError: the file names a folder outside of the checkpoint, or none.
    """
    try:
        with open_ordinary(checkpoint / LATEST) as file:
            name = file.read(LONGEST_NAME).decode("utf-8").strip()
    except (OSError, ValueError):
        name = ""
    if not name.startswith("global_step") or "/" in name or not (checkpoint / name).is_dir():
        raise UserError(
            f"{checkpoint / LATEST}: the name of a folder global_stepN in this checkpoint was expected, found "
            f"{shown(name)}; {REMOVE}"
        )
    return name


def load_zero(file: Path) -> Any:
    """The content of a file of DeepSpeed's. Its tensors are not read yet."""
    found = load_plain(file, state_classes(), mapped=True)
    if not isinstance(found, dict):
        raise UserError(f"{file}: this is not a file of DeepSpeed's states; {REMOVE}")
    return found


def read_processes(model_file: Path) -> int:
    """Number of processes that saved a checkpoint."""
    found = load_zero(model_file).get("dp_world_size")
    if type(found) is not int or not 0 < found < 2**20:
        raise UserError(f"{model_file}: dp_world_size: a number of processes was expected, found {found!r}; {REMOVE}")
    return found


def read_stage(file: Path) -> int:
    """The stage of ZeRO that saved the states of a process."""
    states = load_zero(file).get("optimizer_state_dict")
    found = states.get("zero_stage", 1) if isinstance(states, dict) else None  # one kind of ZeRO-1 does not save it
    if not isinstance(found, int) or found not in (1, 2, 3):
        raise UserError(f"{file}: zero_stage: a stage of ZeRO was expected, found {shown(found)}; {REMOVE}")
    return int(found)


def require_intact(checkpoint: Path, rank: int, processes: int) -> None:
    """Compare this process's share of the files of states with their checksums, which torch's reader does not do.

    Raises:
        UserError: the message names a damaged file.
    """
    if saved_states(checkpoint) == TORCH:
        files = [checkpoint / "optimizer.pt"]
    else:
        model_file, of_processes = zero_files(checkpoint)
        files = [model_file, *of_processes]
    for file in files[rank::processes]:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: damaged ({reason(error)}); {REMOVE}") from error
        if damaged is not None:
            raise UserError(f"{file}: damaged, {shown(damaged)} in it has another checksum; {REMOVE}")


def user_of(training: Any) -> Saver:
    """Who would load states in this training."""
    if not training.deepspeed:
        return Saver(TORCH, training.world_size)
    zero = require_object(Path(training.deepspeed)).get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    return Saver(DEEPSPEED, training.world_size, stage if stage in (1, 2, 3) else 0)


def must_change(saver: Saver, user: Saver) -> bool:
    """Whether the states have another form for their user."""
    return saver.form != user.form


def why_unchangeable(saver: Saver, user: Saver, training: Any) -> str:
    """Why states cannot get the form that their user needs; "" if they can."""
    for one in (saver, user):
        if one.library == DEEPSPEED and one.stage == 0:
            return "DeepSpeed without ZeRO"
    if saver.library != user.library and training.fp16:
        return "in float16 their loss scales differ"
    config = require_object(Path(training.deepspeed)) if training.deepspeed else {}
    optimizer = (config.get("optimizer") or {}).get("type") or training.optim.value
    if optimizer not in PER_ELEMENT:
        return f"the states of the optimizer {optimizer} cannot be divided"
    zero = config.get("zero_optimization") or {}
    nvme = (zero.get("offload_optimizer") or {}).get("device") == "nvme"
    found = [name for name in OTHER_FORMS if name in config or name in zero] + ["offload_optimizer to nvme"] * nvme
    return f"the DeepSpeed configuration has {', '.join(found)}" if found else ""
