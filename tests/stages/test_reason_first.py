"""A teacher that does not see the answer: its texts count only if their conclusion is right."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.files import read_lines
from support.programs import STAGES, warm_python
from support.teacher_server import Answer, serve
from support.warm_python import kill

from teacherlm.core import manifests
from teacherlm.enhance.job import JUDGED

SAMPLES = 24


class Reasoner:
    """A teacher whose conclusion depends on the sample and on the seeds with which it was asked about it before.

    Of four samples, the first is right at once, the second at the third attempt, the third only with a hint, and the
    fourth never.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers: dict[str, int] = {}
        self.gold: dict[str, str] = {}
        self.asked: dict[str, list[int]] = {}  # the seeds
        self.requests = 0
        self.most: int | None = None  # maximum number of requests that are answered
        self.url = ""

    def text(self, prompt: str, seed: int) -> str | None:
        question = re.search(r"Question: (.*)", prompt)[1]
        with self.lock:
            self.requests += 1
            if self.most is not None and self.requests > self.most:
                return None
            number = self.numbers[question]
            seeds = self.asked.setdefault(question, [])
            seeds += [] if seed in seeds else [seed]
            hinted, count = "Hint:" in prompt, seeds.index(seed) + 1
        right = number % 4 == 0 or (number % 4 == 1 and count == 3) or (number % 4 == 2 and hinted)
        gold = self.gold[question]
        said = gold if right else "B" if gold == "A" else "A"
        return f" Reason {number}, text {count}. The answer is ({said})."

    def respond(self, answer: Answer, body: dict[str, Any]) -> None:
        text = self.text(body["prompt"], body["seed"])
        if text is None:
            answer.send({"error": "no more"}, 400)
        else:
            answer.send({"choices": [{"text": text, "finish_reason": "stop"}]})


@pytest.fixture
def teacher() -> Iterator[Reasoner]:
    reasoner = Reasoner()
    with serve(reasoner.respond) as server:
        reasoner.url = f"{server.address}/model"
        yield reasoner


@pytest.fixture
def records(tmp_path: Path, inside: Callable, teacher: Reasoner) -> Path:
    words = ["--benchmark", "sample", "--limit", SAMPLES, "--output_dir", tmp_path, "--test_dir", tmp_path / "tests"]
    done = inside("data_prepare", *words, "--prompts", "reason_first")
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "SAMPLE.jsonl")
    questions = [re.search(r"Question: (.*)", record["reason_text"])[1] for record in records]
    teacher.numbers = {question: number for number, question in enumerate(questions)}
    teacher.gold = {question: record["text"][-3] for question, record in zip(questions, records)}
    return tmp_path / "SAMPLE.jsonl"


def enhance(inside: Callable, teacher: Reasoner, records: Path, *more: object) -> subprocess.CompletedProcess:
    return inside("enhance", *words(teacher, records), *more)


def words(teacher: Reasoner, records: Path) -> list[object]:
    place = ["--name", teacher.url, "--input", records, "--output", records.with_name("SAMPLE_reason.jsonl")]
    return [*place, "--task_type", "reason_text", "--prompts", "reason_first"]


def test_attempts_accepted_rationalized_and_dropped_add_up(
    records: Path, teacher: Reasoner, inside: Callable, tmp_path: Path
) -> None:
    done = enhance(inside, teacher, records)
    assert done.returncode == 0, done.stderr
    each = SAMPLES // 4
    assert f"has {3 * each} records, {2 * each} accepted, {each} rationalized, {each} dropped" in done.stdout
    output = records.with_name("SAMPLE_reason.jsonl")
    counts = manifests.read_manifest(manifests.manifest_of(output))["counts"]
    attempts = each * (1 + 3 + 5 + 5)
    expected = {"records": 3 * each, "failures": 0, "attempts": attempts}
    expected |= {"accepted": 2 * each, "rationalized": each, "dropped": each}
    assert {name: counts[name] for name in expected} == expected
    assert teacher.requests == attempts

    made = read_lines(output)
    for number, record in zip([n for n in range(SAMPLES) if n % 4 != 3], made, strict=True):
        count = (1, 3, 5)[number % 4]
        assert record["reason"] == f"Reason {number}, text {count}."
        assert record["all"].startswith(record["reason_text"] + f" Reason {number}")
        assert (record["reason_source"], record["reason_attempts"]) == (
            ("rationalized" if number % 4 == 2 else "accepted"),
            count,
        )
    dropped = read_lines(output.with_suffix(".dropped.jsonl"))
    assert [one["record"] for one in dropped] == list(range(3, SAMPLES, 4))
    assert re.fullmatch(r"the answer is \(.\), and the conclusions were: (\(.\)(, )?){5}", dropped[0]["reason"])

    done = inside(
        "data_prepare", "--benchmark", "sample", "--output_dir", tmp_path, "--post_process", "--prompts", "reason_first"
    )
    assert done.returncode == 0, done.stderr
    import datasets

    rows = datasets.load_from_disk(str(tmp_path / "SAMPLE")).to_list()
    assert len(rows) == 3 * each
    start = rows[0]["text"].partition(" A: The answer is")[0]
    assert rows[0]["reason_first"] == f"{start} A: Reason 0, text 1. The answer is ({rows[0]['text'][-3]})."


def test_interrupted_by_a_server_that_stops_nothing_is_lost(records: Path, teacher: Reasoner, inside: Callable) -> None:
    """What was decided is kept; the others are asked again, with the same result as without the interruption."""
    teacher.most = 20
    done = enhance(inside, teacher, records, "--batch_size", 1)
    assert done.returncode == 2 and "records got no reason" in done.stderr
    teacher.most = None
    done = enhance(inside, teacher, records)
    assert done.returncode == 0, done.stderr
    counts = manifests.read_manifest(manifests.manifest_of(records.with_name("SAMPLE_reason.jsonl")))["counts"]
    each = SAMPLES // 4
    assert [counts[name] for name in ("accepted", "rationalized", "dropped")] == [2 * each, each, each]


def test_killed_at_several_moments_the_files_are_those_of_an_uninterrupted_run(
    records: Path, teacher: Reasoner, inside: Callable
) -> None:
    assert enhance(inside, teacher, records).returncode == 0
    output = records.with_name("SAMPLE_reason.jsonl")
    expected = {path: path.read_bytes() for path in (output, output.with_suffix(".dropped.jsonl"))}
    counts = manifests.read_manifest(manifests.manifest_of(output))["counts"]
    for path in (*expected, manifests.manifest_of(output)):
        path.unlink()
    command = [warm_python(), STAGES["enhance"], *words(teacher, records), "--batch_size", 2]
    kills = 0
    for moment in (2, 9, 18, 25):
        end = teacher.requests + moment
        run = subprocess.Popen(list(map(str, command)), stdout=-1, stderr=-1)
        while teacher.requests < end and run.poll() is None:
            time.sleep(0.001)
        kills += kill(run) == -signal.SIGKILL
        run.communicate()
    assert kills == 4
    before = teacher.requests
    done = enhance(inside, teacher, records)
    assert done.returncode == 0, done.stderr
    assert "an earlier run made" in done.stdout
    assert teacher.requests - before < counts["attempts"]
    assert {path: path.read_bytes() for path in expected} == expected
    found = manifests.read_manifest(manifests.manifest_of(output))["counts"]
    assert all(found[name] == counts[name] for name in ("records", "failures", *JUDGED))


def test_shards_are_merged_though_they_lack_what_was_dropped(
    records: Path, teacher: Reasoner, inside: Callable
) -> None:
    for index in range(2):
        assert enhance(inside, teacher, records, "--shard", f"{index}/2").returncode == 0
    output = records.with_name("SAMPLE_reason.jsonl")
    done = inside("merge", "--input", records, "--output", output, "--shards", 2)
    assert done.returncode == 0, done.stderr
    counts = manifests.read_manifest(manifests.manifest_of(output))["counts"]
    each = SAMPLES // 4
    assert [counts[name] for name in ("accepted", "rationalized", "dropped")] == [2 * each, each, each]
    assert len(read_lines(output)) == 3 * each
