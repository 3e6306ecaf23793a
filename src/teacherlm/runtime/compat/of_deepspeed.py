"""The private interfaces of DeepSpeed (0.17 and later) that this project uses."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

WEIGHTS = "weights"
"""The key of a parameter's float32 weights among its states."""
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow")
"""The states of the loss scaling, which all processes share."""


def state_classes() -> list[type]:
    """The classes in DeepSpeed's saved states, apart from tensors and plain values.

    torch.load refuses these classes unless they are allowed by name. DeepSpeed itself reads its states without a check.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def read_states_by(engine: Any, read: Callable[[Path], Any]) -> None:
    """Let an engine read its checkpoints with the function `read` instead of torch.load.

    DeepSpeed's configuration can name a checkpoint engine, but only one of DeepSpeed's.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: read(Path(path))


def numbers_of(parameter: torch.Tensor) -> int:
    """Number of elements of a parameter over all processes. Under ZeRO-3 the local tensor is only a part, or empty."""
    return getattr(parameter, "ds_numel", parameter.numel())


def optimizer_states_file(folder: Path, rank: int) -> Path:
    """The file with the optimizer states of one process, in a folder global_stepN."""
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    in_bfloat16 = folder / f"bf16_{name}"
    return in_bfloat16 if in_bfloat16.exists() or any(folder.glob("bf16_zero_*")) else folder / name


def model_states_file(folder: Path, rank: int) -> Path:
    """The file with the counters of a training and the shapes of its parameters. With ZeRO-3 each process has one."""
    divided = any(folder.glob("zero_pp_rank_*_model_states.pt"))
    return folder / (f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if divided else "mp_rank_00_model_states.pt")


# -------------------------------------------------------------------------------- states for any number of processes
#
# DeepSpeed's universal checkpoints do this too. They are not used, because with ZeRO-3 they give all parameters the
# settings of the first group (the weight decay of matrices to biases and norms as well), they have only Adam's states,
# and a training without DeepSpeed cannot read them.


class Piece(NamedTuple):
    """A piece of a parameter in a flat tensor. A process of ZeRO keeps its part of all parameters in flat tensors.

    Attributes:
        name: the parameter's name.
        flat: the index of the flat tensor.
        start: the piece's first element in the flat tensor.
        first: the piece's first element in the parameter.
        count: number of elements.
    """

    name: str
    flat: int
    start: int
    first: int
    count: int


class Part(NamedTuple):
    """What one process of ZeRO saved.

    Attributes:
        weights: the flat tensors of float32 weights.
        states: for each flat tensor, the optimizer's states by name.
        settings: for each flat tensor, the optimizer's settings (learning rate, weight decay, ...).
    """

    pieces: list[Piece]
    weights: Sequence[torch.Tensor]
    states: list[dict[str, Any]]
    settings: list[dict[str, Any]]


class WholeStates(Protocol):
    """The states of all parameters, whatever processes they were saved by (finetune/whole_states.py)."""

    scaling: dict[str, Any]
    counters: dict[str, int]
    schedule: dict[str, Any] | None

    def copy(self, name: str, key: str, first: int, into: torch.Tensor) -> None:
        """Copy the elements of a state from `first` on into a flat tensor."""

    def keys(self, name: str) -> Iterable[str]:
        """The keys of a parameter's states that have a number for each of its elements, with WEIGHTS."""

    def shared(self, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The further states of these parameters (the number of steps), and their settings, which are equal."""


def has_partitioned_weights(saved: Mapping[str, Any]) -> bool:
    """Whether a process saved its states under ZeRO-3, where each parameter is divided among all processes."""
    return int(saved["optimizer_state_dict"]["zero_stage"]) == 3


def saved_parts(processes: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, Sequence[int]]]) -> list[Part]:
    """The parts in the files of all processes.

    Args:
        processes: the content of each process's file, by rank.
        shapes: `param_shapes` of the model's file: the parameters of each flat tensor.
    """
    found = []
    reached: Counter[str] = Counter()
    for rank, saved in enumerate(processes):
        states = saved["optimizer_state_dict"]
        if has_partitioned_weights(saved):
            base, weights = states["optimizer_state_dict"], states["fp32_flat_groups"]
            pieces = divided_pieces(shapes, rank, len(processes))
        else:
            base, weights = states["base_optimizer_state"], states["single_partition_of_fp32_groups"]
            pieces = []
            for flat, names in enumerate(states["param_slice_mappings"]):
                for name, address in names.items():
                    if reached[name] and address.start:
                        raise ValueError(f"{name} goes on in process {rank} where another parameter begins")
                    pieces.append(Piece(name, flat, address.start, reached[name], address.numel))
                    reached[name] += address.numel  # processes follow one another in a parameter
        groups = [(group, index) for group in base["param_groups"] for index in group["params"]]
        settings = [{name: value for name, value in group.items() if name != "params"} for group, _ in groups]
        found.append(Part(pieces, weights, [base["state"].get(index, {}) for _, index in groups], settings))
    return found


def divided_pieces(shapes: Sequence[Mapping[str, Sequence[int]]], rank: int, processes: int) -> list[Piece]:
    """The pieces of a process under ZeRO-3: a part of each parameter, of equal size in all processes, with padding."""
    found = []
    for flat, parameters in enumerate(shapes):
        start = 0
        for name, shape in parameters.items():
            numel = torch.Size(shape).numel()
            size = -(-numel // processes)
            first = min(rank * size, numel)
            found.append(Piece(name, flat, start, first, min(size, numel - first)))
            start += size
    return found


def own_pieces(engine: Any) -> list[Piece]:
    """The pieces of this process in the flat tensors of an engine's optimizer."""
    if engine.zero_optimization_partition_weights():
        return divided_pieces(engine._get_zero_param_shapes(), torch.distributed.get_rank(), engine.world_size)
    found = []
    for flat, parameters in enumerate(engine.optimizer.bit16_groups):
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:
                start, count = mapping.get_hp_fragment_address().start, mapping.get_hp_fragment_address().numel
                first = mapping.lp_fragment_address.start
                found.append(Piece(engine.param_names[parameter], flat, start, first, count))
    return found


def load_whole_states(engine: Any, whole: WholeStates) -> None:
    """Set the weights and the optimizer states of an engine's process to its part of the whole states.

    The public functions (safe_set_full_optimizer_state) need states that exist, which ZeRO 1 and 2 have only after the
    first step, and they do not set the number of steps.
    """
    optimizer = engine.optimizer
    states = optimizer.state_dict()
    divided = engine.zero_optimization_partition_weights()
    base_key, weights_key = (
        ("optimizer_state_dict", "fp32_flat_groups")
        if divided
        else ("base_optimizer_state", "single_partition_of_fp32_groups")
    )
    sizes = [flat.numel() for flat in (states[weights_key] if divided else optimizer.single_partition_of_fp32_groups)]
    names = [list(parameters) for parameters in engine._get_zero_param_shapes()]
    flats = [{key: torch.zeros(size) for key in whole.keys(of_flat[0])} for size, of_flat in zip(sizes, names)]
    for name, flat, start, first, count in own_pieces(engine):
        for key, tensor in flats[flat].items():
            whole.copy(name, key, first, tensor.narrow(0, start, count))
    shared = [whole.shared(of_flat) for of_flat in names]
    states[weights_key] = [tensors.pop(WEIGHTS) for tensors in flats]
    base: dict[str, Any] = {"state": {}, "param_groups": []}
    number = 0
    for group in states[base_key]["param_groups"]:
        settings = shared[number][1] if group["params"] else {}
        base["param_groups"].append({**group, **settings})
        for index in group["params"]:
            base["state"][index] = {**flats[number], **shared[number][0]}
            number += 1
    states |= {base_key: base, **whole.scaling}
    if divided:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict([states] * engine.world_size, load_from_fp32_weights=True)
    if divided:
        optimizer.checkpoint_event_epilogue()
    else:
        for parameter, name in engine.param_names.items():
            if parameter.requires_grad:
                weights = torch.zeros(parameter.numel())
                whole.copy(name, WEIGHTS, 0, weights)
                parameter.data.copy_(weights.view_as(parameter))
    if engine.lr_scheduler is not None:  # that of an optimizer in DeepSpeed's configuration; others are the Trainer's
        engine.lr_scheduler.load_state_dict(whole.schedule)
    for counter, value in whole.counters.items():
        setattr(engine, counter, value)
