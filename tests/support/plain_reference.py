"""What the stages must compute: the library's plain forward pass with eager attention, float64, one text, no cache.

This module uses no code of the project. The model is the original one, from before it was saved, so that anything lost
in loading becomes visible.
"""

import copy

import torch
from transformers import PreTrainedModel


class Plain:
    """The plain forward pass of a model.

    Attributes:
        model: a copy in float64, or in float32 if the library's code for the architecture cannot compute in float64.
        noise: the largest difference between a logit in float32 and in float64, over the texts given to `measure`.
    """

    noise = 0.0

    def __init__(self, model: PreTrainedModel):
        self.single = model.eval()
        self.model = copy.deepcopy(model).double().eval()
        try:
            able = bool(self.logits([1, 2, 3]).isfinite().all())
        except RuntimeError:
            able = False
        if not able:
            self.model = self.single

    def logits(self, tokens: list[int], model: PreTrainedModel | None = None) -> torch.Tensor:
        """[T, V] in float64, after each token."""
        with torch.no_grad():
            return forward(model or self.model, tokens).double()

    def measure(self, rows: list[list[int]]) -> None:
        self.noise = max(float((self.logits(row) - self.logits(row, self.single)).abs().max()) for row in rows)

    def is_repeatable(self, rows: list[list[int]]) -> bool:
        """Whether a text has the same logits after a longer text. Dynamic rotary embeddings keep the longest length."""
        *_, text, longest = sorted(rows, key=len)
        before = self.logits(text)
        self.logits(longest)
        return bool((self.logits(text) - before).abs().max() < 1e-4)

    def is_causal(self, tokens: list[int]) -> bool:
        """Whether the logits after a token do not depend on the tokens that follow."""
        half = len(tokens) // 2
        other = tokens[:half] + tokens[half:][::-1]
        return bool((self.logits(tokens)[:half] - self.logits(other)[:half]).abs().max() < 1e-4)

    def continuation(self, tokens: list[int], count: int, end: int) -> tuple[list[int], int]:
        """The most likely next tokens without `end`, and the number of them before two candidates are almost equal.

        If there are no such candidates, the number is the length of the list.
        """
        new: list[int] = []
        sure = count
        while len(new) < count:
            values, candidates = self.logits(tokens + new)[-1].topk(2)
            if values[0] - values[1] < 1e-3 + 20 * self.noise:
                sure = min(sure, len(new))
            token = int(candidates[0])
            if token == end:
                break
            new.append(token)
        return new, sure

    def loglikelihood(self, context: list[int], choice: list[int]) -> float:
        rows = self.logits((context + choice)[:-1])[-len(choice) :].log_softmax(-1)
        return sum(float(row[token]) for row, token in zip(rows, choice, strict=True))

    def step(self, rows: list[list[int]], rate: float) -> tuple[float, dict[str, torch.Tensor]]:
        """Take one step of gradient descent on the mean loss of all tokens; return the loss before and the weights
        after it."""
        model = copy.deepcopy(self.model).train()
        predicted = sum(len(row) - 1 for row in rows)
        total = 0.0
        for row in rows:
            logits_TV = forward(model, row)[:-1].double()
            loss = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(row[1:]), reduction="sum") / predicted
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
        return total, {name: parameter.detach() for name, parameter in model.named_parameters()}


def forward(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits [T, V] of one text."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
