"""lm-eval's Hugging Face model with log-likelihoods from packed batches, which several processes can split."""

import functools
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import plural
from teacherlm.runtime import gpu
from teacherlm.runtime.chat_student import ChatStudent, with_end
from teacherlm.runtime.compat.of_lm_eval import OpenModel, longest_input, requested_tokens
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
from teacherlm.scoring.shards import Answer, Shard

CPU_STATES = 1 << 19
"""Number of values in one layer's hidden states for a batch on a CPU. Larger batches are not faster there."""
GPU_TOKENS = 32768
"""Maximum number of tokens in a batch on a GPU."""
LOGITS = 1 << 22
"""Maximum number of logits that are normalised at once."""
LOOKED_AT = 256
"""Number of requests, at most, that are tokenized in both ways, to find out whether the way matters."""
TOKENIZATIONS = ("auto", "apart", "joint")


class LanguageModel(OpenModel):
    """A causal model for lm-eval's evaluator.

    Requests with the same input (single-token choices of a question) share one forward pass. Batches have no padding,
    and shared prefixes are computed once. Logits are computed only at the scored positions, and their softmax is
    computed in float32. Models that this would not compute exactly are computed in padded batches or one input at a
    time.

    Args:
        tokenization: how context and continuation are tokenized: "apart", as in the reference; "joint", as in lm-eval
            and in the training of students; "auto", apart if both ways give the same tokens, otherwise joint. The
            special tokens that begin a text always precede the context.
        samples: maximum number of inputs per batch; None means as many as `tokens_at_a_time` allows.
        digest: the model's digest; see ScoredModel.
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
        self.scored = ScoredModel(folder, gpu.device_of(device), dtype, digest)
        super().__init__(self.scored.model, tokenizer=load_tokenizer(folder), batch_size=samples or 8)
        self.tokenization, self.samples = tokenization, samples
        self.use_chat(None)
        self.rows = vocabulary_size(self.config)
        self.generates: tuple[bool, bool] | None = None
        self.begin(Shard())
        self.encode = functools.lru_cache(maxsize=16)(self.tok_encode)
        self.cuts: dict[str, int] = {}

    def use_chat(self, chat: ChatStudent | None, as_turns: bool = False) -> None:
        """Expect conversations that a chat template has written, with their special tokens, or plain texts (None).

        Args:
            as_turns: whether lm-eval's tasks make two turns of each few-shot example.
        """
        self.chat, self.as_turns = chat, as_turns
        self.before = special_tokens(self.tokenizer)[0] if chat is None else []
        self.head = self.before if chat is None else chat.tokens(chat.head)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation of one of lm-eval's tasks, as the student was trained.

        Args:
            add_generation_prompt: False: the last message is the beginning of the assistant's answer.
        """
        assert self.chat is not None
        messages = [(message["role"], message["content"]) for message in chat_history]
        if add_generation_prompt:
            return self.chat.asked(messages)
        return self.chat.asked(messages[:-1], messages[-1][1])

    def begin(self, shard: Shard) -> None:
        """Begin a new piece of work with the requests that follow. All counts are reset."""
        self.shard = shard
        self.joint = self.tokenization == "joint"
        self.truncated = self.differing = self.looked_at = 0

    def prepare(self, longest: int) -> None:
        self.scored.prepare(longest)
        self.take_model(self.scored.model)  # `prepare` may have loaded it again

    def described(self) -> dict[str, Any]:
        """The fields of a result that describe how the requests of this piece of work were computed."""
        said = {
            "tokenization": "context and choice together" if self.joint else "context and choice apart",
            "tokenized_otherwise": f"{self.differing} of {self.looked_at}",
            "truncated": self.truncated,
        }
        if self.scored.verdict is not None:
            said["computed"] = self.scored.verdict.path
        if self.differing:
            how = "here they are tokenized jointly, as in the training of students"
            if not self.joint:
                how = "here they are tokenized apart, as --tokenization asks; in training they are tokenized jointly"
            print(
                f"evaluate: in {self.differing} of {plural(self.looked_at, 'sampled request')}, context and choice get "
                f"different tokens when they are tokenized jointly instead of apart; {how} (see --tokenization)"
            )
        if self.truncated:
            print(
                f"evaluate: {plural(self.truncated, 'request')} had more than {self.max_length} tokens; tokens were "
                "cut on the left"
            )
        return said

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in an input."""
        known = self.given_length() or position_count(self.config)
        return known or longest_input(self.config.get_text_config(), self.tokenizer)

    def tokens_at_a_time(self) -> int:
        """Maximum number of tokens per batch.

        It depends on the device's total memory, not on the memory that is free now, so that equal machines make equal
        batches. The states of a token in a layer take about 20 hidden sizes. They may use a fourth of the memory that
        the weights leave.
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
        """The tokens of a text without special tokens, which are added separately at the beginning of a text."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encode_joint(context, continuation) if self.joint else self.encode_apart(context, continuation)

    def encode_apart(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.before + self.encode(context), self.encode(continuation)

    def encode_joint(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of the whole text, split where they begin to differ from the tokens of the context alone.

        A token that spans the border belongs to the continuation. All continuations of a context are split at the same
        place, the earliest one, so that their probabilities are conditioned on the same tokens. lm-eval splits after
        the number of the context's tokens, which is the same place if no token spans the border.
        """
        whole = self.tok_encode(context + continuation)
        cut = self.cuts[context] if context in self.cuts else self.border(context, continuation)
        return self.before + whole[:cut], whole[cut:]

    def border(self, context: str, continuation: str) -> int:
        """Number of tokens at the beginning that the context alone and the whole text share."""
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
        for context, continuations in asked[:: -(-len(requests) // LOOKED_AT)]:  # a context with all its choices
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
            raise UserError(
                "a request has no context, and the tokenizer has no token for the beginning or end of a text"
            )
        return super().loglikelihood(requests, disable_tqdm=True)

    def cut(self, whole: list[int]) -> tuple[int, ...]:
        """The input of a request: all tokens but the last. A long one is cut on the left, after the special tokens, or
        after what the chat template writes before the user's turn."""
        if len(whole) <= self.max_length + 1:
            return tuple(whole[:-1])
        self.truncated += 1
        start = self.kept_head(whole)
        return (*start, *whole[len(start) - self.max_length - 1 : -1])

    def kept_head(self, tokens: list[int]) -> list[int]:
        """The tokens at the beginning that a cut keeps."""
        return self.head if tokens[: len(self.head)] == self.head else []

    def score_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        numbers: dict[Tokens, int] = {}
        asked: list[list[int]] = []  # for each input, the indices of its requests
        for request, (_, context, continuation) in enumerate(requests):
            whole = context + continuation
            require_embeddings(whole, self.rows, f"request {request + 1}")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"request {request + 1}: the choice has {len(continuation)} tokens, but the model takes at most "
                    f"{self.max_length}; shorten the choice"
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
                how = f"; try --batch_size {inside // 2}" if inside > 1 else ""
                raise UserError(
                    f"out of memory in a batch of {inside} inputs{how}; finished batches are kept"
                ) from error

        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch, found in zip(batches, self.shard.do(len(batches), compute)):
            order = [request for group in batch for member in group.members for request in asked[member]]
            for request, answer in zip(order, found or []):
                answers[request] = (answer[0], answer[1])
        return answers

    @torch.inference_mode()
    def score(
        self, batch: list[Group], inputs: list[Tokens], scored: list[int], targets: list[list[list[int]]]
    ) -> list[Answer]:
        """[log-likelihood, whether greedy] for each target of each input in the batch, in order."""
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
            asked = requested_tokens(dict(request.args[1]), self.max_gen_toks)
            if asked >= self.max_length:
                raise UserError(
                    f"request {number + 1}: the task asks for {asked} new tokens, but the model takes at most "
                    f"{self.max_length} tokens including the prompt; give the task a smaller max_gen_toks"
                )
        ends = self.model.generation_config.eos_token_id
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token; without one nothing can be generated")
        self.scored.end_packing()
        self.prepare(max((len(self.encode(request.args[0])) for request in requests), default=0) + self.max_gen_toks)
        # The task decides how to generate. The settings in the model's folder (penalties, lengths) are not used.
        ends = self.tokenizer.eos_token_id if ends is None else ends
        if self.chat is not None:
            ends = with_end(ends, self.chat.ends)
        pad = self.tokenizer.pad_token_id
        self.model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)
        if self.generates is None:
            self.generates = self.find_generation()
        if not self.generates[0]:
            self.batch_size_per_gpu = 1
        return self.in_parts(requests, functools.partial(super().generate_until, disable_tqdm=True), "")

    def find_generation(self) -> tuple[bool, bool]:
        """(whether prompts may be padded and continued together, whether the library's cache may be used).

        Raises:
            UserError: the library's generation never agrees with its forward pass.
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
        """Prompts padded on the left, [B, T], and their mask. A long prompt is cut after the special tokens."""
        rows = []
        for number, string in enumerate(strings):
            tokens = self.tok_encode(string)
            require_embeddings(tokens, self.rows, f"prompt {number + 1}")
            row = self.before + tokens
            excess = max(0, len(row) - (left_truncate_len or self.max_length))
            self.truncated += excess > 0
            start = self.kept_head(row)
            rows.append(start + row[len(start) + excess :])
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids_BT, mask_BT

    def uses_cache(self) -> bool:
        return self.generates[1]

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of new tokens, with the space at its beginning that SentencePiece decoders would drop."""
        if isinstance(tokens, list) and skip_special_tokens:
            return decode_completion(self.tokenizer, self.encode(":"), tokens)
        return super().tok_decode(tokens, skip_special_tokens)

    def in_parts(self, requests: list[Any], answer: Callable[[list[Any]], list[Answer]], nothing: Answer) -> list[Any]:
        """The answers of a library method, which is called with a part of the requests at a time."""
        size = int(self.batch_size)
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        shard, self.shard = self.shard, Shard()  # calls within the method are not split again
        found = shard.do(len(parts), lambda part: answer(parts[part]))
        self.shard = shard
        return [one for part, answers in zip(parts, found) for one in (answers or [nothing] * len(part))]
