"""Does a fast way of computing a model give what the library's plain forward pass gives?

Before the first batch of a stage, a few short token sequences go through the way that is about to be used and through
the plain forward pass: eager attention, one sequence at a time, no padding, no cache. A way that differs is not used.
So a model that the fast ways were not written for is computed correctly, only more slowly.
"""

import contextlib
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedConfig, PreTrainedModel

from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import load_object
from teacherlm.core.places import cache_folder
from teacherlm.runtime.compat.of_transformers import attention_of, can_switch_attention, set_attention_name
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.model_config import attention_windows, is_rescaled, position_count, vocabulary_size

VERSION = 9
"""Raised whenever the check changes, so that no older verdict counts."""
COMPARED = 12
"""Positions at the end of each sequence whose logits are compared."""
SHORT = (5, 11)
MIDDLE, APART, LONG = 18, 7, 40
"""Lengths of the sequences for a model without attention windows: the short ones, a middle one, and two long ones that
are so far apart. They leave different remainders, for models that see tokens in blocks."""
NOT_FOR_THIS = "is not for this model"
"""The fault of a path that a model's settings rule out."""
SHOWN = 60
"""Letters of a library's error that a line shows."""
STEPS = 6
"""New tokens of each sequence in a check of generation."""
OWN = 3
"""Tokens at the end of the last sequence but one that it does not share with the last one."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits, relative to their spread, that is rounding. A wrong computation differs by far more.
Those of 16 bits are for models whose rounding cannot be measured."""
ROUNDINGS, LOOSEST = 2.0, 0.3
"""In 16 bits a model's rounding is measured (`tolerance_of`): this many times of it is the tolerance, and at most so
much. Two right ways to compute a model (the library's two attentions, 120 random models of two kinds) differed by at
most 0.7 times of it."""
LONGEST = 8448
"""Tokens of the longest check. A longer window is not reached by the texts of any benchmark here."""


@dataclass(frozen=True)
class Verdict:
    """How a model is to be computed.

    Attributes:
        path: the first of a stage's ways that agrees with the plain forward pass.
        attention: the library's attention for it, such as "sdpa" or "eager".
        plain_linears: whether linear layers have to stay as they are, because the model reads their weights itself.
        why: what was wrong with the ways before it; empty when there were none.
        seconds: that the check took.
    """

    path: str
    attention: str
    plain_linears: bool = False
    why: str = ""
    seconds: float = 0.0


def make_sequences(config: PreTrainedConfig, longest: int | None = None) -> list[list[int]]:
    """Short token sequences of different lengths.

    Of a model with attention windows the last two are longer than these; the one before them is a little shorter than
    the longest window, so that its continuation crosses it. The last two have all tokens in common but the last OWN of
    the shorter one, which shows whether a model is causal and serves a path that computes shared prefixes once.

    Args:
        config: the model's.
        longest: number of tokens that no text of the run exceeds; None: unknown.
    """
    positions = position_count(config)
    room = None if positions is None else max(2, positions - STEPS)  # for a continuation
    bounds = [bound for bound in (room, window_beyond(config, longest), LONGEST) if bound is not None]
    windows = [window for window in attention_windows(config) if longest is None or window < longest]
    middle = max([MIDDLE, *(window - 2 for window in windows)])
    long = max([LONG, *(window + 2 * APART + 1 for window in windows)])
    lengths = [*SHORT, middle, long - APART, long]
    text = config.get_text_config()
    special = {getattr(text, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    rows = vocabulary_size(config) or 2
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for length in lengths:
        drawn = torch.randint(rows, (4 * min([length, *bounds]),), generator=generator).tolist()
        usual = [token for token in drawn if token not in special] or drawn
        sequences.append((usual * 4)[: min([length, *bounds])])
    *_, other, last = sequences
    shared = shared_length(sequences)
    first = next((token for token in other if token != last[shared]), other[0])
    sequences[-2] = [*last[:shared], first, *other[shared + 1 :]]
    return sequences


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens the last two of `make_sequences` have in common at their beginning."""
    return max(1, len(sequences[-2]) - OWN)


def window_beyond(config: PreTrainedConfig, longest: int | None) -> int | None:
    """The shortest attention window that no text of the run exceeds: a verdict holds up to it."""
    windows = attention_windows(config)
    return None if longest is None else min((window for window in windows if window >= longest), default=None)


@torch.inference_mode()
def plain_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], last: int = COMPARED
) -> list[torch.Tensor]:
    """Logits [at most `last`, V] of each sequence's last positions, one sequence at a time, float32 on the CPU."""
    options = plain_options(model, last)
    logits = []
    for tokens in sequences:
        outputs = model(input_ids=torch.tensor([list(tokens)], device=model.device), **options)
        logits.append(outputs.logits[0, -last:].float().cpu())
    return logits


def plain_options(model: PreTrainedModel, last: int = COMPARED) -> dict[str, Any]:
    """Arguments of a model's forward, where it has them: no cache, and logits of the last positions only."""
    known = inspect.signature(base_model(model).forward).parameters
    hands_on = any(one.kind is one.VAR_KEYWORD for one in known.values())  # to the model within, which has a cache
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known or hands_on else {}
    return options | ({"logits_to_keep": last} if "logits_to_keep" in known else {})


@torch.inference_mode()
def tolerance_of(model: PreTrainedModel, dtype: Any, longest: int | None) -> float:
    """Largest difference of logits, relative to their spread, that is this model's rounding in this dtype.

    How far rounding errors grow depends on the weights. In 16 bits they are large enough to be measured: the plain
    forward pass is made once more with its embeddings changed in their last bit.

    Args:
        longest: number of tokens that no text of the run exceeds; None: unknown.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return TOLERANCE.get(dtype, 0.1)
    sequences = make_sequences(base_model(model).config, longest)[-2:]
    generator = torch.Generator().manual_seed(0)

    def change(_: Any, __: Any, embeddings: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(2, embeddings.shape, generator=generator) * 2 - 1
        return (embeddings * (1 + torch.finfo(dtype).eps * signs.to(embeddings.device))).to(embeddings.dtype)

    try:
        with attention_set(model, "eager"):
            expected = plain_logits(model, sequences)
            hook = base_model(model).get_input_embeddings().register_forward_hook(change)
            try:
                found = plain_logits(model, sequences)
            finally:
                hook.remove()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # `expected_logits` says what is wrong with a model whose forward pass fails
        return TOLERANCE[dtype]
    # No difference at all means that the model does not call its embedding, so nothing was changed.
    return min(LOOSEST, ROUNDINGS * difference(found, expected)) or TOLERANCE[dtype]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest root mean square difference at a position, relative to the spread of the expected logits there."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        usable = other.isfinite()
        spread = torch.where(usable, other, 0).std(-1).clamp(min=1e-6)
        apart = torch.where(usable, one.float().cpu() - other, 0).square().mean(-1).sqrt()
        error = (apart / spread).max().item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def fault_of(compute: Callable[[], Sequence[torch.Tensor]], expected: Sequence[torch.Tensor], tolerance: float) -> str:
    """What is wrong with a way to compute logits, in words; empty when it agrees with what is expected.

    Args:
        compute: gives the logits of the same sequences; what it raises is a fault as well.
        tolerance: see `tolerance_of`.
    """
    try:
        error = difference(compute(), expected)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a model that the way was not written for fails in its own manner
        return failure(error)
    return f"differs by {error:.1e}" if error > tolerance else ""


def failure(error: Exception, when: str = "") -> str:
    """The fault of a way that raises an error; `when` is a part of the sentence, such as " in training"."""
    return f"fails{when} ({type(error).__name__}: {reason(error)[:SHOWN]})"


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the library's attention of a model, also of one that the library does not let be switched."""
    inner = base_model(model)
    if can_switch_attention(inner):
        inner.set_attn_implementation(name)
    else:
        set_attention_name(inner.config, name)


@contextlib.contextmanager
def attention_set(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Compute with another of the library's attentions for a while."""
    before = attention_of(base_model(model).config)
    if before == name:
        yield
        return
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, before)


def expected_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]], tolerance: float) -> list[torch.Tensor]:
    """The logits [at most COMPARED, V] that every way has to give: of plain forward passes, with eager attention.

    Args:
        sequences: as of `make_sequences`, or each with the same number of tokens more.

    Raises:
        UserError: the model is no causal decoder: its logits at a position change with the tokens after it; or the
            library's own forward pass fails.
    """
    inner = base_model(model)
    *before, last = sequences
    further = max(0, len(last) - len(before[-1]))
    try:
        with attention_set(model, "eager"):
            expected = plain_logits(model, before)
            expected += plain_logits(model, [last], COMPARED + further)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # as in fault_of
        raise UserError(
            f"{type(inner).__name__} ({inner.config.model_type}) is refused: the library's forward pass fails "
            f"({type(error).__name__}: {reason(error)})"
        ) from error
    require_causal(model, sequences, expected, tolerance)
    expected[-1] = expected[-1][-COMPARED:]
    return expected


def require_causal(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], logits: Sequence[torch.Tensor], tolerance: float
) -> None:
    """Refuse a model whose logits change with the tokens that follow.

    Args:
        logits: of the last positions of each sequence; of the last one from the position on at which those of the one
            before it begin.
    """
    one, other = sequences[-2:]
    alike = next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), len(one))
    count = alike - (len(one) - len(logits[-2]))
    if count > 0 and not fault_of(lambda: [logits[-1][:count]], [logits[-2][:count]], tolerance):
        return
    # The two are not of one length. A text of the same length has the last word.
    changed = [*other[:-1], other[0] if other[0] != other[-1] else other[1]]
    with attention_set(model, "eager"):
        if not fault_of(lambda: [plain_logits(model, [changed])[0][:-1]], [logits[-1][-COMPARED:][:-1]], tolerance):
            return
    name, kind = type(base_model(model)).__name__, base_model(model).config.model_type
    raise UserError(
        f"{name} ({kind}) is no causal decoder: what it predicts at a position changes with the tokens after it; a "
        "causal decoder, such as LlamaForCausalLM, was expected"
    )


@dataclass(frozen=True)
class Continuations:
    """Prompts, how each goes on, and what a model has to say to that.

    Attributes:
        prompts: token sequences.
        new: the STEPS tokens that follow each of them. They are given, not the likeliest ones, so that all ways to
            generate are compared with the same plain forward passes.
        logits: [STEPS, V] of each prompt, from which its new tokens would be taken.
        whole: [at most COMPARED, V] of each prompt with its new tokens, as `plain_logits` gives them.
    """

    prompts: list[list[int]]
    new: list[list[int]]
    logits: list[torch.Tensor]
    whole: list[torch.Tensor]

    @property
    def texts(self) -> list[list[int]]:
        """Each prompt with its new tokens."""
        return [[*prompt, *new] for prompt, new in zip(self.prompts, self.new)]


def make_continuations(model: PreTrainedModel, longest: int | None, tolerance: float) -> Continuations:
    """What generation is compared with.

    Args:
        longest: number of tokens that no text of the run exceeds; None: unknown.

    Raises:
        UserError: as of `expected_logits`.
    """
    prompts = make_sequences(base_model(model).config, longest)
    # The last two share their beginning: what follows the one must not be what follows the other.
    new = [(prompt * STEPS)[number : number + STEPS] for number, prompt in enumerate(prompts)]
    whole = expected_logits(model, [[*prompt, *more] for prompt, more in zip(prompts, new)], tolerance)
    if not is_rescaled(base_model(model).config):
        return Continuations(prompts, new, [logits[-STEPS - 1 : -1] for logits in whole], whole)
    # Where a text's length changes all positions, a later token changes what the earlier ones were taken from.
    logits = []
    with attention_set(model, "eager"):
        for prompt, more in zip(prompts, new):
            texts = [[*prompt, *more[:count]] for count in range(STEPS)]
            logits.append(torch.cat(plain_logits(model, texts, 1)))
    return Continuations(prompts, new, logits, whole)


class Given(LogitsProcessor):
    """Lets the library's generation take the tokens that are given."""

    def __init__(self, width: int, new_BS: torch.Tensor):
        self.width, self.new_BS = width, new_BS

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        return torch.full_like(scores, -torch.inf).scatter(1, self.new_BS[:, step : step + 1], 0.0)


@torch.inference_mode()
def generation_fault(
    model: PreTrainedModel, expected: Continuations, tolerance: float, together: bool, use_cache: bool
) -> str:
    """What is wrong with the library's generation, by the logits that give each new token; empty when nothing is.

    Args:
        together: whether the prompts are padded at the left and continued as one batch.
        use_cache: whether the library keeps keys, values and states between steps.
    """
    rows = list(zip(expected.prompts, expected.new, expected.logits))
    for part in [rows] if together else [[row] for row in rows]:
        batch, new, wanted = zip(*part)
        width = max(map(len, batch))
        ids_BT = torch.tensor([[batch[0][0]] * (width - len(row)) + list(row) for row in batch], device=model.device)
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
        try:
            made = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                do_sample=False,
                max_new_tokens=STEPS,
                min_new_tokens=STEPS,
                pad_token_id=batch[0][0],
                use_cache=use_cache,
                logits_processor=[Given(width, torch.tensor(new, device=model.device))],
                output_logits=True,
                return_dict_in_generate=True,
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # as in fault_of
            return failure(error)
        found_BSV = torch.stack(made.logits, dim=1).float().cpu()
        if fault := fault_of(lambda found=found_BSV: list(found), wanted, tolerance):
            return fault
    return ""


def first_exact(
    paths: Sequence[str],
    packs_linears: bool,
    fault: Callable[[str, bool, str], str],
    config: PreTrainedConfig,
    folder: Path,
    own_attention: Collection[str] = (),
) -> Verdict:
    """The verdict on the first way that agrees with the plain forward pass.

    The library's fused attention leaves out what some models do to their scores (caps, biases): a path that differs
    with the model's default attention is tried with eager attention as well.

    Args:
        paths: ways to compute a model, the best first.
        packs_linears: whether linear layers are packed on this device, where the model allows that.
        fault: what is wrong with a path, with or without plain linear layers, with an attention of the library's; empty
            when nothing is.
        config: the model's, as it was loaded: with its default attention.
        folder: of the model, for the message.
        own_attention: paths that do not use the library's attention.

    Raises:
        UserError: no path agrees.
    """
    faults: list[str] = []
    default = attention_of(config)
    for path in paths:
        for plain_linears in (False, True) if packs_linears else (True,):
            found = fault(path, plain_linears, default)
            if not found:
                return Verdict(path, default, plain_linears, "; ".join(dict.fromkeys(faults)))
            if found == NOT_FOR_THIS:
                faults.append(f"{path} {found}")
                break
            if default != "eager" and path not in own_attention and not fault(path, plain_linears, "eager"):
                print(f"{config.model_type}: computed with eager attention, {default} {found}")
                return Verdict(path, "eager", plain_linears, "; ".join(dict.fromkeys(faults)))
            faults.append(f"{path} {found}")
    raise UserError(
        f"the model in {folder} is refused: no way to compute it agrees with the library's plain forward pass "
        f"({'; '.join(dict.fromkeys(faults))})"
    )


def remembered(key: Mapping[str, Any] | None, find: Callable[[], Verdict]) -> Verdict:
    """A verdict from the user's cache, or a new one that is put there.

    Args:
        key: what the verdict depends on: the model's digest, the stage, dtype and device; None: it is not kept.
        find: makes the check.
    """
    if key is None:
        return timed(find)
    whole = {**key, "check": VERSION, "torch": torch.__version__, "transformers": version("transformers")}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "self_check" / f"{name}.json"
    known = read_verdict(path)
    if known is None:
        known = timed(find)
        with contextlib.suppress(OSError, UserError), whole_file(path) as file:  # a cache that is full or read-only
            json.dump(asdict(known), file)
    return known


def timed(find: Callable[[], Verdict]) -> Verdict:
    started = time.perf_counter()
    found = find()
    return replace(found, seconds=round(time.perf_counter() - started, 2))


def read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**load_object(path))
    except (OSError, ValueError, TypeError):
        return None
