"""Checkpoints in the released format (a pickle of tensors and plain values), and in this project's folders."""

import argparse
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.atlas_models import make_passages, make_tiny_bert, make_tiny_t5
from support.plain_models import PlainBert
from transformers import AutoConfig, T5ForConditionalGeneration

from teacherlm.atlas import checkpoints, reader, retriever
from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_tokenizer


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Configurations, and the weights of other models of the same shapes."""
    folder = tmp_path_factory.mktemp("parts")
    t5, bert = make_tiny_t5(folder / "t5"), make_tiny_bert(folder / "bert")
    trained = reader.load_reader(t5)
    encoder, _ = retriever.load_retriever(make_tiny_bert(folder / "other", seed=9), untied=False)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.5)
    return SimpleNamespace(t5=t5, bert=bert, reader=trained, encoder=encoder.query)


def release(parts: SimpleNamespace, file: Path, encoders: tuple[str, ...] = ("contriever",), **more: object) -> Path:
    """A checkpoint like the reference's: its modules' names, a buffer that newer libraries lack, options, optimizer."""
    weights = {f"reader.{name}": tensor for name, tensor in parts.reader.state_dict().items()}
    for place, encoder in enumerate(encoders):
        weights |= {f"retriever.{encoder}.{n}": tensor + place for n, tensor in parts.encoder.state_dict().items()}
        weights[f"retriever.{encoder}.embeddings.position_ids"] = torch.arange(512)[None]
    optimizer = torch.optim.AdamW(parts.reader.parameters())
    saved = {
        "step": 1234,
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "retr_optimizer": None,
        "scheduler": {"last_epoch": 3},
        "opt": argparse.Namespace(name="x", lr=1e-4, query_side_retriever_training=False, device=torch.device("cpu")),
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, file)
    return file


def test_a_released_checkpoint_is_loaded(parts: SimpleNamespace, tmp_path: Path) -> None:
    file = release(parts, tmp_path / "model.pth.tar")
    encoders, made = checkpoints.load_released(file, parts.t5, parts.bert, untied=False)
    for name, tensor in parts.reader.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name
    for name, tensor in parts.encoder.state_dict().items():
        assert torch.equal(encoders.query.state_dict()[name], tensor), name
    assert encoders.query is encoders.passage


def test_the_first_kind_of_t5_too(parts: SimpleNamespace, tmp_path: Path) -> None:
    """The head of this kind is its embedding. The checkpoint may have its name once or three times."""
    folder = make_tiny_t5(tmp_path / "t5", gated=False)
    model = reader.load_reader(folder)
    once = SimpleNamespace(reader=model, encoder=parts.encoder)
    file = release(once, tmp_path / "model.pth.tar")
    _, made = checkpoints.load_released(file, folder, None, untied=False)
    assert torch.equal(made.lm_head.weight, model.shared.weight)
    assert made.encoder.embed_tokens.weight is made.shared.weight


def test_two_encoders_stay_two_and_one_becomes_two_when_asked(parts: SimpleNamespace, tmp_path: Path) -> None:
    two = release(parts, tmp_path / "two.tar", ("query_contriever", "passage_contriever"))
    encoders, _ = checkpoints.load_released(two, None, parts.bert, untied=False)
    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(encoders.passage.state_dict()[weight], encoders.query.state_dict()[weight] + 1)
    one = release(parts, tmp_path / "one.tar")
    encoders, _ = checkpoints.load_released(one, None, parts.bert, untied=True)
    assert encoders.passage is not encoders.query
    assert torch.equal(encoders.passage.state_dict()[weight], encoders.query.state_dict()[weight])


def test_one_trained_in_several_processes(parts: SimpleNamespace, tmp_path: Path) -> None:
    weights = {f"reader.module.{name}": tensor for name, tensor in parts.reader.state_dict().items()}
    file = release(parts, tmp_path / "model.pth.tar", model=weights)
    _, made = checkpoints.load_released(file, parts.t5, None, untied=False)
    assert torch.equal(made.lm_head.weight, parts.reader.lm_head.weight)


def test_code_in_a_pickle_is_refused(parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = release(parts, tmp_path / "model.pth.tar", opt=Evil())
    with pytest.raises(UserError, match=r"refused, its pickle asks for posix.system"):
        checkpoints.load_released(file, parts.t5, parts.bert, untied=False)
    torch.save({"model": {}, "opt": Evil()}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="refused"):
        checkpoints.load_released(file, parts.t5, parts.bert, untied=False)
    assert not (tmp_path / "pwned").exists()


def test_what_does_not_fit_is_named(parts: SimpleNamespace, tmp_path: Path) -> None:
    file = release(parts, tmp_path / "model.pth.tar")
    wider = make_tiny_bert(tmp_path / "wider", dimension=64)
    named = r"contriever.embeddings.LayerNorm.bias does not have the shape of .*wider: found \[32\], expected \[64\]"
    with pytest.raises(UserError, match=named):
        checkpoints.load_released(file, None, wider, untied=False)
    wider = make_tiny_t5(tmp_path / "wider-t5", width=64)
    with pytest.raises(
        UserError, match=r"reader.decoder.block.0.* does not have the shape .*: found \[.*32\], expected \[.*64\]"
    ):
        checkpoints.load_released(file, wider, None, untied=False)
    weights = {f"reader.{name}": tensor for name, tensor in parts.reader.state_dict().items()}
    del weights["reader.lm_head.weight"]
    short = release(parts, tmp_path / "short.tar", model=weights)
    with pytest.raises(UserError, match=r"reader.\* are not the weights of .*: lm_head.weight is missing"):
        checkpoints.load_released(short, parts.t5, None, untied=False)
    with pytest.raises(UserError, match=r"no weights named retriever"):
        checkpoints.load_released(short, None, parts.bert, untied=False)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match="refused or damaged"):
        checkpoints.load_released(file, parts.t5, None, untied=False)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("reader", "decoder.final_layer_norm.weight"),
        ("contriever", "encoder.layer.1.output.dense.bias"),
    ],
)
def test_weights_that_are_not_finite_are_refused(parts: SimpleNamespace, tmp_path: Path, part: str, name: str) -> None:
    """In the released format, and in a folder, complete or with a weight missing."""
    file = release(parts, tmp_path / "model.pth.tar")
    saved = torch.load(file, weights_only=False)
    prefix = "reader." if part == "reader" else "retriever.contriever."
    saved["model"][prefix + name][1] = float("nan")
    torch.save(saved, file)
    with pytest.raises(UserError, match=f"{prefix}{name} holds numbers that are not finite"):
        checkpoints.load_released(file, parts.t5, parts.bert, untied=False)

    def load() -> None:
        reader.load_reader(folder) if part == "reader" else retriever.load_retriever(folder, untied=False)

    folder = tmp_path / "folder"
    shutil.copytree(parts.t5 if part == "reader" else parts.bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][1] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"the tensor {name} holds numbers that are not finite"):
        load()
    for change, message in (
        ({}, f"lacks the tensor {name}"),
        ({name: torch.zeros(7)}, rf"the tensor {name} has the shape \[7\]"),
    ):
        weights.pop(name, None)
        save_file({**weights, **change}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=message):
            load()


def test_a_t5_without_its_head_is_refused(parts: SimpleNamespace, tmp_path: Path) -> None:
    """transformers silently uses the embedding as its head, but the hub's configurations say that they are not tied."""
    shutil.copytree(parts.t5, tmp_path / "t5")
    config = json.loads((parts.t5 / "config.json").read_text())
    (tmp_path / "t5" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    reader.load_reader(tmp_path / "t5")
    weights = load_file(parts.t5 / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensor lm_head.weight"):
        reader.load_reader(tmp_path / "t5")
    reader.load_reader(make_tiny_t5(tmp_path / "first", gated=False))  # the first kind has no head


def test_a_t5_that_the_library_made_shares_its_embedding(parts: SimpleNamespace, tmp_path: Path) -> None:
    """It is saved without a head and loaded like that. (examples/small_reader.py makes such a model.)"""
    made = T5ForConditionalGeneration(AutoConfig.from_pretrained(parts.t5))
    made.save_pretrained(tmp_path)
    loaded = reader.load_reader(tmp_path)
    assert torch.equal(loaded.lm_head.weight, made.shared.weight)


@torch.no_grad()
def test_a_released_retriever_has_the_layer_norm_of_its_kind(parts: SimpleNamespace, tmp_path: Path) -> None:
    """Compared with BERT in float64, one text at a time, and after saving and loading. Hub BERTs have the usual one."""
    released, _ = checkpoints.load_released(release(parts, tmp_path / "model.tar"), None, parts.bert, untied=True)
    tokenizer = load_tokenizer(parts.bert)
    checkpoints.save_retriever(tmp_path / "saved", released, tokenizer)
    again, _ = retriever.load_retriever(tmp_path / "saved", untied=False)
    ordinary, _ = retriever.load_retriever(parts.bert, untied=False)
    ordinary.query.load_state_dict(parts.encoder.state_dict())
    texts = [f"{passage['title']} {passage['text']}" for passage in make_passages(12)]
    for made, kind in ((released, "mean_square"), (again, "mean_square"), (ordinary, "variance")):
        plain = PlainBert(made.query, norm=kind)
        for of_passages in (False, True):
            found = torch.empty(len(texts), 32)
            for numbers, vectors in retriever.embed(made.eval(), tokenizer, texts, 50, 5, of_passages):
                found[numbers] = vectors
            for text, vector in zip(texts, found):
                expected = plain.states(tokenizer(text, truncation=True, max_length=50)["input_ids"]).mean(0)
                torch.testing.assert_close(vector.double(), expected, atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "saved" / "query_encoder" / "config.json").read_text())["layer_norm"] == "mean_square"
    assert retriever.fingerprint(released, "{text}", 50) == retriever.fingerprint(again, "{text}", 50)
    assert retriever.fingerprint(released, "{text}", 50) != retriever.fingerprint(ordinary, "{text}", 50)


def test_a_layer_norm_that_is_not_known_is_refused(parts: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(parts.bert, tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "layer_norm": "root"}))
    with pytest.raises(UserError, match="asks for the layer_norm 'root'"):
        retriever.load_retriever(tmp_path / "bert", untied=False)


def test_this_project_s_checkpoints_are_model_folders(parts: SimpleNamespace, tmp_path: Path) -> None:
    encoders, tokenizer = retriever.load_retriever(parts.bert, untied=True)
    with torch.no_grad():
        encoders.query.embeddings.word_embeddings.weight.add_(1)
    folder = tmp_path / "step-7"
    reader_tokenizer = load_tokenizer(parts.t5)
    checkpoints.save_checkpoint(folder, encoders, tokenizer, parts.reader, reader_tokenizer, step=7)
    assert checkpoints.checkpoint_kind(folder) == "own" and checkpoints.saved_step(folder) == 7
    loaded, _ = retriever.load_retriever(folder / "retriever", untied=False)
    for part in ("query", "passage"):
        for name, tensor in getattr(encoders, part).state_dict().items():
            assert torch.equal(getattr(loaded, part).state_dict()[name], tensor)
    assert (loaded.pooling, loaded.normalize) == (encoders.pooling, encoders.normalize)
    assert torch.equal(reader.load_reader(folder / "reader").lm_head.weight, parts.reader.lm_head.weight)
