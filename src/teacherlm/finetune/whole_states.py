"""The weights and optimizer states of all parameters of a checkpoint, whatever processes saved them.

DeepSpeed divides them among the processes: ZeRO 1 and 2 by flat tensors of all parameters, ZeRO-3 by parameter. torch
saves those of each parameter. Here they are pieces of tensors that stay in the files (memory-mapped), so a process
reads only what it needs: with DeepSpeed its own part, otherwise all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from teacherlm.core.errors import UserError, reason
from teacherlm.finetune.savers import REMOVE, load_zero, zero_files
from teacherlm.runtime.compat.of_deepspeed import SCALING, WEIGHTS, Part, saved_parts
from teacherlm.runtime.pickles import load_plain


@dataclass
class WholeStates:
    """The weights and optimizer states of all parameters that are trained.

    Attributes:
        checkpoint: where they are from, for messages.
        pieces: parameter -> key -> the pieces of this state: index of the first element, flat tensor. The key WEIGHTS
            is the float32 weights.
        further: the states of a parameter that are not per element: the number of steps.
        settings: the optimizer's settings for a parameter: learning rate, weight decay, ...
        scaling: the states of DeepSpeed's loss scaling.
        counters: the attributes of a DeepSpeed engine that count steps and samples.
        schedule: the state of the schedule of the learning rate, if DeepSpeed saved it.
    """

    checkpoint: Path
    pieces: dict[str, dict[str, list[tuple[int, torch.Tensor]]]] = field(default_factory=dict)
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None

    def keys(self, name: str) -> list[str]:
        """The keys of a parameter's states that have a number for each of its elements."""
        return list(self.pieces[name])

    def add(self, name: str, key: str, first: int, piece: torch.Tensor) -> None:
        """Add a piece of a state."""
        self.pieces.setdefault(name, {}).setdefault(key, []).append((first, piece))

    def copy(self, name: str, key: str, first: int, into: torch.Tensor) -> None:
        """Copy the elements of a state from `first` on into a flat tensor."""
        for start, piece in self.pieces[name][key]:
            low, high = max(start, first), min(start + piece.numel(), first + into.numel())
            if low < high:
                into[low - first : high - first].copy_(piece[low - start : high - start])

    def whole(self, name: str, key: str, shape: torch.Size) -> torch.Tensor:
        """A state of a whole parameter."""
        found = torch.zeros(shape.numel())
        self.copy(name, key, 0, found)
        return found.view(shape)

    def shared(self, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The further states of these parameters, and their settings.

        Raises:
            UserError: the settings are not equal for all of them.
        """
        first, *others = names
        if any(not are_equal(self.settings[name], self.settings[first]) for name in others):
            raise UserError(
                f"{self.checkpoint}: the optimizer has other settings for {first} than for its group; {REMOVE}"
            )
        further = {
            key: value.clone() if torch.is_tensor(value) else value for key, value in self.further[first].items()
        }  # an optimizer keeps the tensor that counts the steps, and counts in it
        return further, self.settings[first]

    def require(self, sizes: Mapping[str, int]) -> None:
        """Refuse states that are not those of these parameters.

        Args:
            sizes: parameter -> number of its elements.

        Raises:
            UserError: the message names a parameter.
        """
        for name in sorted(sizes.keys() ^ self.settings.keys()):
            where = "there are none" if name in sizes else "the model does not have it"
            raise UserError(f"{self.checkpoint}: optimizer states of {name}: {where}; {REMOVE}")
        one = next(iter(sizes), "")
        for name, size in sizes.items():
            same = set(self.keys(name)) == set(self.keys(one))
            if not same or not are_equal(self.further[name], self.further[one]):
                raise UserError(
                    f"{self.checkpoint}: the optimizer has other states for {name} than for {one}, or another number "
                    f"of steps; {REMOVE}"
                )
            for key, pieces in self.pieces[name].items():
                reached = 0
                for first, piece in sorted(pieces, key=lambda pair: pair[0]):
                    reached = first + piece.numel() if first == reached else -1
                if reached != size:
                    raise UserError(
                        f"{self.checkpoint}: {key} of {name}: its pieces do not make {size} numbers; {REMOVE}"
                    )


def are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two dictionaries of numbers are equal. The numbers may be tensors."""

    def plain(value: Any) -> Any:
        return value.tolist() if torch.is_tensor(value) else value

    return one.keys() == other.keys() and all(plain(one[key]) == plain(other[key]) for key in one)


def is_per_element(state: Any) -> bool:
    return torch.is_tensor(state) and state.dim() > 0


def read_zero_states(checkpoint: Path) -> WholeStates:
    """The states in the files of DeepSpeed's processes.

    Raises:
        UserError: a file is missing or damaged, or is not one of DeepSpeed's.
    """
    model_file, files = zero_files(checkpoint)
    model = load_zero(model_file)
    processes = [load_zero(file) for file in files]
    try:
        found = WholeStates(checkpoint)
        for part in saved_parts(processes, model["param_shapes"]):
            add_part(found, part)
        states = processes[0]["optimizer_state_dict"]
        found.scaling = {name: states[name] for name in SCALING if name in states}
        found.counters = {name: int(model[name]) for name in ("global_steps", "global_samples", "skipped_steps")}
        found.schedule = model.get("lr_scheduler")
        shapes = {name: torch.Size(shape) for group in model["param_shapes"] for name, shape in group.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{model_file.parent}: these are not the states of DeepSpeed's ZeRO that were expected ({reason(error)}); "
            f"{REMOVE}"
        ) from error
    found.require({name: shape.numel() for name, shape in shapes.items()})
    return found


def add_part(found: WholeStates, part: Part) -> None:
    """Add the pieces that one process saved."""
    for name, flat, start, first, count in part.pieces:
        tensors = {WEIGHTS: part.weights[flat], **part.states[flat]}
        for key, tensor in tensors.items():
            if is_per_element(tensor):
                found.add(name, key, first, tensor.narrow(0, start, count))
        found.settings.setdefault(name, part.settings[flat])
        further = {key: value for key, value in part.states[flat].items() if not is_per_element(value)}
        if not are_equal(found.further.setdefault(name, further), further):
            raise ValueError(f"the processes differ in the steps of {name}")


def read_torch_states(
    checkpoint: Path, names: Sequence[Sequence[str]], weights: Mapping[str, torch.Tensor]
) -> WholeStates:
    """The states of torch's optimizer.

    Args:
        names: the names of the parameters in each of the optimizer's groups.
        weights: parameter -> its float32 weights.

    Raises:
        UserError: the file is damaged, or has other parameters.
    """
    file = checkpoint / "optimizer.pt"
    saved = load_plain(file, mapped=True)
    try:
        found = WholeStates(checkpoint)
        for group, of_group in zip(saved["param_groups"], names, strict=True):
            settings = {key: value for key, value in group.items() if key != "params"}
            for index, name in zip(group["params"], of_group, strict=True):
                states = saved["state"].get(index, {})  # SGD without momentum has none
                found.settings[name] = settings
                found.further[name] = {key: value for key, value in states.items() if not is_per_element(value)}
                for key, tensor in {WEIGHTS: weights[name], **states}.items():
                    if is_per_element(tensor):
                        found.add(name, key, 0, tensor.detach().reshape(-1))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: these are not the optimizer states of this model's parameters ({reason(error)}); {REMOVE}"
        ) from error
    found.require({name: weights[name].numel() for of_group in names for name in of_group})
    return found


def load_into_torch(
    whole: WholeStates, optimizer: Any, names: Sequence[Sequence[str]], parameters: Mapping[str, torch.nn.Parameter]
) -> None:
    """Set the weights and the states of torch's optimizer to the whole states.

    Args:
        names: the names of the parameters in each of the optimizer's groups.
        parameters: the model's parameters by name.
    """
    states = optimizer.state_dict()
    indices = {}
    for group, of_group in zip(states["param_groups"], names, strict=True):
        indices |= dict(zip(of_group, group["params"], strict=True))
        if of_group:
            _, settings = whole.shared(of_group)
            group |= settings
    states["state"] = {}
    for name, index in indices.items():
        shape = parameters[name].shape
        keys = [key for key in whole.keys(name) if key != WEIGHTS]
        states["state"][index] = {**whole.shared([name])[0], **{key: whole.whole(name, key, shape) for key in keys}}
        parameters[name].data.copy_(whole.whole(name, WEIGHTS, shape))
    optimizer.load_state_dict(states)


def fitted_schedule(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a schedule with as many learning rates as the optimizer here has groups of parameters.

    DeepSpeed leaves out a group without parameters, such as that of biases and norms if only adapters are trained.

    Args:
        saved: the state in a checkpoint.
        own: the state of the schedule here.
    """
    found = dict(saved)
    for key, value in saved.items():
        mine = own.get(key)
        if isinstance(value, list) and isinstance(mine, list) and len(value) != len(mine) and value:
            found[key] = value[:1] * len(mine)  # all groups have the same learning rate
    return found
