"""Manifests: a stage's inputs, arguments and outputs. A stage writes its manifest last, so a manifest means "done".

The manifest of a folder is its `manifest.json`; the manifest of a file `NAME.jsonl` is `NAME.manifest.json` beside it.
A stage is done when its manifest has the same stage, version, arguments and input digests, and its outputs still exist
unchanged.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from teacherlm.core.files import whole_file
from teacherlm.core.json_files import load_json
from teacherlm.core.opening import open_ordinary
from teacherlm.core.places import ROOT
from teacherlm.core.redaction import redacted_command
from teacherlm.core.terminal import printable
from teacherlm.core.trees import files_below

NAME = "manifest.json"
STAGE_VERSIONS = {
    "enhance": 2,  # BOS in prompts, spaces of SentencePiece tokenizers, no EOS at a prompt's end
    "finetune": 2,  # BOS before samples, plain attention where packed attention is not exact
    "atlas evaluate": 2,  # released LayerNorm, prompts whose options are too long, checks of the index
    "atlas train": 2,  # frozen encoder without dropout, skipped steps, warm-up counted in batches
    "prepare_mmlu": 2,  # one kind of line break
    "post_process": 2,  # KIND_shuffled, parts
    "evaluate": 2,  # BOS before contexts, tokenization as in finetuning, plain attention as in finetuning
}
"""Stage -> the version of its code, 1 by default. Raise the version when a change of the code changes the numbers that
the stage writes. Outputs of earlier versions are then stale, and the stage makes them again."""
Manifest = dict[str, Any]
"""The content of a manifest, with the fields that `write_manifest` writes."""
Description = dict[str, Any]
"""What `describe` returns: {"path", "sha256", "files"}. An input that is not a file has no "files"."""
VERSIONS = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "lm_eval")


def manifest_of(output: Path) -> Path:
    """The path of an output's manifest: beside a file (.json, .jsonl), or in a folder (opt-1.3b_seed0 is a folder)."""
    return output.with_suffix("." + NAME) if output.suffix in (".json", ".jsonl") else output / NAME


def whole_manifest(part: Path) -> Path:
    """The manifest of the whole output that a progress file or a shard's manifest belongs to."""
    name = re.sub(r"\.shard-[0-9]+-of-[0-9]+", "", part.name.removeprefix("."))
    return part.with_name(name.removesuffix(".jsonl.progress").removesuffix(".manifest.json") + ".manifest.json")


def is_outdated(part: Path) -> bool:
    """Whether the whole output was completed after this progress file or shard was last written.

    Shards of another number, which an earlier run began, stay beside the output.
    """
    whole = whole_manifest(part)
    return whole != part and whole.is_file() and whole.stat().st_mtime_ns > part.stat().st_mtime_ns


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file, or None if the file is missing or is not a manifest.

    A manifest has its outputs' paths relative to itself, so that a run's folder can be moved. The paths returned here
    include the manifest's folder.
    """
    try:
        manifest = load_json(path)
    except (OSError, ValueError):
        return None
    if not is_manifest(manifest):
        return None
    found: Manifest = manifest
    for output in found["outputs"].values():
        output["path"] = str(path.parent / output["path"])
    return found


def is_manifest(value: Any) -> bool:
    """Whether a JSON value has the form of a manifest: the fields that readers use exist and have the right types."""
    if not isinstance(value, dict) or not isinstance(value.get("stage"), str):
        return False
    if not all(isinstance(value.get(name, {}), dict) for name in ("arguments", "inputs", "outputs", "counts")):
        return False
    inputs, outputs = (value.get(name, {}).values() for name in ("inputs", "outputs"))
    return "outputs" in value and all(map(is_described, inputs)) and all(is_described(one, True) for one in outputs)


def is_described(value: Any, output: bool = False) -> bool:
    """Whether a JSON value has the form that `describe` returns.

    Args:
        output: whether it describes an output. Its files are read again, so each must have a relative name without
            `..`.
    """
    if not isinstance(value, dict) or not isinstance(value.get("sha256"), str):
        return False
    files = value.get("files", {})
    if not isinstance(value.get("path", ""), str) or not isinstance(files, dict):
        return False
    if not all(isinstance(file, dict) and isinstance(file.get("sha256"), str) for file in files.values()):
        return False
    if "base" in value and not is_described(value["base"]):  # adapters have a base model
        return False
    below = (not PurePath(name).is_absolute() and ".." not in PurePath(name).parts for name in files)
    return not output or ("path" in value and "files" in value and all(below))


def describe(path: Path, known: Mapping[str, Any] | None = None, files: list[Path] | None = None) -> Description:
    """Digest of a file or a folder: {"path", "sha256", "files": {name: {"bytes", "mtime_ns", "sha256"}}}.

    Symbolic links are followed, and their targets are recorded as `real`.

    Args:
        path: a file or a folder. In a folder, all files count except manifests and hidden files.
        known: an earlier description. A file whose size and modification time are unchanged is not read again, unless
            a link in its path has a new target.
        files: the files of the folder that count, if not all do.

    Raises:
        UserError: a link in the folder leads to a folder that contains it, or too many links lead to one folder.
    """
    real = os.path.realpath(path) if path.is_symlink() else None
    known_files = (known or {}).get("files", {}) if (known or {}).get("real") == real else {}
    if files is None:
        files = [path] if path.is_file() else list(files_below(path))
        files = [f for f in files if not f.name.startswith(".") and not f.name.endswith(NAME)]
    root = os.path.realpath(path)
    described = {}
    for file in files:
        name = file.name if file == path else str(file.relative_to(path))
        stat = file.stat()
        found: dict[str, Any] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if file != path and (target := os.path.realpath(file)) != f"{root.rstrip('/')}/{name}":
            found["real"] = target
        old = known_files.get(name, {})
        same = all(old.get(key) == found.get(key) for key in ("bytes", "mtime_ns", "real"))
        described[name] = old if same else {**found, "sha256": sha256(file)}
    return {**combined(path, described), **({} if real is None else {"real": real})}


def combined(path: Path, described: Mapping[str, Mapping[str, Any]]) -> Description:
    """The description of a file or a folder, made from the descriptions of its files by name."""
    if path.is_file():
        digest = described[path.name]["sha256"]
    else:  # the digest of what `sha256sum` prints in that folder
        lines = "".join(f"{described[name]['sha256']}  {name}\n" for name in sorted(described))
        digest = hashlib.sha256(os.fsencode(lines)).hexdigest()
    return {"path": str(path), "sha256": digest, "files": dict(described)}


def sha256(file: Path) -> str:
    with open_ordinary(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def reasons_not_done(
    manifest: Mapping[str, Any] | None, stage: str, arguments: Mapping[str, Any], inputs: Mapping[str, Description]
) -> list[str]:
    """The reasons why a manifest does not show that this work is done, as texts. An empty list means that it is done.

    Args:
        manifest: the manifest as read, or None.
        stage, arguments: the values that this work's manifest would have.
        inputs: descriptions (see `describe`) by name.
    """
    if manifest is None:
        return ["not done yet"]
    gone = [name for name, output in manifest.get("outputs", {}).items() if not still_there(output)]
    found = differences(manifest, stage, arguments, inputs)
    return found + [printable(f"the output {name} is gone or was changed") for name in gone]


def differences(
    manifest: Mapping[str, Any], stage: str, arguments: Mapping[str, Any], inputs: Mapping[str, Description]
) -> list[str]:
    """How a manifest's work differs from this work, as texts. The outputs are not looked at."""
    found = []
    if manifest["stage"] != stage:
        found.append(f"made by stage {manifest['stage']}")
    elif manifest.get("version", 1) != stage_version(stage):
        found.append(
            f"made by version {manifest.get('version', 1)} of the stage {stage}, this is version {stage_version(stage)}"
        )
    old_arguments = manifest.get("arguments", {})
    for key in sorted({*old_arguments, *arguments}):
        if old_arguments.get(key) != arguments.get(key):
            found.append(f"{key} was {old_arguments.get(key)!r}, is {arguments.get(key)!r}")
    old_inputs = manifest.get("inputs", {})
    for key in sorted({*old_inputs, *inputs}):
        if old_inputs.get(key, {}).get("sha256") != inputs.get(key, {}).get("sha256"):
            found.append(f"the {key} changed")
    return [printable(words) for words in found]  # the names come from files that others may have written


def stage_version(stage: str) -> int:
    return STAGE_VERSIONS.get(stage, 1)


def still_there(output: Mapping[str, Any]) -> bool:
    """Whether every file of an output's description still exists and is unchanged."""
    path = Path(output["path"])
    if path.is_file() and set(output["files"]) != {path.name}:
        return False
    files = [path if path.is_file() else path / name for name in output["files"]]
    return all(file.is_file() for file in files) and describe(path, output, files)["sha256"] == output["sha256"]


def write_manifest(
    path: Path,
    *,
    stage: str,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, Description],
    outputs: Mapping[str, Description],
    counts: Mapping[str, Any],
    started: float,
) -> None:
    """Write a stage's manifest atomically. Call this after all outputs are written.

    Args:
        arguments: the JSON values that the outputs depend on: no secrets, and no settings of place or speed.
        inputs: descriptions by name (see `describe`), taken before the work began.
        outputs: descriptions of the written files and folders, by name.
        counts: numbers for people to read (records, tokens, seconds).
        started: `time.time()` at the start.
    """
    written = {
        name: {**output, "path": os.path.relpath(output["path"], path.parent)} for name, output in outputs.items()
    }
    manifest = {
        "stage": stage,
        "version": stage_version(stage),
        "arguments": dict(arguments),
        "inputs": dict(inputs),
        "outputs": written,
        "counts": dict(counts),
        "versions": versions(),
        "image": os.environ.get("TEACHERLM_IMAGE"),
        "host": socket.gethostname(),
        "command": [Path(sys.argv[0]).name, *redacted_command(sys.argv[1:])],
        "started": timestamp(started),
        "finished": timestamp(time.time()),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    with whole_file(path) as file:
        # Bytes of a name that the locale could not decode are written as JSON escapes, such as \udcc3.
        file.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def versions() -> dict[str, str | None]:
    """Versions of Python, of this project (git revision) and of the libraries that influence the results."""
    return {"python": platform.python_version(), "teacherlm": revision(), **library_versions()}


@functools.cache
def library_versions() -> Mapping[str, str | None]:
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def revision() -> str | None:
    """The git revision of the project, with `+changes` if tracked files were changed; None outside a checkout.

    A container has no git; there the variable TEACHERLM_REVISION gives the revision.
    """
    if said := os.environ.get("TEACHERLM_REVISION"):
        return said
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
