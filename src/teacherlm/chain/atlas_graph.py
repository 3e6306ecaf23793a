"""The chains of ATLAS on MMLU: prepare, then evaluate (zeroshot) or train (the other settings), score, report."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from teacherlm.atlas.experiment import DataFolder
from teacherlm.chain.graph import Absence, Graph, Stage, few_processors
from teacherlm.chain.layout import AtlasLayout, atlas_run_folder
from teacherlm.chain.settings import AtlasSettings
from teacherlm.chain.site import Site
from teacherlm.runtime.launcher import Command, own_program, program

DOMAINS = 57
"""Of MMLU: before the questions are prepared, so many tasks are planned."""
GPUS = 8


def atlas_graph(settings: AtlasSettings) -> Graph:
    folder = atlas_run_folder(settings.runs, settings.setting)
    layout = AtlasLayout(folder, DataFolder(settings.data_dir), settings.name, settings.setting)
    run = evaluate if settings.setting == "zeroshot" else train
    return Graph(
        benchmark=f"atlas-{settings.setting}",
        name=settings.name,
        summary=f"ATLAS on MMLU, {settings.setting}, {settings.size}; results go to {layout.results}",
        runs=Path(settings.runs),
        folder=folder,
        stages=(prepare(settings, layout), run(settings, layout), score(layout), report(layout)),
        absences=lambda make: absences(settings, layout.data),
    )


def locked_by(work: str) -> Callable[[int], str]:
    return lambda task: f"{work}-{task}"


def to_data(layout: AtlasLayout) -> dict[str, str]:
    """What an image may write to: what these stages make goes to DATA_DIR."""
    return {"RUNS": layout.data.path}


def prepare(settings: AtlasSettings, layout: AtlasLayout) -> Stage:
    words = ["--output_directory", settings.data_dir]
    given = settings.mmlu_data
    if given and Path(given).is_dir():
        words += ["--data_directory", given]
    elif given and Path(given).is_file():
        words += ["--data_tar", given]
    work = f"prepare-{checksum(settings.data_dir)}"
    return Stage(
        name="prepare",
        made=layout.questions,
        commands=lambda task, more: [Command([*program("prepare-mmlu"), *words, *more], to_data(layout))],
        work=work,
        lock=locked_by(work),
        request=few_processors("16G"),
    )


def experiment(settings: AtlasSettings, more: Sequence[str], domain: str | None = None) -> Command:
    variables = {"EXPERIMENT_NAME": settings.name, "SIZE": settings.size}
    variables |= {"DOMAIN": domain} if domain else {}
    script = f"mmlu-{settings.setting}.sh"
    return Command([*own_program("atlas-experiment", script), settings.setting, *settings.flags, *more], variables)


def evaluate(settings: AtlasSettings, layout: AtlasLayout) -> Stage:
    work = f"evaluate-{settings.name}"
    return Stage(
        name="evaluate",
        made=layout.results,
        commands=lambda task, more: [experiment(settings, more)],
        work=work,
        lock=locked_by(work),
        request=whole_node,
        needs=needed(settings, layout.data),
    )


def train(settings: AtlasSettings, layout: AtlasLayout) -> Stage:
    """Of the 5-shot setting a task is a domain; the others have one task."""
    array, work = settings.setting == "5-shot", f"train-{settings.name}"

    def commands(task: int | None, more: Sequence[str]) -> list[Command]:
        if task is None or not array:
            return [experiment(settings, more)]
        domains = layout.data.domains()
        return [experiment(settings, more, domains[task])] if task < len(domains) else []

    def missing() -> list[int]:
        """By the manifests alone: asking each domain would take minutes. Each looks for itself, too."""
        domains = layout.data.domains()
        return [task for task, domain in enumerate(domains) if not layout.domain_manifest(domain).is_file()]

    return Stage(
        name="train",
        made=layout.results,
        commands=commands,
        work=work,
        lock=locked_by(work),
        request=whole_node,
        tasks=Domains(layout.data) if array else (0,),
        array=array,
        needs=needed(settings, layout.data),
        missing=missing if array else None,
        nothing="train: there are fewer domains",
    )


class Domains(Sequence[int]):
    """The numbers of the domains, as they are when they are asked for: preparing the questions makes them."""

    def __init__(self, data: DataFolder):
        self.data = data

    def __len__(self) -> int:
        return len(self.data.domains()) or DOMAINS

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return range(len(self))[index]


def score(layout: AtlasLayout) -> Stage:
    words = ["--gold_path", str(layout.gold / "combined_test.jsonl"), "--predictions_path"]
    if layout.setting == "zeroshot":
        words += [str(layout.zeroshot_predictions)]
    else:
        words += [str(layout.results), "--select-step", str(layout.gold / "combined_valid.jsonl")]
    work = f"score-{layout.name}"
    return Stage(
        name="score",
        made=None,
        commands=lambda task, more: [Command([*program("atlas-scores"), *words], to_data(layout))],
        work=work,
        lock=locked_by(work),
        request=few_processors("16G"),
        always=True,
    )


def report(layout: AtlasLayout) -> Stage:
    """Of all experiments that are there."""
    work = f"report-{layout.name}"
    return Stage(
        name="report",
        made=None,
        commands=lambda task, more: [Command([*program("report"), str(layout.experiments)], to_data(layout))],
        work=work,
        lock=locked_by(work),
        request=few_processors("16G"),
        always=True,
    )


def whole_node(site: Site) -> list[str]:
    """The reference's eight nodes of eight GPUs are for its largest model; ATLAS_ARGS says what this site gives."""
    words = ["--nodes=1", f"--ntasks-per-node={GPUS}", "--cpus-per-task=8", "--mem=0", "--time=08:00:00"]
    words += [*site.partition("PARTITION"), f"--gres=gpu:{site.gpu_type and site.gpu_type + ':'}{GPUS}"]
    return [*words, *site.arguments["SBATCH_ARGS"], *site.arguments["ATLAS_ARGS"]]


def needed(settings: AtlasSettings, data: DataFolder) -> tuple[str, ...]:
    """The checkpoint, and the index, unless passages are indexed in its place."""
    model, index = settings.model_path or data.model(settings.size), settings.index_path or data.index(settings.size)
    by_passages = settings.passages and "/indices/" in index
    return tuple(path for path in (model, *([] if by_passages else [index])) if path != "none")


def absences(settings: AtlasSettings, data: DataFolder) -> list[Absence]:
    where = "fetch it with atlas/preprocessing/download_*.py (docs/how-to/atlas.md)"
    message = "{} is not there, and jobs have no internet; " + where
    return [(path, message.format(path)) for path in needed(settings, data) if not Path(path).exists()]


def checksum(path: str) -> int:
    """POSIX cksum of a line: a short name for a folder."""
    crc = 0
    text = os.fsencode(path) + b"\n"
    length = len(text)
    while length:
        text += bytes([length & 255])
        length >>= 8
    for byte in text:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc ^ 0xFFFFFFFF
