"""Shards and their merge, several kinds in one pass, several completions a record: the same texts as one plain run."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import edit_record, progress_of, prompts
from support.files import contents, read_lines
from support.programs import only_error

from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.core import manifests

RECORDS, SHARDS = 15, 4


class Folder:
    """A folder in which one teacher enhances SAMPLE.jsonl into SAMPLE_cot.jsonl, with or without shards."""

    def __init__(self, path: Path, teacher: Path, inside: Callable):
        self.records, self.output = prompts(path / "SAMPLE.jsonl", RECORDS), path / "SAMPLE_cot.jsonl"
        self.teacher, self.inside = teacher, inside

    def enhance(self, *words: object, output: str = "SAMPLE_cot.jsonl") -> subprocess.CompletedProcess:
        files = ["--input", self.records, "--output", self.output.with_name(output)]
        settings = ["--task_type", "cot_text", "--num_tokens", 12, "--dtype", "float32", "--seed", 5]
        return self.inside("enhance", "--name", self.teacher, *files, *settings, *words)

    def make_shards(self, *words: object, count: int = SHARDS) -> None:
        for index in range(count):
            result = self.enhance("--shard", f"{index}/{count}", *words)
            assert result.returncode == 0, result.stderr

    def shard(self, index: int) -> Path:
        return self.output.with_name(f"SAMPLE_cot.shard-{index}-of-{SHARDS}.jsonl")

    def merge(self, count: int = SHARDS) -> subprocess.CompletedProcess:
        return self.inside("merge", "--input", self.records, "--output", self.output, "--shards", count)

    def unsharded(self, *words: object) -> bytes:
        assert self.enhance(*words, output="whole.jsonl").returncode == 0
        return self.output.with_name("whole.jsonl").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path, inside: Callable) -> Folder:
    return Folder(tmp_path, tiny_llama, inside)


@pytest.mark.parametrize("sampling", [["--temperature", 0], ["--temperature", 1]], ids=["greedy", "sampled"])
def test_shards_merge_to_the_bytes_of_one_run(folder: Folder, sampling: list[object]) -> None:
    folder.make_shards(*sampling)
    merged = folder.merge()
    assert merged.returncode == 0, merged.stderr
    assert folder.output.read_bytes() == folder.unsharded(*sampling)


def test_what_is_merged_is_neither_merged_nor_enhanced_again(folder: Folder) -> None:
    folder.make_shards()
    folder.merge()
    before = contents(folder.output.parent)
    for again in (folder.merge(), folder.enhance()):
        assert (again.returncode, again.stderr) == (0, "")
        assert "done already, nothing to do" in again.stdout
    assert contents(folder.output.parent) == before


def test_more_shards_than_records_merge_too(folder: Folder) -> None:
    folder.records.write_text("".join(folder.records.read_text().splitlines(keepends=True)[:3]))
    folder.make_shards(count=5)
    assert "has 3 records of 5 shards" in folder.merge(5).stdout
    assert folder.output.read_bytes() == folder.unsharded()


def test_a_shard_that_is_not_done_is_named(folder: Folder) -> None:
    folder.make_shards()
    manifests.manifest_of(folder.shard(2)).unlink()
    assert f"{folder.shard(2)}: this shard is not done" in only_error(folder.merge())
    assert not folder.output.exists()


def test_a_shard_of_other_settings_is_named_with_the_difference(folder: Folder) -> None:
    folder.make_shards()
    assert folder.enhance("--shard", "1/4", "--seed", 9, "--restart").returncode == 0
    error = only_error(folder.merge())
    assert f"{folder.shard(1)}: made differently from {folder.shard(0)}: seed was 9, is 5;" in error
    assert not folder.output.exists()


def remove_second(lines: list[str]) -> None:
    del lines[1]


def append_foreign(lines: list[str]) -> None:
    lines.append(lines[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (remove_second, "line 7: this record is missing in {shard};"),  # shard 2 of 4: lines 3, 7, 11, 15
        (append_foreign, "{shard}: has records that are not in {records};"),
    ],
)
def test_a_shard_with_other_records_is_named(folder: Folder, change: Callable, message: str) -> None:
    folder.make_shards()
    shard, manifest_path = folder.shard(2), manifests.manifest_of(folder.shard(2))
    lines = shard.read_text().splitlines(keepends=True)
    change(lines)
    shard.write_text("".join(lines))
    assert f"{shard}: changed since it was made" in only_error(folder.merge())

    manifest = json.loads(manifest_path.read_text())  # written so by a fault of ours, not edited after
    manifest["outputs"]["enhanced"] = {**manifests.describe(shard), "path": shard.name}
    manifest_path.write_text(json.dumps(manifest))
    assert message.format(shard=shard, records=folder.records) in only_error(folder.merge())
    assert not folder.output.exists()


def test_records_that_a_shard_may_lack_are_counted_and_left_out(folder: Folder) -> None:
    edit_record(folder.records, 7, lambda record: record.update(cot_text="moon " * 600))
    folder.make_shards("--max_failures", 1)
    assert folder.merge().returncode == 0
    assert folder.output.read_bytes() == folder.unsharded("--max_failures", 1)
    counts = manifests.read_manifest(manifests.manifest_of(folder.output))["counts"]
    assert (counts["records"], counts["failures"], counts["shards"]) == (RECORDS - 1, 1, SHARDS)


def test_all_kinds_in_one_pass_are_those_of_single_runs_and_make_full_tail(folder: Folder) -> None:
    import datasets

    kinds = ("cot", "error", "fundamental")
    all_fields = ",".join(f"{kind}_text" for kind in kinds)
    assert folder.enhance("--task_type", all_fields, output="SAMPLE_{kind}.jsonl").returncode == 0
    for kind in kinds:
        assert folder.enhance("--task_type", f"{kind}_text", output=f"single_{kind}.jsonl").returncode == 0
        made, single = (folder.output.with_name(f"{name}_{kind}.jsonl") for name in ("SAMPLE", "single"))
        assert made.read_bytes() == single.read_bytes()

    words = ["--benchmark", "sample", "--output_dir", folder.output.parent, "--post_process"]
    processed = folder.inside("data_prepare", *words)
    assert processed.returncode == 0, processed.stderr
    rows = datasets.load_from_disk(str(folder.output.with_name("SAMPLE"))).to_list()
    texts = [read_lines(folder.output.with_name(f"SAMPLE_{kind}.jsonl")) for kind in kinds]
    for row, *parts in zip(rows, *texts, strict=True):
        explanations = {kind: part[kind] for kind, part in zip(kinds, parts)}
        assert row["full_tail"] == load_prompts().training_texts(row, explanations, "")["full_tail"]
        assert all(text.split()[-1] in row["full_tail"] for text in explanations.values())


def test_a_kind_that_is_named_twice_is_made_once(folder: Folder) -> None:
    assert folder.enhance("--task_type", "cot_text,cot_text", output="SAMPLE_{kind}.jsonl").returncode == 0
    assert folder.output.read_bytes() == folder.unsharded()


def test_several_completions_are_a_list_whose_first_is_the_field(folder: Folder) -> None:
    folder.unsharded()
    assert folder.enhance("--num_completions", 3).returncode == 0
    for record, single in zip(read_lines(folder.output), read_lines(folder.output.with_name("whole.jsonl"))):
        completions = record.pop("cot_completions")
        assert record == single
        assert completions[0]["text"] == record["cot"]
        assert completions[0]["ended"] == record.get("cot_ended", "stop")
        assert len({one["text"] for one in completions}) == 3
        assert all(one["tokens"] == 12 for one in completions if one["ended"] == "length")
    assert not progress_of(folder.output).exists()
