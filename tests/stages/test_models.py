"""A model is a name of models/, a folder or a hub id, and in the end a folder that loads."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.programs import ROOT, plain_python
from transformers import AutoConfig, AutoModelForCausalLM

from teacherlm.catalog import models
from teacherlm.catalog.models import Model, find_model, local_folder, names
from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_model, load_tokenizer

STUDENTS = {f"{family}-{size}" for family in ("bloom", "bloomz") for size in ("560m", "1b1", "1b7", "3b", "7b1")}
STUDENTS |= {f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b")} | {"smollm2-135m"}
SWEPT = (ROOT / "docs" / "reference" / "architectures.md").read_text().splitlines()
TEACHERS = {f"teacherlm-7b1-{kind}" for kind in ("cot", "commonmistake", "fundamental")}


def mistake(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [plain_python(), "-m", "teacherlm.catalog.models", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def test_every_student_and_teacher_of_the_papers_is_there() -> None:
    assert set(names()) >= STUDENTS | TEACHERS


@pytest.mark.parametrize("name", names())
def test_a_model_says_where_it_is_and_how_it_is_run(name: str) -> None:
    model = find_model(name)
    assert [bool(source) for source in (model.hub, model.path, model.package)].count(True) == 1
    assert model.parameters > 1e7
    for stage, field in (("enhance", "batch"), ("enhance", "num_tokens"), ("finetune", "batch")):
        assert model.recommended(f"{stage}.{field}") >= 1
    for stage in ("enhance", "finetune", "evaluate") if name in STUDENTS else ("enhance",):
        assert {"gpus", "cpus", "memory", "time"} <= set(model.recommended(f"slurm.{stage}"))


LLAMA3 = {"vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
SIZES = {
    "qwen3-0.6b": ("qwen3", {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072}),
    "qwen3-4b": ("qwen3", {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728}),
    "llama-3.2-1b": ("llama", {**LLAMA3, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}),
    "llama-3.1-8b": ("llama", {**LLAMA3, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336}),
    "gemma-3-1b": ("gemma3_text", {"hidden_size": 1152, "num_hidden_layers": 26, "intermediate_size": 6912}),
    "smollm3-3b": ("smollm3", {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008}),
    "olmo-2-7b": ("olmo2", {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}),
    "pythia-1.4b": ("gpt_neox", {"hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 8192}),
}
"""Published sizes of models of each family."""
MORE = {
    "qwen3-0.6b": {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "qwen3-4b": {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "llama-3.2-1b": {"head_dim": 64, "tie_word_embeddings": True},
    "llama-3.1-8b": {"tie_word_embeddings": False},
    "gemma-3-1b": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144},
    "smollm3-3b": {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256},
    "olmo-2-7b": {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352},
    "pythia-1.4b": {"num_attention_heads": 16, "vocab_size": 50304},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters_is_that_of_the_published_sizes(name: str) -> None:
    family, sizes = SIZES[name]
    assert find_model(name).family == family
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **MORE[name]))
    assert find_model(name).parameters == pytest.approx(model.num_parameters(), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in names() if find_model(name).hub])
def test_resources_follow_the_number_of_parameters(name: str) -> None:
    """Mixed precision with Adam takes 16 bytes per parameter, which DeepSpeed divides among GPUs of 40 GB."""
    model = find_model(name)
    gpus, stage = model.recommended("slurm.finetune.gpus"), model.recommended("finetune.deepspeed")
    assert stage == ("zero1" if model.parameters < 1e9 else "zero2" if model.parameters < 3.5e9 else "zero3")
    states = {"zero1": 12, "zero2": 14, "zero3": 16}[stage] * model.parameters  # what is divided
    assert (states / gpus + (16 * model.parameters - states)) / 2**30 < 32
    assert model.family in {"bloom", "opt"} | {row.partition(" |")[0].removeprefix("| ") for row in SWEPT}


def test_the_id_on_the_hub_is_the_publishers() -> None:
    assert [find_model(name).hub for name in ("bloom-7b1", "bloomz-560m", "opt-1.3b")] == [
        "bigscience/bloom-7b1",
        "bigscience/bloomz-560m",
        "facebook/opt-1.3b",
    ]


def test_an_unknown_name_lists_the_nearest() -> None:
    assert "did you mean bloomz-7b1 or " in mistake(lambda: find_model("bloomz-7b"))


@pytest.mark.parametrize("name", ["zzz", ""])
def test_a_name_that_is_near_to_none_lists_all(name: str) -> None:
    message = mistake(lambda: find_model(name))
    assert message.startswith(f"no model {name!r}; ")
    assert [known for known in names() if known not in message] == []


def test_an_owner_and_a_name_are_an_id_on_the_hub() -> None:
    model = find_model("EleutherAI/pythia-70m")
    assert (model.name, model.hub, model.recommended("finetune.batch")) == ("pythia-70m", "EleutherAI/pythia-70m", 8)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no-such-model", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    assert mistake(lambda: find_model(name)).startswith(f"no model at {name}: no such folder; ")


@pytest.mark.parametrize("name", ["plain", "two words", 'it\'s "quoted"', "$HOME", "a$b", "mod*l [1]"])
def test_a_folder_is_a_model_whatever_its_name(tmp_path: Path, tiny_llama: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / name))
    model = find_model(str(folder))
    assert (model.name, local_folder(model)) == (name, folder)


def test_a_folder_may_be_relative(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_llama, tmp_path / "checkpoint-6")
    monkeypatch.chdir(tmp_path)
    assert local_folder(find_model("checkpoint-6")).samefile(tmp_path / "checkpoint-6")


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("config.json", "config.json is missing there"),
        ("*.safetensors", "no weights (*.safetensors) there"),
        ("tokenizer*", "no tokenizer (tokenizer.json) there"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_named(tmp_path: Path, tiny_llama: Path, lost: str, words: str) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    for file in folder.glob(lost):
        file.unlink()
    assert mistake(lambda: local_folder(find_model(str(folder)))).startswith(f"no model at {folder}: {words}")


def test_weights_that_are_cut_off_are_named(tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    os.truncate(folder / "model.safetensors", 1000)
    assert mistake(lambda: load_model(folder)).startswith(f"the model in {folder} cannot be loaded: ")


def test_pickled_weights_run_no_code(tmp_path: Path, tiny_llama: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload()}, folder / "pytorch_model.bin")
    assert mistake(lambda: load_model(folder)).startswith(f"the model in {folder} cannot be loaded: ")
    assert not (tmp_path / "ran").exists()


def test_the_variable_that_a_teacher_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHERLM_WEIGHTS", raising=False)
    message = mistake(lambda: local_folder(find_model("teacherlm-7b1-cot")))
    assert message.startswith("model teacherlm-7b1-cot: set TEACHERLM_WEIGHTS to the folder that holds its weights")


def test_a_teacher_is_found_below_its_variable(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "TeacherLM-7.1B-COT"))
    monkeypatch.setenv("TEACHERLM_WEIGHTS", str(tmp_path))
    assert local_folder(find_model("teacherlm-7b1-cot")) == folder


def test_a_shell_reads_recommended_values_a_line_each() -> None:
    fields = ("name", "finetune.batch", "finetune.gradient_checkpointing", "finetune.deepspeed", "slurm.enhance.time")
    asked = shell("get", "smollm2-135m", *fields)
    assert (asked.returncode, asked.stdout.split("\n")) == (0, ["smollm2-135m", "8", "false", "", "02:00:00", ""])


def test_a_value_that_is_not_there_is_named_in_a_line() -> None:
    asked = shell("get", "smollm2-135m", "finetune.speed")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == "models.py: error: model smollm2-135m: no value 'finetune.speed'\n"


def test_a_shell_reads_the_folder_of_a_model(tiny_llama: Path) -> None:
    assert shell("folder", str(tiny_llama)).stdout == f"{tiny_llama}\n"


def test_the_model_of_the_demo_loads_with_all_its_parameters(smollm2: Path) -> None:
    assert load_model(smollm2).num_parameters() == 134_515_008
    assert load_tokenizer(smollm2).decode(load_tokenizer(smollm2)("Bees fly.")["input_ids"]) == "Bees fly."


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token": "<pad>"', '"pad_token": null'))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", tokenizer.eos_token_id)


@pytest.fixture
def own_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Model]:
    """The model of a YAML in a models/ of the test's own."""

    def find(text: str) -> Model:
        (tmp_path / "mine.yaml").write_text(f"hub: some/one\n{text}\n")
        return find_model("mine")

    monkeypatch.setattr("teacherlm.catalog.models.FOLDER", tmp_path)
    return find


def test_a_yaml_of_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name, text in (("models", "bloomz-7b1", "hub: my/own\n"), ("models", "mine", "hub: some/one\n")):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.yaml").write_text(text)
    assert find_model("bloomz-7b1").hub == "bigscience/bloomz-7b1"
    monkeypatch.chdir(tmp_path)
    assert (find_model("bloomz-7b1").hub, find_model("mine").hub) == ("my/own", "some/one")
    assert find_model("bloomz-3b").hub == "bigscience/bloomz-3b"
    assert {"mine", "bloomz-3b"} <= set(models.names())


@pytest.mark.parametrize(
    ("text", "dotted", "value"),
    [
        ("slurm: {finetune: {time: 24:00:00}}", "slurm.finetune.time", "24:00:00"),  # YAML 1.1: 86,400 minutes
        ("slurm: {finetune: {time: 1-12:00}}", "slurm.finetune.time", "1-12:00"),
        ("slurm: {evaluate: {memory: 48000, gpus: 2}}", "slurm.evaluate.memory", "48000"),
        ("slurm: {evaluate: {gpus: '2'}}", "slurm.evaluate.gpus", 2),
        ("finetune: {learning_rate: 1e-5}", "finetune.learning_rate", 1e-5),  # YAML 1.1: a text
        ("finetune: {deepspeed: zero2, gradient_checkpointing: off}", "finetune.gradient_checkpointing", False),
        ("finetune: {gradient_checkpointing: Yes}", "finetune.gradient_checkpointing", True),
        ("finetune: {deepspeed: null}", "finetune.deepspeed", None),
        ("enhance: {batch: 4}", "enhance.num_tokens", 2048),
        ("slurm: {evaluate: {gpus: 0}}", "slurm.evaluate.time", "04:00:00"),
        ("slurm: {evaluate: }", "slurm.evaluate.gpus", 1),
    ],
)
def test_values_without_quotes_are_what_their_field_means(
    own_yaml: Callable[[str], Model], text: str, dotted: str, value: object
) -> None:
    found = own_yaml(text).recommended(dotted)
    assert (found, type(found)) == (value, type(value))


def test_parameters_and_revisions_without_quotes(own_yaml: Callable[[str], Model]) -> None:
    model = own_yaml("parameters: 7e9\nrevision: 1.0")
    assert (model.parameters, model.revision) == (7e9, "1.0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finetune: {bacth: 8}", "finetune: unknown field 'bacth'; known: batch, accumulation,"),
        ("finetune: {batch: many}", "finetune: batch: a whole number was expected, found 'many'"),
        ("finetune: {gradient_checkpointing: maybe}", "gradient_checkpointing: true or false was expected"),
        ("slurm: {finetune: 4}", "slurm: finetune: a mapping was expected, found '4'"),
        ("slurm: {train: {gpus: 1}}", "slurm: unknown field 'train'; known: enhance, finetune, evaluate"),
        ("parameters: large", "parameters: a number was expected, found 'large'"),
        ("finetune: {batch: 0}", "finetune: batch: a whole number from 1 to 1000000 was expected, found 0"),
        ("slurm: {evaluate: {gpus: -1}}", "evaluate: gpus: a whole number from 0 to 1000000 was expected, found -1"),
        ("finetune: {learning_rate: nan}", "finetune: learning_rate: a positive number was expected, found nan"),
        ("slurm: {evaluate: {memory: 48GB}}", "memory: an amount in sbatch's format, for example 48G, was expected"),
        ("slurm: {evaluate: {time: 1 day}}", "time: a time in sbatch's format, for example 24:00:00, was expected"),
        ("server: http://host", "unknown field 'server'; known: family, parameters, hub"),
        ("family: [a]\nparameters: many", "family: a text was expected, found ['a']"),
        ("family: bloom\nfamily: opt", "not valid YAML, line 3: 'family' occurs twice"),
    ],
)
def test_a_mistake_in_a_model_s_yaml_is_named(own_yaml: Callable[[str], Model], text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        own_yaml(text)
    assert "mine.yaml: " in str(caught.value)
