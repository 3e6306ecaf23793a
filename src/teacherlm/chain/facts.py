"""What the YAML files say about a chain's benchmark and models, and which models are on this machine's disks.

The chain calls `ask`. The chain may run outside the image and without packages, so `ask` starts `main` in the stages'
Python and reads the JSON that `main` prints.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError, one_line
from teacherlm.core.flags import Parser
from teacherlm.core.programs import print_for_shell
from teacherlm.runtime.launcher import program

STAGES_OF_STUDENT = ("finetune", "evaluate")


@dataclass(frozen=True)
class ModelFacts:
    """The values that a model's YAML recommends.

    Attributes:
        values: the values for finetuning and enhancing: "finetune.batch" -> "8".
        requests: stage -> the arguments of sbatch for its job.
        gpus: stage -> the number of GPUs that one of its tasks needs.
        serves: whether it says the command of a server (ENGINE=serve).
    """

    name: str
    values: dict[str, str]
    requests: dict[str, list[str]] = field(default_factory=dict)
    gpus: dict[str, int] = field(default_factory=dict)
    serves: bool = False


@dataclass(frozen=True)
class PromptFacts:
    """What a file of prompts makes.

    Attributes:
        kinds: the kinds of explanation, in their order.
        training_fields: field that a student can be trained on -> the kinds of explanation that it needs.
    """

    name: str
    kinds: tuple[str, ...]
    training_fields: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Facts:
    """What the YAML files say about a chain.

    Attributes:
        titles: benchmark -> its title, which the names of its files begin with.
        teachers: teacher as the settings name it -> what its YAML says.
    """

    titles: Mapping[str, str]
    student: ModelFacts
    teachers: Mapping[str, ModelFacts]


def ask(benchmarks: Sequence[str], student: str, teachers: Sequence[str], gpu_type: str = "") -> Facts:
    """The facts of a chain.

    Args:
        benchmarks: the benchmarks that are trained on or scored.

    Raises:
        SystemExit: there is no such benchmark or model; a message on stderr says so.
    """
    words = [f"--benchmark={name}" for name in benchmarks]
    found = answer(["of", *words, "--gpu_type", gpu_type, "--", student, *teachers])
    of_teachers = {name: ModelFacts(**facts) for name, facts in found["teachers"].items()}
    return Facts(found["titles"], ModelFacts(**found["student"]), of_teachers)


def ask_prompts(name: str) -> PromptFacts:
    """The facts of a file of prompts.

    Raises:
        SystemExit: there is no such file, or it has a mistake; a message on stderr says so.
    """
    return prompt_facts_in(name, str(Path.cwd()))


@functools.cache
def prompt_facts_in(name: str, folder: str) -> PromptFacts:
    """The facts of a file of prompts, in the current folder."""
    found = answer(["prompts", "--", name])
    fields = {field: tuple(kinds) for field, kinds in found["training_fields"].items()}
    return PromptFacts(found["name"], tuple(found["kinds"]), fields)


def absent_models(names: Sequence[str], *, make: bool) -> dict[str, str]:
    """The models among these that are not on this machine's disks -> why. A text is empty for a model of the hub.

    Args:
        make: make the models that a package contains, so that the jobs need not. Without it, nothing is written.
    """
    found: dict[str, str] = answer(["absent", *(["--make"] if make else []), "--", *names], offline=True)
    return found


def answer(words: list[str], *, offline: bool = False) -> Any:
    environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    start = program("chain-facts")
    command = [*start[:-1], "--called", Path(sys.argv[0]).name, start[-1], *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)  # the program has printed a message on stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = Parser(
        description="Answer a chain's questions about its benchmark and models, in JSON.",
        epilog="example: teacherlm chain-facts of --benchmark creak smollm2-135m smollm2-135m",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of = commands.add_parser("of", help="print what the YAML files say about benchmarks, a student and its teachers")
    of.add_argument("--benchmark", action="append", required=True, help="the name of a benchmark; may be repeated")
    of.add_argument("student", help="its name")
    of.add_argument("teachers", nargs="+", help="the names of the teachers")
    of.add_argument("--gpu_type", default="", help="type of GPU for --gres")
    prompts = commands.add_parser("prompts", help="print what a file of prompts makes")
    prompts.add_argument("name", help="its name")
    absent = commands.add_parser("absent", help="print which models are not on this machine's disks")
    absent.add_argument("names", nargs="*", help="models")
    absent.add_argument("--make", action="store_true", help="make the models that a package contains")
    folder = commands.add_parser("folder", help="download or make a model if it has weights, and print its folder")
    folder.add_argument("name", help="the model")
    args = parser.parse_args()
    if args.command == "of":
        print(json.dumps(asdict(facts_of(args.benchmark, args.student, args.teachers, args.gpu_type))))
    elif args.command == "prompts":
        print(json.dumps(asdict(prompt_facts(args.name))))
    elif args.command == "folder":
        print_folder(args.name)
    else:
        why = {name: absence(name, args.make) for name in args.names}
        print(json.dumps({name: text for name, text in why.items() if text is not None}))


def print_folder(name: str) -> None:
    from teacherlm.catalog.models import find_model, local_folder

    model = find_model(name)
    if model.texts_from is None:
        print_for_shell(str(local_folder(model)))


def prompt_facts(name: str) -> PromptFacts:
    from teacherlm.catalog.prompt_sets import load_prompts

    prompts = load_prompts(name)
    return PromptFacts(prompts.name, tuple(prompts.kinds), prompts.training_fields)


def facts_of(benchmarks: Sequence[str], student: str, teachers: Sequence[str], gpu_type: str) -> Facts:
    from teacherlm.catalog.benchmarks import load_benchmark
    from teacherlm.catalog.models import find_model, require_weights

    require_weights(find_model(student))
    titles = {name: one_line_name(load_benchmark(name).title) for name in benchmarks}
    of_teachers = {name: model_facts(name, gpu_type) for name in teachers}
    return Facts(titles, model_facts(student, gpu_type), of_teachers)


def model_facts(name: str, gpu_type: str) -> ModelFacts:
    from teacherlm.catalog.models import STAGES, find_model, for_shell, request

    model = find_model(name)
    fields = ("batch", "accumulation", "learning_rate", "gradient_checkpointing", "chat")
    dotted = ("enhance.num_tokens", *(f"finetune.{one}" for one in fields))
    values = {one: one_line_name(for_shell(model.recommended(one))) for one in dotted}
    found = ModelFacts(one_line_name(model.name), values, serves=model.serve is not None)
    if model.texts_from is None:
        for stage in STAGES:
            found.requests[stage] = [one_line_name(word) for word in request(model, stage, gpu_type)]
            found.gpus[stage] = model.recommended(f"slurm.{stage}.gpus")
    return found


def one_line_name(text: str) -> str:
    """Return a text that becomes a part of a path, a row of a list or an argument.

    Raises:
        UserError: the text has a line break.
    """
    if "\n" in text:
        raise UserError(f"{text!r}: this name has a line break, which a shell cannot handle; rename it")
    return text


def absence(name: str, make: bool) -> str | None:
    """Why a model is not on this machine's disks; an empty text if the hub has it.

    None if it is there, or needs no disk because a server or the records have its texts.
    """
    from teacherlm.catalog.models import cached_folder, find_model, local_folder

    model = find_model(name)
    if model.texts_from is not None:
        return None
    if not make and model.package is not None:
        return None  # a stage makes it from the package
    if model.hub is not None:
        return None if cached_folder(model.hub, model.revision) is not None else ""
    try:
        local_folder(model)
    except UserError as error:
        return one_line(error)
    return None
