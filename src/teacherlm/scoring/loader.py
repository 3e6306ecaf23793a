"""Models loaded one after the other: where two differ by their weights alone, only those are read."""

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
)


SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
"""Settings in these files that differ between checkpoints of one model: the weights are computed in --dtype."""


class Unusable(UserError):
    """A model that cannot be scored. Of several checkpoints the others are scored nevertheless."""


class Loader:
    """Loads models one after the other: of a run's checkpoints, only the weights change."""

    def __init__(self, flags: EvaluateFlags):
        self.flags = flags
        self.folder: Path | None = None
        self.model: Any = None

    def __call__(self, folder: Path, digest: str) -> Any:
        if folder == self.folder:
            return self.model
        from teacherlm.scoring.language_model import LanguageModel

        flags = self.flags
        before, self.folder = self.folder, None  # where loading fails, the model is of neither
        try:
            swapped = before and same_model(folder, before) and self.model.scored.swap(folder, digest)
            if not swapped:
                self.model = None  # its memory is needed for the next
                how = (flags.device, flags.dtype, flags.tokenization, flags.batch_size)
                self.model = LanguageModel(folder, *how, digest)
        except UserError as error:
            raise Unusable(str(error)) from error
        self.folder = folder
        return self.model


def same_model(one: Path, other: Path) -> bool:
    """Whether two folders differ by nothing but their weights: the same configuration, generation and tokenizer."""
    return all(content(one / name) == content(other / name) for name in MODEL_FILES)


def content(file: Path) -> Any:
    """What a file says, without what says nothing of how a model computes; None where there is no such file."""
    if not file.is_file():
        return None
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        found = load_json(file)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):  # a broken file; loading says so
        return file.read_bytes()
    return {name: value for name, value in found.items() if name not in SAYS_NOTHING}
