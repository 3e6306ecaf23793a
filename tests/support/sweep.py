"""One architecture through enhance, finetune and evaluate, each held against the library's plain forward.

`Sweep` has the texts, which all architectures share. A stage's outcome says which path it took, by what the model was
given, and whether what came out is right, refused (exit code 2 and a line on stderr) or wrong.
"""

import contextlib
import dataclasses
import gc
import io
import json
import os
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from support.files import read_lines, sample_claims
from support.plain_reference import Plain
from support.programs import ROOT, STAGES
from support.tiny_architectures import Architecture, make_model, make_tokenizer

NEW_TOKENS = 12
RATE = 0.125
END = 1
STAGE_NAMES = ("enhance", "finetune packed", "finetune padded", "evaluate")
PAGE = ROOT / "docs" / "reference" / "architectures.md"
BEGIN, AFTER = "<!-- the table: make prove ONLY=sweep -->\n", "<!-- the end of the table -->"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage made of an architecture.

    Attributes:
        verdict: "exact", "refused" or "wrong".
        path: how the model was computed: "packed", "padded", "one at a time"; of a teacher "own batch",
            "library's cache", "no cache"; empty where it was not.
        detail: why it is refused, or what is wrong.
    """

    verdict: str
    path: str = ""
    detail: str = ""

    def unless_refused(self, why: str) -> "Outcome":
        """The outcome for a model that has to be refused, for a reason; without a reason, this one."""
        if not why or self.verdict == "refused":
            return self
        return dataclasses.replace(self, verdict="wrong", detail=f"{why}, but not refused; {self.detail}")


class Sweep:
    """The texts that all architectures are tried with, in a folder: for each stage as its own input.

    Lengths differ, most are beyond the attention windows of tiny models, and several questions begin alike.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        datasets.disable_progress_bars()
        gc.freeze()  # what is loaded by now stays: accelerate collects garbage after each training, a third of all time
        self.tokenizer = make_tokenizer(claim["sentence"] for claim in sample_claims())
        sentences = [claim["sentence"] for claim in [*sample_claims()][:12]]
        self.prompts = [sentences[0][:9], *sentences[1:3], " ".join(sentences[3:5]), "It is", " ".join(sentences[5:8])]
        self.samples = [sentences[8], " ".join(sentences[9:11]), sentences[11][:20], "A sentence. " * 8]
        self.questions = [*sentences[:2], "Is this so?", *(f"{sentences[2]} {end}" for end in ("Or not?", "Really?"))]
        records = [{"cot_text": prompt} for prompt in self.prompts]
        (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        datasets.Dataset.from_dict({"text": self.samples}).save_to_disk(str(folder / "samples"))
        questions = {"question": self.questions, "answer": ["(A)"] * len(self.questions)}
        datasets.Dataset.from_dict(questions).save_to_disk(str(folder / "tests" / "sample"))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def try_all(self, architecture: Architecture) -> dict[str, Outcome]:
        """The outcome of each stage."""
        model = make_model(architecture, len(self.tokenizer))
        return self.compare(model, self.save(model, architecture.name))

    def save(self, model: PreTrainedModel, name: str) -> Path:
        student = self.folder / name.replace(" ", "-") / "model"
        model.save_pretrained(student)
        self.tokenizer.save_pretrained(student)
        return student

    def compare(self, model: PreTrainedModel, student: Path) -> dict[str, Outcome]:
        """What the stages make of a folder, held against the model that was saved there."""
        plain, to_refuse = None, "half of an encoder-decoder"
        if not model.config.is_encoder_decoder:
            plain = Plain(model)
            rows = [self.encode(text) for text in (*self.prompts, *self.samples)]
            to_refuse = "" if plain.is_repeatable(rows) else "changed by the texts before"
            plain.measure(rows)
            to_refuse = to_refuse if plain.is_causal(max(rows, key=len)) else "not causal"
        folder = student.parent
        outcomes = {"enhance": self.enhance(student, folder / "enhance", plain)}
        packed = self.finetune(student, folder / "packed", plain, packing=True)
        outcomes["finetune packed"] = outcomes["finetune padded"] = packed
        if packed.verdict != "exact" or packed.path == "packed":  # otherwise both are computed alike
            outcomes["finetune padded"] = self.finetune(student, folder / "padded", plain, packing=False)
        outcomes["evaluate"] = self.evaluate(student, folder / "evaluate", plain)
        return {stage: outcome.unless_refused(to_refuse) for stage, outcome in outcomes.items()}

    def enhance(self, student: Path, folder: Path, plain: Plain | None) -> Outcome:
        folder.mkdir()
        words = ["--name", student, "--input", self.folder / "records.jsonl", "--output", folder / "out.jsonl"]
        words += ["--task_type", "cot_text", "--num_tokens", NEW_TOKENS, "--temperature", 0, "--batch_size", 3]
        words += ["--dtype", "float32", "--max_failures", len(self.prompts)]

        def check() -> str:
            found = {record["cot_text"]: record["cot"] for record in read_lines(folder / "out.jsonl")}
            wrong = []
            for prompt in self.prompts:
                new, sure = plain.continuation(self.encode(prompt), NEW_TOKENS, END)
                wanted, text = self.decode(new), found.get(prompt, "")
                right = text == (wanted if wanted.strip() else "")  # a text without a word is a failure
                if sure < len(new):
                    right = text.startswith(self.decode(new[:sure]).rstrip("\ufffd"))
                wrong += [] if right else [f"{text!r} instead of {wanted!r}"]
            return f"{len(wrong)} of {len(self.prompts)} texts: {wrong[0]}" if wrong else ""

        return attempt("enhance", words, check, teacher_path)

    def finetune(self, student: Path, folder: Path, plain: Plain | None, packing: bool) -> Outcome:
        words = ["--model_name_or_path", student, "--dataset_name", self.folder / "samples", "--task_type", "text"]
        words += ["--output_dir", folder, "--per_device_train_batch_size", len(self.samples)]
        words += ["--gradient_accumulation_steps", 1, "--num_train_epochs", 1, "--learning_rate", RATE]
        words += ["--lr", "constant", "--optim", "sgd", "--max_grad_norm", 0, "--weight_decay", 0]
        words += ["--logging_steps", 1, "--save_strategy", "epoch", "--packing", str(packing).lower()]

        def check() -> str:
            wanted_loss, wanted = plain.step([self.encode(sample) for sample in self.samples], RATE)
            loss = read_lines(folder / "log.jsonl")[0]["loss"]
            limit = 1e-4 + 20 * plain.noise
            if abs(loss - wanted_loss) > limit:
                return f"the loss is {loss:.5f} instead of {wanted_loss:.5f}"
            before = dict(plain.model.named_parameters())
            saved = load(folder / "checkpoint-1", student).named_parameters()
            found = {text_name(name): parameter for name, parameter in saved}
            changes = {name: wanted[name] - before[name].detach() for name in wanted}
            largest = max(float(change.norm()) for change in changes.values())
            for name, change in changes.items():
                if not change.any() and text_name(name) not in found:  # of another part than that of text
                    continue
                error = found[text_name(name)].detach().double() - wanted[name]
                if error.norm() > max(10 * limit, 2e-3) * change.norm() + 2e-4 * largest:
                    return f"the step of {name} is off by {float(error.norm() / change.norm()):.3f} of its size"
            return ""

        return attempt("finetune", words, check, row_path)

    def evaluate(self, student: Path, folder: Path, plain: Plain | None) -> Outcome:
        words = ["--model_args", f"pretrained={student}", "--tasks", "sample", "--datasets", self.folder / "tests"]
        words += ["--output_path", folder]

        def check() -> str:
            samples = read_lines(folder / student.name / "sample_samples.jsonl")
            worst, flips = 0.0, 0
            for sample in samples:
                found = sample["loglikelihoods"]
                context = self.encode(sample["prompt"])
                wanted = {choice: plain.loglikelihood(context, self.encode(choice)) for choice in found}
                worst = max(worst, *(abs(found[choice] - wanted[choice]) for choice in wanted))
                flips += max(found, key=found.get) != max(wanted, key=wanted.get)
            if len(samples) != len(self.questions):
                return f"{len(samples)} of {len(self.questions)} questions are answered"
            if worst > 2e-4 + 20 * plain.noise:
                return f"log-likelihoods are off by up to {worst:.4f}, {flips} of {len(samples)} choices differ"
            return ""

        return attempt("evaluate", words, check, row_path)


def load(folder: Path, student: Path) -> PreTrainedModel:
    """A checkpoint of a student, whose weights have to be complete."""
    config = AutoConfig.from_pretrained(folder)
    if getattr(AutoConfig.from_pretrained(student), "pad_token_id", None) is None:
        config.pad_token_id = None  # the trainer takes the tokenizer's, whose embedding the library empties for Youtu
    model, said = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True
    )
    assert not said["missing_keys"], said
    return model


def text_name(name: str) -> str:
    """A parameter's name in the text part of a composite model, which is saved alone."""
    return name.replace("language_model.", "")


def attempt(
    stage: str, words: list[Any], check: Callable[[], str], describe: Callable[[dict[str, Any]], str]
) -> Outcome:
    """Run a stage in this process.

    Args:
        check: what is wrong with what it has written; empty when nothing is.
        describe: the path's name, of the arguments that the model was called with last.
    """
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [str(STAGES[stage]), *map(str, words)]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), own_cache(), watched() as calls:
            runpy.run_path(str(STAGES[stage]), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    except Exception as error:
        return Outcome("wrong", detail=f"traceback: {last_line(error)}")
    finally:
        sys.argv = argv
    lines = err.getvalue().splitlines()
    if status == 2 and len(lines) == 1 and lines[0].startswith(f"{STAGES[stage].name}: error: "):
        return Outcome("refused", detail=lines[0].partition("error: ")[2])
    path = describe(calls[-1]) if calls else ""
    if status != 0:
        return Outcome("wrong", path, f"exit code {status}: {' / '.join(lines)[-300:]}")
    try:
        fault = check()
    except Exception as error:
        return Outcome("wrong", path, f"what it wrote cannot be checked: {last_line(error)}")
    return Outcome("wrong" if fault else "exact", path, fault)


def last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """No verdict of the self-check that an earlier run has kept."""
    before = os.environ.get("TEACHERLM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TEACHERLM_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["TEACHERLM_CACHE"]
            if before is not None:
                os.environ["TEACHERLM_CACHE"] = before


@contextlib.contextmanager
def watched() -> Iterator[list[dict[str, Any]]]:
    """A list that has the arguments of the last call of a whole model, from outside of all others."""
    calls: list[dict[str, Any]] = []
    depth = 0

    def call(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        if depth == 0:
            calls[:] = [{**kwargs, "input_ids": kwargs.get("input_ids", *args[:1])}]
        depth += 1
        try:
            return torch.nn.Module.__call__(self, *args, **kwargs)
        finally:
            depth -= 1

    PreTrainedModel.__call__ = call
    try:
        yield calls
    finally:
        del PreTrainedModel.__call__


def row_path(call: dict[str, Any]) -> str:
    if "lengths" in call:
        return "packed"
    return "padded" if len(call["input_ids"]) > 1 else "one at a time"


def teacher_path(call: dict[str, Any]) -> str:
    cache = call.get("past_key_values")
    if cache is None:
        return "no cache"
    return "own batch" if type(cache).__name__ == "KeyValues" else "library's cache"


Row = tuple[str, ...]
"""A cell for each stage (the path where it is exact, else the verdict), and why it is refused."""


def row_of(outcomes: dict[str, Outcome]) -> Row:
    cells = [outcome.path if outcome.verdict == "exact" else outcome.verdict for outcome in outcomes.values()]
    reasons = dict.fromkeys(outcome.detail for outcome in outcomes.values() if outcome.verdict == "refused")
    why = re.sub(r"(?<!\w)/\S*/model\b", "FOLDER", "; ".join(reasons)).replace("|", "/")
    return *cells, why


def write_table(rows: dict[str, Row]) -> None:
    """Put the rows into docs/reference/architectures.md, with their counts."""
    counts = {"exact in all stages": 0, "refused in all stages": 0, "refused in some": 0, "wrong": 0}
    for row in rows.values():
        cells = row[: len(STAGE_NAMES)]
        refused = cells.count("refused")
        kind = "exact in all stages" if not refused else "refused in some"
        kind = "refused in all stages" if refused == len(cells) else kind
        counts["wrong" if "wrong" in cells else kind] += 1
    lines = [f"{len(rows)} rows: {', '.join(f'{count} {kind}' for kind, count in counts.items())}.", ""]
    lines += [line_of("architecture", (*STAGE_NAMES, "why refused")), line_of("---", ["---"] * (len(STAGE_NAMES) + 1))]
    lines += [line_of(name, row) for name, row in rows.items()]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest[rest.index(AFTER) :]
    PAGE.write_text(f"{before}{BEGIN}{chr(10).join(lines)}\n{after}", encoding="utf-8")


def line_of(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def read_table() -> dict[str, Row]:
    """The rows of docs/reference/architectures.md."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(AFTER)[0]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {name.strip(): tuple(cell.strip() for cell in cells) for name, *cells in lines[2:]}
