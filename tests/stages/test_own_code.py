"""Code that lies in a model's or a test set's folder is never run, whatever stdin answers."""

import ast
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.atlas_models import make_passages, make_questions, make_tiny_bert, make_tiny_t5, run_script, write_lines
from support.atlas_words import words as atlas_words
from support.finetuning import flags
from support.own_code import source_files
from support.programs import ROOT, only_error
from support.scoring import words as evaluate_words

from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_tokenizer

REFUSED = (
    "needs Python code of its own (`auto_map` in its JSON files), and code from a model's folder is never run here"
)


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stdin answers "yes" to every question, like a careless user or a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))


def with_code(folder: Path, copy: Path) -> Path:
    """A copy of a model's folder that asks for classes in its own file, which leaves a trace when it runs."""
    shutil.copytree(folder, copy)
    trace = f"open({str(copy.parent / 'trace')!r}, 'w').close()\n"
    classes = "from transformers import *\nclass OwnConfig(PreTrainedConfig): model_type = 'own'\n"
    (copy / "own.py").write_text(trace + classes + "class Own: config_class = OwnConfig\n")
    models = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    maps = {"AutoConfig": "own.OwnConfig", **{name: "own.Own" for name in models}}
    edit(copy / "config.json", model_type="own", auto_map=maps)
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, tokenizer_class="Own")
    return copy


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_model_s_own_code_does_not_run(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    model = with_code(tiny_llama, tmp_path / "model")
    records = ["--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "out.jsonl", "--task_type", "cot_text"]
    commands = [
        ["enhance", "--name", model, *records],
        ["finetune", *flags(model, prepared / "SAMPLE", tmp_path / "run")],
        ["evaluate", *evaluate_words(model, "sample", prepared / "tests", tmp_path / "results")],
    ]
    for command in commands:
        result = inside(*command)
        assert REFUSED in only_error(result), command[0]
        assert "[y/N]" not in result.stdout
    assert not (tmp_path / "trace").exists()


def test_a_tokenizer_s_own_code_does_not_run(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_code(tiny_llama, tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="never run here"):
        load_tokenizer(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", ["t5", "bert"])
def test_an_atlas_model_s_own_code_does_not_run(part: str, tmp_path: Path) -> None:
    make_tiny_t5(tmp_path / "t5")
    make_tiny_bert(tmp_path / "bert")
    write_lines(tmp_path / "passages.jsonl", make_passages(9))
    write_lines(tmp_path / "test.jsonl", make_questions(2))
    (tmp_path / part).rename(tmp_path / "plain")
    with_code(tmp_path / "plain", tmp_path / part)
    command = atlas_words(tmp_path, tmp_path / "out", "--passages", tmp_path / "passages.jsonl")
    result = run_script(ROOT / "atlas" / "evaluate.py", command, {"TEACHERLM_CACHE": str(tmp_path / "cache")})
    assert "never run here" in only_error(result)
    assert not (tmp_path / "trace").exists()


def test_every_place_that_loads_says_so() -> None:
    """A call without the argument asks at a terminal, and takes the answer from a pipe."""
    calls = 0
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_bytes())):
            name = getattr(getattr(node, "func", None), "attr", "")
            owner = getattr(getattr(getattr(node, "func", None), "value", None), "id", "")
            loads = name in ("from_pretrained", "from_config") and owner not in ("GenerationConfig", "PeftConfig")
            if not loads and getattr(getattr(node, "func", None), "id", "") != "LLM":
                continue
            calls += 1
            said = [word for word in node.keywords if word.arg == "trust_remote_code"]
            assert said and said[0].value.value is False, f"{file}, line {node.lineno}"
    assert calls >= 8


def test_the_flag_is_refused(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    command = flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run")
    for more in (["--trust_remote_code"], ["--trust-remote-code", "true"], ["--trust_remote_code=True"]):
        assert "code from a model's folder is never run here" in only_error(inside("finetune", *command, *more))
    for model in (f"{tiny_llama},trust_remote_code=True", f"{tiny_llama},trust_remote_code=True,dtype=float32"):
        error = only_error(inside("evaluate", *evaluate_words(model, "sample", prepared / "tests", tmp_path / "out")))
        assert "trust_remote_code: code from a model's folder is never run here; leave it out" in error


def test_a_yaml_beside_task_files_names_no_code(tmp_path: Path) -> None:
    """lm-eval's YAML files can name functions and ask for a data set's code; only those that it installs are read."""
    from teacherlm.scoring import find_tasks, task_files

    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\ndef run(doc): pass\n")
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {trust_remote_code: true}\noutput_type: multiple_choice\n"
        "test_split: train\ndoc_to_text: !function code.run\ndoc_to_target: a\n"
    )
    assert find_tasks.find_classes("mine", tmp_path, tmp_path) is None
    assert list(task_files.task_files(tmp_path)) == ["code"]
    assert not (tmp_path / "trace").exists()


def test_a_metric_in_the_current_folder_is_not_the_library_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teacherlm.scoring.old_metrics import load_metric

    script = tmp_path / "perplexity" / "perplexity.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"would run .*perplexity\.py, which is in the current folder"):
        load_metric("perplexity")
    assert not (tmp_path / "trace").exists()
