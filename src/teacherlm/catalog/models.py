"""Models, given by the name of a YAML file, by a folder, or by a hub id. Each becomes a local folder.

The YAML's fields are described in docs/reference/models.md.

As a script, this module answers a shell's questions: `python -P -m teacherlm.catalog.models get NAME finetune.batch
[...]` prints one value per line, `... request NAME finetune` prints the arguments of sbatch for a stage's job, and
`... folder NAME` makes the model's folder and prints its path.
"""

import contextlib
import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import SkipValidation

from teacherlm.catalog.adapters import base_folder, check_base_digest, is_adapter
from teacherlm.catalog.servers import KEY, check_address, is_address
from teacherlm.catalog.serving import Serve
from teacherlm.core.errors import UserError, reason
from teacherlm.core.flags import Parser
from teacherlm.core.manifests import describe
from teacherlm.core.names import meant, plain_name
from teacherlm.core.places import ROOT, in_home, require_hub_cache, yaml_file, yaml_names
from teacherlm.core.programs import print_for_shell, run
from teacherlm.core.yaml_fields import BOOLEANS, Number, Switch, Whole, fits, named, read_yaml, reading

FOLDER = ROOT / "models"

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Pickled weights are read only if there are no safetensors (OPT on the hub). transformers then reads them with
weights_only=True."""
GGUF = "*.gguf"
"""Quantized weights with their tokenizer. Only a server that `serve` starts reads them from a model's folder."""
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
NO_WEIGHTS = ("trainer_state.json", "manifest.json", "*.log")

MEMORY, TIME = re.compile(r"[0-9]{1,9}[KMGT]?"), re.compile(r"([0-9]{1,4}-)?[0-9]{1,7}(:[0-9]{1,2}){0,2}|UNLIMITED")
"""Amounts of memory and of time in sbatch's format."""
Count = Annotated[Whole, fits("a whole number from 1 to 1000000", range(1, 10**6 + 1).__contains__)]
CountOfGpus = Annotated[Whole, fits("a whole number from 0 to 1000000", range(10**6 + 1).__contains__)]
Rate = Annotated[Number, fits("a positive number", lambda number: 0 < number < math.inf)]
CHAT = ("auto", "true", "false")
Chat = Annotated[
    str,
    fits("auto, true or false", CHAT.__contains__),
    reading(lambda text: str(BOOLEANS.get(text.lower(), text)).lower()),
]
"""Whether a teacher gets its prompts as conversations; auto: if its tokenizer has a chat template."""
Memory = Annotated[str, fits("an amount in sbatch's format, for example 48G,", MEMORY.fullmatch)]
Time = Annotated[str, fits("a time in sbatch's format, for example 24:00:00,", TIME.fullmatch)]


@dataclass(frozen=True)
class Enhance:
    """Recommended values for enhancing."""

    batch: Count = 8
    num_tokens: Count = 2048


@dataclass(frozen=True)
class Finetune:
    """Recommended values for finetuning. The learning rate 6e-6 is the reference's example. With `chat`, the model as a
    student is trained through its chat template. The paper's students have none."""

    batch: Count = 8
    accumulation: Count = 1
    learning_rate: Rate = 6e-6
    deepspeed: str | None = None
    gradient_checkpointing: Switch = True
    chat: Switch = False


@dataclass(frozen=True)
class Job:
    """The resources that a stage's job requests from Slurm."""

    nodes: Count = 1
    gpus: CountOfGpus = 1
    cpus: Count = 8
    memory: Memory = "48G"
    time: Time = "24:00:00"


@dataclass(frozen=True)
class EvaluationJob(Job):
    """The resources that the job which scores checkpoints requests from Slurm."""

    time: Time = "04:00:00"


@dataclass(frozen=True)
class Slurm:
    """The resources that the job of each stage requests from Slurm."""

    enhance: Annotated[Job, named(Job)] = Job()
    finetune: Annotated[Job, named(Job)] = Job()
    evaluate: Annotated[EvaluationJob, named(EvaluationJob)] = EvaluationJob()


STAGES = tuple(asdict(Slurm()))


@dataclass(frozen=True)
class Model:
    """A model that a YAML file describes, or that a folder or a hub id names.

    docs/reference/models.md describes the fields.
    `enhance`, `finetune` and `slurm` are recommended values. A model without a YAML file has their defaults.
    """

    name: SkipValidation[str]
    family: str = "auto"
    parameters: Number | None = None
    hub: str | None = None
    revision: str = "main"
    path: str | None = None
    package: Mapping[str, str] | None = None
    server: str | None = None
    served: str | None = None
    explanations: str | None = None
    chat: Chat = "auto"
    serve: Serve | None = None
    enhance: Annotated[Enhance, named(Enhance)] = Enhance()
    finetune: Annotated[Finetune, named(Finetune)] = Finetune()
    slurm: Annotated[Slurm, named(Slurm)] = Slurm()

    @property
    def texts_from(self) -> str | None:
        """The server or the field that the texts of a teacher without weights come from. None if it has weights."""
        return self.server if self.server is not None else self.explanations

    def recommended(self, dotted: str) -> Any:
        """A recommended value: "finetune.batch", "slurm.finetune.gpus"."""
        value: Any = {stage: asdict(getattr(self, stage)) for stage in ("enhance", "finetune", "slurm")}
        for key in dotted.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise UserError(f"model {self.name}: no value {dotted!r}")
            value = value[key]
        return value


OF_A_NAME = ("server", "served", "explanations")
"""The fields of a model that its name gives. No YAML has them."""


def names() -> list[str]:
    return yaml_names(FOLDER)


def find_model(name: str, served: str | None = None, key_variable: str = KEY) -> Model:
    """The model that a name stands for: `models/NAME.yaml`, otherwise a folder, otherwise a hub id `owner/name`.

    A YAML file in the current folder's `models/` takes precedence over the project's.

    A teacher may also be an address, `http://host:port/model`, or a field of the records, `field:explanation`.

    Args:
        served: the name of a server's model, if the address does not contain it.
        key_variable: the environment variable with the server's key.

    Raises:
        UserError: it is none of these (similar names are listed); or a server's address contains a secret; or a key
            would be sent to the server unencrypted.
    """
    described = yaml_file(FOLDER, name) if "/" not in name else None
    if described is not None and described.is_file():
        model = read_yaml(described, Model, {"name": name, **dict.fromkeys(OF_A_NAME)})
        if sum(source is not None for source in (model.hub, model.path, model.package)) != 1:
            raise UserError(f"{described}: exactly one of hub, path and package was expected, for the weights' place")
        return model
    if is_address(name):
        last = check_address(name, served, key_variable).model.rsplit("/", 1)[-1]
        return Model(name=plain_name(last, f"the model of {name}"), server=name, served=served)
    if name.startswith("field:"):
        return Model(name=re.sub("[:/]", "-", name), explanations=name.removeprefix("field:"))
    folder = in_home(name, "HOME")
    if name and folder.is_dir():
        return Model(name=folder.resolve().name, path=str(folder))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Model(name=plain_name(name.split("/")[1], f"the model of {name}"), hub=name)
    if "/" in name:
        raise UserError(f"no model at {name}: no such folder; give a folder with config.json, tokenizer and weights")
    raise UserError(f"no model {name!r}; {meant(name, names())} (or give a folder, or a hub id owner/name)")


def require_weights(model: Model) -> None:
    """Refuse a model that has no weights.

    Raises:
        UserError: it is a server, or a field of the records.
    """
    if model.texts_from is not None:
        raise UserError(
            f"{model.server or model.name}: this can only be a teacher (TEACHER, --name); give a folder or a name here"
        )


def local_folder(model: Model) -> Path:
    """The folder with the model's config, tokenizer and weights. It is downloaded or made first if necessary.

    Raises:
        UserError: the folder cannot be downloaded or made, or it is not a model's folder.
    """
    require_weights(model)
    if model.package is not None:
        from teacherlm.catalog.packages import packaged_model

        return packaged_model(model.name, model.package)
    if model.hub is not None:
        return check_folder(download(model.hub, model.revision))
    path = str(model.path)
    folder = Path(path)
    if not folder.is_dir():
        folder = in_home(os.path.expandvars(path), "HOME")
    if "$" in str(folder) and not folder.is_dir():
        variable = path.split("$")[1].split("/")[0].strip("{}")
        raise UserError(f"model {model.name}: set {variable} to the folder that holds its weights ({model.path})")
    if model.serve is not None and has_only_gguf(folder):
        return folder
    return check_folder(folder)


def has_only_gguf(folder: Path) -> bool:
    """Whether a folder has weights that only a server reads."""
    configs = (folder / name for name in ("config.json", "adapter_config.json"))
    return any(folder.glob(GGUF)) and not any(config.is_file() for config in configs)


def small_files(name: str) -> Path:
    """A folder with a model's configuration and tokenizer. Weights on the hub are not downloaded.

    Raises:
        UserError: the files cannot be downloaded or found.
    """
    model = find_model(name)
    if model.hub is None:
        return local_folder(model)
    import huggingface_hub

    fetch = functools.partial(
        huggingface_hub.snapshot_download, model.hub, revision=model.revision, allow_patterns=[*SMALL_FILES]
    )
    with contextlib.suppress(Exception):  # missing or incomplete in the cache: download it
        return Path(fetch(local_files_only=True))
    require_hub_cache()
    try:
        return Path(fetch())
    except Exception as error:  # many types, as in `download`
        raise UserError(
            f"the configuration of {model.hub} could not be fetched from the hub ({reason(error)}); check its name, "
            "the network and HF_ENDPOINT, or give the folder of a copy"
        ) from error


def check_folder(folder: Path) -> Path:
    """Return the folder, after checking that it has a model's files."""
    if not folder.is_dir():
        raise UserError(f"no model at {folder}: no such folder; give a folder with config.json, tokenizer and weights")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"no model at {folder}: config.json is missing there; give a folder that save_pretrained wrote")
    if is_adapter(folder):
        base_folder(folder)
    if not any(any(folder.glob(pattern)) for pattern in (*WEIGHTS, *PICKLED_WEIGHTS, "adapter_model.bin")):
        raise UserError(f"no model at {folder}: no weights (*.safetensors) there")
    if not any(
        any(folder.glob(pattern)) for pattern in ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model")
    ):
        raise UserError(
            f"no model at {folder}: no tokenizer (tokenizer.json) there; save one with tokenizer.save_pretrained"
        )
    return folder


def fetch(hub: str, revision: str, weights: tuple[str, ...], **kwargs: Any) -> Path:
    """The folder of a model in the hub's cache, with these weights. Missing files are downloaded."""
    import huggingface_hub

    patterns = [*SMALL_FILES, *weights]
    return Path(
        huggingface_hub.snapshot_download(
            hub, revision=revision, allow_patterns=patterns, ignore_patterns="*/*", **kwargs
        )
    )


def cached_folder(hub: str, revision: str) -> Path | None:
    """The folder of a model in the hub's cache, or None if it is not there. Nothing is downloaded."""
    for weights in (WEIGHTS, PICKLED_WEIGHTS):
        with contextlib.suppress(Exception):  # missing or incomplete in the cache
            cached = fetch(hub, revision, weights, local_files_only=True)
            if any(any(cached.glob(pattern)) for pattern in weights):
                return cached
    return None


def download(hub: str, revision: str) -> Path:
    """Download a model from the hub into the hub's cache, as safetensors if there are any, and return its folder.

    A model that is already in the cache needs no network.
    """
    import huggingface_hub

    if cached := cached_folder(hub, revision):
        return cached
    require_hub_cache()
    try:
        files = huggingface_hub.model_info(hub, revision=revision).siblings
        safe = any(file.rfilename.endswith(".safetensors") and "/" not in file.rfilename for file in files)
        return fetch(hub, revision, WEIGHTS if safe else PICKLED_WEIGHTS)
    except Exception as error:  # the client raises errors of its own, of the network and of the file system
        raise UserError(
            f"the model {hub} could not be fetched from the hub ({reason(error)}); check its name, the network and "
            "HF_ENDPOINT, or give the folder of a copy"
        ) from error


def describe_model(
    folder: Path, known: Mapping[str, Any] | None = None, further: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The digest of a model's configuration, tokenizer and weights.

    The digest of adapters also covers their base model, which is described under `base`.

    Args:
        further: patterns of more files that the digest covers.

    Raises:
        UserError: the base model of adapters is missing, or has changed since their training.
    """
    described = describe_files(folder, known, further)
    if is_adapter(folder):
        base = describe_base(base_folder(folder), (known or {}).get("base"))
        check_base_digest(folder, base)
        digests = f"{described['sha256']}  adapters\n{base['sha256']}  base\n"
        described |= {"sha256": hashlib.sha256(digests.encode()).hexdigest(), "base": base}
    return described


def describe_files(
    folder: Path, known: Mapping[str, Any] | None = None, further: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The digest of a model's files in a folder, without optimizer states and other files."""
    found = {file for pattern in (*SMALL_FILES, *WEIGHTS, *further) for file in folder.glob(pattern)}
    read = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    if not any((folder / name).is_file() for name in read):  # the library then reads pickled weights instead
        found |= {file for pattern in (*PICKLED_WEIGHTS, "adapter_model.bin") for file in folder.glob(pattern)}
    files = sorted(file for file in found if not any(file.match(pattern) for pattern in NO_WEIGHTS))
    return describe(folder, known, files)


BASES: dict[Path, dict[str, Any]] = {}
"""Folder of a base model -> its last description. Checkpoints share a base model, so its weights are read only once."""


def describe_base(folder: Path, known: Mapping[str, Any] | None) -> dict[str, Any]:
    BASES[folder] = describe_files(folder, BASES.get(folder) or known)
    return BASES[folder]


def main() -> None:
    parser = Parser(prog="teacherlm.catalog.models", description="Answer a shell's questions about a model.")
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("get", help="print recommended values, one per line")
    get.add_argument("name")
    get.add_argument("fields", nargs="+", help="name, or for example finetune.batch")
    folder = commands.add_parser("folder", help="print the model's folder; it is made or downloaded first if needed")
    folder.add_argument("name")
    of_sbatch = commands.add_parser("request", help="print the arguments of sbatch for a stage's job, one per line")
    of_sbatch.add_argument("name")
    of_sbatch.add_argument("stage", choices=STAGES)
    of_sbatch.add_argument("--gpu_type", default="", help="type of GPU for --gres")
    args = parser.parse_args()
    model = find_model(args.name)
    if args.command == "folder":
        print_for_shell(str(local_folder(model)))
        return
    if args.command == "request":
        for word in request(model, args.stage, args.gpu_type):
            print_for_shell(word)
        return
    for dotted in args.fields:
        value = model.name if dotted == "name" else model.recommended(dotted)
        print_for_shell(for_shell(value))


def request(model: Model, stage: str, gpu_type: str) -> list[str]:
    """The arguments of sbatch for a stage's job, as the model's YAML recommends.

    On several nodes, srun starts a process per GPU. Each node then has one task per GPU, and the tasks share its CPUs.
    """
    nodes, gpus, cpus, memory, time = (
        model.recommended(f"slurm.{stage}.{name}") for name in ("nodes", "gpus", "cpus", "memory", "time")
    )
    tasks = max(gpus, 1) if nodes > 1 else 1
    words = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--cpus-per-task={max(cpus // tasks, 1)}"]
    words += [f"--mem={memory}", f"--time={time}"]
    return words + ([f"--gres=gpu:{gpu_type + ':' * bool(gpu_type)}{gpus}"] if gpus else [])


def for_shell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


if __name__ == "__main__":
    run(main)
