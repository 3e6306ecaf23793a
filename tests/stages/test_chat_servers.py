"""enhance.py with a chat model behind a server: addresses, keys, refused parameters, rates, budgets, odd answers."""

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.enhancing import prompts
from support.failed_records import failures_of, last_error
from support.files import contents, read_lines
from support.programs import STAGES, only_error, warm_python
from support.teacher_server import Answer, TeacherServer, serve, usage

from teacherlm.core import manifests
from teacherlm.enhance import job
from teacherlm.enhance.engines import openai_engine

KEY = "sk-not-for-others-0123"


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def words(server: TeacherServer, folder: Path, records: int, *more: object) -> list[object]:
    path = prompts(folder / "SAMPLE.jsonl", records)
    command = ["--name", f"{server.address}/model", "--input", path, "--output", folder / "out.jsonl"]
    command += ["--task_type", "cot_text", "--num_tokens", 8, "--temperature", 0, "--batch_size", 1, "--chat", "true"]
    return [*command, *more]


def question(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def echo(answer: Answer, body: dict[str, Any]) -> None:
    answer.say(f"It has {len(question(body))} letters.", usage=usage(10, 5))


def expected_texts(folder: Path) -> list[str]:
    return [f" It has {len(record['cot_text'])} letters." for record in read_lines(folder / "SAMPLE.jsonl")]


def texts(folder: Path) -> list[str]:
    return [record["cot"] for record in read_lines(folder / "out.jsonl")]


def manifest(folder: Path) -> dict[str, Any]:
    return manifests.read_manifest(folder / "out.manifest.json")


def test_a_chat_server_gets_conversations(tmp_path: Path, inside: Callable) -> None:
    with serve(echo) as server:
        result = inside("enhance", *words(server, tmp_path, 3))
    assert result.returncode == 0, result.stderr
    assert texts(tmp_path) == expected_texts(tmp_path)
    records = read_lines(tmp_path / "SAMPLE.jsonl")
    for (_, path, body, _), record in zip(server.asked, records, strict=True):
        assert path == "/v1/chat/completions"
        assert body["messages"] == [{"role": "user", "content": record["cot_text"]}]
        assert {name: body[name] for name in ("model", "max_tokens", "temperature")} == {
            "model": "model",
            "max_tokens": 8,
            "temperature": 0,
        }
    assert manifest(tmp_path)["arguments"]["chat"] is True
    assert manifest(tmp_path)["counts"]["ended"] == {"stop": 3}


@pytest.mark.parametrize(
    ("path", "more", "asked", "model"),
    [
        ("/api/v1", ["--model", "some/model"], "/api/v1/chat/completions", "some/model"),
        ("/openai/", ["--model", "m"], "/openai/chat/completions", "m"),
        ("", ["--model", "m"], "/v1/chat/completions", "m"),
        ("/api/v1/some/model", [], "/api/v1/chat/completions", "some/model"),
        ("/v1/some/model", [], "/v1/chat/completions", "some/model"),
        ("/some/model", [], "/v1/chat/completions", "some/model"),
    ],
)
def test_an_address_may_have_a_path(
    path: str, more: list[str], asked: str, model: str, tmp_path: Path, inside: Callable
) -> None:
    with serve(echo) as server:
        result = inside("enhance", *words(server, tmp_path, 1, "--name", server.address + path, *more))
    assert result.returncode == 0, result.stderr
    assert [(place, body["model"]) for _, place, body, _ in server.asked] == [(asked, model)]
    assert manifest(tmp_path)["inputs"]["teacher"]["sha256"] == f"{server.address}{path}{' ' + model if more else ''}"


def test_a_key_of_another_variable(tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("MY_SERVICE", KEY)

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        answer.send({"error": f"bad {answer.headers['Authorization']}"}, 401)

    with serve(respond) as server:
        result = inside("enhance", *words(server, tmp_path, 2, "--key_variable", "MY_SERVICE", "--max_failures", 2))
    assert result.returncode == 0, result.stderr
    assert {headers["Authorization"] for *_, headers in server.asked} == {f"Bearer {KEY}"}
    assert "MY_SERVICE" in manifest(tmp_path)["command"]
    assert "bad Bearer [hidden]" in failures_of(tmp_path / "out.jsonl")[0]["reason"]
    for file in tmp_path.rglob("*"):
        assert KEY.encode() not in file.read_bytes()
    assert KEY not in result.stdout + result.stderr


def test_a_key_in_place_of_its_variable_is_not_repeated(tmp_path: Path, inside: Callable) -> None:
    with serve(echo) as server:
        result = inside("enhance", *words(server, tmp_path, 1, "--key_variable", KEY))
    assert "no environment variable of that name is set; give its name, and not the key" in only_error(result)
    assert KEY not in result.stdout + result.stderr


# -------------------------------------------------------------------------------------------------- refused parameters


def refuse(*refused: str, form: str) -> Callable[[Answer, dict[str, Any]], None]:
    """A server whose model refuses parameters, with an error in the form of a known server."""

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        bad = next((name for name in refused if name in body), None)
        if bad is None:
            echo(answer, body)
        elif form == "openai":
            hint = " Use 'max_completion_tokens' instead." if bad == "max_tokens" else ""
            said = f"Unsupported parameter: '{bad}' is not supported with this model.{hint}"
            answer.send({"error": {"message": said, "param": bad, "code": "unsupported_parameter"}}, 400)
        elif form == "fastapi":
            found = {"type": "extra_forbidden", "loc": ["body", bad], "msg": "Extra inputs are not permitted"}
            answer.send({"detail": [found]}, 422)
        else:
            answer.send({"error": {"message": f"{bad} is not supported by this model"}}, 400)

    return respond


@pytest.mark.parametrize("form", ["openai", "fastapi", "text"])
def test_refused_parameters_are_left_out_and_recorded(form: str, tmp_path: Path, inside: Callable) -> None:
    with serve(refuse("temperature", "seed", form=form)) as server:
        result = inside("enhance", *words(server, tmp_path, 6, "--batch_size", 3))
    assert result.returncode == 0, result.stderr
    assert texts(tmp_path) == expected_texts(tmp_path)
    assert manifest(tmp_path)["counts"]["refused_parameters"] == {"temperature": "left out", "seed": "left out"}
    for name, meaning in (("temperature", "--temperature has no effect"), ("seed", "its texts cannot be repeated")):
        assert result.stdout.count(f"warning: the server's model takes no {name}; {meaning}") == 1
    assert len(server.asked) <= 6 + 2 * 3


NEUTRAL = {"top_k": -1, "min_p": 0, "repetition_penalty": 1}


def test_a_server_gets_neutral_values_for_what_it_would_set_itself(tmp_path: Path, inside: Callable) -> None:
    """vLLM takes a top_k and a repetition penalty from the model's generation_config.json if a request has none."""
    with serve(echo) as server:
        assert inside("enhance", *words(server, tmp_path, 2)).returncode == 0
    assert all(body.items() >= {**NEUTRAL, "top_p": 1}.items() for _, _, body, _ in server.asked)


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "Unrecognized request arguments supplied: min_p, repetition_penalty, top_k"}},
        {"error": {"message": "top_k must be at least 1", "param": "top_k"}},
        {"detail": "Unexpected fields in the request: {'min_p', 'top_k'}"},
    ],
    ids=["all", "the value", "some"],
)
def test_a_server_that_knows_none_of_them_refuses_once(said: Any, tmp_path: Path, inside: Callable) -> None:
    with serve(lambda answer, body: answer.send(said, 422) if "top_k" in body else echo(answer, body)) as server:
        result = inside("enhance", *words(server, tmp_path, 3))
    assert result.returncode == 0, result.stderr
    assert texts(tmp_path) == expected_texts(tmp_path)
    assert len(server.asked) == 4 and not any(name in body for _, _, body, _ in server.asked[1:] for name in NEUTRAL)
    assert manifest(tmp_path)["counts"]["refused_parameters"] == {", ".join(NEUTRAL): "left out"}


def test_a_model_that_takes_temperature_or_top_p_keeps_the_temperature(tmp_path: Path, inside: Callable) -> None:
    said = {"error": {"message": "`temperature` and `top_p` cannot both be specified for this model."}}
    with serve(lambda answer, body: answer.send(said, 400) if "top_p" in body else echo(answer, body)) as server:
        result = inside("enhance", *words(server, tmp_path, 3))
    assert result.returncode == 0, result.stderr
    assert manifest(tmp_path)["counts"]["refused_parameters"] == {"top_p": "left out"}
    assert all("temperature" in body for _, _, body, _ in server.asked)


def test_the_maximum_of_tokens_gets_its_other_name(tmp_path: Path, inside: Callable) -> None:
    with serve(refuse("max_tokens", form="openai")) as server:
        result = inside("enhance", *words(server, tmp_path, 3))
    assert result.returncode == 0, result.stderr
    assert [body.get("max_completion_tokens") for _, _, body, _ in server.asked] == [None, 8, 8, 8]
    assert manifest(tmp_path)["counts"]["refused_parameters"] == {"max_tokens": "max_completion_tokens"}
    assert (
        result.stdout.count("the server's model takes no max_tokens, but max_completion_tokens; the same number") == 1
    )


def test_a_system_message_that_is_refused_begins_the_user_s(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "conversation", lambda kind, text: (("system", "Be brief."), ("user", text)))

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        if body["messages"][0]["role"] == "system":
            answer.send({"error": {"message": "System role not supported", "code": 400}}, 400)
        else:
            echo(answer, body)

    with serve(respond) as server:
        result = inside("enhance", *words(server, tmp_path, 2))
    assert result.returncode == 0, result.stderr
    records = read_lines(tmp_path / "SAMPLE.jsonl")
    asked = [[message["content"] for message in body["messages"]] for _, _, body, _ in server.asked]
    assert asked == [["Be brief.", records[0]["cot_text"]], *([f"Be brief.\n\n{one['cot_text']}"] for one in records)]
    assert result.stdout.count("the server's model takes no system message") == 1


def test_a_value_that_is_refused_is_a_failure(tmp_path: Path, inside: Callable) -> None:
    said = "max_tokens is too large: 8. This model has a context of 4 tokens"
    with serve(lambda answer, _: answer.send({"error": {"message": said, "param": "max_tokens"}}, 400)) as server:
        assert said in last_error(inside("enhance", *words(server, tmp_path, 1)))
    assert len(server.asked) == 1


# -------------------------------------------------------------------------------------------------------- odd answers


def test_odd_answers_lose_nothing(tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be better another time is asked for again; the rest are failures, which a second run repeats."""
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 0.2)
    odd: list[Callable[[Answer], None]] = [
        lambda answer: answer.send({"error": "slow down"}, 429, Retry_After="1"),
        lambda answer: answer.send({"error": "oops"}, 500),
        lambda answer: answer.send({"choices": [{"message": {"content": "Be"}}]}, length=4000),
        lambda answer: answer.send({"choices": []}),
        lambda answer: answer.say(None, refusal="I do not talk about that."),
        lambda answer: answer.say("Beca", finish="content_filter"),
        lambda answer: answer.send({"error": {"message": "The model `model` does not exist"}}, 404),
    ]
    seen: dict[str, int] = {}

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        with answer.server.lock:
            number = list(seen).index(question(body)) if question(body) in seen else len(seen)
            seen[question(body)] = seen.get(question(body), 0) + 1
        odd[number](answer) if number < len(odd) and seen[question(body)] == 1 else echo(answer, body)

    with serve(respond) as server:
        command = words(server, tmp_path, 10)
        error = last_error(inside("enhance", *command))
        assert "4 records got no cot" in error
        reasons = [row["reason"] for row in failures_of(tmp_path / "out.jsonl")]
        assert [reason[:40] for reason in reasons] == [
            "the server's answer is no completion: it has no choices[0].message.content: "[:40],
            "the model refused: I do not talk about that."[:40],
            "a filter of the server withheld the text"[:40],
            "the server answered 404: {"[:40] + reasons[3][26:40],
        ]
        assert inside("enhance", *command).returncode == 0
    assert texts(tmp_path) == expected_texts(tmp_path)
    assert list(seen.values()) == [2] * len(odd) + [1] * 3  # nothing was asked for more often than necessary
    assert not (tmp_path / "out.failures.jsonl").exists()


def test_why_a_text_ended_and_what_was_thought(tmp_path: Path, inside: Callable) -> None:
    answers = [
        lambda answer: answer.say("Because.", reasoning_content="Hm."),
        lambda answer: answer.say("<think>\nHm.\n</think>\n\nBecau", finish="length"),
        lambda answer: answer.say("Becau", finish=None, usage=usage(3, 8)),
        lambda answer: answer.say("Because.", finish=None, reasoning="Hm."),
        lambda answer: answer.say(None, finish="length", reasoning_content="Hm. So"),
    ]
    numbers = itertools.count()
    with serve(lambda answer, _: answers[next(numbers)](answer)) as server:
        result = inside("enhance", *words(server, tmp_path, 5, "--max_failures", 1))
    assert result.returncode == 0, result.stderr
    found = [
        {name: value for name, value in record.items() if name.startswith("cot") and name != "cot_text"}
        for record in read_lines(tmp_path / "out.jsonl")
    ]
    assert found == [
        {"cot": " Because.", "cot_thinking": "Hm."},
        {"cot": " Becau", "cot_ended": "length", "cot_thinking": "Hm."},
        {"cot": " Becau", "cot_ended": "length"},
        {"cot": " Because.", "cot_thinking": "Hm."},
    ]
    assert failures_of(tmp_path / "out.jsonl")[0]["reason"] == "the thinking did not end within 8 tokens"
    assert manifest(tmp_path)["counts"]["ended"] == {"length": 2, "stop": 2}


# ------------------------------------------------------------------------------------------------------------ the pace


def test_the_rate_of_requests_is_held(tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when requests are repeated."""
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 0.01)
    numbers = itertools.count()

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        answer.send({"error": "oops"}, 500) if next(numbers) % 3 == 0 else echo(answer, body)

    with serve(respond) as server:
        rate = ["--requests_per_minute", 600, "--batch_size", 8]
        assert inside("enhance", *words(server, tmp_path, 16, *rate)).returncode == 0
    times = [when for when, *_ in server.asked]
    assert len(times) > 16
    assert times[-1] - times[0] > 0.6 * 0.1 * (len(times) - 1)  # the first request may arrive late
    assert texts(tmp_path) == expected_texts(tmp_path)


def test_the_rate_of_tokens_counts_what_was_used(tmp_path: Path, inside: Callable) -> None:
    with serve(echo) as server:  # which uses 15 tokens for each text, fewer than it might
        rate = ["--tokens_per_minute", 9000, "--batch_size", 1]
        began = time.monotonic()
        assert inside("enhance", *words(server, tmp_path, 12, *rate)).returncode == 0
    times = [when for when, *_ in server.asked]
    assert 0.6 * 0.1 * 11 < times[-1] - times[0] < time.monotonic() - began + 1
    assert times[-1] - times[0] < 10  # with the upper bounds of about 250 tokens, it would take 18 s


def test_a_server_that_asks_to_wait_gets_no_other_request_meanwhile(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 2)
    numbers = itertools.count()

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        if next(numbers) == 0:
            answer.send({"error": "slow down"}, 429, Retry_After="2")
        else:
            time.sleep(0.3)
            echo(answer, body)

    with serve(respond) as server:
        assert inside("enhance", *words(server, tmp_path, 6, "--batch_size", 2)).returncode == 0
    times = [when for when, *_ in server.asked]
    assert [when for when in times if times[0] + 0.8 < when < times[0] + 1.9] == []


# ---------------------------------------------------------------------------------------------------------- the budget


def test_a_budget_of_tokens_stops_and_goes_on(tmp_path: Path, inside: Callable) -> None:
    with serve(echo) as server:
        command = words(server, tmp_path, 12, "--batch_size", 2)
        error = last_error(inside("enhance", *command, "--max_tokens_total", 350))
        first = len(server.asked)
        assert (
            f"the budget is used up ({10 * first} prompt + {5 * first} new tokens): {first} of 12 completions" in error
        )
        assert 1 < first < 12
        assert 15 * first <= 350
        error = last_error(inside("enhance", *command, "--max_tokens_total", 350))
        assert len(server.asked) == first  # the spent amount is kept
        assert not (tmp_path / "out.jsonl").exists()
        result = inside("enhance", *command, "--max_tokens_total", 5000)
        assert result.returncode == 0, result.stderr
        assert len(server.asked) == 12
    assert texts(tmp_path) == expected_texts(tmp_path)
    assert manifest(tmp_path)["counts"]["spent"] == {"prompt_tokens": 120, "new_tokens": 60}
    assert sorted(contents(tmp_path)) == ["SAMPLE.jsonl", "out.jsonl", "out.manifest.json"]


def test_a_budget_of_money_counts_answers_without_usage_and_lost_ones(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 0.01)
    numbers = itertools.count()

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        if next(numbers) == 0:
            answer.send({"choices": []}, length=4000)
        else:
            answer.say("Because.")

    with serve(respond) as server:
        prices = ["--price_in", 0, "--price_out", 1e6 / 8]  # the 8 new tokens at most cost 1
        error = last_error(inside("enhance", *words(server, tmp_path, 5, *prices, "--max_cost", 3)))
    assert "24 new tokens, cost 3): 2 of 5 completions are done and kept" in error
    assert len(server.asked) == 3


def test_what_was_spent_survives_a_kill(tmp_path: Path, inside: Callable) -> None:
    with serve(lambda answer, body: (time.sleep(0.05), echo(answer, body))) as server:
        command = words(server, tmp_path, 40, "--max_tokens_total", 100_000)
        run = subprocess.Popen(list(map(str, [warm_python(), STAGES["enhance"], *command])), stdout=-1, stderr=-1)
        while len(server.asked) < 6:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        asked = len(server.asked)
        assert asked < 40
        assert inside("enhance", *command).returncode == 0
        repeated = len(server.asked) - 40
    assert repeated <= 1
    assert manifest(tmp_path)["counts"]["spent"]["new_tokens"] in (5 * 40, 5 * 40 + 5 * repeated)
    assert texts(tmp_path) == expected_texts(tmp_path)


@pytest.mark.parametrize(
    ("more", "words_of_error"),
    [
        (["--max_cost", 1], "--max_cost: without prices there is no cost; give --price_in and --price_out"),
        (["--name", "smollm2-135m", "--max_tokens_total", 9], "--max_tokens_total: only for a teacher behind a server"),
        (["--name", "smollm2-135m", "--model", "m"], "--model: only for a teacher behind a server"),
        (["--requests_per_minute", 0], "--requests_per_minute: more than 0 was expected"),
        (["--chat", "maybe"], "--chat"),
        (["--name", "field:why"], "takes no --engine, no --num_completions and no --chat true"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    more: list[object], words_of_error: str, tmp_path: Path, inside: Callable
) -> None:
    with serve(echo) as server:
        assert words_of_error in only_error(inside("enhance", *words(server, tmp_path, 1, *more)))


def test_sigterm_ends_the_waiting_for_the_next_request(tmp_path: Path) -> None:
    first = threading.Event()

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        echo(answer, body)
        first.set()

    with serve(respond) as server:
        command = [warm_python(), STAGES["enhance"], *words(server, tmp_path, 5, "--requests_per_minute", 0.5)]
        run = subprocess.Popen(list(map(str, command)), stdout=-1, stderr=-1, text=True, env=dict(os.environ))
        assert first.wait(60)
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        output, errors = run.communicate(timeout=60)
    assert run.returncode == 75, errors
    assert "interrupted after 1 of 5 completions" in output
