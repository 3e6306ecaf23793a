"""Load the student for training, and choose the path on which it is computed and the collator for that path.

packed        samples are packed into one row without padding; the loss is computed in chunks of positions
packed-whole  like packed, but with all logits at once, for models that change their logits after the matrix product
padded        samples are padded on the right to one length; the loss is computed in chunks of positions
padded-whole  like padded, but with all logits at once
single        one sample at a time

The first path that agrees with the library's plain forward pass is used (src/teacherlm/runtime/self_check.py).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from teacherlm.core.errors import UserError, reason
from teacherlm.finetune.adapters import load_with_adapters, read_adapters
from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import NO_LOSS, PackingCollator, PaddingCollator
from teacherlm.finetune.loss_parts import Shares, parse_shares
from teacherlm.finetune.single_samples import use_single_samples
from teacherlm.finetune.soft_targets import TeacherTokens
from teacherlm.runtime.check_sequences import make_sequences, window_beyond
from teacherlm.runtime.compat.of_transformers import whole_weights
from teacherlm.runtime.loading import base_model, load_model
from teacherlm.runtime.model_config import picks_tokens
from teacherlm.runtime.packed_attention import KINDS, stop_packing, use_packing
from teacherlm.runtime.plain_pass import COMPARED, plain_logits, set_attention
from teacherlm.runtime.processes import from_first, say
from teacherlm.runtime.self_check import expected_logits, failure, fault_of, tolerance_of
from teacherlm.runtime.verdicts import NOT_FOR_THIS, Verdict, first_exact, remembered

PATHS = ("packed", "packed-whole", "padded", "padded-whole", "single")
WORDS = {
    "packed-whole": "in packed batches, with all logits at once",
    "padded": "in padded batches",
    "padded-whole": "in padded batches, with all logits at once",
    "single": "one sample at a time",
}


def load_student(
    flags: Any, training: Any, folder: Path, digest: str, longest: int, teacher: TeacherTokens | None = None
) -> tuple[torch.nn.Module, Callable, Callable]:
    """The model in float32 (mixed precision and DeepSpeed make further copies), its collator, and a context in which it
    has the library's own forward, for generation.

    Args:
        digest: the student's digest.
        longest: number of tokens in the longest sample.
        teacher: the teacher's distributions, with --kl_weight.

    Raises:
        UserError: the model cannot be loaded or does not support --attention, or no path computes it exactly.
    """
    model = load(flags, folder)
    key = {
        "stage": "finetune",
        "model": digest,
        "attention": flags.attention,
        "packing": flags.packing,
        "peft": flags.peft,
    }
    key |= {
        "checkpointing": training.gradient_checkpointing,
        "longest": window_beyond(base_model(model).config, longest),
    }
    key["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if training.gradient_checkpointing and not base_model(model).supports_gradient_checkpointing:
        say(f"finetune: {base_model(model).config.model_type} does not support gradient checkpointing, which is off")
        training.gradient_checkpointing = False

    def find() -> Verdict:
        # The check does not change the random numbers of the training, on the CPU and on this process's GPU.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices), whole_model(flags, training, folder, model) as checked:
            return find_path(checked, flags, training, folder, longest)

    verdict = Verdict(**from_first(lambda: asdict(remembered(key, find))))
    set_attention(model, verdict.attention)
    if verdict.path != PATHS[0] and flags.packing:
        say(f"finetune: {base_model(model).config.model_type}: trained {WORDS[verdict.path]} ({verdict.why})")

    def prepare() -> Callable[[], None]:
        undo = use_path(model, verdict.path, flags.attention, longest, share=flags.kl_weight)
        assert undo is not None  # the verdict has tried it
        return undo

    undo = prepare()

    @contextlib.contextmanager
    def unprepared() -> Iterator[torch.nn.Module]:
        nonlocal undo
        undo()
        model.eval()
        try:
            yield model
        finally:
            model.train()
            undo = prepare()

    return model, collator(verdict.path, flags.loss_average, shares_of(flags), teacher), unprepared


def load(flags: Any, folder: Path) -> torch.nn.Module:
    if flags.peft == "none":
        return load_model(folder, dtype=torch.float32)
    return load_with_adapters(folder, flags.model_name_or_path, flags.peft, flags.peft_rank)


def saved_weights(flags: Any, training: Any, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of the parameters that are trained, by name, on the CPU in float32."""
    if flags.peft != "none":
        return read_adapters(checkpoint)
    with whole_weights(training):
        return dict(load_model(checkpoint, dtype=torch.float32).named_parameters())


@contextlib.contextmanager
def whole_model(flags: Any, training: Any, folder: Path, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The student with all its weights in this process, on the GPU if it fits there.

    Under ZeRO-3 each process has only a part of the weights. In that case this is a separate, temporary copy.
    """
    with whole_weights(training) as in_parts:
        if in_parts:
            model = load(flags, folder)
    before = next(model.parameters()).device
    if torch.cuda.is_available() and before.type == "cpu":
        size = sum(part.nbytes for part in model.parameters())
        if 1.5 * size < torch.cuda.mem_get_info()[0]:
            model.to("cuda")
    try:
        yield model
    finally:
        model.to(before)


def half_precision(flags: Any, training: Any) -> torch.dtype | None:
    """The 16 bits that the self-check computes in; None: it computes in float32.

    Kernels of flash attention compute in 16 bits only: then the check has the training's arithmetic.
    """
    if flags.peft == "qlora":
        return torch.bfloat16
    if flags.attention in KINDS or not (training.bf16 or training.fp16):
        return None
    return torch.bfloat16 if training.bf16 else torch.float16


def find_path(model: torch.nn.Module, flags: Any, training: Any, folder: Path, longest: int) -> Verdict:
    """The first of PATHS that can be trained and whose logits and loss agree with the plain forward pass.

    Raises:
        UserError: there is no such path, or the model or the machine does not support --attention.
    """
    half = half_precision(flags, training)
    arithmetic = torch.autocast(model.device.type, half, enabled=half is not None and flags.peft != "qlora")
    sequences = make_sequences(base_model(model).config, longest)
    model.eval()
    with arithmetic:
        tolerance = tolerance_of(model, half or torch.float32, longest)
        expected = expected_logits(model, sequences, tolerance)
    samples = [
        {"input_ids": tokens, "skipped": max(0, len(tokens) - COMPARED + 1), "sample": number}
        for number, tokens in enumerate(sequences)
    ]
    loss = expected_loss(samples, expected)

    def fault(path: str, _: bool, attention: str) -> str:
        if path != PATHS[-1] and picks_tokens(base_model(model).config):
            return NOT_FOR_THIS
        set_attention(model, attention)
        try:
            undo = use_path(model, path, flags.attention, longest, with_loss=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"--attention {flags.attention}: {reason(error)}") from error
        if undo is None:
            return NOT_FOR_THIS
        with torch.no_grad(), arithmetic:
            found = fault_of(lambda: logits_of(model, path, samples), expected, tolerance)
        undo()
        with arithmetic:
            return found or loss_fault(model, path, flags.attention, longest, training, samples, loss, tolerance)

    paths = PATHS if flags.packing else PATHS[2:]
    try:
        verdict = first_exact(paths, False, fault, base_model(model).config, folder, PATHS[:2])
    except UserError as error:
        hint = "; --gradient_checkpointing false may help" if training.gradient_checkpointing else ""
        raise UserError(f"{error}{hint}") from error
    finally:
        model.train()
        model.zero_grad(set_to_none=True)
    return verdict


def use_path(
    model: torch.nn.Module, path: str, attention: str, longest: int, with_loss: bool = True, share: float = 0.0
) -> Callable[[], None] | None:
    """Prepare a model for the batches of a path.

    Args:
        with_loss: whether the model also returns the loss of a batch.
        share: the weight of the teacher's distributions in it.

    Returns:
        A function that undoes the preparation. None, without any change, if the model's settings rule the path out.
    """
    if path == "single":
        return use_single_samples(model, share) if with_loss else lambda: None
    undo: list[Callable[[], None]] = []
    if path.startswith("packed"):
        # The hook has to be on the peft model, which calls the forward of the model inside without that model's hooks.
        if not use_packing(model, attention, longest):
            return None
        undo.append(lambda: stop_packing(model))
    if with_loss:
        undo.append(use_chunked_loss(model, path.endswith("whole"), share))
    return lambda: [one() for one in reversed(undo)] and None


def shares_of(flags: Any) -> Shares | None:
    """The weights of the parts in the loss; None if parts have none of their own."""
    return parse_shares(flags.loss_weights) if flags.loss_weights else None


def collator(path: str, average: str, shares: Shares | None = None, teacher: TeacherTokens | None = None) -> Callable:
    return (PackingCollator if path.startswith("packed") else PaddingCollator)(average, shares, teacher)


def logits_of(model: torch.nn.Module, path: str, samples: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Logits [at most COMPARED, V] of the last positions of each sample."""
    if path == "single":
        return plain_logits(model, [sample["input_ids"] for sample in samples])
    inputs = collator(path, "token")(samples)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    for name in ("samples", "labels", "token_weights"):
        inputs.pop(name)
    logits = model(**inputs, use_cache=False).logits
    lengths = [len(sample["input_ids"]) for sample in samples]
    rows = logits[0].split(lengths) if path.startswith("packed") else (row[:n] for row, n in zip(logits, lengths))
    return [row[-COMPARED:] for row in rows]


def expected_loss(samples: Sequence[dict[str, Any]], logits: Sequence[torch.Tensor]) -> float:
    """The mean cross-entropy of the samples' tokens with a loss, computed from their logits."""
    batch = PaddingCollator("token")(samples)
    total = torch.zeros((), dtype=torch.float64)
    for sample, row, labels in zip(samples, logits, batch["labels"]):
        labels_K = labels[: len(sample["input_ids"])][-COMPARED:]
        total += torch.nn.functional.cross_entropy(row.double(), labels_K, ignore_index=NO_LOSS, reduction="sum")
    return float(total / (batch["labels"] != NO_LOSS).sum())


def loss_fault(
    model: torch.nn.Module,
    path: str,
    attention: str,
    longest: int,
    training: Any,
    samples: list[dict[str, Any]],
    expected: float,
    tolerance: float,
) -> str:
    """What is wrong with a path's loss (in evaluation and in training) or its gradient; "" when nothing is wrong."""
    batch = collator(path, "token")(samples)
    batch["token_weights"] = batch["token_weights"] / batch["token_weights"].sum()
    batch = {name: value.to(model.device) for name, value in batch.items() if name != "samples"}
    inner = base_model(model)
    undo = use_path(model, path, attention, longest)
    try:
        with torch.no_grad():
            losses = [model(**batch, use_cache=False)["loss"]]
        model.train()
        if training.gradient_checkpointing:
            inner.gradient_checkpointing_enable(training.gradient_checkpointing_kwargs)
        trained = [model(**batch, use_cache=False)["loss"]]
        first = next(part for part in model.parameters() if part.requires_grad)
        (gradient,) = torch.autograd.grad(trained[0], [first], allow_unused=True)
        if apart(trained[0], expected) > tolerance:  # a fault, or dropout, which gives another loss each time
            trained.append(model(**batch, use_cache=False)["loss"])
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a model can raise anything
        return failure(error, " in training")
    finally:
        model.eval()
        if training.gradient_checkpointing:
            inner.gradient_checkpointing_disable()
        undo()
    if trained[0].item() == trained[-1].item():  # without dropout, training computes the same
        losses += trained
    worst = max(apart(loss, expected) for loss in losses)
    if not worst <= tolerance:
        return f"has a different loss (by {worst:.1e})"
    if gradient is not None and not gradient.isfinite().all():
        return "has a gradient that is not finite"
    return ""


def apart(loss: torch.Tensor, expected: float) -> float:
    """The relative difference of a loss from the expected loss; infinite if the loss is NaN."""
    found = abs(loss.item() - expected) / max(1.0, abs(expected))
    return found if found == found else float("inf")
