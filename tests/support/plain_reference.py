"""What the stages shall say of a model: the library's plain forward, eager, float64, one text at a time, no cache.

Nothing of the project is used here. The model is the one that was made, before it was saved: what loading loses shows.
"""

import copy

import torch
from transformers import PreTrainedModel


class Plain:
    """A model's plain forward.

    Attributes:
        model: a float64 copy; float32 where the library's code of the architecture cannot compute in float64.
        noise: largest difference of a logit in float32 from the one in float64, on the texts that `measure` was given.
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
        """Whether a text has the same logits after a longer one: dynamic rotary embeddings keep the longest's."""
        *_, text, longest = sorted(rows, key=len)
        before = self.logits(text)
        self.logits(longest)
        return bool((self.logits(text) - before).abs().max() < 1e-4)

    def is_causal(self, tokens: list[int]) -> bool:
        """Whether what is said after a token is the same whatever follows."""
        half = len(tokens) // 2
        other = tokens[:half] + tokens[half:][::-1]
        return bool((self.logits(tokens)[:half] - self.logits(other)[:half]).abs().max() < 1e-4)

    def continuation(self, tokens: list[int], count: int, end: int) -> tuple[list[int], int]:
        """The likeliest next tokens, `end` excluded; and after how many of them two candidates are too close to call.

        The second number is as large as the first list where there is no such place.
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
        """One step of gradient descent on the mean loss of all tokens; the loss before it, the weights after it."""
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
