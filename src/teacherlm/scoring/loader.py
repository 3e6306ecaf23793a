"""Load models one after the other. If two models differ only in their weights, only the weights are read."""

import gc
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError
from teacherlm.core.json_files import load_json
from teacherlm.scoring.flags import EvaluateFlags

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
"""Settings in these files that may differ between checkpoints of one model without any effect on the results."""


class Unusable(UserError):
    """A model that cannot be scored. With --checkpoints, the other models are still scored."""


class Loader:
    """Loads models one after the other. For the checkpoints of one run, it only replaces the weights."""

    def __init__(self, flags: EvaluateFlags):
        self.flags = flags
        self.folder: Path | None = None
        self.model: Any = None

    def __call__(self, folder: Path, digest: str) -> Any:
        if folder == self.folder:
            return self.model
        from teacherlm.scoring.language_model import LanguageModel

        flags = self.flags
        before, self.folder = self.folder, None  # if loading fails, the model belongs to neither folder
        try:
            swapped = before and same_model(folder, before) and self.model.scored.swap(folder, digest)
            if not swapped:
                self.model = None  # frees its memory for the next model
                how = (flags.device, flags.dtype, flags.tokenization, flags.batch_size)
                self.model = LanguageModel(folder, *how, digest)
        except UserError as error:
            raise Unusable(str(error)) from error
        self.folder = folder
        return self.model

    def free(self) -> None:
        """Free the memory of the model."""
        self.folder = self.model = None
        gc.collect()


def same_model(one: Path, other: Path) -> bool:
    """Whether two folders differ only in their weights: configuration, generation settings and tokenizer are equal."""
    return all(content(one / name) == content(other / name) for name in MODEL_FILES)


def content(file: Path) -> Any:
    """The contents of a file without settings that have no effect on the results; None if the file does not exist."""
    if not file.is_file():
        return None
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        found = load_json(file)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):  # the file is broken; loading the model reports it
        return file.read_bytes()
    return {name: value for name, value in found.items() if name not in SAYS_NOTHING}
