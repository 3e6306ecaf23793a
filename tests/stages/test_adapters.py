"""LoRA: adapters train, are saved alone or merged, go on after an interruption, and are scored like any checkpoint."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from support.any_models import llama_config, save
from support.asked_models import words as stage_words
from support.files import read_lines
from support.finetuning import STEPS, flags, read_log, weights
from support.programs import only_error
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from teacherlm.catalog.adapters import base_folder, base_reference
from teacherlm.catalog.models import Model
from teacherlm.core.errors import UserError
from teacherlm.runtime.generation import Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_model, load_tokenizer
from teacherlm.runtime.tokens import decode_completion, encode_prompt
from teacherlm.scoring.batching import Group
from teacherlm.scoring.scored_model import ScoredModel


def lora(model: Path, dataset: Path, output: Path) -> list[object]:
    return [*flags(model, dataset, output), "--peft", "lora", "--peft_rank", 4, "--num_train_epochs", 2]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model.eval()(torch.arange(20)[None]).logits


def test_adapters_and_the_merged_student_are_one_model(
    tiny_model: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    words = lora(tiny_model, prepared / "SAMPLE", tmp_path / "run")
    result = inside("finetune", *words, "--merge_adapters", "true")
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "run" / f"checkpoint-{2 * STEPS}"
    assert not (checkpoint / "model.safetensors").exists()
    trained = logits(checkpoint)
    torch.testing.assert_close(logits(checkpoint / "merged"), trained)
    assert (trained - logits(tiny_model)).abs().max() > 1e-3
    log = read_log(tmp_path / "run")
    assert log[-1]["loss"] < log[0]["loss"]


def test_it_goes_on_as_if_it_had_not_been_interrupted(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", whole)).returncode == 0
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", parts), "--num_train_epochs", 1).returncode == 0
    assert "resuming from" in inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", parts)).stdout
    assert read_log(parts) == read_log(whole)
    name = f"checkpoint-{2 * STEPS}/adapter_model.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert not weights(whole)


def test_checkpoints_of_adapters_are_scored(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", tmp_path / "run")).returncode == 0
    words = ["--model_args", f"pretrained={tiny_llama}", "--checkpoints", tmp_path / "run"]
    words += ["--tasks", "sample", "--datasets", prepared / "tests"]
    result = inside("evaluate", *words, "--output_path", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "results").rglob("sample.json"))) == 3  # the student untrained too


@pytest.fixture
def trained(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The base model's folder and a checkpoint of its adapters, which was trained on a relative path. The current
    folder is now another one."""
    home = tmp_path / "home"
    shutil.copytree(tiny_llama, home / "models" / "tiny")
    monkeypatch.chdir(home)
    words = [*lora(Path("models/tiny"), prepared / "SAMPLE", Path("run")), "--merge_adapters", "true"]
    result = inside("finetune", *words, "--learning_rate", 0.05, "--num_train_epochs", 1)
    assert result.returncode == 0, result.stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home / "models" / "tiny", home / "run" / f"checkpoint-{STEPS}"


def score(inside: Callable, prepared: Path, model: Path, name: str) -> list[list[float]]:
    """Log-likelihoods of the choices of the first 16 questions."""
    words = ["--model_args", f"pretrained={model}", "--tasks", "sample", "--datasets", prepared / "tests"]
    result = inside("evaluate", *words, "--output_path", name, "--limit", 16)
    assert result.returncode == 0, result.stderr
    assert "done already" not in result.stdout
    (samples,) = Path(name).rglob("sample_samples.jsonl")
    return [list(record["loglikelihoods"].values()) for record in read_lines(samples)]


def test_adapters_trained_on_a_relative_path_are_scored_from_another_folder(
    trained: tuple[Path, Path], prepared: Path, inside: Callable
) -> None:
    """They give the scores of the merged model, which differ from the scores without adapters."""
    base, checkpoint = trained
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    scores = {
        name: torch.tensor(score(inside, prepared, folder, name))
        for name, folder in (("adapters", checkpoint), ("merged", checkpoint / "merged"), ("base", base))
    }
    torch.testing.assert_close(scores["adapters"], scores["merged"], atol=1e-4, rtol=1e-4)
    assert (scores["adapters"] - scores["base"]).abs().max() > 1e-2


def test_adapters_of_a_base_model_that_changed_are_refused(
    trained: tuple[Path, Path], prepared: Path, inside: Callable
) -> None:
    base, checkpoint = trained
    words = ["--model_args", f"pretrained={checkpoint}", "--tasks", "sample", "--datasets", prepared / "tests"]
    words += ["--output_path", "results", "--limit", 4]
    assert inside("evaluate", *words).returncode == 0
    assert "done already" in inside("evaluate", *words).stdout
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert f"{base}, changed since they were trained" in only_error(inside("evaluate", *words))
    (checkpoint / "base_model.json").unlink()  # adapters of another program do not say what they were trained on
    again = inside("evaluate", *words)
    assert again.returncode == 0, again.stderr
    assert "done already" not in again.stdout
    assert "done already" in inside("evaluate", *words).stdout
    weights["model.norm.weight"] /= 2
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert "done already" not in inside("evaluate", *words).stdout


def test_a_base_model_that_is_gone_is_named(trained: tuple[Path, Path], prepared: Path, inside: Callable) -> None:
    base, checkpoint = trained
    os.rename(base, base.with_name("moved"))
    words = ["--model_args", f"pretrained={checkpoint}", "--tasks", "sample", "--datasets", prepared / "tests"]
    error = only_error(inside("evaluate", *words))
    assert f"{checkpoint}: the base model of these adapters is missing: {base}" in error


def test_a_base_model_is_not_looked_for_in_the_current_folder(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the current folder, anybody could have made a folder with the name of the hub's model. Beside the adapters, it
    belongs to them."""
    base, checkpoint = trained
    here = tmp_path / "here"
    shutil.copytree(base, here / "someone" / "tiny")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = checkpoint / "adapter_config.json"
    for name in ("someone/tiny", "someone", "", "."):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
        with pytest.raises(UserError):
            base_folder(checkpoint)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/tiny"}))
    shutil.copytree(base, checkpoint / "someone" / "tiny")
    assert base_folder(checkpoint) == checkpoint / "someone" / "tiny"


HURTS = [
    ({"target_modules": "([a-z0-9_.]+)+!$"}, "its patterns for modules, for example '([a-z0-9_.]+)+!$', take"),
    ({"rank_pattern": {"([a-z0-9_.]+)+!": 4}}, "its patterns for modules"),
    ({"alpha_pattern": {"([a-z0-9_.]+)+!": 4}}, "its patterns for modules"),
    ({"exclude_modules": "([a-z0-9_.]+)+!$"}, "its patterns for modules"),
    ({"layers_to_transform": [0], "layers_pattern": ["([a-z0-9_.]+)+!"]}, "its patterns for modules"),
    ({"r": 10**9}, "r: the number 1000000000 is too large"),
    ({"r": 10**6}, "r: a rank of at most "),
    ({"rank_pattern": {"q_proj": 10**6}}, "rank_pattern: a rank of at most "),
    ({"init_lora_weights": "pissa_niter_1000000"}, "init_lora_weights: at most 100 steps were expected"),
]


@pytest.mark.parametrize(("settings", "said"), HURTS)
def test_settings_of_adapters_that_are_meant_to_hurt(
    trained: tuple[Path, Path],
    prepared: Path,
    inside: Callable,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict,
    said: str,
) -> None:
    monkeypatch.setattr("teacherlm.catalog.adapter_settings.PATTERN_SECONDS", 1)
    _, checkpoint = trained
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    words = ["--model_args", f"pretrained={checkpoint}", "--tasks", "sample", "--datasets", prepared / "tests"]
    error = only_error(inside("evaluate", *words, "--output_path", "results", "--limit", 4))
    assert f"{path}: {said}" in error


def test_patterns_that_people_write_are_taken(trained: tuple[Path, Path]) -> None:
    _, checkpoint = trained
    path = checkpoint / "adapter_config.json"
    settings = json.loads(path.read_text())
    expected = logits_of(checkpoint)
    pattern = r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:[a-z]+_proj).*?)"
    path.write_text(json.dumps(settings | {"target_modules": pattern, "rank_pattern": {r"layers\.\d+\.x": 2}}))
    torch.testing.assert_close(logits_of(checkpoint), expected)


def logits_of(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder).eval()(torch.arange(20)[None]).logits


def test_adapters_are_not_taken_for_a_student(trained: tuple[Path, Path], prepared: Path, inside: Callable) -> None:
    _, checkpoint = trained
    error = only_error(inside("finetune", *flags(checkpoint, prepared / "SAMPLE", Path("run"))))
    assert f"{checkpoint}: these are adapters; give an ordinary model, such as the folder merged" in error
    assert not Path("run").exists()


def test_adapters_of_a_model_from_the_hub_name_it_with_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert base_reference(Model(name="tiny", hub="owner/tiny"), tmp_path / commit) == ("owner/tiny", commit)
    assert base_reference(Model(name="tiny", path="tiny"), Path("tiny")) == (str(Path.cwd() / "tiny"), None)


KINDS: dict[str, Callable[[], PeftConfig]] = {
    "LoRA of all layers and the head": lambda: LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"]),
    "DoRA": lambda: LoraConfig(target_modules=["q_proj", "down_proj"], use_dora=True),
    "rank-stabilized": lambda: LoraConfig(target_modules=["q_proj", "v_proj"], use_rslora=True, r=4),
    "biases too": lambda: LoraConfig(target_modules=["q_proj", "v_proj"], bias="all"),
    "other ranks": lambda: LoraConfig(target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}),
    "some tokens": lambda: LoraConfig(target_modules=["v_proj"], trainable_token_indices=[5, 7]),
    "IA3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: LoHaConfig(target_modules=["q_proj"]),
    "OFT": lambda: OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0),
    "VeRA": lambda: VeraConfig(target_modules=["q_proj"], r=4),
}


def make_adapters(base: Path, folder: Path, config: PeftConfig) -> tuple[Path, torch.Tensor]:
    """Adapters with weights that matter, and the log-probabilities after CONTEXT of peft's own model with them."""
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for part in adapted.parameters():
            if part.requires_grad:
                part += torch.randn_like(part) * 0.2
    adapted.save_pretrained(folder)
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(folder)
    return folder, log_probabilities(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))


def log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([CONTEXT])).logits[0].double().log_softmax(-1)


CONTEXT = list(range(20, 44))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with biases, and with weights that are large enough for every part to matter."""
    config = llama_config(attention_bias=True, mlp_bias=True)
    return save(tmp_path_factory.mktemp("base") / "base", LlamaForCausalLM(config))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_other_programs_are_computed_as_peft_computes_them(kind: str, base: Path, tmp_path: Path) -> None:
    """The stages that accept adapters are tested, on the paths that they choose."""
    folder, expected = make_adapters(base, tmp_path / "adapters", KINDS[kind]())
    assert (log_probabilities(AutoModelForCausalLM.from_pretrained(base)) - expected).abs().max() > 0.1
    scored = ScoredModel(folder, "cpu", "float32")
    scored.prepare(len(CONTEXT))
    inputs = [tuple(CONTEXT), tuple(CONTEXT[:9])]
    found = scored.logits([Group(0, (0, 1))], inputs, [24, 9]).log_softmax(-1)
    torch.testing.assert_close(found.double(), torch.cat([expected, expected[:9]]), atol=2e-4, rtol=1e-4)
    engine = TransformersEngine(folder, "float32", Sampling(1, 0, 1.0))
    prompts = [engine.tokenizer.decode(CONTEXT[:end]) for end in (24, 15)]
    made = engine.complete(Prompt("cot_text", index, 0, prompt, 0) for index, prompt in enumerate(prompts))
    for completion in made:
        tokens = encode_prompt(engine.tokenizer, prompts[completion.prompt.index])
        with torch.inference_mode():
            best = int(peft_logits(base, folder, tokens)[-1].argmax())
        assert completion.text == decode_completion(engine.tokenizer, tokens, [best])


def peft_logits(base: Path, folder: Path, tokens: list[int]) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    return model(input_ids=torch.tensor([tokens])).logits[0]


def break_adapters(how: str, base: Path, folder: Path) -> None:
    """Adapters of LoRA, changed so that a stage must not take them."""
    make_adapters(base, folder, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]))
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, config = load_file(file), json.loads(settings.read_text())
    if how == "a tensor is missing":
        del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    elif how == "the head is missing":
        del tensors["base_model.model.lm_head.weight"]
    elif how == "a tensor too many":
        tensors["base_model.model.model.layers.5.self_attn.v_proj.lora_B.weight"] = torch.zeros(2, 2)
    elif how == "another rank":
        config["r"] = 4
    elif how == "an unknown setting":
        config["use_tomorrow"] = True
    elif how == "the weights of a whole model":
        shutil.copy(base / "model.safetensors", folder)
        shutil.copy(base / "config.json", folder)
    elif how == "another model's config.json":
        other = json.loads((base / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**other, "rope_parameters": {"rope_theta": 50.0}}))
    elif how == "a prompt of its own":
        shutil.rmtree(folder)
        model = AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
        return
    elif how == "from a token on":
        config["alora_invocation_tokens"] = [21, 22]
    save_file(tensors, file, {"format": "pt"})
    settings.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a tensor is missing", "layers.1.self_attn.v_proj.lora_B"),
        ("the head is missing", "lm_head"),
        ("a tensor too many", "layers.5.self_attn.v_proj.lora_B"),
        ("another rank", "size mismatch"),
        ("an unknown setting", "use_tomorrow"),
        ("the weights of a whole model", "holds a whole model (model.safetensors) and adapter_config.json"),
        ("another model's config.json", "config.json has rope_parameters"),
        ("a prompt of its own", "PROMPT_TUNING"),
        ("from a token on", "alora_invocation_tokens"),
    ],
)
def test_adapters_that_cannot_be_computed_are_refused(
    how: str, said: str, base: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    folder = tmp_path / "adapters"
    break_adapters(how, base, folder)
    for stage in ("enhance", "evaluate"):
        error = only_error(inside(stage, *stage_words(stage, folder, prepared, tmp_path)))
        assert said in error, stage
        assert str(folder) in error
    assert "adapter" in only_error(inside("finetune", *stage_words("finetune", folder, prepared, tmp_path)))


def test_adapters_beside_a_config_json_are_those_of_their_base_model(
    base: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    """Some programs put the base model's config.json beside the adapters. Such a folder is refused in training too."""
    alone, _ = make_adapters(base, tmp_path / "alone", KINDS["DoRA"]())
    beside = Path(shutil.copytree(alone, tmp_path / "beside"))
    shutil.copy(base / "config.json", beside)
    assert score(inside, prepared, beside, str(tmp_path / "1")) == score(inside, prepared, alone, str(tmp_path / "2"))
    error = only_error(inside("finetune", *stage_words("finetune", beside, prepared, tmp_path)))
    assert "these are adapters; give an ordinary model" in error


@pytest.mark.parametrize(
    "words",
    [
        ("--peft", "qlora"),
        ("--peft", "adapter"),
        ("--peft_rank", 0),
        ("--peft_rank", 8),
        ("--merge_adapters", "true"),
        ("--merge_adapters", "true", "--peft", "qlora"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[object, ...], tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), *words))
    assert str(words[0]) in error
