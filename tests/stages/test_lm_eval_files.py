"""Results of lm-eval beside ours, question by question; and ours in lm-eval's format, read by lm-eval's own code."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.compared import read_csv
from support.lm_eval_files import read_lines, run_lm_eval, write_samples
from support.programs import only_error, program, warm_python
from support.report_runs import write_run
from support.scoring import words
from support.tiny_models import make_other_model

from teacherlm.report.significance import mcnemar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that chooses both letters."""
    return make_other_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def theirs(model: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of samples that the real lm-eval wrote for a tiny model."""
    return run_lm_eval(model, prepared / "tests" / "sample", tmp_path_factory.mktemp("lm-eval") / "out")


@pytest.fixture(scope="module")
def ours(model: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with our result for the same model and questions."""
    folder = tmp_path_factory.mktemp("ours")
    asked = words(model, "sample", prepared / "tests", folder)
    done = subprocess.run([warm_python(), *program("evaluate"), *map(str, asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def pairs(folder: Path, task: str = "sample") -> list[list[str]]:
    return read_csv(folder / f"pairs-{task}.csv")


def test_the_same_model_and_task_have_no_difference(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    result = inside("compare", ours, theirs, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    [row] = pairs(tmp_path)
    assert row[0] == "tiny" and row[1] == f"{theirs.parent.name} (lm-eval)"
    assert row[2:6] == ["80", "0", "0", "0.0"] and float(row[8]) == 1
    accuracies = {row[0]: row[2:6] for row in read_csv(tmp_path / "accuracy-sample.csv")}
    assert accuracies["tiny"] == accuracies[row[1]]
    choices = {line["choice"] for line in read_lines(ours / "sample_samples.jsonl")}
    assert choices == {"A", "B"}, "a model that always chooses the same letter shows nothing"
    assert "pairs-sample" in result.stdout and "(lm-eval)" in result.stdout


def test_two_models_of_one_name_are_told_apart(inside: Callable, ours: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        shutil.copytree(ours, tmp_path / folder / "tiny")
    result = inside("compare", tmp_path / "first" / "tiny", tmp_path / "second" / "tiny", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    [row] = pairs(tmp_path / "out")
    assert [Path(name.partition(":")[0]).name for name in row[:2]] == ["first", "second"]
    assert row[2:5] == ["80", "0", "0"]


def test_a_folder_stands_for_its_newest_files(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    lines = read_lines(theirs)
    write_samples(folder, "sample", [{**line, "acc": 1 - line["acc"]} for line in lines], "11-59-59.999999")
    write_samples(folder, "sample", lines)
    for place in (folder, folder.parent):
        assert inside("compare", ours, place, "--output", tmp_path / "compared").returncode == 0
        assert [row[1:5] for row in pairs(tmp_path / "compared")] == [["model (lm-eval)", "80", "0", "0"]]


def test_the_test_is_paired(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    """The lines are in another order, and some answers are different."""
    lines = read_lines(theirs)
    flipped = [{**line, "acc": 1 - line["acc"]} if line["doc_id"] % 7 == 0 else line for line in reversed(lines)]
    file = write_samples(tmp_path / "model", "sample", flipped)
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    [row] = pairs(tmp_path / "compared")
    before = [line["acc"] for line in lines if line["doc_id"] % 7 == 0]
    counts = int(sum(before)), int(len(before) - sum(before))
    assert [int(cell) for cell in row[2:5]] == [80, *counts] and float(row[8]) == mcnemar(*counts)


def test_two_models_of_lm_eval_are_compared(inside: Callable, theirs: Path, tmp_path: Path) -> None:
    lines = read_lines(theirs)
    files = [
        write_samples(tmp_path / name, "sample", [{**line, "acc": float(keep or line["acc"])} for line in lines])
        for name, keep in (("one", 0), ("two", 1))
    ]
    assert inside("compare", *files, "--output", tmp_path / "compared").returncode == 0
    [row] = pairs(tmp_path / "compared")
    wrong = sum(line["acc"] == 0 for line in lines)
    assert row[:5] == ["one (lm-eval)", "two (lm-eval)", "80", "0", str(wrong)]


def test_a_run_s_checkpoints_stand_beside_lm_eval(inside: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "creak" / "all")
    samples = read_lines(run / "evaluate" / "tiny" / "creak_samples.jsonl")
    file = write_samples(tmp_path / "model", "creak", map(as_lm_eval, samples))
    assert inside("compare", run, file, "--output", tmp_path / "compared").returncode == 0
    rows = pairs(tmp_path / "compared", "creak")
    names = ["tiny (untrained)", "model (lm-eval)", "tiny_text_seed0, checkpoint-6"]
    assert [row[:3] for row in rows] == [
        [a, b, "60"] for a, b in [(0, 1), (0, 2), (1, 2)] for a, b in [(names[a], names[b])]
    ]
    assert rows[0][3:5] == ["0", "0"] and rows[1][2:] == rows[2][2:]


def as_lm_eval(sample: dict) -> dict:
    arguments = {f"gen_args_{n}": {"arg_0": sample["prompt"], "arg_1": letter} for n, letter in enumerate("AB")}
    about = {"doc_id": sample["doc_id"], "doc": {}, "target": "0", "arguments": arguments, "filter": "none"}
    return {**about, "metrics": ["acc"], "acc": sample["acc"]}


def test_part_of_the_questions(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "model", "sample", read_lines(theirs)[:10])
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2] == "10"


def test_questions_that_ours_do_not_have_are_reported(
    inside: Callable, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    lines = read_lines(theirs)
    file = write_samples(tmp_path / "model", "sample", [*lines[:10], {**lines[10], "doc_id": 999}])
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    page = (tmp_path / "compared" / "index.html").read_text()
    assert "lm-eval: model (lm-eval) has 11 questions of sample, and 10 of them are also ours" in page


def test_another_prompt_for_the_same_question(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    """The question is found in the field of `doc`, and the page says that the prompts differ."""
    lines = read_lines(theirs)
    for line in lines:
        for request in line["arguments"].values():
            request["arg_0"] = f"User: {line['doc']['question']} Assistant:"
    file = write_samples(tmp_path / "model", "sample", lines)
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2] == "80"
    said = "lm-eval: model (lm-eval) asked 80 of the questions of sample with another prompt than ours"
    assert said in (tmp_path / "compared" / "index.html").read_text()


def test_samples_of_earlier_versions(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    """They have lists of requests, and name neither filter nor metrics."""
    lines = read_lines(theirs)
    for line in lines:
        line["arguments"] = [[request["arg_0"], request["arg_1"]] for request in line["arguments"].values()]
        del line["filter"], line["metrics"]
    file = write_samples(tmp_path / "model", "sample", lines)
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2:5] == ["80", "0", "0"]


def test_another_name_of_the_task(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "model", "my_sample", read_lines(theirs))
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2:5] == ["80", "0", "0"]


def test_of_several_filters_the_first_counts(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    lines = read_lines(theirs)
    both = [
        {**line, "filter": name, "acc": line["acc"] if name == "none" else 0}
        for name in ("none", "b")
        for line in lines
    ]
    file = write_samples(tmp_path / "model", "sample", both)
    assert inside("compare", ours, file, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2:5] == ["80", "0", "0"]


def changed(number: int, **fields: object) -> Callable[[list[dict]], None]:
    def change(lines: list[dict]) -> None:
        lines[number].update(fields)

    return change


def exchange(lines: list[dict]) -> None:
    """Two questions exchange their numbers."""
    lines[4]["doc_id"], lines[9]["doc_id"] = lines[9]["doc_id"], lines[4]["doc_id"]


def other_choices(lines: list[dict]) -> None:
    """The question is the same in other words, and the choices are different."""
    for line in lines:
        line["doc"]["choices"] = ["yes, it is", "no, it is not"]
        line["arguments"]["gen_args_0"]["arg_0"] = f"User: {line['doc']['question']} Assistant:"


def without(name: str) -> Callable[[list[dict]], None]:
    def change(lines: list[dict]) -> None:
        del lines[2][name]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (exchange, ", line 5: doc_id 9 is another question than in "),
        (other_choices, ", line 1: doc_id 0 is another question than in "),
        (changed(3, doc_id=2), ", line 4: doc_id 2 was expected once, and line 3 has it too"),
        (changed(3, doc_id="3"), ", line 4: this is not a sample of lm-eval: doc_id: a whole number was expected"),
        (without("doc_id"), ", line 3: this is not a sample of lm-eval: doc_id is missing"),
        (without("arguments"), ", line 3: this is not a sample of lm-eval: arguments.gen_args_0.arg_0: a text was"),
        (changed(1, arguments="a prompt"), ", line 2: this is not a sample of lm-eval: arguments: the requests were"),
        (changed(1, arguments={"gen_args_0": {"arg_0": 7}}), ", line 2: this is not a sample of lm-eval: arguments"),
        (changed(1, metrics="acc"), ", line 2: this is not a sample of lm-eval: metrics: a list of names was expected"),
        (changed(0, acc="right"), ", line 1: this is not a sample of lm-eval: metrics: a metric with a number was"),
        (changed(0, acc=float("nan")), ", line 1: the field 'acc' is nan, which is not a number in JSON"),
        (
            lambda lines: [line.update(metrics=["f1"], f1=0.5) for line in lines],
            "the metric acc of sample was expected",
        ),
        (
            lambda lines: [line.update(doc_id=500 + n) for n, line in enumerate(lines)],
            "no doc_id is that of a question",
        ),
        (
            lambda lines: [line["arguments"].pop("gen_args_1") for line in lines],
            "with answers that both choose or both",
        ),
        (lambda lines: lines.clear(), "empty; at least one record was expected"),
    ],
)
def test_a_wrong_file_is_one_line(
    inside: Callable, ours: Path, theirs: Path, tmp_path: Path, change: Callable[[list[dict]], None], said: str
) -> None:
    lines = read_lines(theirs)
    change(lines)
    file = write_samples(tmp_path / "model", "sample", lines)
    output = tmp_path / "compared"
    error = only_error(inside("compare", ours, file, "--output", output))
    assert said in error and str(file) in error
    assert not output.exists() or not list(output.iterdir())


def test_a_torn_line_is_one_line(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "model", "sample", read_lines(theirs))
    file.write_text(file.read_text()[:-40])
    error = only_error(inside("compare", ours, file, "--output", tmp_path / "compared"))
    assert f"{file}, line 80: one JSON object" in error


def test_other_tasks_and_names_are_one_line(inside: Callable, ours: Path, theirs: Path, tmp_path: Path) -> None:
    lines = read_lines(theirs)
    write_samples(tmp_path / "model", "arc", lines)
    write_samples(tmp_path / "model", "boolq", lines)
    error = only_error(inside("compare", ours, tmp_path / "model", "--output", tmp_path / "compared"))
    assert "lm-eval has scored arc, boolq, and the results to compare with are of sample; give results of" in error
    odd = tmp_path / "samples_sample.jsonl"
    shutil.copy(theirs, odd)
    assert "a name such as samples_TASK_2026" in only_error(inside("compare", ours, odd, "--output", tmp_path / "x"))


# ------------------------------------------------------------------------------------------------------------- export


@pytest.fixture
def exported(inside: Callable, ours: Path, tmp_path: Path) -> Path:
    """Our result, in lm-eval's format."""
    result = inside("export-lm-eval", ours, "--output", tmp_path / "exported")
    assert result.returncode == 0, result.stderr
    return tmp_path / "exported" / "tiny"


def test_lm_eval_s_own_code_reads_our_results(ours: Path, exported: Path, theirs: Path) -> None:
    from datasets import load_dataset
    from lm_eval import utils

    names = [str(file) for file in exported.iterdir()]
    [results], [samples] = utils.get_results_filenames(names), utils.get_sample_results_filenames(names)
    assert utils.get_file_task_name(Path(samples).name) == "sample"
    assert utils.get_file_datetime(Path(samples).name) in results
    found = json.loads(Path(results).read_text())
    value = json.loads((ours / "sample.json").read_text())["value"]
    [row] = [line for line in utils.make_table(found).splitlines() if line.startswith("|sample")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:7] == ["none", "", "acc", "↑"] and float(cells[7]) == pytest.approx(value, abs=5e-5)
    loaded = load_dataset("json", data_files=samples, split="train")
    real = read_lines(theirs)
    assert set(loaded.column_names) == set(real[0])
    for name in ("doc_id", "target", "arguments", "filter", "metrics", "prompt_hash", "target_hash", "acc"):
        assert [line[name] for line in read_lines(Path(samples))] == [line[name] for line in real], name
    likelihoods = [float(answer[0]) for line in loaded for answer in line["filtered_resps"]]
    assert likelihoods == pytest.approx([float(a[0]) for line in real for a in line["filtered_resps"]], abs=1e-4)
    [real_results] = theirs.parent.glob("results_*.json")
    known = json.loads(real_results.read_text())
    assert found.keys() <= known.keys() | {"groups"}
    assert found["results"]["sample"]["acc,none"] == known["results"]["sample"]["acc,none"]
    assert found["model_name_sanitized"] == utils.sanitize_model_name(found["model_name"])
    assert found["task_hashes"].keys() == known["task_hashes"].keys()


def test_what_was_exported_is_read_back(inside: Callable, ours: Path, exported: Path, tmp_path: Path) -> None:
    assert inside("compare", ours, exported, "--output", tmp_path / "compared").returncode == 0
    assert pairs(tmp_path / "compared")[0][2:5] == ["80", "0", "0"]


def test_the_same_results_give_the_same_files(inside: Callable, ours: Path, exported: Path) -> None:
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    assert inside("export-lm-eval", ours / "sample.json", "--output", exported.parent).returncode == 0
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before


def test_several_tasks_together_and_written_answers(inside: Callable, tmp_path: Path) -> None:
    """A result of several tasks is a group with its parts, and written answers have files of their own."""
    from lm_eval import utils

    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    asked = {"prompt": "Q: Is it so? (A) yes (B) no A: The answer is (", "gold": "B", "doc_id": 0}
    chosen = {"choice": "B", "loglikelihoods": {"A": -2.0, "B": -1.0}, "acc": 1.0}
    written = {"answers": ["It is (B).", "(A)"], "found": ["B", "A"], "acc": 0.5, "maj@2": 0.5}
    about = {"metric": "acc", "num_fewshot": 0}
    parts = [
        {"task": name, "metric": "acc", "value": 1.0, "n": 1, "metrics": {"acc": {"value": 1.0, "stderr": None}}}
        for name in ("law", "art")
    ]
    whole = {
        "task": "both",
        "value": 1.0,
        "n": 2,
        **about,
        "tasks": parts,
        "groups": {"all of them": {"value": 1.0, "n": 2}},
    }
    (folder / "both.json").write_text(json.dumps(whole))
    records = [{"task": name, **asked, **chosen} for name in ("law", "art")]
    (folder / "both_samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    metrics = {"acc": {"value": 0.5, "stderr": None}, "maj@2": {"value": 0.5, "stderr": None}}
    (folder / "law@generate.json").write_text(
        json.dumps({"task": "law@generate", "value": 0.5, "n": 1, **about, "metrics": metrics})
    )
    (folder / "law@generate_samples.jsonl").write_text(json.dumps({"task": "law", **asked, **written}) + "\n")
    result = inside("export-lm-eval", folder, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    files = sorted(file.name.rpartition("_")[0] for file in (tmp_path / "out" / "tiny").iterdir())
    assert files == ["results", "samples_art", "samples_law", "samples_law@generate"]
    [file] = (tmp_path / "out" / "tiny").glob("results_*")
    found = json.loads(file.read_text())
    assert found["group_subtasks"]["both"] == ["law", "art"] and found["groups"].keys() == {"both", "all of them"}
    assert "both" in utils.make_table(found, "groups") and "law@generate" in utils.make_table(found)
    [file] = (tmp_path / "out" / "tiny").glob("samples_law@generate_*")
    [line] = read_lines(file)
    assert line["resps"] == [["It is (B).", "(A)"]] and line["filtered_resps"] == ["B", "A"]
    compared = tmp_path / "compared"
    assert inside("compare", folder, tmp_path / "out", "--output", compared).returncode == 0
    [of_letters], [of_texts] = pairs(compared, "both"), pairs(compared, "law@generate")
    assert of_letters[2:6] == ["2", "0", "0", "0.0"] and of_texts[2:6] == ["1", "", "", "0.0"]
    assert line["metrics"] == ["acc", "maj@2"] and line["arguments"]["gen_args_0"]["arg_0"] == asked["prompt"]


def test_results_that_cannot_be_exported_are_one_line(inside: Callable, ours: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "no result; a file TASK.json" in only_error(inside("export-lm-eval", tmp_path, "--output", output))
    copy = Path(shutil.copytree(ours, tmp_path / "tiny"))
    assert "have the same name; export each" in only_error(inside("export-lm-eval", ours, copy, "--output", output))
    (copy / "sample_samples.jsonl").write_text('{"doc_id": 0}\n')
    assert "line 1: this is not a sample" in only_error(inside("export-lm-eval", copy, "--output", output))
    (copy / "sample_samples.jsonl").unlink()
    assert "no such file; it has the samples of" in only_error(inside("export-lm-eval", copy, "--output", output))
    (copy / "sample.json").write_text("{}")
    assert "cannot be read as a result" in only_error(inside("export-lm-eval", copy, "--output", output))
    assert not output.exists()
