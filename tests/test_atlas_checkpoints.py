"""Checkpoints: the released format (a pickle of tensors and plain values), and this project's folders."""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from atlas_models import make_tiny_bert, make_tiny_t5

from atlas import checkpoints, reader, retriever
from teacherlm.errors import UserError
from teacherlm.loading import load_tokenizer


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
    """As the reference saves: names of its modules, a buffer that newer libraries lack, its options and optimizer."""
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
    """Its head is its embedding: the checkpoint may name it once or thrice."""
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
    with pytest.raises(UserError, match=r"retriever.contriever. is of another shape than .*wider"):
        checkpoints.load_released(file, None, wider, untied=False)
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
