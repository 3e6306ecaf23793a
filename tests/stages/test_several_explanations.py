"""Several explanations per sample: the dataset and the finetuning under each setting of --explanations."""

import json
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from support.enhancing import prompts
from support.files import contents, read_lines
from support.finetuning import flags, weights
from support.programs import only_error
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.catalog.explanations import Explanations
from teacherlm.catalog.prompts import remove_duplicated_block
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.dataset.joined import joined_records
from teacherlm.dataset.post_process import list_dropped, without_flagged

RECORDS, TEXTS = 6, 4


class Folder:
    """A folder in which the tiny teacher has written four texts of two kinds for each of six samples."""

    def __init__(self, path: Path, model: Path, inside: Callable):
        self.path, self.model, self.inside = path, model, inside
        self.records = prompts(path / "SAMPLE.jsonl", RECORDS)

    def enhance(self, *more: object) -> None:
        words = ["--name", self.model, "--input", self.records, "--output", self.path / "SAMPLE_{kind}.jsonl"]
        words += ["--task_type", "cot_text,error_text", "--num_tokens", 10, "--dtype", "float32"]
        done = self.inside("enhance", *words, "--num_completions", TEXTS, *more)
        assert done.returncode == 0, done.stderr

    def post_process(self, *more: object) -> subprocess.CompletedProcess:
        words = ["--benchmark", "sample", "--output_dir", self.path, "--test_dir", self.path / "tests"]
        return self.inside("data_prepare", *words, "--post_process", *more)

    def score(self, kind: str = "cot", *more: object) -> subprocess.CompletedProcess:
        words = ["--name", self.model, "--input", self.path / f"SAMPLE_{kind}.jsonl", "--kind", kind]
        return self.inside("score-texts", *words, *more)

    def scores(self, kind: str = "cot") -> Path:
        return self.path / f"SAMPLE_{kind}_scores_{self.model.name}.jsonl"

    def dataset(self, setting: str, *more: object) -> list[dict]:
        done = self.post_process("--explanations", setting, *more)
        assert done.returncode == 0, done.stderr
        name = {"first": "", "best": f"_best_{self.model.name}"}.get(setting, f"_{setting}")
        return datasets.load_from_disk(str(self.path / f"SAMPLE{name}")).to_list()

    def texts(self, kind: str) -> list[list[str]]:
        return [texts_in(record, kind) for record in read_lines(self.path / f"SAMPLE_{kind}.jsonl")]


def texts_in(record: dict, kind: str) -> list[str]:
    return [one if isinstance(one, str) else one["text"] for one in record[f"{kind}_completions"]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """What `Folder.enhance` writes, made once."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def folder(written: Path, tmp_path: Path, tiny_llama: Path, inside: Callable) -> Folder:
    if not any(written.iterdir()):
        Folder(written, tiny_llama, inside).enhance()
    folder = Folder(tmp_path, tiny_llama, inside)
    for file in written.glob("SAMPLE*"):
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(str(written).encode(), str(tmp_path).encode()))
    return folder


def test_first_is_what_it_was_without_the_setting(folder: Folder) -> None:
    rows = folder.dataset("first")
    assert [row["cot"] for row in rows] == [texts[0] for texts in folder.texts("cot")]
    made = contents(folder.path / "SAMPLE")
    assert folder.post_process().returncode == 0
    assert contents(folder.path / "SAMPLE") == made


@pytest.mark.parametrize("setting", ["all", "each_epoch"])
def test_a_row_per_text(folder: Folder, setting: str) -> None:
    rows = folder.dataset(setting)
    records = read_lines(folder.records)
    expected = []
    for number, (record, cots, errors) in enumerate(zip(records, folder.texts("cot"), folder.texts("error")), 1):
        for text, (cot, error) in enumerate(zip(cots, errors, strict=True), 1):
            tails = {"cot_tail": f"{record['cot_text']}{cot}", "error_tail": f"{record['error_text']}{error}"}
            made = {name: remove_duplicated_block(tail) for name, tail in tails.items()}
            numbers = {"sample_number": number, "text_number": text}
            expected.append({**record, "cot": cot, "error": error, "all": record["cot_text"] + cot, **made, **numbers})
    assert [
        {name: value for name, value in row.items() if not name.endswith(("_first", "_ended", "_shuffled", "parts"))}
        for row in rows
    ] == expected
    assert len({row["cot"] for row in rows}) > RECORDS  # texts are sampled, so they differ
    manifest = manifests.read_manifest(folder.path / f"SAMPLE_{setting}" / "manifest.json")
    assert manifest["arguments"] == {"explanations": setting, "seed": 0}
    assert "done already" in folder.post_process("--explanations", setting).stdout
    assert folder.post_process("--explanations", setting, "--list_missing").stdout == ""


def test_best_is_the_text_after_which_the_answer_is_likeliest(folder: Folder) -> None:
    """The scores are compared with the plain forward pass of the whole text in float64."""
    error = only_error(folder.post_process("--explanations", "best", "--scorer", folder.model.name))
    assert "no such file; `teacherlm score-texts` makes it" in error
    assert folder.post_process("--explanations", "best", "--scorer", folder.model.name, "--list_missing").stdout
    done = folder.score()
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(folder.model, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    best = []
    for record, texts, said in zip(
        read_lines(folder.records), folder.texts("cot"), read_lines(folder.scores()), strict=True
    ):
        question, gold = record["text"].removesuffix(").").split(" A: The answer is (")
        expected = []
        for text in texts:
            context = remove_duplicated_block(f"{question} A: {text.strip()} The answer is ({gold}).")
            context = context[: context.rindex(f"{gold}).")]
            ids = tokenizer(context + gold).input_ids
            assert tokenizer.decode(ids[-1:]) == gold
            with torch.inference_mode():
                expected.append(float(model(torch.tensor([ids])).logits[0, -2].log_softmax(-1)[ids[-1]]))
        assert said["scores"] == pytest.approx(expected, abs=1e-5)
        best.append(texts[max(range(TEXTS), key=said["scores"].__getitem__)])
    assert best != [texts[0] for texts in folder.texts("cot")]
    rows = folder.dataset("best", "--scorer", folder.model.name)
    assert [row["cot"] for row in rows] == best
    assert "error" not in rows[0]  # its texts have no scores
    assert "done already" in folder.score().stdout
    manifest = manifests.read_manifest(manifests.manifest_of(folder.scores()))
    assert manifest["counts"]["texts"] == RECORDS * TEXTS and manifest["inputs"]["model"]["sha256"]


def test_scores_of_other_texts_are_refused(folder: Folder) -> None:
    assert folder.score().returncode == 0
    texts = folder.path / "SAMPLE_cot.jsonl"
    texts.write_text(
        texts.read_text().replace('"cot_completions": [{"text": "', '"cot_completions": [{"text": "more ', 1)
    )
    error = only_error(folder.post_process("--explanations", "best", "--scorer", folder.model.name))
    assert f"{folder.scores()}: the scores are of other texts" in error


def test_interrupted_scoring_goes_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from teacherlm.scoring import language_model, text_scores

    monkeypatch.setattr(text_scores, "RECORDS", 2)
    plain, asked = language_model.LanguageModel.loglikelihood, []

    def stopping(self: object, requests: list, *more: object) -> list:
        asked.append(len(requests))
        if len(asked) == 2:
            raise UserError("interrupted")
        return plain(self, requests, *more)

    monkeypatch.setattr(language_model.LanguageModel, "loglikelihood", stopping)
    assert "interrupted" in only_error(folder.score())
    assert not folder.scores().exists()
    assert folder.score().returncode == 0
    assert asked == [8, 8, 8, 8]  # the first two records were not scored again
    assert len(read_lines(folder.scores())) == RECORDS


def finetune(folder: Folder, dataset: Path, output: str, *more: object) -> dict[str, bytes]:
    """The weights of each checkpoint of a student that is trained on `cot_tail` in batches of 2."""
    words = flags(folder.model, dataset, folder.path / output)
    words[words.index("--task_type") + 1] = "cot_tail"
    words[words.index("--per_device_train_batch_size") + 1] = 2
    done = folder.inside("finetune", *words, *more)
    assert done.returncode == 0, done.stderr
    return weights(folder.path / output)


def test_each_epoch_trains_on_another_text(folder: Folder) -> None:
    """Four epochs are as one epoch on the first texts, then the second ones, and so on."""
    rows = folder.dataset("each_epoch")
    by_text = sorted(rows, key=lambda row: (row["text_number"], row["sample_number"]))
    datasets.Dataset.from_list(by_text).save_to_disk(str(folder.path / "by_text"))
    plain = ["--shuffle", "false", "--save_strategy", "steps", "--save_steps", 3]
    several = ["--explanations", "each_epoch", "--num_train_epochs", TEXTS]
    found = finetune(folder, folder.path / "SAMPLE_each_epoch", "several", *several, *plain)
    expected = finetune(folder, folder.path / "by_text", "plain", "--num_train_epochs", 1, *plain)
    assert sorted(found) == sorted(expected) == ["checkpoint-12", "checkpoint-3", "checkpoint-6", "checkpoint-9"]
    assert found == expected


def test_each_epoch_resumes_exactly(folder: Folder) -> None:
    """From a checkpoint in the middle of an epoch, and a longer run from the end of a shorter one."""
    folder.dataset("each_epoch")
    words = ["--explanations", "each_epoch", "--save_strategy", "steps", "--save_steps", 2]
    whole = finetune(folder, folder.path / "SAMPLE_each_epoch", "run", *words)
    for number in (6, 8, 10, 12):
        shutil.rmtree(folder.path / "run" / f"checkpoint-{number}")
    resumed = finetune(folder, folder.path / "SAMPLE_each_epoch", "run", *words)
    assert resumed == whole
    for epochs in (1, 4):
        longer = finetune(folder, folder.path / "SAMPLE_each_epoch", "longer", *words, "--num_train_epochs", epochs)
    assert longer["checkpoint-12"] == whole["checkpoint-12"]
    error = only_error(
        folder.inside("finetune", *flags(folder.model, folder.path / "SAMPLE_each_epoch", folder.path / "run"))
    )
    assert "explanations was 'each_epoch', is 'all'" in error


def test_a_dataset_without_numbers_has_no_other_text(folder: Folder) -> None:
    folder.dataset("first")
    words = flags(folder.model, folder.path / "SAMPLE", folder.path / "run")
    error = only_error(folder.inside("finetune", *words, "--explanations", "each_epoch"))
    assert "--explanations each_epoch needs the field 'sample_number'" in error


def test_a_filter_drops_texts_and_lists_them(folder: Folder) -> None:
    for kind, period in (("cot", 2), ("error", 3)):  # texts of a random model have no end; some get one here
        file = folder.path / f"SAMPLE_{kind}.jsonl"
        records = read_lines(file)
        for number, record in enumerate(records[:-1]):
            texts = [f"{text} End." if (number + n) % period else text for n, text in enumerate(texts_in(record, kind))]
            record |= {kind: texts[0], "all": record[f"{kind}_text"] + texts[0], f"{kind}_completions": texts}
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = folder.post_process("--explanations", "all", "--filter", "cut")
    assert done.returncode == 0, done.stderr
    rows = datasets.load_from_disk(str(folder.path / "SAMPLE_all_without-cut")).to_list()
    kept, dropped = [], []
    for number, (cots, errors) in enumerate(zip(folder.texts("cot"), folder.texts("error")), 1):
        for text, pair in enumerate(zip(cots, errors), 1):
            ends = [words.rstrip()[-1:] in ".!?…。！？”’\"')]}»" for words in pair]
            (kept if all(ends) else dropped).append((number, text))
    assert kept and dropped
    assert [(row["sample_number"], row["text_number"]) for row in rows] == kept
    listed = read_lines(folder.path / "SAMPLE_all_without-cut.dropped.jsonl")
    assert [(row["sample"], row["text"]) for row in listed] == dropped
    counts = manifests.read_manifest(folder.path / "SAMPLE_all_without-cut" / "manifest.json")["counts"]
    assert (counts["train"], counts["dropped"]) == (len(kept), len(dropped))
    assert counts["samples_without_text"] == RECORDS - len({number for number, _ in kept})
    assert sum(counts["dropped_for"].values()) == sum(len(row["reasons"]) for row in listed)


def test_shards_merge_to_the_same_dataset(folder: Folder, tmp_path: Path, inside: Callable) -> None:
    whole = folder.dataset("all")
    (tmp_path / "parts").mkdir()
    parts = Folder(tmp_path / "parts", folder.model, inside)
    for index in range(3):
        parts.enhance("--shard", f"{index}/3")
    for kind in ("cot", "error"):
        words = ["--input", parts.records, "--output", parts.path / f"SAMPLE_{kind}.jsonl", "--shards", 3]
        assert inside("merge", *words).returncode == 0
    assert parts.dataset("all") == whole


def test_a_text_may_be_an_object(folder: Folder) -> None:
    """Why a text ended is then a field of its row."""
    file = folder.path / "SAMPLE_cot.jsonl"
    records = read_lines(file)
    for record in records:
        ends = ["stop", "length", "stop", "filter"]
        pairs = zip(texts_in(record, "cot"), ends)
        record["cot_completions"] = [{"text": text, "tokens": 10, "ended": end} for text, end in pairs]
        record.pop("cot_ended", None)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = folder.dataset("all")
    assert [row["cot"] for row in rows] == [text["text"] for record in records for text in record["cot_completions"]]
    assert [row["cot_ended"] for row in rows] == [None, "length", None, "filter"] * RECORDS
    assert folder.score().returncode == 0
    records[1]["cot_completions"][2] = {"tokens": 3}
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert f"{file}, line 2: the field 'cot' is not a text" in only_error(folder.score())
    assert f"{file}, line 2: the field 'cot' is not a text" in only_error(folder.post_process("--explanations", "all"))


def test_memory_does_not_grow_with_the_number_of_samples(folder: Folder) -> None:
    """A filter of texts reads, joins, drops and lists as a stream. With 15 times the samples, this mechanism
    allocates no more at a time."""
    record = read_lines(folder.path / "SAMPLE_cot.jsonl")[0]
    flagged = {"sample": 1, "text": 2, "flags": {"cot": ["cut"]}}
    peaks = []
    for count in (100, 1500):
        file, quality = folder.path / f"{count}.jsonl", folder.path / f"{count}_quality.jsonl"
        file.write_text(f"{json.dumps(record)}\n" * count)
        lines = [{**flagged, "sample": number} for number in range(1, count + 1)]
        quality.write_text("".join(f"{json.dumps({**said, 'flags': {}})}\n{json.dumps(said)}\n" * 2 for said in lines))
        stream = partial(joined_records, {"cot": file}, Explanations("all"))
        tracemalloc.start()
        counts = list_dropped(quality, ["cut"], folder.path / "dropped.jsonl")
        rows = sum(1 for _ in without_flagged(stream, quality, ["cut"]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (counts["dropped"], rows) == (2 * count, 2 * count)
    assert peaks[1] < peaks[0] + 50_000, peaks


def test_mistakes_are_one_line(folder: Folder) -> None:
    for words in (["--explanations", "best"], ["--explanations", "all", "--scorer", "x"]):
        assert "--scorer: --explanations best needs" in only_error(folder.post_process(*words))
    assert "a plain name was expected" in only_error(folder.post_process("--explanations", "best", "--scorer", "../x"))
    assert "--kind: one of cot, error, fundamental" in only_error(folder.score("tail"))
