"""The chain of a benchmark: prepare, enhance, merge, finetune, evaluate, report."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from teacherlm.catalog.explanations import Explanations
from teacherlm.catalog.prompt_sets import DEFAULT
from teacherlm.chain.facts import Facts, absent_models
from teacherlm.chain.graph import Absence, Graph, Stage, few_processors
from teacherlm.chain.layout import Layout, run_folder
from teacherlm.chain.settings import Settings
from teacherlm.chain.site import Site
from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import Command, own_program, program


def sample_graph(settings: Settings, facts: Facts) -> Graph:
    """The chain for these settings. If only `text` is trained on, the chain needs no teacher."""
    layout = layout_of(settings, facts)
    stages = [prepare(settings, layout)]
    if settings.kinds:
        stages += [enhance(settings, facts, layout), merge(settings, facts, layout)]
    stages += [finetune(settings, facts, layout), evaluate(settings, facts, layout), report(settings, layout)]
    student, teacher = facts.student.name, facts.teacher.name
    models = tuple(dict.fromkeys((settings.student, settings.teacher)))
    can_shard = settings.kinds and settings.shards is None and facts.teacher.gpus
    summary = f"{settings.benchmark}: student {student}, teacher {teacher}, "
    summary += f"task {settings.training_fields}, seed {settings.seed}"

    def with_shards(count: int) -> Graph:
        return sample_graph(dataclasses.replace(settings, shards=count), facts)

    return Graph(
        benchmark=settings.benchmark,
        name=layout.name,
        summary=f"{summary}; outputs go to {layout.folder.path}",
        runs=Path(settings.runs),
        folder=layout.folder,
        stages=tuple(stages),
        absences=lambda make: absences(settings, models, make),
        models=models,
        with_shards=with_shards if can_shard else None,
    )


def layout_of(settings: Settings, facts: Facts) -> Layout:
    name = f"{facts.student.name}_{settings.training_fields.replace(':', '-').replace(',', '-')}"
    of_prompts = "" if settings.prompts == DEFAULT else f"_{Path(settings.prompts).stem}"
    teacher = facts.teacher.name + {"true": "_chat", "false": "_plain"}.get(settings.chat or "", "") + of_prompts
    teacher += f"_{settings.num_completions}texts" if settings.num_completions > 1 else ""
    chosen = explanations_of(settings, facts).label
    name += "" if settings.training_fields == "text" else f"_{teacher}{chosen}"
    filtered = f"_without-{settings.filter.replace(',', '-')}" if settings.filter else ""
    name += filtered
    for label, value in (
        ("batch", settings.batch),
        ("accumulation", settings.accumulation),
        ("lr", settings.learning_rate),
    ):
        name += f"_{label}{value}" if value else ""
    name += f"_{settings.peft}" if settings.peft else ""
    return Layout(
        folder=run_folder(settings.runs, settings.benchmark, settings.limit),
        title=facts.title,
        student=facts.student.name,
        of_prompts=of_prompts,
        teacher_run=f"{teacher}_seed{settings.seed}",
        chosen=chosen,
        filtered=filtered,
        name=f"{name}_seed{settings.seed}",
    )


def explanations_of(settings: Settings, facts: Facts) -> Explanations:
    """Which of the teacher's texts the chain trains on.

    Raises:
        UserError: the model that is to score the texts has no weights.
    """
    if not settings.scorer:
        return Explanations(settings.explanations)
    scorer = facts.student if settings.scorer == "student" else facts.teacher
    if not scorer.requests:
        raise UserError(f"SCORER={settings.scorer}: {scorer.name} has no weights here that could score texts")
    return Explanations(settings.explanations, scorer.name)


def prepare(settings: Settings, layout: Layout) -> Stage:
    words = ["--benchmark", settings.benchmark, "--output_dir", str(layout.prepared), "--test_dir", str(layout.tests)]
    words += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
    words += ["--data", settings.data] if settings.data else []
    words += ["--limit", settings.limit] if settings.limit else []
    return Stage(
        name="prepare",
        made=None,
        commands=lambda index, more: [Command([*program("prepare"), *words, *more])],
        work=layout.prepared.name,
        lock=lambda index: layout.prepared.name,
        request=few_processors("4G"),
    )


def enhance(settings: Settings, facts: Facts, layout: Layout) -> Stage:
    """The stage that makes all kinds of explanations with one loaded teacher. A task is a shard."""
    shards = settings.shards or 1
    words = ["--name", settings.teacher, "--input", str(layout.prompts)]
    words += ["--output", str(layout.explanations("{kind}"))]
    words += ["--task_type", ",".join(f"{kind}_text" for kind in settings.kinds)]
    words += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
    words += ["--num_tokens", settings.num_tokens or facts.teacher.values["enhance.num_tokens"]]
    words += ["--temperature", settings.temperature, "--seed", settings.seed]
    words += ["--chat", settings.chat] if settings.chat else []
    words += ["--num_completions", str(settings.num_completions)] if settings.num_completions > 1 else []
    words += ["--max_failures", settings.max_failures, "--restart"]
    work = f"enhance-{layout.teacher_run}"

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        return [Command([*program("enhance"), *words, "--shard", f"{index or 0}/{shards}", *more])]

    return Stage(
        name="enhance",
        made=layout.enhanced,
        commands=commands,
        work=work,
        lock=lambda index: f"{work}-{index}-of-{shards}",
        request=as_the_model_asks(facts.teacher.requests.get("enhance"), "ENHANCE_ARGS"),
        indices=range(shards),
        array=True,
        needs=(settings.teacher,),
        gpus=max(facts.teacher.gpus["enhance"], 1) if facts.teacher.gpus else 0,
        heading=f"enhance ({' '.join(settings.kinds)})",
    )


def merge(settings: Settings, facts: Facts, layout: Layout) -> Stage:
    """The stage that merges the shards and post-processes the result. With EXPLANATIONS=best it also scores the texts,
    so that it needs the scorer and asks for what an evaluation asks for."""
    shards = settings.shards or 1
    work = f"enhance-{layout.teacher_run}"
    made = ["--benchmark", settings.benchmark, "--output_dir", str(layout.enhanced), "--test_dir", str(layout.tests)]
    made += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
    made += ["--post_process", *(["--filter", settings.filter] if settings.filter else [])]
    texts = explanations_of(settings, facts)
    made += ["--explanations", texts.setting] if texts.setting != "first" else []
    made += ["--scorer", texts.scorer] if texts.scorer else []
    scorer, of_scorer = settings.student, facts.student
    if settings.scorer == "teacher":
        scorer, of_scorer = settings.teacher, facts.teacher

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        found = []
        for kind in settings.kinds if shards > 1 else ():
            files = ["--input", str(layout.prompts), "--output", str(layout.explanations(kind))]
            found.append(Command([*program("merge"), *files, "--shards", str(shards), *more]))
        for kind in settings.kinds if texts.scorer else ():
            words = ["--name", scorer, "--input", str(layout.explanations(kind)), "--kind", kind]
            words += ["--prompts", settings.prompts] if settings.prompts != DEFAULT else []
            found.append(Command([*program("score-texts"), *words, *more]))
        return [*found, Command([*program("prepare"), *made, *more])]

    return Stage(
        name="merge",
        made=layout.enhanced,
        commands=commands,
        work=work,
        lock=lambda index: work,
        request=as_the_model_asks(of_scorer.requests["evaluate"], "EVALUATE_ARGS")
        if texts.scorer
        else few_processors("4G"),
        needs=(scorer,) if texts.scorer else (),
        heading=f"merge{', score' * bool(texts.scorer)} and post-process",
    )


def finetune(settings: Settings, facts: Facts, layout: Layout) -> Stage:
    values = facts.student.values
    data = layout.enhanced_dataset if settings.kinds else layout.prepared_dataset
    words = [settings.student, str(data), settings.batch or values["finetune.batch"]]
    words += [settings.accumulation or values["finetune.accumulation"]]
    words += [
        settings.learning_rate or values["finetune.learning_rate"],
        str(settings.epochs),
        settings.training_fields,
    ]
    words += [layout.name, str(layout.store), settings.wandb_project]
    words += ["--gradient_checkpointing", values["finetune.gradient_checkpointing"], "--seed", settings.seed]
    words += ["--report_to", settings.report_to, "--restart"]
    words += ["--explanations", "each_epoch"] if settings.explanations == "each_epoch" else []
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

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        checkpoint = layout.checkpoint(index) if index else None
        if index and checkpoint is None:
            return []
        words = ["--model_args", f"pretrained={checkpoint or settings.student}", "--tasks", settings.benchmark]
        words += ["--datasets", str(layout.tests), "--output_path", str(layout.evaluated)]
        words += ["--tokenization", settings.tokenization]
        words += ["--checkpoints", str(layout.checkpoints)] if index is None else []
        return [Command([*program("evaluate"), *words, *more])]

    return Stage(
        name="evaluate",
        made=layout.evaluated,
        commands=commands,
        work=f"evaluate-{layout.name}",
        lock=lambda index: f"evaluate-{layout.name}-{index}" if index else f"evaluate-{layout.student}",
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
    table = ["--task", settings.benchmark, "--untrained", str(layout.untrained_scores)]
    table += ["--checkpoints", str(layout.scores), "--log", str(layout.training_log)]

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        page = Command([*program("report"), str(layout.folder.path), *more])
        return [page] if more else [Command([*program("table"), *table]), page]

    return Stage(
        name="report",
        made=layout.folder.report,
        commands=commands,
        work=f"report-{layout.name}",
        lock=lambda index: "report",
        request=few_processors("4G"),
    )


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
    words += [f"TASK={settings.training_fields}"] if settings.training_fields != "cot_tail" else []
    words += [f"LIMIT={settings.limit}"] if settings.limit else []
    words += [f"RUNS={settings.runs}"] if settings.runs != "runs" else []
    download = f"{{}} is not on this machine's disks, and jobs have no internet: make download {shlex.join(words)}"
    found = absent_models(models, make=make)
    return [(name, why or download.format(name)) for name, why in found.items()]
