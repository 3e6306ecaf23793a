"""What makes a finished stage's output stale: the benchmark's YAML, the prompts, and the version of a stage's code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.explained import explain
from support.files import read_lines
from support.finetuning import flags
from support.programs import ROOT, only_error
from support.scoring import words as evaluate_words

from teacherlm.catalog import benchmarks, prompt_sets, prompts
from teacherlm.core import manifests


class Sample:
    """The sample benchmark in a folder of the test, with a YAML that a test may change, and what is made of it."""

    def __init__(self, folder: Path, run: Callable):
        self.folder, self.run = folder, run
        self.yaml = folder / "benchmarks" / "sample.yaml"
        shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
        self.records, self.tests = folder / "SAMPLE.jsonl", folder / "tests"
        self.enhanced = folder / "SAMPLE_cot.jsonl"

    def prepare(self, *words: object) -> str:
        places = ["--output_dir", self.folder, "--test_dir", self.tests]
        result = self.run("data_prepare", "--benchmark", self.yaml, "--limit", 8, *places, *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def edit(self, old: str, new: str) -> None:
        text = self.yaml.read_text()
        assert old in text
        self.yaml.write_text(text.replace(old, new))


@pytest.fixture
def sample(tmp_path: Path, inside: Callable) -> Sample:
    return Sample(tmp_path, inside)


def make_older(manifest_path: Path) -> None:
    """Change a manifest to its form from before stages had versions."""
    manifest = json.loads(manifest_path.read_text())
    del manifest["version"]
    manifest_path.write_text(json.dumps(manifest))


def test_a_changed_yaml_makes_the_prepared_data_stale(sample: Sample) -> None:
    sample.prepare()
    assert "done already" in sample.prepare()
    sample.edit("Determine the correctness of the following sentence.", "Is this right?")
    assert "prepare: runs again, because the benchmark changed" in sample.prepare()
    assert read_lines(sample.records)[0]["text"].startswith("Q: Is this right? ")
    assert "done already" in sample.prepare()


def test_changed_prompts_make_what_has_them_stale(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    sample.prepare()
    assert sample.run(*explain(sample.records, sample.enhanced)).returncode == 0
    sample.prepare("--post_process")
    assert "post-process: done already" in sample.prepare("--post_process")

    (sample.folder / "prompts").mkdir()
    changed = (prompt_sets.FOLDER / "teacherlm.yaml").read_text().replace("Let's think step by step.", "Let's think.")
    (sample.folder / "prompts" / "teacherlm.yaml").write_text(changed)
    monkeypatch.setattr(prompt_sets, "FOLDER", sample.folder / "prompts")
    assert "prepare: runs again, because the prompts changed" in (said := sample.prepare())
    assert "quality: runs again, because the prompts changed" in said
    assert "post-process: runs again, because the prompts changed" in said
    assert read_lines(sample.records)[0]["cot_text"].endswith(" Let's think.")
    error = only_error(sample.run(*explain(sample.records, sample.enhanced)))
    assert "is there already (the records changed)" in error


def test_a_changed_yaml_makes_the_quality_stale(sample: Sample) -> None:
    """Overlaps are searched in the text that the question's template takes from a sample."""
    sample.prepare()
    assert sample.run(*explain(sample.records, sample.enhanced)).returncode == 0
    sample.prepare("--post_process")
    sample.edit("{{ sentence }}", "{{ sentence | one_line }}")
    assert "quality: runs again, because the benchmark changed" in sample.prepare("--post_process")


@pytest.mark.parametrize("change", ["YAML", "prompts"])
def test_a_changed_benchmark_makes_a_result_stale(
    change: str, sample: Sample, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "FOLDER", sample.yaml.parent)
    sample.prepare("--test_only")
    command = ["evaluate", *evaluate_words(tiny_llama, "sample", sample.tests, sample.folder / "results", "--limit", 2)]
    assert sample.run(*command).returncode == 0
    assert "done already" in sample.run(*command).stdout
    if change == "YAML":
        sample.edit("title: SAMPLE", "title: SAMPLES")
    else:
        monkeypatch.setattr(prompts, "ANSWER_MARK", " A: It is (")
    said = sample.run(*command).stdout
    assert f"evaluate: runs again, because the {'benchmark' if change == 'YAML' else 'prompts'} changed" in said
    assert "done already" in sample.run(*command).stdout


def test_an_older_version_of_a_stage_is_stale(tmp_path: Path) -> None:
    output = tmp_path / "CREAK_cot.jsonl"
    output.write_text("texts")
    path = manifests.manifest_of(output)
    work = {"arguments": {}, "inputs": {}}
    made = {"enhanced": manifests.describe(output)}
    manifests.write_manifest(path, stage="enhance", **work, outputs=made, counts={}, started=0)
    assert manifests.reasons_not_done(manifests.read_manifest(path), "enhance", {}, {}) == []
    make_older(path)
    version = manifests.stage_version("enhance")
    assert version > 1
    named = [f"made by version 1 of the stage enhance, this is version {version}"]
    assert manifests.reasons_not_done(manifests.read_manifest(path), "enhance", {}, {}) == named


@pytest.mark.parametrize("stage", ["enhance", "finetune", "evaluate"])
def test_a_new_version_of_a_stage_makes_its_output_stale(
    stage: str, sample: Sample, tiny_llama: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluate_words(tiny_llama, "sample", prepared / "tests", sample.folder / "results", "--limit", 2)
    run = sample.folder / "run"
    commands = {
        "enhance": explain(sample.records, sample.enhanced),
        "finetune": ["finetune", *flags(tiny_llama, prepared / "SAMPLE", run), "--num_train_epochs", 1],
        "evaluate": ["evaluate", *results],
    }
    sample.prepare()
    assert sample.run(*commands[stage]).returncode == 0
    assert "done already" in sample.run(*commands[stage]).stdout
    version = manifests.stage_version(stage)
    monkeypatch.setitem(manifests.STAGE_VERSIONS, stage, version + 1)
    said = f"made by version {version} of the stage {stage}, this is version {version + 1}"
    if stage == "evaluate":  # made again; the others keep what took long, and are told to go on
        assert f"evaluate: runs again, because {said}" in sample.run(*commands[stage]).stdout
    else:
        assert said in only_error(sample.run(*commands[stage]))
        assert said in sample.run(*commands[stage], "--restart").stdout
    assert "done already" in sample.run(*commands[stage]).stdout
