"""lm-eval's Hugging Face model with log-likelihoods from packed batches, in parts that several processes can share."""

import functools
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from teacherlm.core.errors import UserError
from teacherlm.runtime.compat.of_lm_eval import OpenModel, asked_tokens, longest_input
from teacherlm.runtime.compat.of_transformers import attention_of
from teacherlm.runtime.generation_check import generation_fault, make_continuations
from teacherlm.runtime.loading import load_tokenizer
from teacherlm.runtime.memory import is_out_of_memory
from teacherlm.runtime.model_config import picks_tokens, position_count, vocabulary_size
from teacherlm.runtime.plain_pass import set_attention
from teacherlm.runtime.self_check import tolerance_of
from teacherlm.runtime.tokens import decode_completion, require_embeddings, special_tokens
from teacherlm.scoring.batching import Group, Tokens, make_batches
from teacherlm.scoring.scored_model import ScoredModel
from teacherlm.scoring.shares import Answer, Share

CPU_STATES = 1 << 19
"""Numbers in a hidden state of a batch on a CPU, where larger batches are not faster."""
GPU_TOKENS = 32768
"""Of a batch on a GPU at most."""
LOGITS = 1 << 22
"""That are normalised at a time."""
LOOKED_AT = 256
"""Requests that are tokenized both ways, to say whether it matters."""
TOKENIZATIONS = ("auto", "apart", "joint")


class LanguageModel(OpenModel):
    """A causal model as lm-eval's evaluator uses it.

    Log-likelihoods: one forward pass for all requests whose input is the same (single-token choices of a question),
    without padding, prefixes that many inputs share computed once, logits only at the positions that are scored, and
    their softmax in float32. Models that this would not compute exactly are computed padded, or one input at a time.

    Args:
        tokenization: of context and continuation. "apart", as the reference does; "joint", as lm-eval does and as the
            texts are tokenized that students are trained on; "auto": apart where both give the same tokens, else
            joint. Special tokens that begin a text stand before the context in each case.
        samples: inputs of a batch at most; None: as many as `tokens_at_a_time` allow.
        digest: see ScoredModel.
    """

    def __init__(
        self,
        folder: Path,
        device: str | None,
        dtype: str,
        tokenization: str = "auto",
        samples: int | None = None,
        digest: str | None = None,
    ):
        if device is not None and device.isdigit():
            device = f"cuda:{device}"
            if torch.cuda.is_available() and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
                raise UserError(f"--device {device}: the GPUs here are 0 to {torch.cuda.device_count() - 1}")
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.scored = ScoredModel(folder, device, dtype, digest)
        super().__init__(self.scored.model, tokenizer=load_tokenizer(folder), batch_size=samples or 8)
        self.tokenization, self.samples = tokenization, samples
        self.before, _ = special_tokens(self.tokenizer)
        self.rows = vocabulary_size(self.config)
        self.generates: tuple[bool, bool] | None = None
        self.begin(Share())
        self.encode = functools.lru_cache(maxsize=16)(self.tok_encode)
        self.cuts: dict[str, int] = {}

    def begin(self, share: Share) -> None:
        """Take the requests that follow as one piece of work; counts begin at zero."""
        self.share = share
        self.joint = self.tokenization == "joint"
        self.truncated = self.differing = self.looked_at = 0

    def prepare(self, longest: int) -> None:
        self.scored.prepare(longest)
        self.take_model(self.scored.model)  # it may have been loaded anew

    def described(self) -> dict[str, Any]:
        """What the results say about how the requests of this piece of work were taken."""
        said = {
            "tokenization": "context and choice together" if self.joint else "context and choice apart",
            "tokenized_otherwise": f"{self.differing} of {self.looked_at}",
            "truncated": self.truncated,
        }
        if self.scored.verdict is not None:
            said["computed"] = self.scored.verdict.path
        if self.differing:
            how = "tokenized together, as the texts that a student is trained on"
            if not self.joint:
                how = "tokenized apart, as asked; the texts that a student is trained on are tokenized together"
            print(
                f"evaluate: {self.differing} of {self.looked_at} requests looked at have other tokens when context and "
                f"choice are tokenized the other way: {how} (--tokenization)"
            )
        if self.truncated:
            print(f"evaluate: {self.truncated} requests have more than {self.max_length} tokens: cut at the left")
        return said

    @property
    def max_length(self) -> int:
        """Tokens that an input has at most."""
        known = self.given_length() or position_count(self.config)
        return known or longest_input(self.config.get_text_config(), self.tokenizer)

    def tokens_at_a_time(self) -> int:
        """By what the device has, not by what is free now, so that equal machines make equal batches.

        A token's states in a layer take some 20 hidden sizes; a fourth of what the weights leave is for them.
        """
        hidden = self.model.get_input_embeddings().weight.shape[1]
        least = max(1, CPU_STATES // hidden)
        if self.device.type != "cuda":
            return least
        weights = sum(part.nbytes for part in self.model.parameters())
        left = torch.cuda.get_device_properties(self.device).total_memory - weights
        token = 20 * hidden * self.model.dtype.itemsize
        return min(GPU_TOKENS, max(least, 1 << (max(1, left // (4 * token)).bit_length() - 1)))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's tokens, without special tokens: those that begin a text are put where a text begins."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encode_joint(context, continuation) if self.joint else self.encode_apart(context, continuation)

    def encode_apart(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.before + self.encode(context), self.encode(continuation)

    def encode_joint(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of the whole text, cut where they begin to differ from the context's own.

        Where a token spans the border it belongs to the continuation. The continuations of one context are all cut at
        the same place, the earliest of theirs, so that they are compared by the same text's probability. lm-eval cuts
        at the number of the context's tokens, which is the same place wherever no token spans the border.
        """
        whole = self.tok_encode(context + continuation)
        cut = self.cuts[context] if context in self.cuts else self.border(context, continuation)
        return self.before + whole[:cut], whole[cut:]

    def border(self, context: str, continuation: str) -> int:
        """How many tokens a context and its whole text have in common."""
        alone, whole = self.encode(context), self.tok_encode(context + continuation)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, whole[:-1])))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        contexts: dict[str, list[str]] = {}
        for number, request in enumerate(requests):
            context, continuation = request.args
            if not continuation:
                raise UserError(f"request {number + 1}: the choice is empty; a text was expected")
            contexts.setdefault(context, []).append(continuation)
        asked = list(contexts.items())
        for context, continuations in asked[:: -(-len(requests) // LOOKED_AT)]:  # with all choices of each
            for continuation in continuations:
                self.looked_at += 1
                if context:
                    apart, joint = self.encode_apart(context, continuation), self.encode_joint(context, continuation)
                    self.differing += apart[0] + apart[1] != joint[0] + joint[1]
        if self.tokenization == "auto":
            self.joint = self.differing > 0
        if self.joint:
            self.cuts = {context: min(self.border(context, one) for one in ones) for context, ones in asked if context}
        if "" in contexts and self.prefix_token_id is None:
            raise UserError("a request has no context, and the tokenizer has no token that begins or ends a text")
        return super().loglikelihood(requests, disable_tqdm=True)

    def cut(self, whole: list[int]) -> tuple[int, ...]:
        """The input of a request: all tokens but the last. A long one is cut at the left, behind the special tokens."""
        if len(whole) <= self.max_length + 1:
            return tuple(whole[:-1])
        self.truncated += 1
        start = self.before if whole[: len(self.before)] == self.before else []
        return (*start, *whole[len(start) - self.max_length - 1 : -1])

    def score_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        numbers: dict[Tokens, int] = {}
        asked: list[list[int]] = []  # requests of each input
        for request, (_, context, continuation) in enumerate(requests):
            whole = context + continuation
            require_embeddings(whole, self.rows, f"request {request + 1}")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"request {request + 1}: the choice has {len(continuation)} tokens, the model takes at most "
                    f"{self.max_length}; shorten it"
                )
            number = numbers.setdefault(self.cut(whole), len(asked))
            asked += [[]] if number == len(asked) else []
            asked[number].append(request)
        inputs = list(numbers)
        self.prepare(max(map(len, inputs), default=0))
        targets = [[requests[request][2] for request in ones] for ones in asked]
        scored = [max(map(len, ones)) for ones in targets]
        batches = make_batches(inputs, scored, self.tokens_at_a_time(), self.samples)

        def compute(part: int) -> list[Answer]:
            try:
                return self.score(batches[part], inputs, scored, targets)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                inside = sum(len(group.members) for group in batches[part])
                how = f"; --batch_size {inside // 2} takes fewer than {inside}" if inside > 1 else ""
                raise UserError(f"out of memory in a batch of {inside} inputs{how}; what is scored is kept") from error

        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch, found in zip(batches, self.share.do(len(batches), compute)):
            order = [request for group in batch for member in group.members for request in asked[member]]
            for request, answer in zip(order, found or []):
                answers[request] = (answer[0], answer[1])
        return answers

    @torch.inference_mode()
    def score(
        self, batch: list[Group], inputs: list[Tokens], scored: list[int], targets: list[list[list[int]]]
    ) -> list[Answer]:
        """[log-likelihood, whether greedy] for each of the targets of each of the batch's inputs, in order."""
        logits_SV = self.scored.logits(batch, inputs, scored)
        parts = logits_SV.split(max(1, LOGITS // logits_SV.shape[1]))
        norm_S = torch.cat([part.float().logsumexp(-1) for part in parts])
        best_S = logits_SV.argmax(-1)
        answers: list[Answer] = []
        end = 0
        for member in (member for group in batch for member in group.members):
            end += scored[member]
            for target in targets[member]:
                rows = torch.arange(end - len(target), end, device=logits_SV.device)
                wanted = torch.tensor(target, dtype=torch.long, device=logits_SV.device)
                logprobs = logits_SV[rows, wanted].float() - norm_S[rows]
                answers.append((logprobs.sum(), (best_S[rows] == wanted).all()))
        sums, greedy = (torch.stack(column).tolist() for column in zip(*answers))
        return [list(pair) for pair in zip(sums, greedy)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        return self.in_parts(requests, super().loglikelihood_rolling, 0.0)

    # ------------------------------------------------------------------------------------------------------ generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        for number, request in enumerate(requests):
            asked = asked_tokens(dict(request.args[1]), self.max_gen_toks)
            if asked >= self.max_length:
                raise UserError(
                    f"request {number + 1}: {asked} new tokens were asked for, and the model takes {self.max_length}, "
                    "the prompt included; give the task a smaller max_gen_toks"
                )
        ends = self.model.generation_config.eos_token_id
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no token that ends a text; without one nothing can be generated")
        self.scored.end_packing()
        self.prepare(max((len(self.encode(request.args[0])) for request in requests), default=0) + self.max_gen_toks)
        # What the task asks for counts, not the settings (penalties, lengths) that the model's folder brings along.
        ends = self.tokenizer.eos_token_id if ends is None else ends
        pad = self.tokenizer.pad_token_id
        self.model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)
        if self.generates is None:
            self.generates = self.find_generation()
        if not self.generates[0]:
            self.batch_size_per_gpu = 1
        return self.in_parts(requests, functools.partial(super().generate_until, disable_tqdm=True), "")

    def find_generation(self) -> tuple[bool, bool]:
        """(whether prompts may be padded to be continued together, whether with the library's cache).

        Raises:
            UserError: the library's generation differs from its forward pass in each way.
        """
        model = self.model
        tolerance = tolerance_of(model, self.scored.dtype, None)
        expected = make_continuations(model, None, tolerance)
        default = attention_of(model.config)
        ways = [(True, True), (False, True), (False, False)][picks_tokens(model.config) :]
        for attention in dict.fromkeys([default, "eager"]):
            set_attention(model, attention)
            for how in ways:
                if not generation_fault(model, expected, tolerance, *how):
                    return how
        set_attention(model, default)
        raise UserError(
            f"{self.config.model_type} is refused: the library's generation does not agree with its forward pass"
        )

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts padded at the left, [B, T], and their mask. Long ones are cut behind the special tokens."""
        rows = []
        for number, string in enumerate(strings):
            tokens = self.tok_encode(string)
            require_embeddings(tokens, self.rows, f"prompt {number + 1}")
            room = (left_truncate_len or self.max_length) - len(self.before)
            self.truncated += len(tokens) > room
            rows.append(self.before + tokens[-room:])
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids_BT, mask_BT

    def uses_cache(self) -> bool:
        return self.generates[1]

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of new tokens, with the blank at its beginning that decoders of SentencePiece's kind drop."""
        if isinstance(tokens, list) and skip_special_tokens:
            return decode_completion(self.tokenizer, self.encode(":"), tokens)
        return super().tok_decode(tokens, skip_special_tokens)

    def in_parts(self, requests: list[Any], answer: Callable[[list[Any]], list[Answer]], nothing: Answer) -> list[Any]:
        """Answers of a method of the library, which is given some of the requests at a time."""
        size = int(self.batch_size)
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        share, self.share = self.share, Share()  # what it calls in turn is not shared again
        found = share.do(len(parts), lambda part: answer(parts[part]))
        self.share = share
        return [one for part, answers in zip(parts, found) for one in (answers or [nothing] * len(part))]
