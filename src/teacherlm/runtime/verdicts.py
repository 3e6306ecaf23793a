"""Choose the way to compute a model: the first that agrees with the plain forward pass. The user's cache keeps it."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import load_object
from teacherlm.core.places import cache_folder
from teacherlm.runtime.compat.of_transformers import attention_of

VERSION = 9
"""Increase this number whenever the check changes, so that older verdicts are ignored."""
NOT_FOR_THIS = "is not for this model"
"""The fault of a path that the settings of a model rule out."""


@dataclass(frozen=True)
class Verdict:
    """How a model is to be computed.

    Attributes:
        path: the first of the stage's paths that agrees with the plain forward pass.
        attention: the library's attention for this path, such as "sdpa" or "eager".
        plain_linears: whether linear layers must not be packed, because the model reads their weights directly.
        why: what was wrong with the paths that were tried before; "" when there were none.
        seconds: the duration of the check.
    """

    path: str
    attention: str
    plain_linears: bool = False
    why: str = ""
    seconds: float = 0.0


def first_exact(
    paths: Sequence[str],
    packs_linears: bool,
    fault: Callable[[str, bool, str], str],
    config: PreTrainedConfig,
    folder: Path,
    own_attention: Collection[str] = (),
) -> Verdict:
    """The verdict on the first path that agrees with the plain forward pass.

    The library's fused attention ignores what some models do to their scores (caps, biases). So if a path differs with
    the model's default attention, it is tried with eager attention as well.

    Args:
        paths: ways to compute a model, the best first.
        packs_linears: whether linear layers are packed on this device if the model allows it.
        fault: a function of (path, whether linear layers stay plain, name of the library's attention) that says what is
            wrong, or "" when nothing is.
        config: the configuration of the model as it was loaded, with its default attention.
        folder: the model's folder, for the message.
        own_attention: paths that do not use the library's attention.

    Raises:
        UserError: no path agrees.
    """
    faults: list[str] = []
    default = attention_of(config)
    for path in paths:
        for plain_linears in (False, True) if packs_linears else (True,):
            found = fault(path, plain_linears, default)
            if not found:
                return Verdict(path, default, plain_linears, "; ".join(dict.fromkeys(faults)))
            if found == NOT_FOR_THIS:
                faults.append(f"{path} {found}")
                break
            if default != "eager" and path not in own_attention and not fault(path, plain_linears, "eager"):
                print(f"{config.model_type}: computed with eager attention, because {default} attention {found}")
                return Verdict(path, "eager", plain_linears, "; ".join(dict.fromkeys(faults)))
            faults.append(f"{path} {found}")
    raise UserError(
        f"the model in {folder} is refused: no way to compute it agrees with the library's plain forward pass "
        f"({'; '.join(dict.fromkeys(faults))})"
    )


def remembered(key: Mapping[str, Any] | None, find: Callable[[], Verdict]) -> Verdict:
    """The verdict from the user's cache. If the cache has none, make the check and store its verdict there.

    Args:
        key: what the verdict depends on: the model's digest, the stage, dtype and device. None means that the cache is
            not used.
        find: the function that makes the check.
    """
    if key is None:
        return timed(find)
    whole = {**key, "check": VERSION, "torch": torch.__version__, "transformers": version("transformers")}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "self_check" / f"{name}.json"
    known = read_verdict(path)
    if known is None:
        known = timed(find)
        with contextlib.suppress(OSError, UserError), whole_file(path) as file:  # the cache may be full or read-only
            json.dump(asdict(known), file)
    return known


def timed(find: Callable[[], Verdict]) -> Verdict:
    started = time.perf_counter()
    found = find()
    return replace(found, seconds=round(time.perf_counter() - started, 2))


def read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**load_object(path))
    except (OSError, ValueError, TypeError):
        return None
