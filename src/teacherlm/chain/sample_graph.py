"""The chain of a benchmark: prepare, enhance, merge, finetune, evaluate, report."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from teacherlm.catalog.chat_students import name_of_result
from teacherlm.catalog.explanations import Explanations
from teacherlm.catalog.prompts import DEFAULT
from teacherlm.chain.facts import Facts, ModelFacts, absent_models
from teacherlm.chain.graph import Absence, Graph, Stage, few_processors
from teacherlm.chain.layout import (
    Layout,
    digest_of,
    joined_teachers,
    mixed_teachers,
    run_folder,
    short_name,
    with_flags,
)
from teacherlm.chain.settings import Settings, plain
from teacherlm.chain.site import Site
from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import Command, own_program, program


def sample_graph(settings: Settings, facts: Facts, shards: Mapping[str, int] | None = None) -> Graph:
    """The chain for these settings. If only `text` is trained on, the chain needs no teacher.

    Args:
        shards: stage in which a teacher explains -> the number of its shards, where the settings do not say it.
    """
    layout = layout_of(settings, facts)
    chosen = shards or {}
    sets = {name: of_set(settings, facts, layout, name) for name in settings.train}
    prepared = {settings.benchmark: layout, **sets}
    stages = [prepare(settings, name, one) for name, one in prepared.items()]
    of_teachers: dict[str, str] = {}  # stage -> its teacher
    for one in sets.values():
        count = {}
        for teacher, kinds in settings.kinds_by_teacher.items():
            name = one.stage(enhance_name(settings, teacher, kinds))
            of_teachers[name] = teacher
            count[teacher] = settings.shards or chosen.get(name, 1)
            stages.append(enhance(settings, name, facts.teachers[teacher], teacher, kinds, count[teacher], one))
        if settings.kinds:
            stages.append(merge(settings, facts, count, one))
    stages += [finetune(settings, facts, layout, sets), evaluate(settings, facts, layout), report(settings, layout)]
    for name, times in Counter(stage.name for stage in stages).items():
        if times > 1:
            raise UserError(plain(f"TRAIN: two stages would have the name {name}; rename a benchmark's YAML"))

    def with_shards(name: str) -> Callable[[int], Graph]:
        return lambda count: sample_graph(settings, facts, {**chosen, name: count})

    return Graph(
        benchmark=settings.benchmark,
        name=layout.name,
        summary=f"{summary(settings, facts)}; outputs go to {layout.folder.path}",
        runs=Path(settings.runs),
        folder=layout.folder,
        stages=tuple(stages),
        absences=lambda make: absences(settings, tuple(dict.fromkeys(settings.models)), make),
        models=tuple(dict.fromkeys(settings.models)),
        with_shards={
            name: with_shards(name)
            for name, teacher in of_teachers.items()
            if settings.shards is None and name not in chosen and facts.teachers[teacher].gpus
        },
    )


def summary(settings: Settings, facts: Facts) -> str:
    """The first line that a chain prints, without its folder."""
    names = {teacher: facts.teachers[teacher].name for teacher in settings.models[1:]}
    shown = ", ".join(names.values())
    if len(names) > 1:
        shown = ", ".join(
            f"{names[teacher]} ({' '.join(kinds)})" for teacher, kinds in settings.kinds_by_teacher.items()
        )
    said = f"{settings.benchmark}: student {facts.student.name}, teacher{'s' * (len(names) > 1)} {shown}, "
    said += f"task {settings.training_fields}, seed {settings.seed}"
    if settings.is_joined:
        said += f", trained on {sets_in_words(settings.train)}, scored on {', '.join(settings.tests)}"
    return said


def sets_in_words(train: Mapping[str, str]) -> str:
    return ",".join(name if share == "1" else f"{name}:{share}" for name, share in train.items())


def enhance_name(settings: Settings, teacher: str, kinds: Sequence[str]) -> str:
    """The name of the stage in which a teacher explains. Of several teachers, each has a stage."""
    if len(settings.kinds_by_teacher) == 1:
        return "enhance"
    same = [one for one, others in settings.kinds_by_teacher.items() if others[0] == kinds[0]]
    number = same.index(teacher) + 1
    return f"enhance-{kinds[0]}" + (f"-{number}" if number > 1 else "")


def layout_of(settings: Settings, facts: Facts) -> Layout:
    """The chain's folders.

    Raises:
        UserError: two teachers have the same name, so that they would have the same folder.
    """
    of_prompts = "" if settings.prompts == DEFAULT else f"_{Path(settings.prompts).stem}"
    of_texts = {"true": "_chat", "false": "_plain"}.get(settings.chat or "", "") + of_prompts
    of_texts += f"_{settings.num_completions}texts" if settings.num_completions > 1 else ""
    of_texts += with_flags("enhance", settings.enhance_flags)
    names = {teacher: facts.teachers[teacher].name for teacher in settings.kinds_by_teacher}
    teachers = {kind: mixed_teachers([names[one] for one in several]) for kind, several in settings.teachers.items()}
    if len(set(names.values())) < len(names):
        both = " and ".join(settings.kinds_by_teacher)
        raise UserError(plain(f"the teachers {both} must have different names, because their folders have them"))
    joined = joined_teachers(teachers or {"": facts.teachers[settings.teacher].name}) + of_texts
    chosen = explanations_of(settings, facts).label
    name = f"{facts.student.name}_{settings.training_fields.replace(':', '-').replace(',', '-')}"
    name += "" if settings.training_fields == "text" else f"_{joined}{chosen}"
    if settings.train != {settings.benchmark: "1"}:
        name += "_on-" + sets_in_words(settings.train).replace(":", "-").replace(",", "+")
    filtered = f"_without-{settings.filter.replace(',', '-')}" if settings.filter else ""
    name += filtered
    for label, value in (
        ("batch", settings.batch),
        ("accumulation", settings.accumulation),
        ("lr", settings.learning_rate),
    ):
        name += f"_{label}{value}" if value else ""
    name += f"_{settings.peft}" if settings.peft else ""
    name += "_chat-student" if is_chat_student(settings, facts) else ""
    name += with_flags("finetune", settings.finetune_flags)
    name += f"_seed{settings.seed}"
    ending = f"{of_texts}_seed{settings.seed}"
    is_long = len(names) > 1 or len(settings.train) > 1 or settings.enhance_flags or settings.finetune_flags
    return Layout(
        folder=run_folder(settings.runs, settings.benchmark, settings.limit),
        title=facts.titles[settings.benchmark],
        benchmark=settings.benchmark,
        student=name_of_result(facts.student.name, is_chat_student(settings, facts)),
        of_prompts=of_prompts,
        teacher_runs={teacher: f"{one}{ending}" for teacher, one in names.items()},
        kind_runs={kind: f"{one}{ending}" for kind, one in teachers.items()},
        joined_run=f"{joined}_seed{settings.seed}",
        chosen=chosen,
        filtered=filtered,
        name=short_name(name) if is_long else name,
        of_evaluation=f"-{digest_of(list(settings.evaluate_flags))}" if settings.evaluate_flags else "",
    )


def is_chat_student(settings: Settings, facts: Facts) -> bool:
    """Whether the student is trained and scored through its chat template."""
    return (settings.student_chat or facts.student.values.get("finetune.chat")) == "true"


def of_set(settings: Settings, facts: Facts, layout: Layout, benchmark: str) -> Layout:
    """The folders of another training set, which are those of its own benchmark's chain."""
    if benchmark == settings.benchmark:
        return layout
    folder = run_folder(settings.runs, benchmark, settings.limit)
    return replace(layout, folder=folder, title=facts.titles[benchmark], benchmark=benchmark, prefix=f"{benchmark}/")


def explanations_of(settings: Settings, facts: Facts) -> Explanations:
    """Which of the teacher's texts the chain trains on.

    Raises:
        UserError: the model that is to score the texts has no weights.
    """
    if not settings.scorer:
        return Explanations(settings.explanations)
    _, scorer = scorer_of(settings, facts)
    if not scorer.requests:
        raise UserError(f"SCORER={settings.scorer}: {scorer.name} has no weights here that could score texts")
    return Explanations(settings.explanations, scorer.name)


def scorer_of(settings: Settings, facts: Facts) -> tuple[str, ModelFacts]:
    """The model that scores texts: the student, or the teacher.

    Raises:
        UserError: the teacher was chosen, and there are several.
    """
    if settings.scorer != "teacher":
        return settings.student, facts.student
    if len(settings.kinds_by_teacher) > 1:
        raise UserError("SCORER=teacher: this chain has several teachers; SCORER=student scores the texts of all")
    (teacher,) = settings.kinds_by_teacher
    return teacher, facts.teachers[teacher]


def prepare(settings: Settings, benchmark: str, layout: Layout) -> Stage:
    """The stage that prepares a training set. For the chain's own benchmark, it also makes the other test sets."""

    def words(name: str, *options: str) -> list[str]:
        found = ["--benchmark", name, "--output_dir", str(layout.prepared), "--test_dir", str(layout.tests), *options]
        found += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
        return found + (["--data", settings.data[name]] if name in settings.data else [])

    calls = [words(benchmark, *(["--limit", settings.limit] if settings.limit else []))]
    if benchmark == settings.benchmark:
        calls += [words(name, "--test_only") for name in settings.tests if name != benchmark]
    return Stage(
        name=layout.stage("prepare"),
        made=None,
        commands=lambda index, more: [Command([*program("prepare"), *call, *more]) for call in calls],
        work=f"{layout.prefix}{layout.prepared.name}",
        lock=lambda index: f"{layout.prefix}{layout.prepared.name}",
        request=few_processors("4G"),
    )


def enhance(
    settings: Settings,
    name: str,
    facts: ModelFacts,
    teacher: str,
    kinds: Sequence[str],
    shards: int,
    layout: Layout,
) -> Stage:
    """The stage in which a loaded teacher makes all its kinds of explanations. A task is a shard."""
    words = ["--name", teacher, "--input", str(layout.prompts)]
    words += ["--output", str(layout.texts(teacher, "{kind}"))]
    words += ["--task_type", ",".join(f"{kind}_text" for kind in kinds)]
    words += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
    words += ["--num_tokens", settings.num_tokens or facts.values["enhance.num_tokens"]]
    words += ["--temperature", settings.temperature, "--seed", settings.seed]
    words += ["--chat", settings.chat] if settings.chat else []
    words += ["--num_completions", str(settings.num_completions)] if settings.num_completions > 1 else []
    words += ["--max_failures", settings.max_failures, "--restart"]
    engine = settings.engine if facts.gpus else "auto"
    if engine == "serve" and not facts.serves:
        raise UserError(plain(f"ENGINE=serve: {facts.name} has no `serve` in a models/{facts.name}.yaml"))
    words += ["--engine", engine]
    words += further("ENHANCE_FLAGS", settings.enhance_flags, words, ("--prompts", "--shard", "--list_missing"))
    work = f"{layout.prefix}enhance-{layout.teacher_runs[teacher]}"

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        return [Command([*program("enhance"), *words, "--shard", f"{index or 0}/{shards}", *more])]

    return Stage(
        name=name,
        made=layout.teacher_folder(teacher),
        commands=commands,
        work=work,
        lock=lambda index: f"{work}-{index}-of-{shards}",
        request=as_the_model_asks(facts.requests.get("enhance"), "ENHANCE_ARGS"),
        indices=range(shards),
        array=True,
        needs=(teacher,),
        gpus=max(facts.gpus["enhance"], 1) if facts.gpus else 0,
        heading=f"enhance{layout.suffix} ({' '.join(kinds)})"
        + (f" with {facts.name}" if len(settings.kinds_by_teacher) > 1 else ""),
    )


def merge(settings: Settings, facts: Facts, shards: Mapping[str, int], layout: Layout) -> Stage:
    """The stage that merges the shards, mixes the texts of several teachers for one kind, and post-processes.

    With EXPLANATIONS=best it also scores the texts, so that it needs the scorer and asks for what an evaluation asks
    for.

    Args:
        shards: teacher -> the number of its shards.
    """
    work = f"{layout.prefix}enhance-{layout.joined_run}"
    made = ["--benchmark", layout.benchmark, "--output_dir", str(layout.joined), "--test_dir", str(layout.tests)]
    made += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
    made += ["--post_process", *(["--filter", settings.filter] if settings.filter else [])]
    if any(layout.explanations(kind).parent != layout.joined for kind in settings.kinds):
        made += ["--enhanced", *(str(layout.explanations(kind)) for kind in settings.kinds)]
    texts = explanations_of(settings, facts)
    made += ["--explanations", texts.setting] if texts.setting != "first" else []
    made += ["--scorer", texts.scorer] if texts.scorer else []
    made += ["--seed", settings.seed]
    scorer, of_scorer = scorer_of(settings, facts)

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        found = []
        for kind, teachers in settings.teachers.items():
            texts_of_each = [str(layout.texts(teacher, kind)) for teacher in teachers]
            for teacher, file in zip(teachers, texts_of_each):
                if shards[teacher] > 1:
                    files = ["--input", str(layout.prompts), "--output", file]
                    found.append(Command([*program("merge"), *files, "--shards", str(shards[teacher]), *more]))
            if len(teachers) > 1:
                files = ["--kind", kind, "--input", str(layout.prompts), "--output", str(layout.explanations(kind))]
                found.append(Command([*program("mix"), *files, "--enhanced", *texts_of_each, *more]))
        for kind in settings.kinds if texts.scorer else ():
            words = ["--name", scorer, "--input", str(layout.explanations(kind)), "--kind", kind]
            words += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
            found.append(Command([*program("score-texts"), *words, *more]))
        return [*found, Command([*program("prepare"), *made, *more])]

    return Stage(
        name=layout.stage("merge"),
        made=layout.joined,
        commands=commands,
        work=work,
        lock=lambda index: work,
        request=as_the_model_asks(of_scorer.requests["evaluate"], "EVALUATE_ARGS")
        if texts.scorer
        else few_processors("4G"),
        needs=(scorer,) if texts.scorer else (),
        heading=f"merge{', score' * bool(texts.scorer)} and post-process{layout.suffix}",
    )


def finetune(settings: Settings, facts: Facts, layout: Layout, sets: Mapping[str, Layout]) -> Stage:
    """The stage that trains the student.

    Args:
        sets: benchmark that is trained on -> its folders.
    """
    values = facts.student.values
    folders = {name: one.enhanced_dataset if settings.kinds else one.prepared_dataset for name, one in sets.items()}
    shares = settings.train
    data = ",".join(
        str(folder) if shares[name] == "1" else f"{folder}:{shares[name]}" for name, folder in folders.items()
    )
    if len(sets) > 1 and any("," in str(folder) for folder in folders.values()):
        raise UserError(plain(f"RUNS={settings.runs}: several training sets need a folder without a comma in its name"))
    words = [settings.student, data, settings.batch or values["finetune.batch"]]
    words += [settings.accumulation or values["finetune.accumulation"]]
    words += [
        settings.learning_rate or values["finetune.learning_rate"],
        str(settings.epochs),
        settings.training_fields,
    ]
    words += [layout.name, str(layout.store), settings.wandb_project]
    words += ["--gradient_checkpointing", values["finetune.gradient_checkpointing"], "--seed", settings.seed]
    words += ["--report_to", settings.report_to, "--restart"]
    chat = str(is_chat_student(settings, facts)).lower()
    words += ["--chat", chat] if chat != values.get("finetune.chat", "false") else []
    words += ["--explanations", "each_epoch"] if settings.explanations == "each_epoch" else []
    if settings.is_joined:
        words += ["--test_sets", ",".join(str(layout.tests / name) for name in settings.tests)]
        words += ["--overlaps", "leave_out"] if "overlap" in (settings.filter or "").split(",") else []
    words += further("FINETUNE_FLAGS", settings.finetune_flags, words, OF_FINETUNING)
    return Stage(
        name="finetune",
        made=layout.checkpoints,
        commands=lambda index, more: [Command([*own_program("finetune-here", "finetune.sh"), *words, *more])],
        work=f"finetune-{layout.name}",
        lock=lambda index: f"finetune-{layout.name}",
        request=as_the_model_asks(facts.student.requests.get("finetune"), "FINETUNE_ARGS"),
        needs=(settings.student,),
    )


def evaluate(settings: Settings, facts: Facts, layout: Layout) -> Stage:
    """The stage that scores. Task 0 is the untrained student, task N its Nth checkpoint."""
    work = f"evaluate{layout.of_evaluation}"

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        checkpoint = layout.checkpoint(index) if index else None
        if index and checkpoint is None:
            return []
        words = ["--model_args", f"pretrained={checkpoint or settings.student}", "--tasks", ",".join(settings.tests)]
        words += ["--datasets", str(layout.tests), "--output_path", str(layout.evaluated)]
        words += ["--tokenization", settings.tokenization]
        words += ["--answer", settings.answer] if settings.answer != "auto" else []
        words += ["--chat", str(is_chat_student(settings, facts)).lower()]
        words += ["--checkpoints", str(layout.checkpoints)] if index is None else []
        words += further("EVALUATE_FLAGS", settings.evaluate_flags, words, OF_EVALUATION)
        return [Command([*program("evaluate"), *words, *more])]

    commands(None, ())  # refuse the user's flags before any stage runs

    return Stage(
        name="evaluate",
        made=layout.evaluated,
        commands=commands,
        work=f"{work}-{layout.name}",
        lock=lambda index: f"{work}-{layout.name}-{index}" if index else f"{work}-{layout.student}",
        request=as_the_model_asks(facts.student.requests.get("evaluate"), "EVALUATE_ARGS"),
        indices=range(settings.epochs + 1),
        array=True,
        needs=(settings.student,),
        gpus=max(facts.student.gpus.get("evaluate", 1), 1),
        together=True,
        nothing="evaluate: this checkpoint does not exist: finetuning made fewer checkpoints",
    )


def report(settings: Settings, layout: Layout) -> Stage:
    """The stage that prints the run's table and makes the page of the run's folder. It is done when the page is."""
    table = ["--untrained", str(layout.untrained_scores), "--checkpoints", str(layout.scores)]
    table += ["--log", str(layout.training_log)]
    table += ["--answer", settings.answer] if settings.answer != "auto" else []

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        page = Command([*program("report"), str(layout.folder.path), *more])
        tables = [Command([*program("table"), "--task", name, *table]) for name in settings.tests]
        return [page] if more else [*tables, page]

    return Stage(
        name="report",
        made=layout.folder.report,
        commands=commands,
        work=f"report-{layout.name}",
        lock=lambda index: "report",
        request=few_processors("4G"),
    )


OF_FINETUNING = (
    *("--model_name_or_path", "--dataset_name", "--per_device_train_batch_size", "--gradient_accumulation_steps"),
    *("--learning_rate", "--num_train_epochs", "--task_type", "--run_name", "--output_dir", "--peft", "--do_train"),
    *("--save_total_limit", "--list_missing", "--chat"),
)
"""Flags of finetune.py that the chain sets by its positional arguments or by variables."""
OF_EVALUATION = ("--checkpoints", "--watch", "--shard", "--list_missing", "--joint_tokenization")
"""Flags of evaluate/main.py that the chain sets for some tasks, or in another way."""


def further(variable: str, flags: Sequence[str], words: Sequence[str], others: Sequence[str]) -> list[str]:
    """The flags that the user adds to a stage.

    Args:
        words: the arguments that the chain gives the stage.
        others: flags that the chain sets in another way.

    Raises:
        UserError: the chain sets one of the flags itself, or it asks for help. A flag may be shortened.
    """
    own = {word for word in (*words, *others, "--help") if word.startswith("--")}
    for word in flags:
        name = f"{word[:2]}{word[2:].partition('=')[0].replace('-', '_')}"  # --learning-rate is --learning_rate
        if word == "-h" or (word.startswith("--") and any(one.startswith(name) for one in own)):
            raise UserError(plain(f"{variable}: {name}: the chain sets this flag itself; leave it out"))
    return list(flags)


def as_the_model_asks(request: list[str] | None, arguments: str) -> Callable[[Site], list[str]]:
    """The request in the model's YAML, with the site's arguments. Without a local model, it is two CPUs."""
    if request is None:
        return few_processors("4G")
    found = request
    return lambda site: [
        *found,
        *site.partition("PARTITION"),
        *site.arguments["SBATCH_ARGS"],
        *site.arguments[arguments],
    ]


def absences(settings: Settings, models: tuple[str, ...], make: bool) -> list[Absence]:
    words = [f"BENCHMARK={settings.benchmark}", f"STUDENT={settings.student}", f"TEACHER={settings.teacher}"]
    words += [f"TRAIN={sets_in_words(settings.train)}"] if settings.train != {settings.benchmark: "1"} else []
    words += [f"TEST={','.join(settings.tests)}"] if settings.tests != (settings.benchmark,) else []
    words += [f"TASK={settings.training_fields}"] if settings.training_fields != "cot_tail" else []
    words += [f"LIMIT={settings.limit}"] if settings.limit else []
    words += [f"RUNS={settings.runs}"] if settings.runs != "runs" else []
    download = f"{{}} is not on this machine's disks, and jobs have no internet: make download {shlex.join(words)}"
    found = absent_models(models, make=make)
    return [(name, why or download.format(name)) for name, why in found.items()]
