"""Folders of adapters (peft's format): which base model they belong to, whether it is still the same, and how they are
put into it."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherlm.catalog.adapter_settings import require_bounded_settings
from teacherlm.core.errors import UserError, one_line, reason
from teacherlm.core.json_files import load_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from teacherlm.catalog.models import Model

CONFIG = "adapter_config.json"
BASE = "base_model.json"
"""File in a checkpoint of adapters: the digest of the model that they were trained on."""
COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of which one holds, or lists, the weights of a whole model."""
SAYS_NOTHING = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "quantization_config",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Settings in a config.json beside adapters that may differ from the base model's."""
APART = 1e-3
"""Largest difference of logits, relative to the largest logit, that is rounding."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters without their base model. (Some programs put a config.json beside them.)

    Raises:
        UserError: it holds the weights of a whole model as well.
    """
    if not (folder / CONFIG).is_file():
        return False
    if whole := next((name for name in WHOLE if (folder / name).is_file()), None):
        raise UserError(
            f"{folder} holds a whole model ({whole}) and {CONFIG}, and nothing says whether the adapters are part of "
            f"the model's weights; take {CONFIG} and adapter_model.* away if they are, else {whole}"
        )
    return True


def base_reference(model: "Model", folder: Path) -> tuple[str, str | None]:
    """How adapters name their base model: its hub id and commit, or its absolute path.

    Args:
        model: the base model.
        folder: where it is on this machine; that of a model from the hub is named after its commit.
    """
    if model.hub is None:
        return str(folder.absolute()), None
    return model.hub, folder.name if COMMIT.fullmatch(folder.name) else model.revision


def base_folder(folder: Path) -> Path:
    """The folder of the base model that the adapters in a folder belong to; fetched from the hub where it is there.

    A relative path begins in the adapters' folder.

    Raises:
        UserError: it cannot be found; the message names it.
    """
    from teacherlm.catalog.models import Model, local_folder

    try:
        config = load_object(folder / CONFIG)
        name, revision = config["base_model_name_or_path"], config.get("revision")
        base = Path(folder, name)  # of an absolute path itself; never what the current folder happens to have there
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: it does not name the adapters' base model ({error})") from error
    if name and base.is_dir():
        if (base / CONFIG).is_file():
            raise UserError(
                f"{folder}: the base model of these adapters, {base}, consists of adapters itself ({CONFIG}); merge "
                "those into a model first"
            )
        return base
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(
            f"{folder}: the base model of these adapters is not there: {name}; put it back, or write where it is now "
            f"as base_model_name_or_path into {CONFIG}"
        )
    try:
        return local_folder(Model(name=base.name, hub=name, revision=revision or "main"))
    except UserError as error:
        raise UserError(
            f"{folder}: the base model of these adapters, {name}, is no folder here, and as a hub id: {error}"
        ) from error


def write_base_digest(folder: Path, digest: str) -> None:
    (folder / BASE).write_text(json.dumps({"sha256": digest}) + "\n", encoding="utf-8")


def check_base_digest(folder: Path, base: Mapping[str, Any]) -> None:
    """Refuse adapters whose base model is not the one that they were trained on, where they say which one that was.

    Args:
        base: description of the base model's folder.

    Raises:
        UserError: it names the base model.
    """
    if not (folder / BASE).is_file():
        return
    try:
        trained = str(load_object(folder / BASE)["sha256"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder / BASE}: a JSON object with sha256 was expected") from error
    if base["sha256"] != trained:
        raise UserError(
            f"{folder}: the base model of these adapters, {base['path']}, changed since they were trained (sha256 "
            f"{trained[:12]}, now {base['sha256'][:12]}); put the former one back, or train them again"
        )


def attach(model: "PreTrainedModel", folder: Path) -> None:
    """Put a folder's adapters into their base model, which then computes what peft's own model computes.

    Raises:
        UserError: this peft cannot read them or does not know all of their settings; they do not fit the base model, or
            some of their weights are missing; they are of a kind that a model cannot hold without peft's own forward
            pass (prompts of their own, adapters that begin at a certain token).
    """
    import torch
    from peft import get_peft_model

    config = read_config(folder)
    check_config(folder, model)
    require_bounded_settings(folder / CONFIG, load_object(folder / CONFIG), model)
    biases = getattr(config, "bias", "none") == "all"  # then those of the base model are in the file as well
    of_base = {id(part) for name, part in model.named_parameters() if not (biases and "bias" in name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of here is checked below
        try:
            adapted = get_peft_model(model, config)
            with torch.no_grad():
                for part in adapted.parameters():
                    if id(part) not in of_base:
                        part.fill_(torch.nan)  # so that what the file does not bring shows
            info = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
        except Exception as error:  # of peft, of a broken file, of weights that do not fit
            raise UserError(f"the adapters in {folder} cannot be loaded: {one_line(error)[:300]}") from error
    if info.unexpected_keys:
        raise UserError(
            f"the adapters in {folder} do not fit their base model, which has no place for {info.unexpected_keys[0]}"
        )
    if missing := [name for name, part in adapted.named_parameters() if part.isnan().any()]:
        raise UserError(
            f"the adapters in {folder} lack the tensor {missing[0]}, or it holds numbers that are not finite"
        )
    ids_1T = torch.arange(1, 9, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        expected, found = adapted(input_ids=ids_1T).logits.float(), model(input_ids=ids_1T).logits.float()
    if not (found - expected).abs().max() <= APART * expected.abs().max():
        raise UserError(
            f"the adapters in {folder} ({config.peft_type.value}) are refused: the model with them does not compute "
            "what peft computes; merge them into their base model, and give that"
        )


def read_config(folder: Path) -> Any:
    """The settings of a folder's adapters.

    Raises:
        UserError: they cannot be read, or are of a kind that is not one of layers.
    """
    from peft import PeftConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a setting that this peft does not know is left out with a warning
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except Exception as error:  # of JSON, of peft
            raise UserError(f"{folder / CONFIG}: these adapters cannot be used: {reason(error)}") from error
    starts = getattr(config, "alora_invocation_tokens", None)
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type.value == "XLORA" or starts:
        kind = config.peft_type.value + (" with alora_invocation_tokens" if starts else "")
        raise UserError(
            f"the adapters in {folder} ({kind}) are refused: they are more than weights of the model's layers; give "
            "adapters of LoRA's kind, or a whole model"
        )
    return config


def check_config(folder: Path, model: "PreTrainedModel") -> None:
    """Refuse a config.json beside adapters that describes another model than their base model.

    Raises:
        UserError: it names the first setting that differs.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return
    try:
        beside = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().to_dict()
    except Exception as error:  # of JSON, of the library's checks
        raise UserError(f"the configuration in {folder} cannot be read: {reason(error)}") from error
    base = model.config.get_text_config().to_dict()
    for name in sorted((beside.keys() | base.keys()) - SAYS_NOTHING):
        if beside.get(name) != base.get(name):
            raise UserError(
                f"{folder / 'config.json'} says {name} {beside.get(name)!r}, and the base model of these adapters "
                f"{base.get(name)!r}; remove that file, or name the right base model in {CONFIG}"
            )
