"""--engine auto, and that the texts of two engines are never in one file without a word."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.enhancing import prompts
from support.files import contents
from support.programs import STAGES, only_error, warm_python

from teacherlm.core.manifests import stage_version
from teacherlm.runtime.generation.vllm_choice import gpus_together

AUTO = ("--engine", "auto")


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an output that transformers made, chosen by --engine auto on a machine without vLLM or a GPU."""
    folder = tmp_path_factory.mktemp("made")
    prompts(folder / "SAMPLE.jsonl", 6)
    command = [warm_python(), STAGES["enhance"], *map(str, words(tiny_llama, folder)), *AUTO]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def words(teacher: Path, folder: Path) -> list[object]:
    settings = ["--task_type", "cot_text", "--num_tokens", 8, "--dtype", "float32"]
    return ["--name", teacher, "--input", folder / "SAMPLE.jsonl", "--output", folder / "SAMPLE_cot.jsonl", *settings]


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "SAMPLE_cot.manifest.json").read_text())


def change_manifest(folder: Path, **parts: dict[str, object]) -> None:
    manifest = manifest_of(folder)
    for name, values in parts.items():
        manifest[name] |= values
    (folder / "SAMPLE_cot.manifest.json").write_text(json.dumps(manifest))


def test_transformers_is_no_argument_so_older_outputs_stay_valid(
    tiny_llama: Path, folder: Path, inside: Callable
) -> None:
    assert "engine" not in manifest_of(folder)["arguments"]
    assert manifest_of(folder)["counts"]["engine"] == "transformers"
    before = contents(folder)
    for engine in ((), AUTO, ("--engine", "transformers")):
        assert "done already, nothing to do" in inside("enhance", *words(tiny_llama, folder), *engine).stdout
    error = only_error(inside("enhance", *words(tiny_llama, folder), "--engine", "vllm"))
    assert "SAMPLE_cot.jsonl is there already (engine was 'transformers', is 'vllm')" in error
    assert contents(folder) == before


def test_every_engine_that_a_flag_chooses_is_a_setting(tiny_llama: Path, folder: Path) -> None:
    """The texts of a further engine would otherwise count as those of transformers."""
    from teacherlm.catalog.models import find_model
    from teacherlm.enhance.flags import ENGINES, EnhanceFlags
    from teacherlm.enhance.job import make_jobs

    recorded = {}
    for engine in (*ENGINES, "parrot"):
        files = {"input": folder / "SAMPLE.jsonl", "output": str(folder / "SAMPLE_cot.jsonl")}
        flags = EnhanceFlags(name=str(tiny_llama), **files, task_type=("cot_text",), engine=engine)
        [job] = make_jobs(flags, find_model(str(tiny_llama)))
        recorded[engine] = job.arguments.get("engine")
    chosen_by_the_teacher = {"transformers": None, "auto": None, "openai": None}
    assert recorded == {**{engine: engine for engine in recorded}, **chosen_by_the_teacher}


@pytest.mark.parametrize("part", ["arguments", "counts"])
def test_an_output_of_vllm_is_never_continued_by_another_engine(
    part: str, tiny_llama: Path, folder: Path, inside: Callable
) -> None:
    """Manifests of earlier versions name the engine among their counts only."""
    change_manifest(folder, counts={"engine": "vllm"}, **({part: {"engine": "vllm"}} if part == "arguments" else {}))
    before = contents(folder)
    assert "done already, nothing to do" in inside("enhance", *words(tiny_llama, folder), *AUTO).stdout
    assert inside("enhance", *words(tiny_llama, folder), *AUTO, "--list_missing").stdout == ""
    error = only_error(inside("enhance", *words(tiny_llama, folder)))
    assert "(engine was 'vllm', is 'transformers')" in error
    assert contents(folder) == before
    change_manifest(folder, counts={"failures": 1})
    before = contents(folder)
    assert inside("enhance", *words(tiny_llama, folder), *AUTO, "--list_missing").stdout == "0\n"
    result = inside("enhance", *words(tiny_llama, folder), *AUTO, "--restart")
    assert "SAMPLE_cot.jsonl was begun with --engine vllm, which cannot go on here: " in only_error(result)
    assert contents(folder) == before


def test_half_made_work_of_vllm_is_not_continued_by_transformers(
    tiny_llama: Path, folder: Path, inside: Callable
) -> None:
    manifest = manifest_of(folder)
    digests = {name: described["sha256"] for name, described in manifest["inputs"].items()}
    work = {**manifest["arguments"], **digests, "version": stage_version("enhance"), "engine": "vllm"}
    for name in ("SAMPLE_cot.jsonl", "SAMPLE_cot.manifest.json"):
        (folder / name).unlink()
    (folder / ".SAMPLE_cot.jsonl.progress").write_text(
        json.dumps({"work": work}) + "\n" + json.dumps({"key": 0, "text": "theirs", "tokens": 1}) + "\n"
    )
    begun = (folder / ".SAMPLE_cot.jsonl.progress").read_bytes()
    assert "which cannot go on here" in only_error(inside("enhance", *words(tiny_llama, folder), *AUTO, "--restart"))
    assert "begun with other settings: engine was 'vllm'" in only_error(inside("enhance", *words(tiny_llama, folder)))
    assert (folder / ".SAMPLE_cot.jsonl.progress").read_bytes() == begun
    changed = inside("enhance", *words(tiny_llama, folder), *AUTO, "--seed", 3, "--restart")
    assert changed.returncode == 0, changed.stderr  # other settings begin again, with the engine that is here
    assert manifest_of(folder)["counts"]["engine"] == "transformers"


def test_shards_of_two_engines_are_not_merged(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    prompts(tmp_path / "SAMPLE.jsonl", 6)
    for shard in ("0/2", "1/2"):
        assert inside("enhance", *words(tiny_llama, tmp_path), *AUTO, "--shard", shard).returncode == 0
    path = tmp_path / "SAMPLE_cot.shard-1-of-2.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["arguments"]["engine"] = "vllm"
    path.write_text(json.dumps(manifest))
    files = ["--input", tmp_path / "SAMPLE.jsonl", "--output", tmp_path / "SAMPLE_cot.jsonl", "--shards", 2]
    assert "made differently from" in only_error(inside("merge", *files))


def test_a_teacher_is_divided_among_the_gpus_that_are_there(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = json.loads((tiny_llama / "config.json").read_text())["num_attention_heads"]
    for seen, asked, count in ((0, 4, 1), (8, 1, 1), (8, 0, 1), (8, heads, heads), (1, 8, 1), (heads + 1, 100, heads)):
        monkeypatch.setattr("torch.cuda.device_count", lambda seen=seen: seen)
        assert gpus_together(tiny_llama, asked) == count
