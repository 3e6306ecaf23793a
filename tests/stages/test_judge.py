"""teacherlm judge: a model's ratings of the teacher's texts become scores for --explanations best."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.enhancing import prompts
from support.files import contents, read_lines
from support.programs import only_error
from support.teacher_server import Answer, serve

from teacherlm.dataset.judge import UNREADABLE, rating

RECORDS, TEXTS = 4, 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: 7", 7.0),
        (" rating: **8**/10. It is good.", 8.0),
        ("Rating: 3. No, it is better than that.\nRating: 6", 6.0),
        ("9", 9.0),
        (" 4 / 10.", 4.0),
        ("7.5", 7.5),
        ("On a scale from 1 to 10 it is good.", None),
        ("I would say 7", None),
        ("Rating: high", None),
        ("", None),
        (f"Rating: {'9' * 5000}", None),
        ("Rating (1-10): 8", 8.0),
        ("Rating [1–10]: 9", 9.0),
        ("Rating: -3", -3.0),
        ("-3", -3.0),
        ("Rating: .5", 0.5),
        ("The rating is 9.", 9.0),
        ("I give a rating of 7", 7.0),
        ("**Rating:** 6", 6.0),
        (r"Rating: $\boxed{7}$", 7.0),
        ("8 out of 10", 8.0),
        ("8 / 10 stars", 8.0),
        ("Ratings differ: 5 people said 3.", None),
    ],
)
def test_ratings(text: str, expected: float | None) -> None:
    assert rating(text) == expected


@pytest.fixture
def enhanced(tmp_path: Path) -> Path:
    """Texts `good N` and others; the teacher's manifest does not matter here."""
    records = read_lines(prompts(tmp_path / "SAMPLE.jsonl", RECORDS))
    for number, record in enumerate(records):
        texts = [f" Text {index}, good {(number + index) % TEXTS}." for index in range(TEXTS)]
        record |= {"cot": texts[0], "all": record["cot_text"] + texts[0]}
        record["cot_completions"] = [{"text": text, "tokens": 5, "ended": "stop"} for text in texts]
    file = tmp_path / "SAMPLE_cot.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def respond(answer: Answer, body: dict[str, Any]) -> None:
    """A judge that sees the explanation and the question. It rates `good N` with 10 N, and cannot rate one text."""
    (message,) = [one["content"] for one in body["messages"] if one["role"] == "user"]
    assert "Question: " in message and "The right answer is (" in message
    good = int(message.partition(", good ")[2][0])
    text = "I cannot say." if "Text 2, good 2" in message else f"It is clear.\nRating: {10 * good}"
    answer.send({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})


def test_the_best_text_is_that_with_the_highest_rating(enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    words = ["--input", enhanced, "--kind", "cot"]
    done = inside("judge", *words)
    assert done.returncode == 0, done.stderr
    asked, judged = tmp_path / "SAMPLE_cot_judge.jsonl", tmp_path / "SAMPLE_cot_judged.jsonl"
    assert len(read_lines(asked)) == RECORDS * TEXTS
    with serve(respond) as server:
        judge = ["--name", f"{server.address}/judge", "--chat", "true", "--input", asked, "--output", judged]
        done = inside("enhance", *judge, "--task_type", "judge_text", "--prompts", "judge", "--temperature", 0)
    assert done.returncode == 0, done.stderr
    scored = ["--judged", judged, "--scorer", "big"]
    done = inside("judge", *words, *scored)
    assert done.returncode == 0, done.stderr
    found = [line["scores"] for line in read_lines(tmp_path / "SAMPLE_cot_scores_big.jsonl")]
    goods = [[(number + index) % TEXTS for index in range(TEXTS)] for number in range(RECORDS)]
    assert found == [
        [UNREADABLE if (index, good) == (2, 2) else 10.0 * good for index, good in enumerate(row)] for row in goods
    ]
    unreadable = sum(row[2] == 2 for row in goods)
    assert unreadable == 2 and f"12 texts of 4 records; {unreadable} without a rating" in done.stdout
    before = contents(tmp_path)
    for more in ((), scored):
        assert "done already" in inside("judge", *words, *more).stdout
    assert contents(tmp_path) == before

    place = ["--benchmark", "sample", "--output_dir", tmp_path, "--test_dir", tmp_path / "tests"]
    done = inside("data_prepare", *place, "--post_process", "--explanations", "best", "--scorer", "big")
    assert done.returncode == 0, done.stderr
    rows = datasets.load_from_disk(str(tmp_path / "SAMPLE_best_big")).to_list()
    best = [max(range(TEXTS), key=row.__getitem__) for row in found]
    assert [row["cot"] for row in rows] == [f" Text {index}, good {good[index]}." for index, good in zip(best, goods)]


def test_answers_that_failed_have_no_rating(enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    words = ["--input", enhanced, "--kind", "cot"]
    assert inside("judge", *words).returncode == 0
    answers = [{**record, "judge": "Rating: 5"} for record in read_lines(tmp_path / "SAMPLE_cot_judge.jsonl")]
    judged = tmp_path / "judged.jsonl"
    kept = [record for number, record in enumerate(answers) if number not in (0, 4, 11)]
    judged.write_text("".join(json.dumps(record) + "\n" for record in kept))
    done = inside("judge", *words, "--judged", judged, "--scorer", "big")
    assert done.returncode == 0, done.stderr
    found = [score for line in read_lines(tmp_path / "SAMPLE_cot_scores_big.jsonl") for score in line["scores"]]
    assert found == [UNREADABLE if number in (0, 4, 11) else 5.0 for number in range(12)]


def test_mistakes_are_one_line(enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    words = ["--input", enhanced, "--kind", "cot"]
    assert "belong together" in only_error(inside("judge", *words, "--scorer", "big"))
    assert "no kind 'judge'" in only_error(inside("judge", *words, "--prompts", "teacherlm"))
    assert "no such file" in only_error(inside("judge", "--input", tmp_path / "none.jsonl", "--kind", "cot"))
    assert "line 1: the field 'x_text' is not a text" in only_error(inside("judge", "--input", enhanced, "--kind", "x"))
    assert inside("judge", *words).returncode == 0
    answers = [{**record, "judge": "Rating: 5"} for record in read_lines(tmp_path / "SAMPLE_cot_judge.jsonl")]
    answers[5]["explanation"] = "Another text."
    judged = tmp_path / "judged.jsonl"
    judged.write_text("".join(json.dumps(record) + "\n" for record in answers))
    error = only_error(inside("judge", *words, "--judged", judged, "--scorer", "big"))
    assert f"{judged}, line 6: this is no answer about the text" in error
    silent = [{**record, "judge": "It is good."} for record in read_lines(tmp_path / "SAMPLE_cot_judge.jsonl")]
    judged.write_text("".join(json.dumps(record) + "\n" for record in silent))
    error = only_error(inside("judge", *words, "--judged", judged, "--scorer", "big"))
    assert "no answer has a rating that can be read" in error
    assert "'text_text' is not a text" in only_error(inside("judge", "--input", enhanced, "--kind", "text"))
    assert not (tmp_path / "SAMPLE_cot_scores_big.jsonl").exists()


def test_scores_and_files_of_others_are_kept(enhanced: Path, tmp_path: Path, inside: Callable) -> None:
    words = ["--input", enhanced, "--kind", "cot"]
    asked = tmp_path / "SAMPLE_cot_judge.jsonl"
    asked.write_text("mine\n")
    assert "it is kept as" in inside("judge", *words).stdout
    answers = [{**record, "judge": "Rating: 5"} for record in read_lines(asked)]
    judged = tmp_path / "judged.jsonl"
    judged.write_text("".join(json.dumps(record) + "\n" for record in answers))
    (tmp_path / "SAMPLE_cot_scores_big.jsonl").write_text("theirs\n")
    assert "it is kept as" in inside("judge", *words, "--judged", judged, "--scorer", "big").stdout
    kept = {path.name.partition(".old-")[0]: path.read_text() for path in tmp_path.glob("*.old-*")}
    assert kept == {"SAMPLE_cot_judge.jsonl": "mine\n", "SAMPLE_cot_scores_big.jsonl": "theirs\n"}
