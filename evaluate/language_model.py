"""lm-eval's Hugging Face model with log-likelihoods from packed batches, in parts that several processes can share."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from batching import Group, Tokens, make_batches
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from tqdm import tqdm

from teacherlm import loading
from teacherlm.errors import UserError
from teacherlm.interrupts import REQUEUE, Stop
from teacherlm.memory import is_out_of_memory, keep_freed_memory
from teacherlm.packed_attention import stop_packing, use_packing
from teacherlm.packed_linear import PackedLinear, pack_linears
from teacherlm.progress_file import ProgressFile

CPU_STATES = 1 << 19
"""Numbers in a hidden state of a batch on a CPU, where larger batches are not faster."""
GPU_TOKENS = 32768
"""Of a batch on a GPU at most."""
LOGITS = 1 << 22
"""That are normalised at a time."""
LOOKED_AT = 256
"""Requests that are tokenized both ways, to say whether it matters."""

Answer = Any
"""Of a log-likelihood: [sum, whether greedy]; of a generation: the text; of a rolling log-likelihood: the sum."""


class Share:
    """Which parts of the work are this process's, and the answers so far.

    Args:
        progress: where the answers of finished parts are; None: nowhere, all parts are done here.
        index, count: this process is the one numbered `index` of `count`.
        others: parts that other processes have finished.
        stop: whether to end with exit code REQUEUE after the part at work.
    """

    def __init__(
        self,
        progress: ProgressFile | None = None,
        index: int = 0,
        count: int = 1,
        others: Mapping[int, dict[str, Any]] | None = None,
        stop: Stop | None = None,
    ):
        self.progress, self.index, self.count = progress, index, count
        self.others, self.stop = others or {}, stop
        self.first = 0
        self.missing: set[int] = set()

    def do(self, parts: int, compute: Callable[[int], list[Answer]]) -> list[list[Answer] | None]:
        """The answers of each part: those that are there, those computed here, None for other processes'."""
        keys = range(self.first, self.first + parts)
        self.first += parts
        answers: list[list[Answer] | None] = []
        for part, key in enumerate(tqdm(keys, disable=not sys.stderr.isatty() or parts < 2)):
            if self.progress is not None and key in self.progress:
                answers.append(self.progress.read(key)["answers"])
            elif key in self.others:
                answers.append(self.others[key]["answers"])
            elif part * self.count // parts == self.index:
                answers.append(compute(part))
                if self.progress is not None:
                    self.progress.append(key, {"answers": answers[-1]})
                if self.stop is not None and self.stop.asked:
                    print(f"evaluate: interrupted after {len(self.progress)} batches; the same command goes on")
                    sys.exit(REQUEUE)
            else:
                answers.append(None)
                self.missing.add(key)
        return answers


class LanguageModel(HFLM):
    """A causal model as lm-eval's evaluator uses it.

    Log-likelihoods: one forward pass for all requests whose input is the same (single-token choices of a question),
    without padding, prefixes that many inputs share computed once, logits only at the positions that are scored, and
    their softmax in float32. Generation and models whose attention cannot be replaced: as HFLM.

    Args:
        joint: tokenize context and continuation together, as lm-eval does; otherwise apart and without special tokens,
            as the reference does. Joint tokens differ wherever a merge crosses the border.
        samples: inputs of a batch at most; None: as many as `tokens_at_a_time` allow.
    """

    def __init__(self, folder: Path, device: str | None, dtype: str, joint: bool, samples: int | None):
        if device is not None and device.isdigit():
            device = f"cuda:{device}"
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = loading.load_model(folder, dtype=getattr(torch, dtype)).to(device)
        if device == "cpu":
            pack_linears(model.base_model)  # not its head, which sees few positions and may be tied to the embeddings
            keep_freed_memory()  # from now on: the unpacked weights go back to the system
        super().__init__(pretrained=model, tokenizer=loading.load_tokenizer(folder), batch_size=samples or 8)
        self.joint, self.samples = joint, samples
        self.share = Share()
        self.truncated = self.differing = self.looked_at = 0
        self.packed = False
        self.kept: tuple[Tokens, ...] = ()
        self.encode = functools.lru_cache(maxsize=16)(functools.partial(self.tok_encode, add_special_tokens=False))

    def begin(self, share: Share) -> None:
        """Take the requests that follow as one piece of work; counts begin at zero."""
        self.share = share
        self.truncated = self.differing = self.looked_at = 0

    def described(self) -> dict[str, Any]:
        """What the results say about how the requests of this piece of work were taken."""
        said = {
            "tokenization": "context and choice together" if self.joint else "context and choice apart",
            "tokenized_otherwise": f"{self.differing} of {self.looked_at}",
            "truncated": self.truncated,
        }
        if self.differing:
            print(
                f"evaluate: {self.differing} of {self.looked_at} requests looked at have other tokens when context and "
                "choice are tokenized the other way (--joint_tokenization)"
            )
        if self.truncated:
            print(f"evaluate: {self.truncated} requests have more than {self.max_length} tokens: cut at the left")
        return said

    def swap(self, folder: Path) -> bool:
        """Put another checkpoint's weights into the model; returns whether they are weights of this model."""
        state = self.model.state_dict()
        modules = self.model.named_modules()
        packed = {f"{name}.weight": module for name, module in modules if isinstance(module, PackedLinear)}
        shapes = {name: part.weight.shape for name, part in packed.items()} | {n: p.shape for n, p in state.items()}
        loaded: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            loaded |= load_file(file)
        tied = set(state) - set(loaded)
        fits = loaded and set(packed) <= set(loaded) and all(shapes.get(n) == p.shape for n, p in loaded.items())
        there = {state[name].data_ptr() for name in set(state) & set(loaded)}
        if not fits or any(state[name].data_ptr() not in there for name in tied):
            return False
        for name, tensor in loaded.items():
            if name in packed:
                packed[name].pack(tensor)
            else:
                state[name].copy_(tensor)
        self.kept = ()
        return True

    def tokens_at_a_time(self) -> int:
        """By what the device has, not by what is free now, so that equal machines make equal batches.

        A token's states in a layer take some 20 hidden sizes; a fourth of what the weights leave is for them.
        """
        hidden = self.config.get_text_config().hidden_size
        least = max(1, CPU_STATES // hidden)
        if self.device.type != "cuda":
            return least
        weights = sum(part.nbytes for part in self.model.parameters())
        left = torch.cuda.get_device_properties(self.device).total_memory - weights
        token = 20 * hidden * self.model.dtype.itemsize
        return min(GPU_TOKENS, max(least, 1 << (max(1, left // (4 * token)).bit_length() - 1)))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.joint:
            return super()._encode_pair(context, continuation)
        return self.encode(context), self.encode(continuation)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        for request in requests[:: -(-len(requests) // LOOKED_AT)]:
            context, continuation = request.args
            self.looked_at += 1
            if context:
                before, after = super()._encode_pair(context, continuation)
                self.differing += before + after != self.encode(context) + self.encode(continuation)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        numbers: dict[Tokens, int] = {}
        asked: list[list[int]] = []  # requests of each input
        for request, (_, context, continuation) in enumerate(requests):
            whole = context + continuation
            self.truncated += len(whole) > self.max_length + 1
            number = numbers.setdefault(tuple(whole[-(self.max_length + 1) :][:-1]), len(asked))
            asked += [[]] if number == len(asked) else []
            asked[number].append(request)
        inputs = list(numbers)
        targets = [[requests[request][2] for request in ones] for ones in asked]
        scored = [max(map(len, ones)) for ones in targets]
        batches = make_batches(inputs, scored, self.tokens_at_a_time(), self.samples)
        if not self.packed:
            self.packed = use_packing(self.model)

        def compute(part: int) -> list[Answer]:
            if not self.packed:
                members = [member for group in batches[part] for member in group.members]
                some = [requests[request] for member in members for request in asked[member]]
                return list(map(list, super(LanguageModel, self)._loglikelihood_tokens(some, True, len(members))))
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
        prefixes = self.keep_prefixes(batch, inputs)
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []  # in the row, of all that is scored
        for group in batch:
            for member in group.members:
                rest = inputs[member][group.prefix :]
                tokens += rest
                positions += range(group.prefix, len(inputs[member]))
                places += range(len(tokens) - scored[member], len(tokens))
        lengths = [len(inputs[member]) - group.prefix for group in batch for member in group.members]
        logits_SV = self.forward(tokens, positions, lengths, places, prefixes=prefixes)
        parts = logits_SV.split(max(1, LOGITS // logits_SV.shape[1]))
        norm_S = torch.cat([part.float().logsumexp(-1) for part in parts])
        best_S = logits_SV.argmax(-1)
        answers: list[Answer] = []
        end = 0
        for member in (member for group in batch for member in group.members):
            end += scored[member]
            for target in targets[member]:
                rows = torch.arange(end - len(target), end, device=logits_SV.device)
                wanted = torch.tensor(target, device=logits_SV.device)
                logprobs = logits_SV[rows, wanted].float() - norm_S[rows]
                answers.append((logprobs.sum(), (best_S[rows] == wanted).all()))
        sums, greedy = (torch.stack(column).tolist() for column in zip(*answers))
        return [list(pair) for pair in zip(sums, greedy)]

    def keep_prefixes(self, batch: list[Group], inputs: list[Tokens]) -> list[slice | None]:
        """Compute the batch's prefixes, unless the last batch had the same; returns each member's place among them."""
        wanted = tuple(inputs[group.members[0]][: group.prefix] for group in batch if group.prefix)
        if wanted and wanted != self.kept:
            positions = [position for prefix in wanted for position in range(len(prefix))]
            self.forward(sum(wanted, ()), positions, list(map(len, wanted)), [0], record=True)
            self.kept = wanted
        places: list[slice | None] = []
        begin = 0
        for group in batch:
            place = slice(begin, begin + group.prefix) if group.prefix else None
            places += [place] * len(group.members)
            begin += group.prefix
        return places

    def forward(
        self, tokens: Sequence[int], positions: list[int], lengths: list[int], places: list[int], **options: Any
    ) -> torch.Tensor:
        """Logits [len(places), V] of a row of samples."""
        row = [torch.tensor([numbers], device=self.device) for numbers in (tokens, positions)]
        outputs = self.model(
            input_ids=row[0],
            position_ids=row[1],
            lengths=torch.tensor(lengths),
            logits_to_keep=torch.tensor(places, device=self.device),
            use_cache=False,
            **options,
        )
        return outputs.logits[0]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        return self.in_parts(requests, super().loglikelihood_rolling, 0.0)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        if self.packed:
            stop_packing(self.model)
            self.packed = False
        return self.in_parts(requests, functools.partial(super().generate_until, disable_tqdm=True), "")

    def in_parts(self, requests: list[Any], answer: Callable[[list[Any]], list[Answer]], nothing: Answer) -> list[Any]:
        """Answers of a method of the library, which is given some of the requests at a time."""
        size = int(self.batch_size)
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        share, self.share = self.share, Share()  # what it calls in turn is not shared again
        found = share.do(len(parts), lambda part: answer(parts[part]))
        self.share = share
        return [one for part, answers in zip(parts, found) for one in (answers or [nothing] * len(part))]
