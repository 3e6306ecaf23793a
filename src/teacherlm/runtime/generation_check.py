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
    """Prompts, a fixed continuation for each, and the logits that the plain forward pass gives for them.

    Attributes:
        prompts: token sequences.
        new: for each prompt, the STEPS tokens that follow it. They are fixed instead of the most likely tokens, so that
            all ways to generate are compared with the same plain forward passes.
        logits: for each prompt, the logits [STEPS, V] from which its new tokens would be chosen.
        whole: for each prompt with its new tokens, the logits [at most COMPARED, V] from `plain_logits`.
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
    """The continuations and logits with which generation is compared.

    Args:
        longest: maximum number of tokens in a text of the run; None means unknown.

    Raises:
        UserError: `expected_logits` refuses the model.
    """
    prompts = make_sequences(base_model(model).config, longest)
    # The last two prompts share a prefix, so their continuations must differ.
    new = [(prompt * STEPS)[number : number + STEPS] for number, prompt in enumerate(prompts)]
    whole = expected_logits(model, [[*prompt, *more] for prompt, more in zip(prompts, new)], tolerance)
    if not is_rescaled(base_model(model).config):
        return Continuations(prompts, new, [logits[-STEPS - 1 : -1] for logits in whole], whole)
    # If the length of a text changes all positions, one pass over the whole text does not give the earlier logits.
    logits = []
    with attention_set(model, "eager"):
        for prompt, more in zip(prompts, new):
            texts = [[*prompt, *more[:count]] for count in range(STEPS)]
            logits.append(torch.cat(plain_logits(model, texts, 1)))
    return Continuations(prompts, new, logits, whole)


class Given(LogitsProcessor):
    """Makes the library's generation choose the given tokens."""

    def __init__(self, width: int, new_BS: torch.Tensor):
        self.width, self.new_BS = width, new_BS

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        return torch.full_like(scores, -torch.inf).scatter(1, self.new_BS[:, step : step + 1], 0.0)


@torch.inference_mode()
def generation_fault(
    model: PreTrainedModel, expected: Continuations, tolerance: float, together: bool, use_cache: bool
) -> str:
    """What is wrong with the library's generation, judged by the logits for each new token; "" when nothing is wrong.

    Args:
        together: whether the prompts are padded on the left and continued as one batch.
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
        except Exception as error:  # a model can raise anything
            return failure(error)
        found_BSV = torch.stack(made.logits, dim=1).float().cpu()
        if fault := fault_of(lambda found=found_BSV: list(found), wanted, tolerance):
            return fault
    return ""
