"""A model on its device, and the path on which its logits are computed.

packed   samples are packed into one row without padding, and shared prefixes are computed once
padded   samples are padded on the right to one length
single   one sample at a time

The first path that agrees with the library's plain forward pass is used (src/teacherlm/runtime/self_check.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from teacherlm.core.errors import UserError
from teacherlm.runtime.check_sequences import make_sequences, shared_length, window_beyond
from teacherlm.runtime.loading import is_finite, load_model, weight_files
from teacherlm.runtime.memory import keep_freed_memory
from teacherlm.runtime.model_config import attention_windows, picks_tokens
from teacherlm.runtime.packed_attention import stop_packing, use_packing
from teacherlm.runtime.packed_linear import PackedLinear, pack_linears
from teacherlm.runtime.plain_pass import COMPARED, plain_arguments, set_attention
from teacherlm.runtime.self_check import expected_logits, fault_of, tolerance_of
from teacherlm.runtime.verdicts import NOT_FOR_THIS, Verdict, first_exact, remembered
from teacherlm.scoring.batching import SHORTEST_PREFIX, Group, Tokens

PATHS = ("packed", "padded", "single")
WORDS = {"padded": "in padded batches", "single": "one input at a time"}


class ScoredModel:
    """A causal model for log-likelihoods and generation.

    Args:
        folder: the model's folder.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        digest: the model's digest, under which the verdict of the self-check is kept; None means it is not kept.

    Attributes:
        verdict: how logits are computed; None before `prepare` is called.
    """

    def __init__(self, folder: Path, device: str, dtype: str, digest: str | None = None):
        self.folder, self.device, self.digest = folder, device, digest
        self.dtype = getattr(torch, dtype)
        self.model = self.load()
        self.verdict: Verdict | None = None
        self.checked: int | None = None
        self.packed = False
        self.kept: tuple[Tokens, ...] = ()

    def load(self) -> torch.nn.Module:
        self.linears_packed = False
        model = load_model(self.folder, dtype=self.dtype).to(self.device).eval()
        self.sums = sums_of(model)
        return model

    # ------------------------------------------------------------------------------------------------- choosing a path

    def prepare(self, longest: int) -> None:
        """Find the path for inputs of at most `longest` tokens, unless it is already known."""
        windows = [window for window in attention_windows(self.model.config) if window < longest]
        reach = max(windows, default=0)
        if self.verdict is not None and reach <= self.checked:
            return
        if self.verdict is not None:  # these inputs exceed a window that the earlier ones did not reach
            self.end_packing()
            self.model = self.load()
        self.checked = reach
        self.limit = window_beyond(self.model.config, longest)
        key = {"stage": "evaluate", "model": self.digest, "dtype": str(self.dtype), "device": self.device}
        key["longest"] = self.limit
        self.verdict = remembered(key if self.digest else None, self.find_path)
        self.apply(self.verdict)

    def find_path(self) -> Verdict:
        """The first path whose logits agree with the plain forward pass.

        Raises:
            UserError: there is no such path, or the model is not a causal decoder.
        """
        sequences = make_sequences(self.model.config, self.limit)
        tolerance = tolerance_of(self.model, self.dtype, self.limit)
        expected = expected_logits(self.model, sequences, tolerance)

        def fault(path: str, plain_linears: bool, attention: str) -> str:
            self.shape_model(attention, plain_linears)
            return self.fault(path, sequences, expected, tolerance)

        config = self.model.config
        return first_exact(PATHS, self.device == "cpu", fault, config, self.folder, PATHS[:1])

    def shape_model(self, attention: str, plain_linears: bool) -> None:
        """Set the model's attention, and pack or restore its linear layers."""
        if self.linears_packed and plain_linears:
            self.model = self.load()
        set_attention(self.model, attention)
        if self.device == "cpu" and not plain_linears and not self.linears_packed:
            pack_linears(self.model.base_model)  # the head stays plain: it computes few positions and may be tied
            self.linears_packed = True

    def fault(self, path: str, sequences: list[list[int]], expected: list[torch.Tensor], tolerance: float) -> str:
        """What is wrong with a path on these sequences, whose last two share a prefix; "" when nothing is wrong."""
        inputs = [tuple(tokens) for tokens in sequences]
        if path != PATHS[-1] and picks_tokens(self.model.config):
            return NOT_FOR_THIS
        if path == "packed" and not use_packing(self.model, longest=max(map(len, inputs))):
            return NOT_FOR_THIS
        self.packed = path == "packed"
        scored = [min(COMPARED, len(tokens)) for tokens in inputs]

        def fault_in(group: Group) -> str:
            sizes = [scored[member] for member in group.members]
            return fault_of(
                lambda: list(self.logits_by(path, [group], inputs, scored).split(sizes)),
                [expected[member][-scored[member] :] for member in group.members],
                tolerance,
            )

        fault = fault_in(Group(0, tuple(range(len(inputs)))))
        shared = shared_length(sequences)
        if not fault and self.packed and shared >= SHORTEST_PREFIX:
            pair = (len(inputs) - 2, len(inputs) - 1)
            for member in pair:  # scored positions must not be in the prefix
                scored[member] = min(scored[member], len(inputs[member]) - shared)
            fault = fault_in(Group(shared, pair))
        self.end_packing()
        return fault

    def apply(self, verdict: Verdict) -> None:
        self.shape_model(verdict.attention, verdict.plain_linears)
        if self.device == "cpu":
            keep_freed_memory()  # only now, so that the memory of the unpacked weights was returned to the system
        if verdict.path != PATHS[0]:
            print(
                f"evaluate: {self.model.config.model_type}: computed {WORDS[verdict.path]} ({verdict.why})", flush=True
            )

    def end_packing(self) -> None:
        """Restore the model's original attention, for padded batches and generation."""
        if self.packed:
            stop_packing(self.model)
        self.packed = False
        self.kept = ()

    def swap(self, folder: Path, digest: str | None) -> bool:
        """Replace the model's weights by those of another checkpoint, and return whether that was possible.

        It is not possible if the checkpoint does not hold exactly the weights of this model, if the model has changed
        its weights since loading (RWKV rescales them), or if the checkpoint stores tied weights separately. The caller
        then loads the whole model.

        Raises:
            UserError: a weight is not finite.
        """
        state = self.model.state_dict()
        if any(self.sums.get(name) != total for name, total in sums_of(self.model).items()):
            return False
        modules = self.model.named_modules()
        linears = {f"{name}.weight": module for name, module in modules if isinstance(module, PackedLinear)}
        shapes = {name: part.weight.shape for name, part in linears.items()} | {n: p.shape for n, p in state.items()}
        loaded: dict[str, torch.Tensor] = {}
        for file in weight_files(folder):
            loaded |= load_file(file)
        tied = set(state) - set(loaded)
        fits = loaded and set(linears) <= set(loaded) and all(shapes.get(n) == p.shape for n, p in loaded.items())
        there = {state[name].data_ptr() for name in set(state) & set(loaded)}
        if not fits or any(state[name].data_ptr() not in there for name in tied):
            return False
        shared = [state[name].data_ptr() for name in loaded if name in state and state[name].numel()]
        if len(set(shared)) < len(shared):
            return False
        for name, tensor in loaded.items():
            if not is_finite(tensor):
                raise UserError(f"the model in {folder}: the tensor {name} holds numbers that are not finite")
            if name in linears:
                linears[name].pack(tensor)
            else:
                state[name].copy_(tensor)
        self.folder, self.digest = folder, digest
        self.sums = sums_of(self.model)
        self.kept = ()
        return True

    # ---------------------------------------------------------------------------------------------------------- logits

    @torch.inference_mode()
    def logits(self, batch: list[Group], inputs: Sequence[Tokens], scored: Sequence[int]) -> torch.Tensor:
        """Logits [S, V] at the last `scored` positions of each member of the batch, in the order of the batch.

        Args:
            batch: groups of inputs; see batching.py.
            inputs: all inputs.
            scored: for each input, the number of its last positions that are scored.
        """
        path = self.verdict.path
        if path == "packed" and not self.packed:
            self.packed = use_packing(self.model, longest=self.limit or max(map(len, inputs)))
        return self.logits_by(path, batch, inputs, scored)

    @torch.inference_mode()
    def logits_by(self, path: str, batch: list[Group], inputs: Sequence[Tokens], scored: Sequence[int]) -> torch.Tensor:
        if path == "packed":
            return self.packed_logits(batch, inputs, scored)
        members = [member for group in batch for member in group.members]
        if path == "padded":
            return self.padded_logits(members, inputs, scored)
        return torch.cat([self.single_logits(inputs[member], scored[member]) for member in members])

    def single_logits(self, tokens: Tokens, scored: int) -> torch.Tensor:
        row = torch.tensor([tokens], device=self.device)
        return self.model(input_ids=row, **plain_arguments(self.model, scored)).logits[0, -scored:]

    def padded_logits(self, members: list[int], inputs: Sequence[Tokens], scored: Sequence[int]) -> torch.Tensor:
        lengths = [len(inputs[member]) for member in members]
        ids_BT = torch.zeros(len(members), max(lengths), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, member in enumerate(members):
            ids_BT[row, : lengths[row]] = torch.tensor(inputs[member])
            mask_BT[row, : lengths[row]] = 1
        kwargs = plain_arguments(self.model, max(lengths))
        logits_BTV = self.model(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device), **kwargs
        ).logits
        parts = [logits_BTV[row, lengths[row] - scored[member] : lengths[row]] for row, member in enumerate(members)]
        return torch.cat(parts)

    def packed_logits(self, batch: list[Group], inputs: Sequence[Tokens], scored: Sequence[int]) -> torch.Tensor:
        prefixes = self.keep_prefixes(batch, inputs)
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []  # the indices in the row of all scored positions
        for group in batch:
            for member in group.members:
                tokens += inputs[member][group.prefix :]
                positions += range(group.prefix, len(inputs[member]))
                places += range(len(tokens) - scored[member], len(tokens))
        lengths = [len(inputs[member]) - group.prefix for group in batch for member in group.members]
        return self.forward(tokens, positions, lengths, places, prefixes=prefixes)

    def keep_prefixes(self, batch: list[Group], inputs: Sequence[Tokens]) -> list[slice | None]:
        """Compute the batch's prefixes unless the last batch had the same ones.

        Returns:
            For each member, the position of its prefix in the row of prefixes; None without a prefix.
        """
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
        self, tokens: Sequence[int], positions: list[int], lengths: list[int], places: list[int], **kwargs: Any
    ) -> torch.Tensor:
        """Logits [len(places), V] at the given places of a row of samples."""
        row = [torch.tensor([numbers], device=self.device) for numbers in (tokens, positions)]
        outputs = self.model(
            input_ids=row[0],
            position_ids=row[1],
            lengths=torch.tensor(lengths),
            logits_to_keep=torch.tensor(places, device=self.device),
            use_cache=False,
            **kwargs,
        )
        return outputs.logits[0]


def sums_of(model: torch.nn.Module) -> dict[str, float]:
    """The sum of each weight tensor of a model, which shows whether it has changed. Packed weights cannot change."""
    return {name: float(part.detach().sum(dtype=torch.float32)) for name, part in model.named_parameters()}
