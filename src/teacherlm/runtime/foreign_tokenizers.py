"""Tokenizers from unknown sources: they are checked when they are loaded, and their later failures become UserErrors.

The tokenizers library is written in Rust. With a malformed tokenizer.json it may panic while it encodes a text. A panic
prints lines to stderr and raises a BaseException that is not an `Exception`.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from teacherlm.core.errors import UserError, reason
from teacherlm.core.opening import open_ordinary

PROBES = ("a", "Is 1 + 1 = 2? (A)\n", "é 的 あ я ا 😀 \u200d\ufb01", "")
LENGTHENING = 100
"""Maximum factor by which replacements may lengthen a text. Replacing a space by three bytes is common."""


class Guarded:
    """A base class that comes before a tokenizer's class: every exception becomes a UserError that names the folder.

    Attributes:
        folder: the tokenizer's folder.
    """

    folder: Path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with naming_faults(self.folder):
            return super().__call__(*args, **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        with naming_faults(self.folder):
            return super().encode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        with naming_faults(self.folder):
            return super().decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        with naming_faults(self.folder):
            return super().batch_decode(*args, **kwargs)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        with naming_faults(self.folder):
            return super().apply_chat_template(*args, **kwargs)


@contextlib.contextmanager
def naming_faults(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the tokenizer in {folder} fails: {reason(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UserError(f"the tokenizer in {folder} fails: its files are damaged ({reason(error)})") from error


def is_panic(error: BaseException) -> bool:
    """Whether an exception is the panic of a Rust library. The exception's class cannot be imported."""
    return type(error).__name__ == "PanicException"


def guarded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """The same tokenizer with the class `Guarded`, after a check that it can be used.

    Raises:
        UserError: the tokenizer makes texts far too long, panics on a plain text, or has a setting of the wrong type.
    """
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: model_max_length: a positive number was expected, found "
            f"{reason(ValueError(repr(length)))[:60]}"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "decoder"):
        if (made := getattr(backend, part, None)) is not None:
            require_bounded(json.loads(made.__getstate__()), f"the tokenizer in {folder}: its {part}")
    kind = type(tokenizer)
    tokenizer.__class__ = type(kind.__name__, (Guarded, kind), {"__module__": kind.__module__, "folder": folder})
    for probe in PROBES:
        try:
            with without_panics():
                tokenizer.decode(tokenizer(probe, add_special_tokens=False)["input_ids"])
                tokenizer.decode(tokenizer(probe)["input_ids"], skip_special_tokens=True)
        except UserError as error:
            if error.__cause__ is not None and is_panic(error.__cause__):
                raise
            # The tokenizer may lack a token for this probe, and the run may not need one. A later failure is reported.
    return tokenizer


@contextlib.contextmanager
def without_panics() -> Iterator[None]:
    """Hold back what is written to stderr within the block, and drop it after a panic. Use it for short work only."""
    sys.stderr.flush()
    held, stderr = os.memfd_create("stderr"), os.dup(2)
    panicked = False
    os.dup2(held, 2)
    try:
        yield
    except BaseException as error:
        panicked = is_panic(error) or (error.__cause__ is not None and is_panic(error.__cause__))
        raise
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        if not panicked:
            size = os.lseek(held, 0, os.SEEK_END)
            os.write(2, os.pread(held, size, 0))
        os.close(stderr)
        os.close(held)


# ------------------------------------------------------------------------------------------------ texts that get longer


def require_bounded_file(folder: Path) -> None:
    """Call `require_bounded` for the parts of a tokenizer.json before the library loads it.

    Loading already normalizes the added tokens.

    Raises:
        UserError: a part makes texts too long.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    with open_ordinary(file) as opened:
        text = opened.read().decode("utf-8", "replace")
    for found in re.finditer(r'"(normalizer|decoder)"\s*:\s*', text):
        with contextlib.suppress(ValueError, RecursionError):  # the library reports broken JSON
            part, _ = json.JSONDecoder().raw_decode(text, found.end())
            require_bounded(part, f"the tokenizer in {folder}: its {found[1]}")


def require_bounded(part: Any, where: str) -> None:
    """Refuse replacements that together make a text more than LENGTHENING times as long.

    Raises:
        UserError: the message names the part.
    """
    if lengthening(part) > LENGTHENING:
        raise UserError(f"{where} makes a text more than {LENGTHENING} times as long; use another tokenizer")


def lengthening(part: Any) -> float:
    """The maximum factor by which a normalizer or decoder lengthens a text.

    Args:
        part: the normalizer or decoder in the library's JSON.
    """
    if not isinstance(part, dict):
        return 1
    parts = [one for name in ("normalizers", "decoders") if isinstance(part.get(name), list) for one in part[name]]
    factor = 1.0
    if part.get("type") == "Replace" and isinstance(part.get("content"), str):
        content, pattern = len(part["content"]), part.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            factor = content / max(1, len(pattern["String"])) + (not pattern["String"])
        else:
            factor = content + matches_nothing(pattern.get("Regex") if isinstance(pattern, dict) else pattern)
    return math.prod([max(1.0, factor), *map(lengthening, parts)])


def matches_nothing(pattern: Any) -> bool:
    """Whether a regular expression may match an empty text, so that its replacement is inserted between characters."""
    try:
        return "(?" in pattern or "\\" in pattern.replace("\\s", "") or re.match(pattern, "") is not None
    except (re.error, TypeError, RecursionError, OverflowError):
        return True
