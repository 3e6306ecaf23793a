"""Joint training of reader and retriever: batches, losses, and the state from which an interrupted run resumes exactly.

Only weights and optimizer states are carried from step to step. The questions of a step, its learning rate and its
dropout depend only on the seed and the number of the step.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from teacherlm.atlas import losses, multiple_choice, workers
from teacherlm.atlas import reader as readers
from teacherlm.atlas.checkpoints import save_checkpoint
from teacherlm.atlas.flags import TrainFlags
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index
from teacherlm.atlas.lookup import look_up, retrieve
from teacherlm.atlas.model import DTYPES, Model
from teacherlm.atlas.published import require_finite
from teacherlm.atlas.retriever import MAXIMUM_LENGTH
from teacherlm.atlas.saved_index import save_array
from teacherlm.catalog.orders import orders
from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import make_anew, whole_file, whole_path
from teacherlm.core.json_files import load_json
from teacherlm.core.records import Record
from teacherlm.runtime.compat.of_accelerate import gloo_for_deepspeed
from teacherlm.runtime.compat.of_deepspeed import read_states_by, state_classes
from teacherlm.runtime.pickles import load_plain

NO_PASSAGE = {"title": "", "text": ""}
OPTIMIZER = "optimizer.pt"
DEEPSPEED_TAG = "all"
"""The folder with DeepSpeed's files in the folder of a state."""
BUCKET = 20_000_000
"""Number of gradients that DeepSpeed collects before it averages them. With its default of 500 million, it would copy
all gradients of ATLAS-base at once, and sharding them would save nothing."""


class Examples:
    """The training examples: each question in every order of its options. Each step takes the next ones.

    A step of two workers has the same examples as a step of one worker with twice the batch.

    Args:
        questions: all questions, which have the same number of options.
        kind: the kind of permutations.
        shuffle: whether the examples are shuffled in each epoch.
        seed: seed of the order.
    """

    def __init__(self, questions: Sequence[Record], kind: str, shuffle: bool, seed: int):
        self.questions, self.kind, self.shuffle, self.seed = questions, kind, shuffle, seed
        self.orders = len(orders(len(questions[0]["options"]), kind))
        self.epoch, self.order = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self.questions) * self.orders

    def of_step(self, step: int, batch_size: int) -> list[Record]:
        """This worker's part of the batch of a step. Steps are counted from 0."""
        first = (step * workers.size() + workers.rank()) * batch_size
        return [self.at(place) for place in range(first, first + batch_size)]

    def at(self, place: int) -> Record:
        epoch, place = divmod(place, len(self))
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self.epoch = epoch
            self.order = torch.randperm(len(self), generator=generator) if self.shuffle else torch.arange(len(self))
        question, order = divmod(int(self.order[place]), self.orders)
        return multiple_choice.permutations(self.questions[question], self.kind)[order]


class Batch:
    """Prompts with their passages, as inputs of reader and retriever, and the targets.

    Attributes:
        reader_texts: the texts (B, N): each prompt with each of its passages.
        queries, passages: the retriever's tokens of the B prompts and the B * N passages; None if it does not learn.
        target: the targets of the B questions.
    """

    def __init__(self, flags: TrainFlags, model: Model, examples: Sequence[Record], index: Index | None, learns: bool):
        prompts = [multiple_choice.prompt(model.reader_tokenizer, example) for example in examples]
        if index is not None:
            _, rows = retrieve(flags, model, index, prompts, flags.retriever_n_context)
            found = [look_up(index, row) for row in rows]
        else:
            found = [[NO_PASSAGE] if flags.closed_book else example["passages"] for example in examples]
        self.reader_texts = [
            [flags.encoder_format.format(query=prompt, title=p["title"], text=p["text"]) for p in passages]
            for prompt, passages in zip(prompts, found)
        ]
        targets = [multiple_choice.target(example, flags.decoder_format) for example in examples]
        begun = multiple_choice.decoder_prompts(prompts, flags.decoder_prompt_format)
        self.target = readers.make_target(model.reader, targets, flags.target_maxlength, begun)
        multiple_choice.letter_places(model.reader_tokenizer, self.target.labels.tolist())
        self.queries = self.passages = None
        if learns:
            texts = [flags.retriever_format.format(title=p["title"], text=p["text"]) for row in found for p in row]
            self.queries, self.passages = (tokenize(model, part, flags.text_maxlength) for part in (prompts, texts))


def tokenize(model: Model, texts: Sequence[str], text_maxlength: int) -> Any:
    length = min(text_maxlength, MAXIMUM_LENGTH)
    words = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
    tokens = model.retriever_tokenizer(list(texts), **words)
    return {name: tokens[name].to(model.reader.device) for name in ("input_ids", "attention_mask")}


class Trainee(nn.Module):
    """Reader and retriever as one module, which is distributed over the workers and optimized."""

    def __init__(self, flags: TrainFlags, model: Model):
        super().__init__()
        self.flags, self.reader = flags, model.reader
        self.reader_model = model.reader.model
        self.retriever = model.retriever if flags.train_retriever else None
        self.frozen = None
        """The passage encoder if it does not learn, otherwise None."""
        if self.retriever is not None and flags.query_side_retriever_training:
            self.frozen = self.retriever.passage.requires_grad_(False)
        set_dropout(self, flags.dropout)
        checkpointed = [self.reader_model] if flags.use_gradient_checkpoint_reader else []
        if self.retriever is not None and flags.use_gradient_checkpoint_retriever:
            checkpointed += {self.retriever.query, self.retriever.passage} - {self.frozen}
        for model in checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def train(self, mode: bool = True) -> "Trainee":
        """Set the mode. A passage encoder that does not learn stays in evaluation mode, so that its vectors are those
        of the index."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (the reader's loss, the retriever's loss, or None if it does not learn)."""
        flags, distilled = self.flags, None
        if batch.queries is not None:
            queries_BD = self.retriever(**batch.queries, of_passages=False)
            with torch.set_grad_enabled(self.frozen is None):
                passages_BD = self.retriever(**batch.passages, of_passages=True)
            passages_BND = passages_BD.unflatten(0, (len(queries_BD), -1))
            distilled = losses.retriever_loss(
                flags.gold_score_mode,
                self.reader,
                batch.reader_texts,
                batch.target,
                losses.retriever_scores(queries_BD, passages_BND),
                flags.temperature_score,
                flags.temperature_gold,
            )
        encoded = readers.encode(self.reader, [texts[: flags.n_context] for texts in batch.reader_texts])
        logits = readers.decode(self.reader, encoded, batch.target).logits
        return losses.reader_loss(logits, batch.target.labels), distilled


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the dropout rate of dropout layers, and of T5's attention, which stores the rate as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), (int, float)):
            module.dropout = rate


def parameter_groups(trainee: Trainee, flags: TrainFlags) -> list[dict[str, Any]]:
    """The parameters of reader and retriever in two groups, each with its learning rate (`base`)."""
    groups = [{"params": list(trainee.reader_model.parameters()), "base": flags.lr}]
    if trainee.retriever is not None:
        learning = [weight for weight in trainee.retriever.parameters() if weight.requires_grad]
        groups.append({"params": learning, "base": flags.lr_retriever})
    return groups


def optimizer_of(trainee: Trainee, flags: TrainFlags) -> torch.optim.Optimizer:
    groups = parameter_groups(trainee, flags)
    betas = (0.9, flags.beta2)
    return torch.optim.AdamW(
        groups, lr=flags.lr, betas=betas, eps=flags.epsilon, weight_decay=flags.weight_decay, fused=True
    )


def autocast(flags: TrainFlags, device: torch.device) -> torch.autocast:
    """The autocast context of --precision, for computations outside of a step. Weights stay in float32."""
    return torch.autocast(device.type, DTYPES[flags.precision], enabled=flags.precision != "fp32")


def distribute(flags: TrainFlags, trainee: Trainee, optimizer: torch.optim.Optimizer) -> tuple[Any, Any, Any]:
    """Prepare the trainee and its optimizer for several workers, which average their gradients.

    With --shard_optim each worker keeps only a part of the optimizer states, and with --shard_grads also only a part of
    the gradients (DeepSpeed ZeRO 1 and 2). With one worker nothing is sharded.

    Returns:
        (accelerator, the wrapped trainee, the wrapped optimizer).
    """
    from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs

    on_cpu = trainee.reader.device.type == "cpu"
    shards = flags.shard_optim and workers.size() > 1
    plugin = None
    if shards:
        plugin = DeepSpeedPlugin(
            hf_ds_config={
                "zero_optimization": {
                    "stage": 2 if flags.shard_grads else 1,
                    "reduce_bucket_size": BUCKET,
                    "allgather_bucket_size": BUCKET,
                },
                "zero_allow_untested_optimizer": True,
                "torch_autocast": {
                    "enabled": flags.precision == "bf16",
                    "dtype": "bfloat16",
                    "lower_precision_safe_modules": [],  # no gradients are averaged in 16 bits
                },
                "fp16": {"enabled": flags.precision == "fp16"},
                "train_micro_batch_size_per_gpu": flags.per_gpu_batch_size,
                "gradient_accumulation_steps": flags.accumulation_steps,
                "gradient_clipping": flags.clip,
                "steps_per_print": 10**9,
            }
        )
    casts = {"fp32": "no"} | ({"bf16": "no"} if shards else {})  # DeepSpeed itself casts to bf16
    with gloo_for_deepspeed() if shards else contextlib.nullcontext():
        accelerator = Accelerator(
            cpu=on_cpu and not shards,  # with cpu=True, accelerate silently does not use DeepSpeed
            mixed_precision=casts.get(flags.precision, flags.precision),
            gradient_accumulation_steps=flags.accumulation_steps,
            deepspeed_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
        )
    return accelerator, *accelerator.prepare(trainee, optimizer)


def save(folder: Path, model: Model, step: int) -> None:
    """Write checkpoint/step-N of a run completely or not at all. All workers call this together."""
    workers.wait_for_all()
    if workers.is_first():
        tokenizers = model.retriever_tokenizer, model.reader_tokenizer
        target = folder / "checkpoint" / f"step-{step}"
        save_checkpoint(target, model.retriever, tokenizers[0], model.reader.model, tokenizers[1], step)
        for state in target.parent.glob("state-*"):
            if state != state_of(folder, step) and state_of(folder, step).is_dir():
                shutil.rmtree(state)
    workers.wait_for_all()


def state_of(folder: Path, step: int) -> Path:
    """The folder with the state that a run needs to resume from a checkpoint. It is written before the checkpoint."""
    return folder / "checkpoint" / f"state-{step}"


def save_state(
    folder: Path, step: int, wrapped: Any, optimizer: Any, pending: list[dict[str, float]], vectors: FlatVectors | None
) -> None:
    """Write the optimizer states, and for each worker the losses that are not yet in the log and its vectors.

    Args:
        vectors: if the passage encoder learns, the index's vectors from the last refresh; otherwise None.
    """
    state = state_of(folder, step)
    if workers.is_first() and not is_folder(state):
        state.parent.mkdir(parents=True, exist_ok=True)
        make_anew(state)
    workers.wait_for_all()
    if hasattr(wrapped, "save_checkpoint"):  # DeepSpeed writes one file per worker
        wrapped.save_checkpoint(str(state), tag=DEEPSPEED_TAG)
    elif workers.is_first():
        with whole_path(state / OPTIMIZER) as partial:
            torch.save(optimizer.state_dict(), partial)
    with whole_file(state / f"pending-{workers.rank()}.json") as file:
        json.dump(pending, file)
    if vectors is not None:
        save_array(state / f"vectors-{workers.rank()}.npy", torch.cat(vectors.segments).cpu().numpy())


def is_folder(path: Path) -> bool:
    """Whether a path is a folder and not a link to a folder."""
    return path.is_dir() and not path.is_symlink()


def load_state(folder: Path, step: int, wrapped: Any, optimizer: Any, index: Index | None) -> list[dict[str, float]]:
    """Restore the optimizer states, and the index's vectors if they were saved. Returns the pending losses."""
    state = state_of(folder, step)
    if hasattr(wrapped, "load_checkpoint"):
        # DeepSpeed's reader would run code from a pickle. All files are checked first, so that no worker fails alone
        # while the others wait for it.
        workers.from_first(lambda: check_deepspeed_files(state / DEEPSPEED_TAG))
        read_states_by(wrapped, load_deepspeed_file)
        wrapped.load_checkpoint(str(state), tag=DEEPSPEED_TAG)
    else:
        workers.each(lambda: set_optimizer(optimizer, state / OPTIMIZER))
    return workers.each(lambda: load_own_part(state, index))


def check_deepspeed_files(folder: Path) -> None:
    """Check all of DeepSpeed's files.

    Raises:
        UserError: the files are missing, or one of them is damaged or would run code.
    """
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise UserError(
            f"{folder}: the optimizer states are missing; remove {folder.parent}, and the run resumes from an earlier "
            "state"
        )
    for file in files:
        load_deepspeed_file(file, mapped=True)  # its tensors are not read


def load_deepspeed_file(file: Path, mapped: bool = False) -> Any:
    """The contents of a file of states that DeepSpeed saved.

    Raises:
        UserError: the file is damaged, or contains anything other than tensors, plain values and DeepSpeed's classes.
    """
    return load_plain(file, state_classes(), mapped)


def set_optimizer(optimizer: Any, file: Path) -> None:
    """Restore the optimizer states from a file.

    Raises:
        UserError: the states are missing or damaged, or belong to another optimizer.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: the optimizer states are missing; remove {file.parent}, and the run resumes from an earlier state"
        )
    try:
        optimizer.load_state_dict(load_plain(file))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: these are not the states of this run's optimizer ({reason(error)}); remove {file.parent}, and "
            "the run resumes from an earlier state"
        ) from error


def load_own_part(state: Path, index: Index | None) -> list[dict[str, float]]:
    """Restore this worker's vectors if they were saved, and return its pending losses.

    Raises:
        UserError: a file is damaged, or its vectors do not fit the index.
    """
    saved = state / f"vectors-{workers.rank()}.npy"
    if index is not None and saved.is_file():
        expected = (sum(map(len, index.vectors.segments)), index.dimension)
        try:
            array = np.load(saved)
        except Exception as error:  # numpy raises many kinds of errors for a damaged file
            raise UserError(
                f"{saved}: truncated or damaged ({reason(error)}); remove {state}, and the run resumes from an earlier "
                "state"
            ) from error
        if array.shape != expected or array.dtype != np.float16:
            raise UserError(
                f"{saved}: {expected} numbers in float16 were expected, found {array.shape} in {array.dtype}; remove "
                f"{state}, and the run resumes from an earlier state"
            )
        vectors = torch.from_numpy(array)
        require_finite(vectors, saved, 0)
        vectors = vectors.to(index.vectors.segments[0].device) if index.vectors.segments else vectors
        index.vectors = FlatVectors([vectors], index.vectors.first_row)
    file = state / f"pending-{workers.rank()}.json"
    try:
        pending = load_json(file)
        if all(isinstance(value, int | float) for losses in pending for value in losses.values()):
            return list(pending)
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    raise UserError(f"{file}: a list of losses was expected; remove {state}, and the run resumes from an earlier state")


def last_step(folder: Path) -> int:
    """The last step from which a run can resume; 0 if there is none."""
    names = (path.parent.name for path in folder.glob("checkpoint/step-*/atlas.json"))
    steps = [int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d{1,9})", name))]
    return max((step for step in steps if state_of(folder, step).is_dir()), default=0)
