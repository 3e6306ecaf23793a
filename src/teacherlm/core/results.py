"""The result file of an evaluation, which evaluate/main.py writes."""

from pathlib import Path
from typing import Any

from teacherlm.core.json_files import load_object
from teacherlm.core.shapes import flaw_of_shape

GENERATED = "@generate"
"""What the name of a task ends with in the results of written answers: `creak@generate`."""
NUMBER = (float, None)
PART = {"value": NUMBER, "n?": int, "stderr?": NUMBER, "interval_95?": ([float], None)}
SHAPE = {
    **PART,
    "task": str,
    "metric": str,
    "n": int,
    "model?": str,
    "tasks?": [{**PART, "task": str}],
    "groups?": {str: PART},
}


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a result; the text says what is wrong.
    """
    result = load_object(path)
    flaw = flaw_of_shape(result, SHAPE)
    if flaw:
        raise ValueError(flaw)
    groups = result.get("groups", {})
    for part in [result, *result.get("tasks", ()), *groups.values()]:
        interval = part.get("interval_95")
        if interval is not None and (len(interval) != 2 or part["value"] is None):
            raise ValueError("interval_95: two numbers around the value were expected")
    return result
