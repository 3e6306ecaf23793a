"""The settings of a chain: the variables that `chain.sh --help` lists. They are checked when they are read."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from teacherlm.catalog.explanations import SETTINGS
from teacherlm.catalog.prompts import DEFAULT
from teacherlm.catalog.shares import EXPECTED, is_share
from teacherlm.chain.facts import PromptFacts, ask_prompts
from teacherlm.chain.variables import TEACHER_OF, data_variable, teacher_variable
from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import require_number, stage_python

SAVED = (
    *("STUDENT", "MODEL", "TEACHER", "TASK", "TRAIN", "TEST", "PROMPTS", "LIMIT", "EPOCHS", "SEED", "NUM_TOKENS"),
    *("TEMPERATURE", "STUDENT_CHAT"),
    *("NUM_COMPLETIONS", "EXPLANATIONS", "SCORER", "CHAT", "ENGINE", "MAX_FAILURES", "FILTER", "BATCH", "ACCUMULATION"),
    *("LEARNING_RATE", "TOKENIZATION", "SHARDS", "RUNS", "PYTHON", "REPORT_TO", "WANDB_PROJECT", "WANDB_MODE", "PEFT"),
    *("AUTO_BATCH", "SAVE_TOTAL_LIMIT", "ENHANCE_FLAGS", "FINETUNE_FLAGS", "EVALUATE_FLAGS"),
    *("SIGNAL_SECONDS", "SITE", "CONTAINER", "APPTAINER_BIND"),
)
"""Variables whose values at submission are saved for the jobs. The benchmark's `data_variable` and the teachers of
single kinds are saved as well."""
ATLAS_SAVED = (
    *("DATA_DIR", "SIZE", "MODEL_PATH", "INDEX_PATH", "PASSAGES", "READER", "RETRIEVER", "PRECISION", "MMLU_DATA"),
    *("FLAGS", "EXPERIMENT_NAME", "NUM_GPUS", "RUNS", "PYTHON", "SIGNAL_SECONDS", "SITE", "CONTAINER"),
    "APPTAINER_BIND",
)
COUNTS = {"LIMIT": 1, "EPOCHS": 1, "NUM_TOKENS": 1, "SHARDS": 1, "BATCH": 1, "ACCUMULATION": 1}
COUNTS |= {"NUM_COMPLETIONS": 1, "SAVE_TOTAL_LIMIT": 1, "SEED": 0, "MAX_FAILURES": 0}
"""Variable that is a whole number -> its minimum."""
DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{0,20})?([eE][-+]?[0-9]{1,3})?|\.[0-9]{1,20}")
MOST = 10_000
SETS = re.compile(r"[^,:\s/]+(:(max)?[0-9.]+)?(,[^,:\s/]+(:(max)?[0-9.]+)?)*")
TASK = re.compile(r"[a-z0-9_]+(:[0-9.]+)?(,[a-z0-9_]+(:[0-9.]+)?)*")
FLAGS = ("empty", "cut", "repeats", "copies", "language", "contradicts", "duplicate", "overlap")
"""The flags of dataset/quality.py. FILTER is checked here to refuse a wrong flag before the teacher's work."""
ENGINES = ("auto", "transformers", "vllm", "serve")
"""The engines that a local teacher can have. A server or a field of the records has its own."""
ANSWERS = ("auto", "letter", "generate", "both")
"""How students answer when they are scored."""
SIGNAL_SECONDS = "180"
EXPERIMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Settings:
    """A chain's variables. A variable is None if it is not set and the model's YAML gives the value.

    Attributes:
        teachers: kind of explanation -> its teachers, for the kinds that the chain needs. Several teachers' texts are
            mixed.
        train: benchmark whose training samples are trained on -> how often an epoch has each of them, or at most how
            many an epoch has, as TRAIN says it.
        tests: the benchmarks that are scored.
        data: benchmark -> the folder with its files, if there is a variable for it.
        enhance_flags, finetune_flags, evaluate_flags: further flags of these stages.
    """

    benchmark: str
    student: str
    teacher: str
    training_fields: str
    prompts: str
    teachers: Mapping[str, tuple[str, ...]]
    num_completions: int
    explanations: str
    scorer: str
    seed: str
    epochs: int
    temperature: str
    tokenization: str
    answer: str
    max_failures: str
    engine: str
    runs: str
    wandb_project: str
    report_to: str
    shards: int | None
    limit: str | None
    num_tokens: str | None
    chat: str | None
    student_chat: str | None
    filter: str | None
    batch: str | None
    accumulation: str | None
    learning_rate: str | None
    peft: str | None
    train: Mapping[str, str]
    tests: tuple[str, ...]
    data: Mapping[str, str]
    enhance_flags: tuple[str, ...]
    finetune_flags: tuple[str, ...]
    evaluate_flags: tuple[str, ...]

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmark that gives the chain its folder, then the others that are trained on or scored."""
        return tuple(dict.fromkeys((self.benchmark, *self.train, *self.tests)))

    @property
    def is_joined(self) -> bool:
        """Whether the chain trains on other samples, or scores other tests, than those of its benchmark."""
        return self.train != {self.benchmark: "1"} or self.tests != (self.benchmark,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of explanation that the chain needs."""
        return tuple(self.teachers)

    @property
    def models(self) -> tuple[str, ...]:
        """The student, then the teachers. If only `text` is trained on, TEACHER is among them, but explains nothing."""
        return (self.student, *(self.kinds_by_teacher or (self.teacher,)))

    @property
    def kinds_by_teacher(self) -> dict[str, tuple[str, ...]]:
        """Teacher -> the kinds that it explains, in the order of the prompts."""
        by_teacher: dict[str, tuple[str, ...]] = {}
        for kind, teachers in self.teachers.items():
            for teacher in teachers:
                by_teacher[teacher] = (*by_teacher.get(teacher, ()), kind)
        return by_teacher


@dataclass(frozen=True)
class AtlasSettings:
    """The variables of an experiment of ATLAS, `atlas-SETTING`."""

    setting: str
    data_dir: str
    size: str
    name: str
    runs: str
    flags: tuple[str, ...]
    mmlu_data: str | None
    model_path: str | None
    index_path: str | None
    passages: str | None


def read_settings(benchmark: str, variables: Mapping[str, str]) -> Settings:
    """The settings of a chain.

    Raises:
        UserError: the value of a variable is not valid.
    """

    def get(name: str, default: str) -> str:
        return variables.get(name) or default

    check_numbers(variables)
    student = variables.get("STUDENT") or get("MODEL", "smollm2-135m")
    fields, tokenization = get("TASK", "cot_tail"), get("TOKENIZATION", "auto")
    if tokenization not in ("auto", "apart", "joint"):
        raise UserError(plain(f"TOKENIZATION={tokenization}: auto, apart or joint was expected"))
    answer = get("ANSWER", "auto")
    if answer not in ANSWERS:
        raise UserError(plain(f"ANSWER={answer}: {', '.join(ANSWERS[:-1])} or {ANSWERS[-1]} was expected"))
    prompts = ask_prompts(get("PROMPTS", DEFAULT))
    if not EXPERIMENT.fullmatch(prompts.name):
        raise UserError(plain(f"PROMPTS: {prompts.name}: a name of letters, digits, dots and dashes was expected"))
    teacher = get("TEACHER", student)
    teachers: dict[str, tuple[str, ...]] = dict.fromkeys(kinds_of(fields, prompts), (teacher,))
    train, tests = read_sets(benchmark, variables)
    teachers |= {kind: one for kind, one in own_teachers(benchmark, prompts, variables).items() if kind in teachers}
    engine = get("ENGINE", "auto")
    if engine not in ENGINES:
        raise UserError(plain(f"ENGINE={engine}: {', '.join(ENGINES[:-1])} or {ENGINES[-1]} was expected"))
    chat = variables.get("CHAT") or None
    if chat not in (None, "auto", "true", "false"):
        raise UserError(plain(f"CHAT={chat}: auto, true or false was expected"))
    student_chat = variables.get("STUDENT_CHAT") or None
    if student_chat not in (None, "true", "false"):
        raise UserError(plain(f"STUDENT_CHAT={student_chat}: true or false was expected"))
    peft = get("PEFT", "none")
    if peft not in ("none", "lora", "qlora"):
        raise UserError(plain(f"PEFT={peft}: none, lora or qlora was expected"))
    flags = variables.get("FILTER") or None
    for flag in (flags or "").split(",") if flags else []:
        if flag not in FLAGS:
            raise UserError(plain(f"FILTER: there is no flag '{flag}'; the flags are: {', '.join(FLAGS)}"))
    if flags and not teachers:
        raise UserError(plain(f"FILTER={flags} drops samples by their explanations, but TASK={fields} has none"))
    completions = int(get("NUM_COMPLETIONS", "1"))
    explanations, scorer = read_explanations(variables, completions, fields, teachers)
    return Settings(
        benchmark=benchmark,
        student=student,
        teacher=teacher,
        training_fields=fields,
        prompts=get("PROMPTS", DEFAULT),
        teachers=teachers,
        num_completions=completions,
        explanations=explanations,
        scorer=scorer,
        seed=get("SEED", "0"),
        epochs=int(get("EPOCHS", "10")),
        temperature=get("TEMPERATURE", "1"),
        tokenization=tokenization,
        answer=answer,
        max_failures=get("MAX_FAILURES", "0"),
        engine=engine,
        runs=get("RUNS", "runs"),
        wandb_project=get("WANDB_PROJECT", "teacherlm"),
        report_to=get("REPORT_TO", "none"),
        shards=int(variables["SHARDS"]) if variables.get("SHARDS") else None,
        limit=variables.get("LIMIT") or None,
        num_tokens=variables.get("NUM_TOKENS") or None,
        chat=chat,
        student_chat=student_chat,
        filter=flags,
        batch=variables.get("BATCH") or None,
        accumulation=variables.get("ACCUMULATION") or None,
        learning_rate=variables.get("LEARNING_RATE") or None,
        peft=None if peft == "none" else peft,
        train=train,
        tests=tests,
        data={one: variables[name] for one in (benchmark, *train, *tests) if variables.get(name := data_variable(one))},
        enhance_flags=flags_in("ENHANCE_FLAGS", variables),
        finetune_flags=flags_in("FINETUNE_FLAGS", variables),
        evaluate_flags=flags_in("EVALUATE_FLAGS", variables),
    )


def read_sets(benchmark: str, variables: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """TRAIN, as benchmark -> share, and TEST.

    Raises:
        UserError: a value has another form, or neither names the benchmark of the chain.
    """
    written, tested = variables.get("TRAIN") or benchmark, variables.get("TEST") or benchmark
    train = {benchmark: "1"} if written == benchmark else shares_in(written)
    tests = (benchmark,) if tested == benchmark else tuple(dict.fromkeys(tested.split(",")))
    if tested != benchmark and (":" in tested or not SETS.fullmatch(tested)):
        raise UserError(plain(f"TEST={tested}: benchmarks with commas between them were expected"))
    if benchmark not in train and benchmark not in tests:
        raise UserError(
            plain(f"neither TRAIN={written} nor TEST={tested} has {benchmark}; name a chain by a benchmark of theirs")
        )
    return train, tests


def shares_in(written: str) -> dict[str, str]:
    """Benchmark -> share, of a value of TRAIN.

    Raises:
        UserError: the value has another form, or names a benchmark twice.
    """
    if not SETS.fullmatch(written):
        raise UserError(plain(f"TRAIN={written}: benchmarks such as creak:1,ecqa:0.5,mmlu:max1000 were expected"))
    train: dict[str, str] = {}
    for part in written.split(","):
        name, _, share = part.partition(":")
        if share and not is_share(share):
            raise UserError(plain(f"TRAIN={written}: {share} is {EXPECTED}"))
        if name in train:
            raise UserError(plain(f"TRAIN={written}: {name} is there twice; give it once, with a weight"))
        train[name] = share or "1"
    return train


def read_explanations(
    variables: Mapping[str, str], completions: int, fields: str, teachers: Mapping[str, tuple[str, ...]]
) -> tuple[str, str]:
    """EXPLANATIONS and SCORER. SCORER is an empty text if no text is scored.

    Where a kind has several teachers, the default of EXPLANATIONS is `all`: with `first`, the others' texts would not
    be used.

    Raises:
        UserError: a value is unknown, or does not fit the other variables.
    """
    is_mixed = any(len(of_kind) > 1 for of_kind in teachers.values())
    explanations = variables.get("EXPLANATIONS") or ("all" if is_mixed else "first")
    scorer = variables.get("SCORER") or ""
    if explanations not in SETTINGS:
        raise UserError(
            plain(f"EXPLANATIONS={explanations}: {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]} was expected")
        )
    if explanations != "first" and not teachers:
        raise UserError(plain(f"EXPLANATIONS={explanations} chooses explanations, but TASK={fields} has none"))
    if explanations != "first" and completions == 1 and not is_mixed:
        raise UserError(
            f"EXPLANATIONS={explanations} needs several texts per sample; set NUM_COMPLETIONS above 1, or give a kind "
            "several teachers (TEACHER_COT=a,b)"
        )
    if scorer and explanations != "best":
        raise UserError("SCORER: only EXPLANATIONS=best scores texts")
    if scorer not in ("", "student", "teacher"):
        raise UserError(plain(f"SCORER={scorer}: student or teacher was expected"))
    return explanations, (scorer or "student") if explanations == "best" else ""


def read_atlas_settings(name: str, variables: Mapping[str, str]) -> AtlasSettings:
    """The settings of an experiment.

    Raises:
        UserError: there is no such experiment, or the value of a variable is not valid.
    """
    from teacherlm.atlas.experiment import SETTINGS

    setting = name.removeprefix("atlas-")
    if setting not in SETTINGS:
        raise UserError(plain(f"there is no {name}; there are: {', '.join(f'atlas-{one}' for one in SETTINGS)}"))
    if not variables.get("DATA_DIR"):
        raise UserError("DATA_DIR is not set; it holds the questions, models and indices (docs/how-to/atlas.md)")
    size = variables.get("SIZE") or "xl"
    experiment = variables.get("EXPERIMENT_NAME") or f"{size}-mmlu-{setting}"
    if not EXPERIMENT.fullmatch(experiment):
        raise UserError(plain(f"EXPERIMENT_NAME or SIZE: {experiment}: a folder's name was expected"))
    return AtlasSettings(
        setting=setting,
        data_dir=os.path.realpath(variables["DATA_DIR"]),
        size=size,
        name=experiment,
        runs=variables.get("RUNS") or "runs",
        flags=tuple((variables.get("FLAGS") or "").split()),
        mmlu_data=variables.get("MMLU_DATA") or None,
        model_path=variables.get("MODEL_PATH") or None,
        index_path=variables.get("INDEX_PATH") or None,
        passages=variables.get("PASSAGES") or None,
    )


def check_numbers(variables: Mapping[str, str]) -> None:
    """Refuse values that are not numbers. The numbers become numbers of jobs, names of folders, and flags.

    Raises:
        UserError: the value of a variable is not a number, or is too small or too large.
    """
    for name, least in COUNTS.items():
        if value := variables.get(name):
            require_number(name, value, least)
    for name in ("TEMPERATURE", "LEARNING_RATE"):
        value = variables.get(name)
        if value and not DECIMAL.fullmatch(value):
            raise UserError(plain(f"{name}={value}: a number was expected"))
    if any(int(variables.get(name) or 1) >= MOST for name in ("EPOCHS", "SHARDS")):
        raise UserError(f"EPOCHS and SHARDS: fewer than {MOST} were expected")


def kinds_of(fields: str, prompts: PromptFacts) -> tuple[str, ...]:
    """The kinds of explanation that training fields need: one field or several, such as text:1,cot_tail:2.

    Raises:
        UserError: the text does not have this form, or the prompts make no such field.
    """
    if not TASK.fullmatch(fields):
        raise UserError(plain(f"TASK={fields}: a field, or several fields such as text:1,cot_tail:2, was expected"))
    known = prompts.training_fields
    kinds: set[str] = set()
    for part in fields.split(","):
        field = part.partition(":")[0]
        if field not in known:
            raise UserError(plain(f"TASK={fields}: there is no field '{field}'; there are: {', '.join(known)}"))
        kinds.update(known[field])
    return tuple(kind for kind in prompts.kinds if kind in kinds)


def own_teachers(benchmark: str, prompts: PromptFacts, variables: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Kind of explanation -> the teachers that TEACHER_KIND gives it, separated by commas.

    Raises:
        UserError: the prompts have no such kind, or a name is empty.
    """
    kinds = {teacher_variable(kind): kind for kind in prompts.kinds}
    found: dict[str, tuple[str, ...]] = {}
    for name in teachers_of_kinds(benchmark, variables):
        teacher = variables[name]
        if teacher and name not in kinds:
            known = ", ".join(kinds)
            raise UserError(plain(f"{name}: the prompts {prompts.name} have no such kind; there are: {known}"))
        if teacher:
            several = (teacher,) if Path(teacher).exists() else tuple(dict.fromkeys(teacher.split(",")))
            if "" in several:
                raise UserError(plain(f"{name}={teacher}: a teacher between the commas is missing"))
            found[kinds[name]] = several
    return found


def teachers_of_kinds(benchmark: str, names: Iterable[str]) -> list[str]:
    """The names that say which teacher a kind of explanation has."""
    return [name for name in names if TEACHER_OF.fullmatch(name) and name != data_variable(benchmark)]


def flags_in(name: str, variables: Mapping[str, str]) -> tuple[str, ...]:
    """The flags in a variable, which are separated as in a shell.

    Raises:
        UserError: a quotation is not closed, or the first word is no flag.
    """
    try:
        flags = tuple(shlex.split(variables.get(name) or ""))
    except ValueError as error:
        raise UserError(plain(f"{name}: {str(error).lower()}: flags as in a shell were expected")) from None
    if flags and not flags[0].startswith("--"):
        raise UserError(plain(f"{name}: a flag such as --seed was expected first, found {flags[0]}"))
    return flags


def saved_variables(benchmark: str, given: Iterable[str], variables: Mapping[str, object]) -> tuple[str, ...]:
    """The names of the variables that belong to a chain.

    Args:
        given: names among which the teachers of single kinds are looked for.
        variables: TRAIN and TEST, which name the benchmarks whose data belongs to the chain.
    """
    if is_atlas(benchmark):
        return ATLAS_SAVED
    named = ",".join(str(variables.get(name) or "") for name in ("TRAIN", "TEST"))
    benchmarks = [benchmark, *(part.partition(":")[0] for part in named.split(",") if part)]
    data = dict.fromkeys(map(data_variable, benchmarks))
    return (*SAVED, *data, *(name for name in teachers_of_kinds(benchmark, given) if name not in data))


def is_atlas(benchmark: str) -> bool:
    return benchmark.startswith("atlas-")


def signal_seconds(variables: Mapping[str, str]) -> int:
    """The number of seconds before its time limit at which a job is warned.

    Raises:
        UserError: SIGNAL_SECONDS is not a number.
    """
    return require_number("SIGNAL_SECONDS", variables.get("SIGNAL_SECONDS") or SIGNAL_SECONDS, 1)


def prepare_environment() -> None:
    """Set the environment variables that all stages use.

    With CONTAINER, its path and RUNS become absolute: jobs may start in another folder, and the image sees only the
    folders that it is given.

    Raises:
        UserError: CONTAINER does not name an image.
    """
    variables = os.environ
    if image := variables.get("CONTAINER"):
        if not Path(image).exists():
            raise UserError(plain(f"CONTAINER={image}: there is no such image; make one with: make container"))
        variables["CONTAINER"] = os.path.realpath(image)
        variables["RUNS"] = os.path.realpath(variables.get("RUNS") or "runs")
    if variables.get("DATA_DIR"):
        variables["DATA_DIR"] = os.path.realpath(variables["DATA_DIR"])
    variables["PYTHON"] = stage_python()
    variables["PYTHONUNBUFFERED"] = "1"
    # Waiting threads must not spin: on a shared node they would slow down other processes.
    variables["OMP_WAIT_POLICY"] = variables.get("OMP_WAIT_POLICY") or "PASSIVE"
    paths = [path for path in variables.get("PYTHONPATH", "").split(":") if path.startswith("/")]
    variables["PYTHONPATH"] = ":".join(paths)  # an empty or relative entry depends on the current folder
    if not paths:
        del variables["PYTHONPATH"]


def plain(text: str) -> str:
    """A message in which control characters are replaced by question marks."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


def working_directory() -> str:
    """The current folder as the shell names it, with links that may be valid on all nodes of a cluster."""
    here, called = Path.cwd(), Path(os.environ.get("PWD") or ".")
    return str(called if called.is_absolute() and called.is_dir() and called.samefile(here) else here)
