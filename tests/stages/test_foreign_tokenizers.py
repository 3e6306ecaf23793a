"""Tokenizers that are malformed or meant to hurt: one line that names the folder, no panic, no endless text."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bounded import bounded
from support.programs import only_error
from support.scoring import words

from teacherlm.core.errors import UserError
from teacherlm.runtime.foreign_tokenizers import lengthening
from teacherlm.runtime.loading import load_tokenizer


def with_settings(model: Path, folder: Path, settings: dict[str, Any], file: str = "tokenizer.json") -> Path:
    """A copy of a model's folder with other settings in one of its files."""
    shutil.copytree(model, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **settings}))
    return folder


def replacing(content: str, pattern: dict[str, str]) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def in_turn(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


PANICS = {
    "an empty map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
    "a map that leads out": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}},
    "a special token that is none": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}
LOAD_EACH = """
import sys
from pathlib import Path
from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_tokenizer
for folder in sys.argv[1:]:
    try:
        load_tokenizer(Path(folder))
    except UserError as error:
        print(error)
"""
LENGTHENS = in_turn(*[replacing("a" * 50, {"Regex": "."})] * 4)


@pytest.mark.parametrize("name", PANICS)
def test_a_panic_is_one_line(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, name: str) -> None:
    model = with_settings(tiny_llama, tmp_path / "model", PANICS[name])
    error = only_error(inside("evaluate", *words(model, "sample", prepared / "tests", tmp_path / "results")))
    assert f"the tokenizer in {model} " in error


def test_a_text_that_it_fails_over_later_is_one_line(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    unigram = {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}, "pre_tokenizer": None}
    model = with_settings(tiny_llama, tmp_path / "model", unigram)
    assert load_tokenizer(model)("a")["input_ids"]
    error = only_error(inside("evaluate", *words(model, "sample", prepared / "tests", tmp_path / "results")))
    assert f"the tokenizer in {model} fails: Encountered an unknown token" in error


def test_replacements_that_make_a_text_endless(tiny_llama: Path, tmp_path: Path) -> None:
    """A sentence needed 2 GB, and one more replacement would have needed more than any memory."""
    settings = [{"normalizer": LENGTHENS}, {"decoder": {**LENGTHENS, "decoders": LENGTHENS["normalizers"]}}]
    tokens = [{"id": 9, "content": "abc", "special": False, "normalized": True, "single_word": False, "lstrip": False,
               "rstrip": False}]  # fmt: skip
    settings.append({"normalizer": LENGTHENS, "added_tokens": tokens})
    models = [with_settings(tiny_llama, tmp_path / str(number), one) for number, one in enumerate(settings)]
    done = bounded(["-c", LOAD_EACH, *models], 60, 1536)
    said = done.stdout.splitlines()
    assert len(said) == len(models), done.stderr
    for model, line in zip(models, said):
        assert line.startswith(f"the tokenizer in {model}")
        assert "makes a text more than 100 times as long" in line


@pytest.mark.parametrize(
    ("part", "times"),
    [
        (None, 1),
        ({"type": "NFC"}, 1),
        (in_turn({"type": "Prepend", "prepend": "_"}, replacing("_", {"String": " "})), 1),
        (in_turn(replacing(" ", {"Regex": r"\s+"}), replacing(" ", {"Regex": " {2,}"}), {"type": "Lowercase"}), 1),
        (in_turn(*[replacing('"', {"String": "``"})] * 50), 1),
        (replacing("abc", {"String": "a"}), 3),
        (replacing("abc", {"String": ""}), 4),
        (replacing("a", {"Regex": ""}), 2),
        (replacing("a", {"Regex": "(?=a)"}), 2),
        (in_turn(in_turn(replacing("ab", {"Regex": "."})), replacing("abc", {"String": "b"})), 6),
        ({"type": "Replace"}, 1),
    ],
)
def test_how_much_longer_a_text_can_get(part: Any, times: float) -> None:
    assert lengthening(part) == times


@pytest.mark.parametrize("length", ["NaN", float("nan"), -1, 0, True, [5], {"a": "b" * 10_000}])
def test_a_length_that_is_no_number(tiny_llama: Path, tmp_path: Path, length: Any) -> None:
    model = with_settings(tiny_llama, tmp_path / "model", {"model_max_length": length}, "tokenizer_config.json")
    with pytest.raises(UserError, match=r"tokenizer_config.json: model_max_length: a positive number") as caught:
        load_tokenizer(model)
    assert len(str(caught.value)) < 400


def test_a_tokenizer_stays_what_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain, loaded = AutoTokenizer.from_pretrained(tiny_llama), load_tokenizer(tiny_llama)
    assert isinstance(loaded, type(plain)) and type(loaded).__name__ == type(plain).__name__
    text = "Is the moon 1 cheese?"
    for one in (loaded, copy.deepcopy(loaded)):
        assert one(text)["input_ids"] == one.encode(text) == plain(text)["input_ids"]
        assert one.batch_decode([one.encode(text)]) == [plain.decode(plain.encode(text))]
    for tokenizer, folder in ((plain, tmp_path / "plain"), (loaded, tmp_path / "loaded")):
        tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "plain" / name).read_text() == (tmp_path / "loaded" / name).read_text()


def test_what_is_said_while_it_is_loaded_is_kept() -> None:
    code = "import os\nfrom teacherlm.runtime.foreign_tokenizers import without_panics\n"
    code += "with without_panics():\n    os.write(2, b'a warning')\nos.write(2, b' and more')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "a warning and more"
