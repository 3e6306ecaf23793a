"""Tasks are found by their files', registered and classes' names, and a task file takes no other module's place."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import read_lines
from support.programs import ROOT, only_error
from support.scoring import reference_likelihoods, words

from teacherlm.core.records import write_records

OLD_TASKS = ROOT / "tests" / "support" / "old_tasks"

TASK = """
from lm_eval.base import MultipleChoiceTask


class {name}(MultipleChoiceTask):
    def download(self, *_, **__):
        self.dataset = [{{"query": "{query}", "choices": ["sun", "rain"], "gold": 0}}]

    def has_training_docs(self):
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset

    def doc_to_text(self, doc):
        return doc["query"]
"""


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, inside: Callable) -> Callable:
    """Score tasks of a folder of task files; the results lie in tmp_path/out/tiny."""

    def run(tasks: str, include: Path | None, *more: object) -> object:
        where = ["--include_path", include] if include else []
        return inside("evaluate", *words(tiny_llama, tasks, tmp_path / "sets", tmp_path / "out", *where, *more))

    return run


def results(tmp_path: Path) -> dict[str, dict]:
    folder = tmp_path / "out" / "tiny"
    files = [path for path in folder.glob("*.json") if not path.name.endswith(".manifest.json")]
    return {path.stem: json.loads(path.read_text()) for path in sorted(files)}


def prompts(tmp_path: Path, task: str) -> list[str]:
    return [sample["prompt"] for sample in read_lines(tmp_path / "out" / "tiny" / f"{task}_samples.jsonl")]


@pytest.fixture
def trivia(tmp_path: Path) -> Path:
    """The test sets of old_tasks/trivia.py, a different one for each of its classes."""
    for place in ("", "bees", "weather"):
        folder = tmp_path / "sets" / "trivia" / place
        folder.mkdir(parents=True)
        count = 3 if place == "weather" else 2
        docs = [{"ask": f"Is {place} number {n} here", "A": "yes", "B": "no", "key": "AB"[n % 2]} for n in range(count)]
        write_records(folder / "questions.jsonl", docs)
    return tmp_path / "sets"


def test_the_classes_of_a_file_are_tasks_by_their_names(
    trivia: Path, tiny_llama: Path, tmp_path: Path, run: Callable
) -> None:
    done = run("bees,trivia_weather,Trivia", OLD_TASKS)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert {name: result["n"] for name, result in found.items()} == {"bees": 2, "trivia_weather": 3, "Trivia": 2}
    expected = ["About bees. Q: Is bees number 0 here. (A) yes (B) no A: The answer is ("]
    assert prompts(tmp_path, "bees")[:1] == expected
    [sample] = read_lines(tmp_path / "out" / "tiny" / "bees_samples.jsonl")[:1]
    [row] = reference_likelihoods(tiny_llama, expected, ["A", "B"])
    assert sample["loglikelihoods"] == pytest.approx(row, abs=1e-4)


def test_a_file_s_name_is_all_of_its_tasks_without_their_base(trivia: Path, tmp_path: Path, run: Callable) -> None:
    done = run("trivia", OLD_TASKS)
    assert done.returncode == 0, done.stderr
    [(name, result)] = results(tmp_path).items()
    parts = {part["task"]: (part["n"], part["value"]) for part in result["tasks"]}
    assert (name, set(parts)) == ("trivia", {"trivia_bees", "trivia_weather"})
    right = sum(n * value for n, value in parts.values())
    assert (result["n"], result["value"]) == (5, pytest.approx(right / 5))


def test_registered_names_and_wildcards(trivia: Path, tmp_path: Path, run: Callable) -> None:
    done = run("examsTest-*,tri*_*,examsTest-anatomy", OLD_TASKS)
    assert done.returncode == 0, done.stderr
    assert list(results(tmp_path)) == ["examsTest-anatomy", "examsTest-us_history", "trivia_bees", "trivia_weather"]


def test_a_registry_of_a_folder_names_the_tasks_of_its_files(tmp_path: Path, run: Callable) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sky.py").write_text(TASK.format(name="Sky", query="Above is the"))
    (folder / "__init__.py").write_text(
        "import lm_eval.base\nfrom . import sky\n"
        "TASK_REGISTRY = {'sky/blue': sky.Sky}\n"
        "def get_task(name) -> lm_eval.base.Task:\n    return TASK_REGISTRY[name]\n"
    )
    done = run("sky/*", folder)
    assert done.returncode == 0, done.stderr
    [(name, result)] = results(tmp_path).items()
    assert (name, result["task"]) == ("sky%2Fblue", "sky/blue")


def test_wildcards_over_a_benchmark_are_its_parts(tmp_path: Path, run: Callable) -> None:
    import datasets

    rows = {"question": ["Is it? (A) a (B) b (C) c (D) d"] * 3, "answer": ["(A)", "(B)", "(C)"]}
    subjects = ["anatomy", "astronomy", "anatomy"]
    datasets.Dataset.from_dict({**rows, "subject": subjects}).save_to_disk(str(tmp_path / "sets" / "mmlu"))
    done = run("mmlu_a*", None)
    assert done.returncode == 0, done.stderr
    assert {name: result["n"] for name, result in results(tmp_path).items()} == {"mmlu_anatomy": 2, "mmlu_astronomy": 1}


def test_a_name_of_two_tasks_is_refused(tmp_path: Path, run: Callable) -> None:
    for file in ("one", "two"):
        (tmp_path / f"{file}.py").write_text(TASK.format(name="Weather", query=file))
    error = only_error(run("Weather", tmp_path))
    assert f"Weather is the name of 2 tasks in {tmp_path / 'one.py'} and {tmp_path / 'two.py'}" in error
    assert run("one,two", tmp_path).returncode == 0
    assert (prompts(tmp_path, "one"), prompts(tmp_path, "two")) == (["one"], ["two"])


def test_a_file_whose_one_task_is_derived_from_another_asks_which(tmp_path: Path, run: Callable) -> None:
    error = only_error(run("corpus", OLD_TASKS))
    assert (
        f"{OLD_TASKS / 'corpus.py'}: corpus may mean several tasks of this file; ask for Corpus or CorpusByVowels"
        in error
    )


def test_a_class_that_needs_arguments_says_which(tmp_path: Path, run: Callable) -> None:
    error = only_error(run("GeneralExamsTest", OLD_TASKS))
    assert f"{OLD_TASKS / 'exams.py'}: the class GeneralExamsTest needs arguments (subject); " in error


def test_a_user_s_creak_is_not_what_ecqa_is_built_on(tmp_path: Path, run: Callable) -> None:
    import datasets

    question = "Where? (A) a (B) b (C) c (D) d (E) e"
    sets = tmp_path / "sets" / "ecqa"
    datasets.Dataset.from_dict({"question": [question], "answer": ["(A)"]}).save_to_disk(str(sets))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "creak.py").write_text(TASK.format(name="CREAK", query="mine"))
    done = run("creak,ecqa", folder)
    assert done.returncode == 0, done.stderr
    assert prompts(tmp_path, "creak") == ["mine"]
    assert prompts(tmp_path, "ecqa") == [f"Q: {question} A: The answer is ("]


def test_task_files_named_like_modules_replace_none_and_import_their_neighbours(tmp_path: Path, run: Callable) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("json", "random", "datasets", "scoring", "main", "task_api", "numpy"):
        query = f"{name} is a word for"
        (folder / f"{name}.py").write_text("import random\nimport json\n" + TASK.format(name=name.title(), query=query))
    own = TASK.format(name="Mixed", query="{}").replace('"{}"', "QUERY")
    (folder / "mixed.py").write_text(
        "import json, random, datasets, numpy as np\n"
        "import scoring\n"
        "from json import dumps\n"
        "from scoring import Scoring\n"
        "from . import main\n"
        "from lm_eval.tasks.task_api import Task_Api\n"
        "from creak import CREAK\n"
        "import helpers.phrases\n"
        "NAMES = [datasets.__name__, np.__name__, type(random.Random(0)).__name__]\n"
        "QUERY = helpers.phrases.phrase(json.dumps(NAMES))\n"
        "assert scoring.Scoring is Scoring and main.Main and Task_Api and CREAK.CHOICES == 2\n" + own
    )
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "helpers" / "phrases.py").write_text(
        "def phrase(text):\n    import datasets\n    return f'said {text}'\n"
    )
    modules, path = {name: sys.modules.get(name) for name in ("json", "random", "scoring", "datasets")}, list(sys.path)
    done = run("mixed,json,random,scoring,task_api", folder)
    assert done.returncode == 0, done.stderr
    assert prompts(tmp_path, "mixed") == ['said ["datasets", "numpy", "Random"]']
    assert prompts(tmp_path, "json") == ["json is a word for"]
    assert all(sys.modules.get(name) is module for name, module in modules.items())
    assert sys.path == path
    assert not list(folder.rglob("__pycache__"))


def test_a_changed_neighbour_makes_a_result_stale(tmp_path: Path, run: Callable) -> None:
    (tmp_path / "phrases.py").write_text("QUERY = 'One'\n")
    source = TASK.format(name="Mine", query="QUERY").replace('"QUERY"', "QUERY")
    (tmp_path / "mine.py").write_text("from phrases import QUERY\n" + source)
    assert run("mine", tmp_path).returncode == 0
    assert "done already" in run("mine", tmp_path).stdout
    (tmp_path / "phrases.py").write_text("QUERY = 'Two and more'\n")
    assert "done already" not in run("mine", tmp_path).stdout
    assert prompts(tmp_path, "mine") == ["Two and more"]
