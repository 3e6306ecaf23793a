"""The chain: from the claims to the table, skipping what is done, and answering mistakes in one line."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.programs import ROOT, only_error, warm_python

ODD = """it's "runs" $(touch pwned) `touch pwned` *"""
CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh")]
Chain = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def chain(tiny_llama: Path, place: Path) -> Chain:
    """Run a small chain like `make BENCHMARK VARIABLE=value ...`, into a folder whose name a shell could misread."""
    small = {"STUDENT": tiny_llama, "TEACHER": tiny_llama, "LIMIT": 8, "EPOCHS": 2, "NUM_TOKENS": 8, "BATCH": 4}

    def run(benchmark: str = "sample", **variables: object) -> subprocess.CompletedProcess:
        chosen = {name: str(value) for name, value in {**small, "RUNS": place / ODD, **variables}.items()}
        environment = {**os.environ, "PYTHON": warm_python(), "LAUNCHER": "local", **chosen}
        return subprocess.run([*CHAIN, benchmark], cwd=place, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def done(chain: Chain, place: Path) -> subprocess.CompletedProcess:
    result = chain()
    assert result.returncode == 0, result.stderr
    return result


def test_it_ends_with_the_table_of_the_student_and_its_checkpoints(done: subprocess.CompletedProcess) -> None:
    lines = done.stdout.partition("== report\n")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["checkpoint", "epoch", "accuracy", "95 % interval", "loss"]
    assert [row[:2] for row in rows[2:]] == [["tiny (untrained)", "0"], ["checkpoint-2", "1"], ["checkpoint-4", "2"]]
    for _, _, accuracy, interval, _ in rows[2:]:
        low, high = map(float, interval.split(" - "))
        assert low < float(accuracy) < high
    assert rows[2][4] == "-"
    assert float(rows[4][4]) < float(rows[3][4])


def test_everything_goes_to_the_runs_folder_and_no_name_is_executed(
    done: subprocess.CompletedProcess, place: Path
) -> None:
    assert [path.name for path in place.iterdir()] == [ODD]
    manifests = {str(path.parent.relative_to(place / ODD)) for path in place.rglob("*manifest.json")}
    run = "sample/limit-8"
    assert manifests == {
        f"{run}/prepare",
        f"{run}/prepare/SAMPLE",
        f"{run}/enhance/tiny_seed0",
        f"{run}/enhance/tiny_seed0/SAMPLE",
        f"{run}/finetune/tiny_cot_tail_tiny_batch4_seed0",
        f"{run}/evaluate/tiny",
        f"{run}/evaluate/tiny_cot_tail_tiny_batch4_seed0/checkpoint-2",
        f"{run}/evaluate/tiny_cot_tail_tiny_batch4_seed0/checkpoint-4",
        f"{run}/report",
    }


def test_the_same_call_again_does_nothing_and_says_so(
    done: subprocess.CompletedProcess, chain: Chain, place: Path
) -> None:
    before = contents(place)
    again = chain()
    assert again.returncode == 0, again.stderr
    assert contents(place) == before
    said = [line for line in again.stdout.splitlines() if "done already, nothing to do" in line]
    assert [line.split(":")[0] for line in said] == [
        "prepare",
        "enhance",
        "quality",
        "post-process",
        "finetune",
        *["evaluate"] * 3,
        "report",
    ]
    tables = [result.stdout.partition("== report\n")[2].partition("\nreport: ")[0] for result in (again, done)]
    assert tables[0] == tables[1]


def test_another_seed_reruns_what_depends_on_it_and_no_more(
    done: subprocess.CompletedProcess, chain: Chain, place: Path
) -> None:
    before = contents(place / ODD / "sample" / "limit-8")
    again = chain(SEED=1)
    assert again.returncode == 0, again.stderr
    said = [line for line in again.stdout.splitlines() if "done already, nothing to do" in line]
    assert [line.split(" (")[0] for line in said] == [
        "prepare: done already, nothing to do",
        "evaluate: tiny on sample: done already, nothing to do",
    ]
    after = contents(place / ODD / "sample" / "limit-8")
    pages = {"report/index.html", "report/manifest.json"}  # they have the new run too
    assert {name for name in before if after[name] != before[name]} == pages
    run = "tiny_cot_tail_tiny_batch4_seed1"
    locks = {f".locks/enhance-tiny_seed1{part}" for part in ("", "-0-of-1")} | {f".locks/finetune-{run}"}
    assert {"/".join(Path(name).parts[:2]) for name in after.keys() - before.keys()} - locks == {
        "enhance/tiny_seed1",
        f"finetune/{run}",
        f"evaluate/{run}",
    }
    enhanced, trained = "enhance/tiny_seed{}/SAMPLE_cot.jsonl", "finetune/{}/checkpoint-4/model.safetensors"
    assert after[enhanced.format(1)][0] != after[enhanced.format(0)][0]
    assert after[trained.format(run)][0] != after[trained.format(run.replace("seed1", "seed0"))][0]


@pytest.fixture(scope="module")
def make(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Run `make TARGET VARIABLE=value ...` in a copy of the checkout that has one more benchmark."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("atlas", "benchmarks", "enhance", "evaluate", "finetune", "models", "prompts", "slurm", "src"):
        ignore = shutil.ignore_patterns("__pycache__", "site.env")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    shutil.copy(ROOT / "Makefile", checkout)
    creak = (ROOT / "benchmarks" / "creak.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("title: CREAK", "title: Mine"),
        ('"True", "False"', "Yes, No"),
        ('"true": A, "false"', "true: A, false"),
    ):
        assert old in creak
        creak = creak.replace(old, new)
    (checkout / "benchmarks" / "my-claims_2.yaml").write_text(creak)
    for odd in ("report", "two words", "a:b"):  # names that make has, or could not have
        (checkout / "benchmarks" / f"{odd}.yaml").write_text(creak)
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {warm_python()} "$@"\n')
    python.chmod(0o755)
    (checkout / ".venv" / "installed.txt").write_text(f"# checkout: {checkout.resolve()}\n")

    def run(target: str, *words: object) -> subprocess.CompletedProcess:
        small = {
            "LIMIT": 8,
            "EPOCHS": 1,
            "BATCH": 4,
            "TASK": "text",
            "LAUNCHER": "local",
            "PYTHONPATH": checkout / "src",
        }
        environment = {**os.environ, **{name: str(value) for name, value in small.items()}, "STUDENT": str(tiny_llama)}
        environment.pop("CONTAINER", None)
        command = ["make", target, *map(str, words)]
        return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)

    return run


def test_make_takes_a_new_benchmark_from_its_yaml_alone(make: Chain, claims: Path, tmp_path: Path) -> None:
    """The benchmark has local data. The task type text needs no teacher."""
    data = claims.rename(tmp_path / "my claims")
    result = make("my-claims_2", f"MY_CLAIMS_2_DATA={data}", f"RUNS={tmp_path / 'runs'}")
    assert result.returncode == 0, result.stderr
    stages = [line.removeprefix("== ") for line in result.stdout.splitlines() if line.startswith("== ")]
    assert stages == ["prepare", "finetune", "evaluate", "report"]
    assert "accuracy on 8 test questions of my-claims_2" in result.stdout
    record = json.loads((tmp_path / "runs/my-claims_2/limit-8/prepare/Mine.jsonl").read_text().splitlines()[0])
    assert record["text"].endswith(f"(A) Yes (B) No A: The answer is ({'A' if record['label'] == 'true' else 'B'}).")


def test_make_names_what_there_is_for_a_name_that_is_none(make: Chain) -> None:
    result = make("my-claims")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Makefile:")
    known = "creak, ecqa, gsm8k, mmlu, my-claims_2, nq_open, sample, strategy_qa"
    assert f"no benchmark or target 'my-claims'; benchmarks: {known};" in only_error(result)
    there = make("pyproject.toml")
    assert (there.returncode, there.stderr) == (0, "")
    line = f"make NAME                 run the whole chain on a benchmark ({known.replace(',', '')})"
    assert line in make("help").stdout


@pytest.mark.parametrize(
    ("variables", "benchmark", "named"),
    [
        ({"STUDENT": "bloomz-7b"}, "sample", "bloomz-7b1"),
        ({"TEACHER": "teacherlm-7b1-cat"}, "sample", "teacherlm-7b1-cot"),
        ({"TASK": "cot_tial"}, "sample", "cot_tail"),
        ({"FILTER": "cut,emtpy"}, "sample", "no flag 'emtpy'; the flags are: empty, cut"),
        ({"TASK": "text", "FILTER": "cut"}, "sample", "TASK=text has none"),
        ({}, "sampel", "sample"),
        ({"CREAK_DATA": "/no where"}, "creak", "/no where: no such folder"),
    ],
)
def test_a_mistake_is_one_line(
    chain: Chain, tmp_path: Path, variables: dict[str, str], benchmark: str, named: str
) -> None:
    result = chain(benchmark, **variables, RUNS=tmp_path / "runs")
    assert named in only_error(result)
    assert not list(tmp_path.rglob("*.json*"))


def test_slurm_that_does_not_answer_is_one_line_and_names_the_way_out(chain: Chain, tmp_path: Path) -> None:
    """The machine has slurm-client but no cluster. tests/cluster/ runs the real programs."""
    said = (
        "squeue: error: resolve_ctls_from_dns_srv: Unknown host\nsqueue: fatal: Could not establish a configuration\n"
    )
    (tmp_path / "said").write_text(said)
    for name in ("squeue", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat '{tmp_path}/said' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    result = chain(PATH=f"{tmp_path}:{os.environ['PATH']}", LAUNCHER="", RUNS=tmp_path / "runs")
    assert only_error(result) == (
        "chain.sh: error: Slurm does not answer (squeue: fatal: Could not establish a configuration); "
        "LAUNCHER=local runs the chain on this machine"
    )
    assert not (tmp_path / "runs").exists()


def test_filter_drops_samples_into_a_dataset_and_a_run_of_their_own(chain: Chain, claims: Path, tmp_path: Path) -> None:
    """The teacher's texts are explanations that people wrote. Two of eight are copies of the first."""
    samples = [json.loads(line) for line in (claims / "train.json").read_text().splitlines()]
    for number in (3, 5):
        samples[number - 1]["explanation"] = samples[0]["explanation"]
    (claims / "train.json").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    settings = {"TEACHER": "field:explanation", "CREAK_DATA": claims, "RUNS": tmp_path / "runs", "EPOCHS": 1}
    result = chain("creak", **settings, FILTER="duplicate,empty")
    assert result.returncode == 0, result.stderr
    (manifest,) = tmp_path.glob("runs/creak/limit-8/enhance/*/CREAK_without-duplicate-empty/manifest.json")
    counts = json.loads(manifest.read_text())["counts"]
    assert counts == {"train": 6, "dropped": 2, "dropped_for": {"cot duplicate": 2}, "dropped_samples": [3, 5]}
    (run,) = tmp_path.glob("runs/creak/limit-8/finetune/*")
    assert run.name == "tiny_cot_tail_field-explanation_without-duplicate-empty_batch4_seed0"
    assert json.loads((run / "manifest.json").read_text())["counts"]["samples"] == 6
    page = (tmp_path / "runs/creak/limit-8/report/index.html").read_text()
    assert "the filter dropped 2 of 8 samples" in page
