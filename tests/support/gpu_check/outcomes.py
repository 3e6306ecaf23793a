"""A plugin of pytest: each test's outcome as a line of JSON as soon as it is known, so that a killed run keeps them."""

import json
from pathlib import Path

import pytest

LONGEST = 6000
"""Letters of a failure's text that are kept: its end, where the error is."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="the file that each test's outcome is written to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config.option.outcomes), "gpu-outcomes")


class Outcomes:
    """Writes the names of the tests that will run, and then each one's outcome.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: dict[str, object]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.write({"name": item.nodeid})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed or (report.skipped and report.nodeid):  # a file that cannot be imported, or skips itself
            self.write(outcome(report, seconds=0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(outcome(report, report.duration))


def outcome(report: pytest.TestReport | pytest.CollectReport, seconds: float) -> dict[str, object]:
    text = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        text = report.longreprtext[-LONGEST:]
    return {"name": report.nodeid, "outcome": report.outcome, "seconds": round(seconds, 2), "text": text}
