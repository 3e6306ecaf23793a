"""Answers that a model writes: the texts of plain generation; the same bytes after kills, in shards, in any batch."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.files import read_lines
from support.programs import STAGES, warm_python
from support.scoring import words
from support.warm_python import kill
from transformers import AutoModelForCausalLM, AutoTokenizer

WRITTEN = ["--answer", "generate", "--num_tokens", 12, "--limit", 24]
SAMPLED = [*WRITTEN, "--num_answers", 3, "--temperature", 0.8]
NAMES = ("sample@generate.json", "sample@generate_samples.jsonl")


def written(output: Path) -> dict[str, bytes]:
    """The results of written answers, after a check that no other files are left."""
    folder = output / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [NAMES[0], "sample@generate.manifest.json", NAMES[1]]
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture(scope="module")
def tests(prepared: Path) -> Path:
    return prepared / "tests"


def test_the_texts_are_those_of_plain_generation(
    tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable
) -> None:
    done = inside("evaluate", *words(tiny_llama, "sample", tests, tmp_path, *WRITTEN, "--answer", "both"))
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "tiny" / NAMES[1])
    letters = read_lines(tmp_path / "tiny" / "sample_samples.jsonl")
    assert [one["prompt"].removesuffix(" The answer is (") for one in letters] == [one["prompt"] for one in records]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for record in records[:6]:
        ids = tokenizer(record["prompt"], return_tensors="pt").input_ids
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        whole, before = (tokenizer.decode(one, skip_special_tokens=True) for one in (made, ids[0]))
        text = whole[len(before) :]
        for stop in ("\nQ:", " Q: "):
            text = text.partition(stop)[0]
        assert record["answers"] == [text]
        assert record["tokens"] == [len(made) - ids.shape[1]]


def test_any_batch_size_shards_and_their_order_give_the_same_bytes(
    tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable
) -> None:
    def run(name: str, *more: object) -> subprocess.CompletedProcess:
        return inside("evaluate", *words(tiny_llama, "sample", tests, tmp_path / name, *SAMPLED, *more))

    assert run("alone").returncode == 0
    expected = written(tmp_path / "alone")
    for size in (1, 5):
        assert run(f"batch{size}", "--batch_size", size).returncode == 0
        assert written(tmp_path / f"batch{size}") == expected
    for index in (2, 0):
        assert (
            f"shard {index}/3 is done; other processes still have to do"
            in run("shared", "--shard", f"{index}/3").stdout
        )
    assert run("shared", "--shard", "1/3").returncode == 0
    assert written(tmp_path / "shared") == expected
    assert "done already" in run("shared").stdout
    record = read_lines(tmp_path / "shared" / "tiny" / NAMES[1])[0]
    assert (len(record["answers"]), {"maj@3", "pass@2", "pass@3", "tied"} <= record.keys()) == (3, True)


def test_killed_and_started_again(tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable) -> None:
    command = words(tiny_llama, "sample", tests, tmp_path / "killed", *SAMPLED, "--batch_size", 4)
    progress = tmp_path / "killed" / "tiny" / ".sample@generate.shard-0-of-1.progress"
    counts = []
    for lines in (2, 20, 45):
        process = subprocess.Popen([warm_python(), STAGES["evaluate"], *map(str, command)], stdout=subprocess.DEVNULL)
        while process.poll() is None and (not progress.exists() or progress.read_bytes().count(b"\n") <= lines):
            time.sleep(0.001)
        kill(process)
        if not progress.exists():  # it was faster
            break
        counts.append(progress.read_bytes().count(b"\n"))
    assert counts and counts == sorted(counts)
    last = inside("evaluate", *command)
    assert last.returncode == 0, last.stderr
    whole = words(tiny_llama, "sample", tests, tmp_path / "alone", *SAMPLED)
    assert inside("evaluate", *whole).returncode == 0
    assert written(tmp_path / "killed") == written(tmp_path / "alone")


def test_other_settings_are_another_work(tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable) -> None:
    command = words(tiny_llama, "sample", tests, tmp_path, *WRITTEN)
    assert inside("evaluate", *command).returncode == 0
    again = inside("evaluate", *command, "--num_tokens", 6)
    assert "num_tokens was 12, is 6" in again.stdout
    assert max(one["tokens"][0] for one in read_lines(tmp_path / "tiny" / NAMES[1])) <= 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--num_answers", 4], "--num_answers: with --temperature 0 all answers to a question would be the same"),
        (["--stop", ""], "--stop: a text that is not empty was expected"),
        (
            ["--temperature", 1e-9],
            "--temperature: 0, which takes the most likely token, or at least 0.001 was expected",
        ),
        (["--tokenization", "joint"], "--tokenization is for the letters of choices; leave it out"),
        (["--permutations", "cyclic"], "--permutations: only for --answer letter"),
        (["--num_fewshot", 60], "a question cannot be answered: the prompt has"),
    ],
)
def test_mistakes_are_one_line(
    more: list[object], said: str, tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable
) -> None:
    result = inside("evaluate", *words(tiny_llama, "sample", tests, tmp_path, *WRITTEN, *more))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert said in result.stderr


@pytest.mark.parametrize("more", [["--num_answers", 2, "--temperature", 1], ["--num_tokens", 9], ["--stop", "x"]])
def test_flags_of_texts_are_refused_where_letters_are_scored(
    more: list[object], tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable
) -> None:
    result = inside("evaluate", *words(tiny_llama, "sample", tests, tmp_path, *more))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{more[0]} is for written answers; add --answer generate or both, or leave it out" in result.stderr


def test_the_name_of_an_open_benchmark_does_not_change_another_task(
    tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable
) -> None:
    """A file gsm8k_easy.py asks for letters, although gsm8k asks for numbers."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "gsm8k_easy.py").write_text(
        "from lm_eval.base import Task, rf\n"
        "from lm_eval.metrics import mean\n"
        "class Easy(Task):\n"
        "    DATASET_PATH = ''\n"
        "    def download(self, *args, **kwargs): pass\n"
        "    def has_training_docs(self): return False\n"
        "    def has_validation_docs(self): return False\n"
        "    def has_test_docs(self): return True\n"
        "    def test_docs(self): return [{'question': 'Is it? (A) yes (B) no', 'answer': '(B)'}] * 3\n"
        "    def doc_to_text(self, doc): return f'Q: {doc[\"question\"]} A: The answer is ('\n"
        "    def doc_to_target(self, doc): return 'B).'\n"
        "    def construct_requests(self, doc, ctx): return [rf.loglikelihood(ctx, letter)[0] for letter in 'AB']\n"
        "    def process_results(self, doc, results): return {'acc': float(results[1] > results[0])}\n"
        "    def aggregation(self): return {'acc': mean}\n"
        "    def higher_is_better(self): return {'acc': True}\n"
    )
    command = words(tiny_llama, "gsm8k_easy", tests, tmp_path / "out", "--include_path", tmp_path / "tasks")
    done = inside("evaluate", *command)
    assert done.returncode == 0, done.stderr
    assert inside("evaluate", *command, "--answer", "generate", "--num_tokens", 5).returncode == 0
    names = {path.name for path in (tmp_path / "out" / "tiny").glob("*y*.json") if "manifest" not in path.name}
    assert names == {"gsm8k_easy.json", "gsm8k_easy@generate.json"}
    records = read_lines(tmp_path / "out" / "tiny" / "gsm8k_easy@generate_samples.jsonl")
    assert [one["gold"] for one in records] == ["B"] * 3


def test_damaged_answers_are_written_again(tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable) -> None:
    command = words(tiny_llama, "sample", tests, tmp_path / "out", *WRITTEN, "--shard", "0/2")
    assert inside("evaluate", *command).returncode == 0
    [progress] = (tmp_path / "out" / "tiny").glob(".*.progress")
    lines = progress.read_text().splitlines()
    for number, damaged in ((1, {}), (2, {"text": 5, "tokens": "x", "ended": "stop"})):
        lines[number] = json.dumps({**damaged, "key": json.loads(lines[number])["key"]})
    progress.write_text("\n".join(lines) + "\n")
    assert inside("evaluate", *command).returncode == 0
    assert inside("evaluate", *command[:-1], "1/2").returncode == 0
    whole = words(tiny_llama, "sample", tests, tmp_path / "alone", *WRITTEN)
    assert inside("evaluate", *whole).returncode == 0
    assert written(tmp_path / "out") == written(tmp_path / "alone")


def test_a_task_file_of_another_form_is_refused(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "weather.py").write_text(
        "from lm_eval.base import MultipleChoiceTask\n"
        "class Weather(MultipleChoiceTask):\n"
        "    DATASET_PATH = ''\n"
        "    def download(self, *args, **kwargs): pass\n"
        "    def has_training_docs(self): return False\n"
        "    def has_validation_docs(self): return False\n"
        "    def has_test_docs(self): return True\n"
        "    def test_docs(self): return [{'query': 'Rain?', 'choices': ['yes', 'no'], 'gold': 0}]\n"
        "    def doc_to_text(self, doc): return doc['query']\n"
    )
    command = words(tiny_llama, "weather", tmp_path, tmp_path / "out", "--include_path", tmp_path / "tasks", *WRITTEN)
    result = inside("evaluate", *command)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--answer generate: weather, sample 0: a sample with a question" in result.stderr


def test_the_page_shows_both_measures(tiny_llama: Path, tests: Path, tmp_path: Path, inside: Callable) -> None:
    output = tmp_path / "run" / "evaluate"
    command = words(tiny_llama, "sample", tests, output, *WRITTEN, "--answer", "both")
    assert inside("evaluate", *command).returncode == 0
    assert inside("report", tmp_path / "run").returncode == 0
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Letters and texts" in page
    result = json.loads((output / "tiny" / NAMES[0]).read_text())
    assert f'<data value="{result["unreadable"]}">' in page
