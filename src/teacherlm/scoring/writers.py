"""The engine that writes a model's answers: the same engines as for enhancing, one model at a time."""

import gc
import os
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError
from teacherlm.runtime.generation import Engine, Sampling, most_tokens
from teacherlm.runtime.generation.vllm_choice import vllm_lacks
from teacherlm.scoring.flags import STOP, EvaluateFlags
from teacherlm.scoring.loader import Unusable


def engine_of(flags: EvaluateFlags, folder: Path) -> str:
    """The name of the engine for a model.

    Raises:
        UserError: --engine vllm was asked for, and vLLM cannot take the model here.
    """
    if flags.engine == "transformers":
        return flags.engine
    lacks = vllm_lacks(folder, flags.dtype)
    if lacks and flags.engine == "vllm":
        raise UserError(f"--engine vllm: {lacks}; use --engine transformers")
    return "transformers" if lacks else "vllm"


class Writers:
    """Makes the engines of models one after the other. The engine of the last model is kept."""

    def __init__(self, flags: EvaluateFlags):
        self.flags = flags
        self.folder: Path | None = None
        self.longest = 0
        self.engine: Any = None

    def __call__(self, folder: Path, digest: str, longest: int, chat: bool) -> Engine:
        """The engine of a model.

        Args:
            digest: the model's digest, under which the verdict of the self-check is kept.
            longest: number of bytes of the longest prompt.
        """
        flags = self.flags
        longest = most_tokens(folder, longest, flags.num_tokens, chat)
        if self.engine is not None and folder == self.folder and longest <= self.longest:
            return self.engine
        self.free()
        sampling = Sampling(flags.num_tokens, flags.temperature, flags.top_p, stops(flags, chat))
        try:
            if engine_of(flags, folder) == "vllm":
                from teacherlm.runtime.generation.vllm_engine import VLLMEngine

                if flags.device is not None and flags.device.isdecimal():  # one process per GPU
                    os.environ["CUDA_VISIBLE_DEVICES"] = visible(int(flags.device))
                self.engine = VLLMEngine(folder, flags.dtype, sampling)
            else:
                from teacherlm.runtime.generation.transformers_engine import TransformersEngine
                from teacherlm.runtime.gpu import device_of

                device = None if flags.device is None else device_of(flags.device)
                rows = flags.batch_size
                self.engine = TransformersEngine(
                    folder, flags.dtype, sampling, rows, digest, longest, device, label="evaluate"
                )
            if chat:
                from teacherlm.runtime.chat_student import ChatStudent

                student = ChatStudent(self.engine.tokenizer, folder)
                self.engine.template = student
                self.engine.end_tokens = {*self.engine.end_tokens, student.ends}
        except UserError as error:
            raise Unusable(str(error)) from error
        self.folder, self.longest = folder, longest
        return self.engine

    def free(self) -> None:
        """Free the memory of the model."""
        if self.engine is None:
            return
        self.engine = self.folder = None
        gc.collect()
        import torch

        torch.cuda.empty_cache()


def stops(flags: EvaluateFlags, chat: bool) -> tuple[str, ...]:
    """The texts that end an answer. A chat model ends its turn itself."""
    return (() if chat else STOP) if flags.stop is None else flags.stop


def visible(device: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES with which only this one of the visible GPUs is seen."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[device] if named else str(device)
