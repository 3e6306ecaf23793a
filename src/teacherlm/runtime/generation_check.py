"""Does generation take each new token from the logits that the plain forward pass gives?"""

from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, PreTrainedModel

from teacherlm.runtime.check_sequences import STEPS, make_sequences
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.model_config import is_rescaled
from teacherlm.runtime.plain_pass import attention_set, plain_logits
from teacherlm.runtime.self_check import expected_logits, failure, fault_of


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
