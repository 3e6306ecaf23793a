"""A result of an evaluation, as evaluate/main.py writes it and as it is read again."""

from pathlib import Path
from typing import Any

from teacherlm.core.json_files import load_object
from teacherlm.core.shapes import flaw_of_shape

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
    """What a result's file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no result, with what is wrong.
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
