"""finetune.py and a chain with several training sets and several test sets."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from support.files import contents, read_lines, sample_claims
from support.finetuning import flags, weights
from support.programs import ROOT, only_error, warm_python

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def sets(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder -> path: A and B have the training samples of `sample`, B also two of A; BOTH has each sample once."""
    folder = tmp_path_factory.mktemp("sets")
    rows = load_from_disk(str(prepared / "SAMPLE"))["train"]
    parts = {"A": range(12), "B": [3, *range(12, 24), 5], "BOTH": range(24)}
    for name, numbers in parts.items():
        rows.select(numbers).save_to_disk(str(folder / name))
    return {name: folder / name for name in parts}


def trained(inside: Run, model: Path, data: object, output: Path, *more: object) -> Path:
    done = inside("finetune", *flags(model, data, output), "--num_train_epochs", 1, *more)
    assert done.returncode == 0, done.stderr
    return output


def test_two_sets_train_as_one_with_each_sample_once(
    sets: dict[str, Path], tiny_llama: Path, inside: Run, tmp_path: Path
) -> None:
    before = {name: contents(folder) for name, folder in sets.items()}
    both = trained(inside, tiny_llama, f"{sets['A']},{sets['B']}", tmp_path / "both")
    one = trained(inside, tiny_llama, sets["BOTH"], tmp_path / "one")
    assert weights(both) == weights(one)
    manifest = json.loads((both / "manifest.json").read_text())
    assert manifest["counts"]["sets"] == [
        {"set": "A", "share": "1", "first": 1, "rows": 12, "left_out": 0, "samples_per_epoch": 12},
        {"set": "B", "share": "1", "first": 13, "rows": 14, "left_out": 2, "samples_per_epoch": 12},
    ]
    assert [path["path"] for name, path in manifest["inputs"].items() if name.startswith("dataset")] == [
        str(sets["A"]), str(sets["B"])
    ]  # fmt: skip
    listed = read_lines(both / "repeated.jsonl")
    assert [(one["sample"], one["of"]) for one in listed] == [(13, 4), (26, 6)]
    assert {name: contents(folder) for name, folder in sets.items()} == before


def test_weights_and_maximums_are_part_of_what_the_run_is(
    sets: dict[str, Path], tiny_llama: Path, inside: Run, tmp_path: Path
) -> None:
    run = trained(inside, tiny_llama, f"{sets['A']}:0.5,{sets['B']}:max3", tmp_path / "run")
    counts = json.loads((run / "manifest.json").read_text())["counts"]
    assert counts["samples"] == 9 and [one["samples_per_epoch"] for one in counts["sets"]] == [6, 3]
    before = contents(run)
    other = inside("finetune", *flags(tiny_llama, f"{sets['A']},{sets['B']}:max3", run), "--num_train_epochs", 1)
    assert "shares was ['0.5', 'max3'], is ['1', 'max3']" in only_error(other)
    assert contents(run) == before
    same = inside("finetune", *flags(tiny_llama, f"{sets['A']}:0.5,{sets['B']}:max3", run), "--num_train_epochs", 1)
    assert "done already" in same.stdout


def test_the_sample_that_is_wrong_is_named_with_its_set(
    sets: dict[str, Path], tiny_llama: Path, inside: Run, tmp_path: Path
) -> None:
    rows = load_from_disk(str(sets["B"])).to_list()
    rows[4]["cot_text"] = ""
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "C"))
    said = only_error(inside("finetune", *flags(tiny_llama, f"{sets['A']},{tmp_path / 'C'}", tmp_path / "run")))
    assert said.startswith(f"finetune.py: error: {tmp_path / 'C'}, sample 5: the field 'cot_text' is empty")
    for data, why in (
        (f"{sets['A']},{tmp_path / 'none'}", f"{tmp_path / 'none'}: no such dataset"),
        (f"{sets['A']},{sets['A']}:2", "a folder is given twice"),
        (f"{sets['A']}:0", "'0' is neither a number above 0 nor maxN"),
    ):
        assert why in only_error(inside("finetune", *flags(tiny_llama, data, tmp_path / "run")))
    more = flags(tiny_llama, f"{sets['A']},{sets['B']}", tmp_path / "run")
    assert "FOLDER:maxN" in only_error(inside("finetune", *more, "--max_train_samples", 3))
    assert "--overlaps needs --test_sets" in only_error(inside("finetune", *more, "--overlaps", "leave_out"))
    assert not (tmp_path / "run").exists()


def test_pieces_of_test_sets_are_listed_or_left_out(
    sets: dict[str, Path], prepared: Path, tiny_llama: Path, inside: Run, tmp_path: Path
) -> None:
    """The test set of this test has claims of the training split."""
    claims = [*sample_claims()][:3]
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(claims))
    words = ("--benchmark", "sample", "--data", tmp_path / "data", "--output_dir", tmp_path / "prepared")
    assert inside("data_prepare", *words, "--test_dir", tmp_path / "tests").returncode == 0
    tests = f"{tmp_path / 'tests' / 'sample'}"
    kept = trained(inside, tiny_llama, sets["BOTH"], tmp_path / "kept")
    known = weights(kept)
    again = inside("finetune", *flags(tiny_llama, sets["BOTH"], kept), "--num_train_epochs", 1, "--test_sets", tests)
    assert "trained on: 3 samples with a piece of the test set sample; " in again.stdout, again.stderr
    assert [one["sample"] for one in read_lines(kept / "repeated.jsonl")] == [1, 2, 3]
    assert weights(kept) == known
    without = trained(
        *(inside, tiny_llama, sets["BOTH"], tmp_path / "without", "--test_sets", tests, "--overlaps", "leave_out")
    )
    rest = load_from_disk(str(sets["BOTH"])).select(range(3, 24))
    rest.save_to_disk(str(tmp_path / "REST"))
    assert weights(without) == weights(trained(inside, tiny_llama, tmp_path / "REST", tmp_path / "rest"))


def test_a_chain_of_two_training_sets_and_two_test_sets(tiny_llama: Path, tmp_path: Path) -> None:
    """The second set's explanations lie where its own chain looks for them."""
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    yaml = (ROOT / "benchmarks" / "sample.yaml").read_text()
    (benchmarks / "claims.yaml").write_text(
        yaml.replace("title: SAMPLE", "title: CLAIMS").replace("sample\n", "claims\n")
    )
    shutil.copytree(ROOT / "benchmarks" / "sample", benchmarks / "claims")
    for name in ("train", "dev"):
        lines = (benchmarks / "claims" / f"{name}.json").read_text().splitlines(keepends=True)
        (benchmarks / "claims" / f"{name}.json").write_text("".join(lines[1:9] if name == "dev" else lines[4:40]))

    def run(benchmark: str, **variables: object) -> subprocess.CompletedProcess:
        given = {
            "STUDENT": tiny_llama,
            "LIMIT": 8,
            "EPOCHS": 1,
            "NUM_TOKENS": 4,
            "BATCH": 4,
            "RUNS": "runs",
            **variables,
        }
        environment = {**os.environ, "PYTHON": warm_python(), "LAUNCHER": "local"}
        environment |= {name: str(value) for name, value in given.items()}
        command = ["bash", str(ROOT / "slurm" / "chain.sh"), benchmark]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    sets = {"TRAIN": "sample,claims:0.5", "TEST": "claims,sample"}
    done = run("sample", **sets)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sample" / "limit-8"
    [trained_in] = folder.glob("finetune/*")
    assert trained_in.name.endswith("_on-sample+claims-0.5_batch4_seed0")
    counts = json.loads((trained_in / "manifest.json").read_text())["counts"]
    # claims 5 to 8 of the second set are 4 claims that the first set has too
    assert [(one["set"], one["left_out"], one["samples_per_epoch"]) for one in counts["sets"]] == [
        ("SAMPLE", 0, 8), ("CLAIMS", 4, 2)
    ]  # fmt: skip
    for model in (folder.glob("evaluate/*/checkpoint-*"), folder.glob(f"evaluate/{tiny_llama.name}")):
        [scored] = model
        assert {path.name for path in scored.glob("*.json")} >= {"sample.json", "claims.json"}
        assert json.loads((scored / "claims.json").read_text())["n"] == 8
    assert "accuracy on 8 test questions of claims" in done.stdout
    assert "accuracy on 80 test questions of sample" in done.stdout
    before = contents(tmp_path / "runs")
    again = run("sample", **sets)
    assert again.returncode == 0 and contents(tmp_path / "runs") == before
    own = run("claims", TRAIN="claims")
    assert "enhance: done already" in own.stdout and own.returncode == 0
    for wrong, why in (
        ({"TRAIN": "sample,sample:2"}, "sample is there twice"),
        ({"TRAIN": "sample:0"}, "TRAIN=sample:0: 0 is neither a number above 0 nor maxN"),
        ({"TRAIN": "claims", "TEST": "claims"}, "neither TRAIN=claims nor TEST=claims has sample"),
        ({"TEST": "sample,,claims"}, "TEST=sample,,claims: benchmarks with commas between them were expected"),
        ({"TRAIN": "sample,nothing"}, "nothing"),
    ):
        refused = run("sample", **wrong)
        assert refused.returncode == 2 and why in only_error(refused)
