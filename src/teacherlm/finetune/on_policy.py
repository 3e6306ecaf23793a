"""On-policy distillation (`--on_policy`): in a share of the steps, the student writes the texts itself, and learns what
the teacher would have written at each place. This is generalized knowledge distillation (Agarwal et al. 2024, arXiv
2306.13649).

In such a step, the student as it is now continues the question of each sample, at temperature 1. The loss of a new
token is the Jensen-Shannon divergence between the teacher's and the student's distribution at that place. The other
steps train on the dataset's texts as usual.

The random numbers of a text depend on the seed, the step and the sample, so that a resumed run writes the same texts.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from teacherlm.catalog.models import find_model, local_folder
from teacherlm.catalog.text_parts import QUESTION
from teacherlm.catalog.top_logprobs import vocabulary_digest
from teacherlm.core.errors import UserError
from teacherlm.finetune.soft_targets import BLOCKS
from teacherlm.finetune.token_losses import jensen_shannon, shannon_and_gradient
from teacherlm.runtime.generation_check import generation_fault, make_continuations
from teacherlm.runtime.loading import base_model, load_model, load_tokenizer
from teacherlm.runtime.model_config import position_count
from teacherlm.runtime.plain_pass import plain_arguments
from teacherlm.runtime.sampling import Chooser
from teacherlm.runtime.self_check import tolerance_of

Sample = dict[str, Any]
"""A tokenized sample (samples.py)."""


@dataclass
class OnPolicy:
    """The texts that the student writes, and the teacher.

    Attributes:
        teacher: the teacher, whole and on the student's device.
        share: the share of steps in which the student writes.
        num_tokens: maximum number of new tokens per text.
        window: maximum number of tokens of a question with its text.
        ends: the tokens that end a text.
        together: number of texts that the student writes at once. It is 1 if the library does not compute padded
            batches of this student exactly.
        unprepared: a context in which the student has the library's own forward.
    """

    teacher: PreTrainedModel
    share: float
    num_tokens: int
    window: int
    seed: int
    ends: list[int]
    together: int
    unprepared: Callable[[], AbstractContextManager[PreTrainedModel]]

    def is_own(self, step: int) -> bool:
        """Whether the student writes the texts of a step. The answer is the same in all processes."""
        return random.Random(f"{self.seed} {step}").random() < self.share

    def written(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        """The samples with the texts that the student writes after their questions.

        A sample without a question, or whose question fills the window, keeps its text.
        """
        prompts = [question_of(sample) for sample in samples]
        places = [place for place, prompt in enumerate(prompts) if 0 < len(prompt) < self.window]
        places = [place for place in places if len(prompts[place]) < len(samples[place]["input_ids"])]
        seeds = self.seeds(samples, step)
        found = list(samples)
        with self.unprepared() as model:
            for first in range(0, len(places), self.together):
                group = places[first : first + self.together]
                texts = self.continued(model, [prompts[place] for place in group], [seeds[place] for place in group])
                for place, text in zip(group, texts):
                    found[place] = with_text(samples[place], prompts[place], text)
        return found

    def seeds(self, samples: Sequence[Sample], step: int) -> list[int]:
        """A seed for each sample's text. A sample that occurs twice gets two."""
        times: dict[tuple[int, str], int] = {}
        found = []
        for sample in samples:
            key = (sample["sample"], sample.get("field", ""))
            times[key] = times.get(key, 0) + 1
            digest = hashlib.sha256(f"{self.seed} {step} {key} {times[key]}".encode()).digest()
            found.append(int.from_bytes(digest[:8], "big") >> 1)
        return found

    @torch.no_grad()
    def continued(self, model: PreTrainedModel, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        """The tokens that the student writes after each prompt, with the token that ends the text."""
        width = max(map(len, prompts))
        device = model.device
        ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        made_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            logits_processor=[Chooser([torch.Generator(device).manual_seed(seed) for seed in seeds])],
            generation_config=GenerationConfig(
                max_new_tokens=min(self.num_tokens, self.window - width),
                do_sample=False,
                eos_token_id=self.ends,
                pad_token_id=0,
            ),
        )
        return [self.until_end(row) for row in made_BT[:, width:].tolist()]

    def until_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens) - 1)
        return tokens[: end + 1]

    def scores(self, samples: Sequence[Sample], width: int | None) -> "Scores":
        """The teacher's scores of a batch.

        Args:
            width: number of places per sample of a padded batch; None for a packed one.
        """
        rows = [sample["input_ids"] for sample in samples]
        starts, place = [], 0
        for row in rows:
            starts.append(place)
            place += len(row) if width is None else width
        return Scores(self.teacher, rows, starts)


def question_of(sample: Mapping[str, Any]) -> list[int]:
    """The tokens of a sample's question, which the student continues."""
    parts = sample["parts"]
    count = next((place for place, part in enumerate(parts) if part != QUESTION), len(parts))
    return list(sample["input_ids"][:count])


def with_text(sample: Mapping[str, Any], prompt: list[int], text: list[int]) -> Sample:
    """A sample with another text after its question. Only the text has a loss."""
    ids = [*prompt, *text]
    made = {**sample, "input_ids": ids, "skipped": len(prompt), "parts": [QUESTION] * len(ids)}
    return made | ({BLOCKS: []} if BLOCKS in sample else {})


@dataclass
class Scores:
    """What the teacher would have written in the texts of a batch.

    The teacher computes one text at a time, when the loss needs it, and only the logits of the newest text are kept.

    Attributes:
        rows: the tokens of each text.
        starts: the place of each text's first token in the batch.
    """

    teacher: PreTrainedModel
    rows: list[list[int]]
    starts: list[int]
    newest: tuple[int, torch.Tensor] = field(default=(-1, torch.empty(0)))

    @torch.no_grad()
    def logits(self, places_N: torch.Tensor, like_NV: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at places of the batch, in ascending order, with the student's number of tokens.

        A token that the teacher does not have gets no probability.
        """
        starts = torch.tensor(self.starts)
        places = places_N.cpu()
        rows_N = torch.searchsorted(starts, places, right=True) - 1
        found_NV = torch.full_like(like_NV, -torch.inf)
        for row in rows_N.unique().tolist():
            if self.newest[0] != row:
                self.newest = (row, self.computed(self.rows[row]))
            at = (rows_N == row).nonzero()[:, 0]
            logits_MV = self.newest[1][(places[at] - starts[row]).to(self.newest[1].device)]
            count = min(logits_MV.shape[1], like_NV.shape[1])
            found_NV[at.to(like_NV.device), :count] = logits_MV[:, :count].to(like_NV)
        return found_NV

    def computed(self, ids: list[int]) -> torch.Tensor:
        """The teacher's logits at all places of a text, by its plain forward pass."""
        kwargs = plain_arguments(self.teacher, len(ids))
        return self.teacher(input_ids=torch.tensor([ids], device=self.teacher.device), **kwargs).logits[0].float()

    def loss_and_gradient(
        self, logits_NV: torch.Tensor, labels_N: torch.Tensor, weight_N1: torch.Tensor, places_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token weight x divergence of some places, and its gradient by the student's logits."""
        return shannon_and_gradient(logits_NV, self.logits(places_N, logits_NV), weight_N1)

    def losses(self, losses_N: torch.Tensor, logits_NV: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        """The divergences of some places."""
        return jensen_shannon(logits_NV.float(), self.logits(places_N, logits_NV.float()))


def make_on_policy(flags: Any, training: Any, tokenizer: Any, model: PreTrainedModel, unprepared: Callable) -> OnPolicy:
    """What --on_policy asks for.

    Args:
        tokenizer: the student's tokenizer.
        model: the student.
        unprepared: a context in which the student has the library's own forward.

    Raises:
        UserError: the teacher cannot be loaded, or its vocabulary is not the student's; or the library cannot continue
            a text of the student as its plain forward pass does.
    """
    config = base_model(model).config
    positions = position_count(config)
    window = min(flags.max_source_length, positions or flags.max_source_length)
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    return OnPolicy(
        teacher=load_teacher(local_folder(find_model(flags.teacher)), tokenizer, training),
        share=flags.on_policy,
        num_tokens=flags.on_policy_tokens,
        window=window,
        seed=training.seed,
        ends=list(end) if isinstance(end, list | tuple) else [] if end is None else [end],
        together=training.train_batch_size if is_exact_together(unprepared, window) else 1,
        unprepared=unprepared,
    )


def is_exact_together(unprepared: Callable, longest: int) -> bool:
    """Whether the library continues several texts of the student at once as it does alone.

    Raises:
        UserError: it does not continue one text as the plain forward pass does.
    """
    with unprepared() as model:
        tolerance = tolerance_of(model, model.dtype, longest)
        expected = make_continuations(model, longest, tolerance)
        if not generation_fault(model, expected, tolerance, together=True, use_cache=True):
            return True
        if fault := generation_fault(model, expected, tolerance, together=False, use_cache=True):
            raise UserError(f"--on_policy: the library's generation with this student {fault}; leave --on_policy out")
    return False


def load_teacher(folder: Path, student: Any, training: Any) -> PreTrainedModel:
    """The teacher on the student's device, in the precision of the training.

    Args:
        student: the student's tokenizer.

    Raises:
        UserError: it cannot be loaded, or its vocabulary is not the student's.
    """
    if vocabulary_digest(load_tokenizer(folder)) != vocabulary_digest(student):
        raise UserError(
            f"--teacher {folder}: its vocabulary is not the student's, so that its distributions have no meaning for "
            "the student; --on_policy needs a teacher of the student's family"
        )
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    return load_model(folder, dtype=dtype).to(training.device).eval().requires_grad_(False)
