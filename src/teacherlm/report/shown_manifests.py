"""The manifests of a run's folder. The fields that the report shows are checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.json_files import load_object
from teacherlm.core.redaction import redacted_command, without_named
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape
from teacherlm.core.trees import files_below

DESCRIBED = {"path": str, "sha256": str}
MANIFEST = {
    "stage": str,
    "outputs": {str: {**DESCRIBED, "files?": {str: dict}}},
    "inputs?": {str: DESCRIBED},
    "arguments?": dict,
    "versions?": {str: (str, None)},
    "image?": (str, None),
    "host?": (str, None),
    "command?": [LONG_TEXT],
    "started?": str,
    "finished?": str,
}
COUNTS = {
    **dict.fromkeys(("records?", "samples?", "questions?", "train?", "steps?", "processes?", "dropped?"), int),
    **dict.fromkeys(("prompt_tokens?", "new_tokens?"), int),
    "seconds?": float,
    "dropped_for?": {str: int},
}
"""The fields of a manifest's `counts` that are shown for any stage."""


def read_manifests(folder: Path, within: Iterable[str], missing: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """(path, manifest) for the manifests in these subfolders, ordered by the time at which the stage began."""
    paths = set()
    for name in within:
        try:
            paths |= {path for path in files_below(folder / name) if path.name.endswith(manifests.NAME)}
        except UserError as error:
            missing.append(f"manifest: {one_line(error)}")
    found = []
    for path in sorted(paths):
        if path.parent == folder / "report":
            continue
        try:
            found.append((path, checked_manifest(path)))
        except (OSError, ValueError) as error:
            missing.append(f"manifest: {path}: {one_line(error)}; run the stage again")
    return sorted(found, key=lambda pair: (pair[1].get("started", ""), str(pair[0])))


def checked_manifest(path: Path) -> dict[str, Any]:
    """A manifest whose shown fields are checked and contain no secrets.

    Earlier versions of the project did not remove secrets from commands.

    Raises:
        OSError: the file cannot be read.
        ValueError: a field does not have its shape.
    """
    manifest = load_object(path)
    flaw = flaw_of_shape(manifest, MANIFEST)
    if not flaw and "counts" in manifest:
        flaw = flaw_of_shape(manifest["counts"], COUNTS, "counts")
    if not flaw and manifest["stage"] == "quality":
        flaw = flaw_of_shape(manifest.get("counts"), {"records": int}, "counts")
        flaw = flaw or flaw_of_shape(manifest["counts"], {str: (float, {str: (int, None)})}, "counts")
    if flaw:
        raise ValueError(flaw)
    manifest["command"] = redacted_command(manifest.get("command", []))
    manifest["arguments"] = without_named(manifest.get("arguments", {}))
    return manifest
