"""What main.py prints: a table of the results, and the accuracy of each task over the checkpoints."""

from typing import Any

from teacherlm.core import tables


def table(results: list[dict[str, Any]]) -> str:
    """A table of the results with standard errors, in the form of lm-eval's tables."""
    metrics = list(dict.fromkeys(result["metric"] for result in results))
    rows = [("model", "task", "n", " / ".join(metrics), "stderr", "95 % interval")]
    for result in results:
        name = result["task"] if len(metrics) == 1 else f"{result['task']}, {result['metric']}"
        rows += [row(result["model"], part["task"], part) for part in result.get("tasks", ())]
        rows += [row(result["model"], f"{name}: {group}", part) for group, part in result.get("groups", {}).items()]
        rows.append(row(result["model"], name, result))
    return tables.table(rows)


def curve(task: str, results: list[dict[str, Any]]) -> str:
    """A plot of a task's accuracy over the checkpoints; empty if there is only one result."""
    rows = [(r["model"], r["interval_95"][0], r["value"], r["interval_95"][1]) for r in results if r["interval_95"]]
    return f"\n{task}\n{tables.draw_intervals(rows)}\n" if len(rows) > 1 else ""


def row(model: str, name: str, result: dict[str, Any]) -> tuple[str, ...]:
    low_high, deviation = result.get("interval_95"), result.get("stderr")
    interval = "-" if low_high is None else "{:.4f} - {:.4f}".format(*low_high)
    error = "-" if deviation is None else f"± {deviation:.4f}"  # a single sample has no error
    value = "-" if result["value"] is None else f"{result['value']:.4f}"  # the metric has no value
    return (model, name, str(result.get("n", "-")), value, error, interval)
