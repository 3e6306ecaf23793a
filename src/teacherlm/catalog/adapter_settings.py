"""Checks of adapters' settings, which anybody may have written: patterns and sizes that would cost too much time or
memory are refused."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

if TYPE_CHECKING:
    import torch

PLAIN = re.compile(r"[\w.-]*")
"""A plain name of a module, or the end of one: no regular expression."""
PATTERN_SECONDS = 20
"""Maximum processor time of all patterns in the settings, for all modules of the model."""
MOST_STEPS = 100
"""Maximum number of steps of an approximation (16 in pissa_niter_16)."""
LARGEST = 10**8
"""Maximum of any size in the settings. Seeds may be larger."""
MATCH = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
patterns, names = json.load(sys.stdin)
for name in names:
    for pattern in patterns:
        try:
            re.fullmatch(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name), re.match(rf".*\\.{pattern}\\.", name)
        except (re.error, RecursionError, OverflowError):
            pass
"""
"""Program that matches the patterns as peft does. It runs in a separate process, because a regular expression cannot be
stopped within a process."""


def require_bounded_settings(file: Path, settings: Mapping[str, Any], model: "torch.nn.Module") -> None:
    """Refuse settings of adapters that would cost too much time or memory.

    Args:
        file: the file of the settings, for messages.
        settings: the settings in the file.
        model: the base model.

    Raises:
        UserError: a rank is larger than the model's layers, another size or a number of steps is too large, or the
            patterns take too long.
    """
    most = max((min(part.shape[:2]) for part in model.parameters() if part.dim() > 1), default=0)
    for name, value in numbers(settings):
        if value > LARGEST and not re.search("seed|prng", name):
            raise UserError(f"{file}: {shown(name)[1:-1]}: the number {shown(value)[1:-1]} is too large")
        if name in ("r", "rank", "rank_pattern") and value > most:
            raise UserError(
                f"{file}: {name}: a rank of at most {most}, the size of the base model's layers, was expected, found "
                f"{shown(value)[1:-1]}"
            )
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and any(int(digits[:9]) > MOST_STEPS for digits in re.findall(r"[0-9]+", begun)):
        raise UserError(f"{file}: init_lora_weights: at most {MOST_STEPS} steps were expected, found {shown(begun)}")
    patterns = sorted({pattern for pattern in texts(settings) if not PLAIN.fullmatch(pattern)})
    if patterns and not are_quick(patterns, [name for name, _ in model.named_modules()]):
        raise UserError(
            f"{file}: its patterns for modules, for example {shown(patterns[0])}, take more than {PATTERN_SECONDS} "
            "seconds; name the modules in a list"
        )


def numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in the settings, including those in nested objects, by the setting's name."""
    for name, value in settings.items():
        for one in value.values() if isinstance(value, dict) else [value]:
            if isinstance(one, int | float):
                yield name, one


def texts(settings: Mapping[str, Any]) -> Iterator[str]:
    """The texts that peft may use as regular expressions: names of modules, and the names in *_pattern."""
    for name, value in settings.items():
        if re.search("modules|pattern|layers|parameters", name):
            parts = value if isinstance(value, list | dict) else [value]
            yield from (part for part in parts if isinstance(part, str))


def are_quick(patterns: list[str], names: list[str]) -> bool:
    """Whether matching the patterns with all names ends in time, tried in a process that can be killed."""
    command = [sys.executable, "-I", "-S", "-c", MATCH, str(PATTERN_SECONDS)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([patterns, names]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20 * PATTERN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
