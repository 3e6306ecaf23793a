"""Folders of adapters in peft's format: finding their base model, checking that it is unchanged, and loading the
adapters into it."""

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
"""File in a checkpoint of adapters with the digest of the model that they were trained on."""
COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that hold or list the weights of a whole model."""
SAYS_NOTHING = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "quantization_config",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Settings in a config.json beside adapters that may differ from the base model's settings."""
APART = 1e-3
"""Maximum difference of logits, relative to the largest logit, that rounding explains."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters without their base model. (Some programs put a config.json beside them.)

    Raises:
        UserError: the folder also holds the weights of a whole model.
    """
    if not (folder / CONFIG).is_file():
        return False
    if whole := next((name for name in WHOLE if (folder / name).is_file()), None):
        raise UserError(
            f"{folder} holds a whole model ({whole}) and {CONFIG}, and nothing says whether the model's weights "
            f"contain the adapters; if they do, remove {CONFIG} and adapter_model.*, otherwise remove {whole}"
        )
    return True


def base_reference(model: "Model", folder: Path) -> tuple[str, str | None]:
    """The (name, revision) with which adapters name their base model: its hub id and commit, or its path and None.

    Args:
        model: the base model.
        folder: the base model's folder on this machine. In the hub's cache, the folder's name is the commit.
    """
    if model.hub is None:
        return str(folder.absolute()), None
    return model.hub, folder.name if COMMIT.fullmatch(folder.name) else model.revision


def base_folder(folder: Path) -> Path:
    """The folder of the base model of the adapters in a folder. A base model on the hub is downloaded.

    A relative path starts from the adapters' folder.

    Raises:
        UserError: the base model cannot be found; the message names it.
    """
    from teacherlm.catalog.models import Model, local_folder

    try:
        config = load_object(folder / CONFIG)
        name, revision = config["base_model_name_or_path"], config.get("revision")
        base = Path(folder, name)  # an absolute name stays as it is; no name is relative to the current folder
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: this file does not name the adapters' base model ({error})") from error
    if name and base.is_dir():
        if (base / CONFIG).is_file():
            raise UserError(
                f"{folder}: the base model of these adapters, {base}, itself consists of adapters ({CONFIG}); merge "
                "those into a model first"
            )
        return base
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(
            f"{folder}: the base model of these adapters is missing: {name}; put it back, or set "
            f"base_model_name_or_path in {CONFIG} to its new place"
        )
    try:
        return local_folder(Model(name=base.name, hub=name, revision=revision or "main"))
    except UserError as error:
        raise UserError(
            f"{folder}: the base model of these adapters, {name}, is not a folder here, and as a hub id: {error}"
        ) from error


def write_base_digest(folder: Path, digest: str) -> None:
    (folder / BASE).write_text(json.dumps({"sha256": digest}) + "\n", encoding="utf-8")


def check_base_digest(folder: Path, base: Mapping[str, Any]) -> None:
    """Refuse adapters whose base model has changed since their training. Adapters without a digest are accepted.

    Args:
        base: the description of the base model's folder.

    Raises:
        UserError: the message names the base model.
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
    """Load a folder's adapters into their base model, which then computes the same as peft's wrapped model.

    Raises:
        UserError: the installed peft cannot read the adapters or does not know all their settings; or they do not fit
            the base model; or some of their weights are missing; or they work only in peft's own forward pass (learned
            prompts, adapters that start at a certain token).
    """
    import torch
    from peft import get_peft_model

    config = read_config(folder)
    check_config(folder, model)
    require_bounded_settings(folder / CONFIG, load_object(folder / CONFIG), model)
    biases = getattr(config, "bias", "none") == "all"  # the file then also has the base model's biases
    of_base = {id(part) for name, part in model.named_parameters() if not (biases and "bias" in name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the code below checks what peft warns about
        try:
            adapted = get_peft_model(model, config)
            with torch.no_grad():
                for part in adapted.parameters():
                    if id(part) not in of_base:
                        part.fill_(torch.nan)  # weights that the file lacks stay NaN, and are found below
            info = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
        except Exception as error:  # errors of peft, of a broken file, of weights that do not fit
            raise UserError(f"the adapters in {folder} cannot be loaded: {one_line(error)[:300]}") from error
    if info.unexpected_keys:
        raise UserError(
            f"the adapters in {folder} do not fit their base model, which has no module for {info.unexpected_keys[0]}"
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
            "the same as peft; merge them into their base model, and give the merged model"
        )


def read_config(folder: Path) -> Any:
    """The settings of a folder's adapters.

    Raises:
        UserError: they cannot be read, or the adapters do not only change layers' weights.
    """
    from peft import PeftConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft only warns about a setting that it does not know
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except Exception as error:  # errors of JSON and of peft
            raise UserError(f"{folder / CONFIG}: these adapters cannot be used: {reason(error)}") from error
    starts = getattr(config, "alora_invocation_tokens", None)
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type.value == "XLORA" or starts:
        kind = config.peft_type.value + (" with alora_invocation_tokens" if starts else "")
        raise UserError(
            f"the adapters in {folder} ({kind}) are refused: they do not only change the weights of layers; give "
            "LoRA adapters or similar ones, or a whole model"
        )
    return config


def check_config(folder: Path, model: "PreTrainedModel") -> None:
    """Refuse adapters with a config.json that does not describe their base model.

    Raises:
        UserError: the message names the first setting that differs.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return
    try:
        beside = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().to_dict()
    except Exception as error:  # errors of JSON and of the library's checks
        raise UserError(f"the configuration in {folder} cannot be read: {reason(error)}") from error
    base = model.config.get_text_config().to_dict()
    for name in sorted((beside.keys() | base.keys()) - SAYS_NOTHING):
        if beside.get(name) != base.get(name):
            raise UserError(
                f"{folder / 'config.json'} has {name} {beside.get(name)!r}, but the base model of these adapters has "
                f"{base.get(name)!r}; remove that file, or name the right base model in {CONFIG}"
            )
