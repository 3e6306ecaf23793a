"""The library's generation, one prompt at a time, for teachers that this project's batches do not compute exactly."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from teacherlm.runtime.generation import Completion, Failure, Prompt
from teacherlm.runtime.generation.batch import keep_top
from teacherlm.runtime.plain_pass import plain_arguments
from teacherlm.runtime.sampling import Chooser, choose_tokens

if TYPE_CHECKING:
    from teacherlm.runtime.generation.batch import Row
    from teacherlm.runtime.generation.transformers_engine import TransformersEngine


class RowChooser(Chooser):
    """Makes the library choose the token of a row, whose most likely tokens are kept if that is asked for."""

    def __init__(self, engine: "TransformersEngine", row: "Row"):
        super().__init__([row.generator], engine.sampling.temperature, engine.sampling.top_p)
        self.row, self.kept = row, engine.sampling.top_logprobs

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        keep_top([self.row], scores, self.kept)
        return super().__call__(input_ids, scores)


class Ended(StoppingCriteria):
    """Ends a row where the engine ends it: at an end token, at a stop text, or at the end of the window."""

    def __init__(self, engine: "TransformersEngine", row: "Row"):
        self.engine, self.row = engine, row

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.row.new = input_ids[0, len(self.row.tokens) :].tolist()
        self.engine.steps += 1
        self.engine.rows_filled += 1
        return torch.tensor([bool(self.engine.ended(self.row))], device=input_ids.device)


def complete_alone(
    engine: "TransformersEngine", prompts: Iterator[Prompt], use_cache: bool
) -> Iterator[Completion | Failure]:
    """Complete prompts one by one. Each completion is yielded as soon as it ends.

    Args:
        use_cache: whether the library generates, keeping keys, values and states between tokens. Otherwise each new
            token comes from a plain forward pass over the whole text.
    """
    # The generation settings of the model (penalties, temperatures) are not used, and the engine ends the rows.
    engine.model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None)
    for prompt in prompts:
        row = engine.row_of(prompt)
        if isinstance(row, Failure):
            yield row
            continue
        row.generator.manual_seed(prompt.seed)
        fits = True
        try:
            generate(engine, row) if use_cache else write(engine, row)
        except torch.cuda.OutOfMemoryError:
            fits = False  # until here the error's traceback holds the tensors of the failed pass
        if fits:
            yield engine.completion(row)
        else:
            torch.cuda.empty_cache()
            yield Failure(prompt, f"{len(row.tokens) + len(row.new)} tokens do not fit into the GPU's memory")


def generate(engine: "TransformersEngine", row: "Row") -> None:
    """Continue a row with the library's generation."""
    ids_1T = torch.tensor([row.tokens], device=engine.device)
    engine.model.generate(
        input_ids=ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=engine.sampling.num_tokens,
        logits_processor=[RowChooser(engine, row)],
        stopping_criteria=[Ended(engine, row)],
        pad_token_id=0,
    )


@torch.inference_mode()
def write(engine: "TransformersEngine", row: "Row") -> None:
    """Continue a row with plain forward passes."""
    sampling, kwargs = engine.sampling, plain_arguments(engine.model, 1)
    while not row.new or not engine.ended(row):
        ids_1T = torch.tensor([row.tokens + row.new], device=engine.device)
        logits_1V = engine.model(input_ids=ids_1T, **kwargs).logits[:, -1]
        chosen_1 = choose_tokens(logits_1V, [row.generator], sampling.temperature, sampling.top_p)
        row.new.append(int(chosen_1))
        keep_top([row], logits_1V, sampling.top_logprobs)
        engine.steps += 1
        engine.rows_filled += 1
