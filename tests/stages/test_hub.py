"""Models and datasets from the hub: what is fetched and what is not, and that a second run needs no network.

The hub is a stand-in on 127.0.0.1. The libraries read HF_ENDPOINT and HF_HOME when they are imported, hence processes
that have not imported them yet (plain_python).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from support.hub_stand_in import Hub, serve_hub
from support.programs import ROOT, STAGES, only_error, plain_python, warm_python

from teacherlm.runtime.loading import load_model, load_tokenizer

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    with serve_hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    """The environment of a machine that has fetched nothing yet and knows only the stand-in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    quiet |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return kept | quiet | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def folder_of(environment: dict[str, str]) -> Run:
    """Ask for a model's folder, as the shell scripts do."""

    def run(name: str = "someone/tiny") -> subprocess.CompletedProcess:
        command = [plain_python(), "-m", "teacherlm.catalog.models", "folder", name]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)

    return run


@pytest.fixture
def prepare(stage: Run, environment: dict[str, str], tmp_path: Path) -> Run:
    """Prepare CREAK into a folder: prepare("out", "--data", folder)."""

    def run(name: str, *words: object, **more: str) -> subprocess.CompletedProcess:
        places = ("--output_dir", tmp_path / name, "--test_dir", tmp_path / name / "test")
        return stage("data_prepare", "--benchmark", "creak", *places, *words, env=environment | more, timeout=60)

    return run


@pytest.fixture
def model_repository(hub: Hub, tiny_llama: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, hub.root / "models" / "someone" / "tiny"))


@pytest.fixture
def creak_repository(hub: Hub, claims: Path) -> Path:
    folder = hub.root / "datasets" / "amydeng2000" / "CREAK"
    folder.mkdir(parents=True)
    shutil.copy(claims / "train.json", folder / "train.json")
    shutil.copy(claims / "dev.json", folder / "validation.json")
    return folder


def pickle_weights(repository: Path) -> None:
    """Put pickled weights in the place of the safetensors."""
    torch.save(load_model(repository).state_dict(), repository / "pytorch_model.bin")
    (repository / "model.safetensors").unlink()


def test_a_model_is_fetched_without_what_no_one_reads(hub: Hub, folder_of: Run, model_repository: Path) -> None:
    needed = sorted(file.name for file in model_repository.iterdir())
    for name in ("pytorch_model.bin", "flax_model.msgpack", "model.onnx", "README.md", "original/weights.safetensors"):
        (model_repository / name).parent.mkdir(exist_ok=True)
        (model_repository / name).write_bytes(b"not needed")
    folder = Path(folder_of().stdout.strip())
    assert hub.fetched() == needed
    assert (folder / "model.safetensors").read_bytes() == (model_repository / "model.safetensors").read_bytes()


def test_a_second_run_asks_the_hub_for_nothing(hub: Hub, folder_of: Run, model_repository: Path) -> None:
    """Compute nodes have no internet; files that were left out on purpose must not count as missing."""
    (model_repository / "flax_model.msgpack").write_bytes(b"not needed")
    first = folder_of()
    hub.stop()
    second = folder_of()
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")


def test_a_download_that_was_cut_off_is_completed(folder_of: Run, model_repository: Path) -> None:
    folder = Path(folder_of().stdout.strip())
    (folder / "tokenizer.json").unlink()
    assert Path(folder_of().stdout.strip()) == folder
    assert (folder / "tokenizer.json").read_bytes() == (model_repository / "tokenizer.json").read_bytes()


def test_pickled_weights_are_fetched_where_there_are_no_others(
    hub: Hub, folder_of: Run, model_repository: Path
) -> None:
    expected = load_model(model_repository).state_dict()
    pickle_weights(model_repository)
    folder = Path(folder_of().stdout.strip())
    found = load_model(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load_tokenizer(folder)("Bees fly.")["input_ids"]
    hub.stop()
    assert Path(folder_of().stdout.strip()) == folder


def test_safetensors_in_a_subfolder_are_not_the_models(hub: Hub, folder_of: Run, model_repository: Path) -> None:
    (model_repository / "adapter").mkdir()
    (model_repository / "adapter" / "adapter_model.safetensors").write_bytes(b"other")
    pickle_weights(model_repository)
    assert folder_of().returncode == 0
    assert "pytorch_model.bin" in hub.fetched()


def test_a_model_that_the_hub_does_not_have_is_one_line(folder_of: Run) -> None:
    done = folder_of("someone/else")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("models.py: error: the model someone/else could not be fetched from the hub")
    assert done.stderr.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(environment: dict[str, str], folder_of: Run) -> None:
    environment["HF_HOME"] = "/proc/hf"
    error = only_error(folder_of())
    assert "/proc/hf: the hub's cache cannot be written; set HF_HOME to a folder of yours" in error


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, folder_of: Run) -> None:
    hub.stop()
    done = folder_of()
    assert (done.returncode, done.stdout) == (2, "")
    assert "could not be fetched from the hub ([Errno 111] Connection refused); check its name" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def creak_of_its_authors(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """CREAK.jsonl, made from the files that CREAK's authors publish."""
    folder = tmp_path_factory.mktemp("creak")
    words = ("--benchmark", "creak", "--data", shared_data / "creak", "--output_dir", folder, "--test_dir", folder)
    subprocess.run([warm_python(), STAGES["data_prepare"], *words], check=True, capture_output=True)
    return (folder / "CREAK.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_creak_from_the_hub_is_creak_from_its_authors_files(
    tmp_path: Path, prepare: Run, creak_repository: Path, shared_data: Path, creak_of_its_authors: bytes, kind: str
) -> None:
    """The whole real dataset is compared: a library that guesses types must not read a text as a date or a number."""
    (creak_repository / "data").mkdir()
    for split, file in (("train", "train.json"), ("validation", "dev.json")):
        (creak_repository / f"{split}.json").unlink()
        source = shared_data / "creak" / file
        served = creak_repository / "data" / f"{split}-00000-of-00001.{kind}"
        if kind == "json":
            shutil.copy(source, served)
        else:
            rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
            datasets.Dataset.from_list(rows).to_parquet(str(served))
    assert prepare("hub-run").returncode == 0
    made = (tmp_path / "hub-run" / "CREAK.jsonl").read_bytes()
    assert made == creak_of_its_authors
    assert made.count(b"\n") == 10_176


def test_a_dataset_that_was_fetched_needs_no_hub(
    tmp_path: Path, hub: Hub, prepare: Run, creak_repository: Path
) -> None:
    assert prepare("first").returncode == 0
    hub.stop()
    assert prepare("second").returncode == 0
    assert prepare("third", HF_HUB_OFFLINE="1").returncode == 0
    made = [(tmp_path / run / "CREAK.jsonl").read_bytes() for run in ("first", "second", "third")]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(
    ("lacks", "words"),
    [("network", "Connection refused"), ("HF_HUB_OFFLINE", "HF_HUB_OFFLINE"), ("repository", "doesn't exist")],
)
def test_a_dataset_that_cannot_be_had_is_one_line(hub: Hub, prepare: Run, lacks: str, words: str) -> None:
    if lacks == "network":
        hub.stop()
    done = prepare("out", HF_HUB_OFFLINE="1" if lacks == "HF_HUB_OFFLINE" else "0")
    assert done.returncode == 2
    assert done.stderr.startswith("data_prepare.py: error: CREAK could not be loaded from the hub (amydeng2000/CREAK")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_namesake_in_the_current_folder_is_not_taken_for_the_hubs_dataset(
    tmp_path: Path, environment: dict[str, str], creak_repository: Path, stage: Run, kind: str
) -> None:
    here = tmp_path / "here"
    namesake = here / "amydeng2000" / "CREAK"
    namesake.parent.mkdir(parents=True)
    if kind == "folder":
        shutil.copytree(creak_repository, namesake)
    elif kind == "link":
        namesake.symlink_to(creak_repository)
    else:
        namesake.touch()
    words = ("--benchmark", "creak", "--output_dir", tmp_path / "out", "--test_dir", tmp_path / "test")
    offline = {"HF_HUB_OFFLINE": "1"} if kind == "link" else {}
    result = stage("data_prepare", *words, env=environment | offline, timeout=60, cwd=here)
    assert f"{namesake}: it has the name of a dataset on the hub" in only_error(result)
    if kind == "folder":
        shutil.rmtree(namesake.parent)
        assert stage("data_prepare", *words, env=environment, timeout=60, cwd=here).returncode == 0


def test_a_namesake_in_the_current_folder_is_not_taken_for_the_hubs_model(
    tmp_path: Path, environment: dict[str, str], model_repository: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(model_repository, here / "someone" / "tiny")
    (here / "models").mkdir()
    (here / "models" / "mine.yaml").write_text("hub: someone/tiny\n")
    command = [plain_python(), "-m", "teacherlm.catalog.models", "folder", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "hf"))
