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
"""Number of MMLU's subjects. Before the questions are prepared, this number of tasks is planned."""
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
    return lambda index: f"{work}-{index}"


def to_data(layout: AtlasLayout) -> dict[str, str]:
    """The variable that lets an image write to DATA_DIR, where the outputs of these stages go."""
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
        commands=lambda index, more: [Command([*program("prepare-mmlu"), *words, *more], to_data(layout))],
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
        commands=lambda index, more: [experiment(settings, more)],
        work=work,
        lock=locked_by(work),
        request=whole_node,
        needs=needed(settings, layout.data),
    )


def train(settings: AtlasSettings, layout: AtlasLayout) -> Stage:
    """The stage that trains. In the 5-shot setting it has a task per domain, in the others one task."""
    array, work = settings.setting == "5-shot", f"train-{settings.name}"

    def commands(index: int | None, more: Sequence[str]) -> list[Command]:
        if index is None or not array:
            return [experiment(settings, more)]
        domains = layout.data.domains()
        return [experiment(settings, more, domains[index])] if index < len(domains) else []

    def missing() -> list[int]:
        """The domains without a manifest. A full check would take minutes; each task checks itself when it starts."""
        domains = layout.data.domains()
        return [index for index, domain in enumerate(domains) if not layout.domain_manifest(domain).is_file()]

    return Stage(
        name="train",
        made=layout.results,
        commands=commands,
        work=work,
        lock=locked_by(work),
        request=whole_node,
        indices=Domains(layout.data) if array else (0,),
        array=array,
        needs=needed(settings, layout.data),
        missing=missing if array else None,
        nothing="train: there is no domain with this number",
    )


class Domains(Sequence[int]):
    """The numbers of the domains. They are counted at each use, because preparing the questions makes the domains."""

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
        commands=lambda index, more: [Command([*program("atlas-scores"), *words], to_data(layout))],
        work=work,
        lock=locked_by(work),
        request=few_processors("16G"),
        always=True,
    )


def report(layout: AtlasLayout) -> Stage:
    """The stage that makes the page of all experiments."""
    work = f"report-{layout.name}"
    return Stage(
        name="report",
        made=layout.page,
        commands=lambda index, more: [Command([*program("report"), str(layout.experiments), *more], to_data(layout))],
        work=work,
        lock=locked_by(work),
        request=few_processors("16G"),
    )


def whole_node(site: Site) -> list[str]:
    """A request for one node of eight GPUs. ATLAS_ARGS changes it; the reference's largest model takes eight nodes."""
    words = ["--nodes=1", f"--ntasks-per-node={GPUS}", "--cpus-per-task=8", "--mem=0", "--time=08:00:00"]
    words += [*site.partition("PARTITION"), f"--gres=gpu:{site.gpu_type and site.gpu_type + ':'}{GPUS}"]
    return [*words, *site.arguments["SBATCH_ARGS"], *site.arguments["ATLAS_ARGS"]]


def needed(settings: AtlasSettings, data: DataFolder) -> tuple[str, ...]:
    """The paths that must exist: the checkpoint, and the index unless passages are indexed instead."""
    model, index = settings.model_path or data.model(settings.size), settings.index_path or data.index(settings.size)
    by_passages = settings.passages and "/indices/" in index
    return tuple(path for path in (model, *([] if by_passages else [index])) if path != "none")


def absences(settings: AtlasSettings, data: DataFolder) -> list[Absence]:
    message = (
        "{} is missing, and jobs have no internet: atlas/preprocessing/download_*.py download it (docs/how-to/atlas.md)"
    )
    return [(path, message.format(path)) for path in needed(settings, data) if not Path(path).exists()]


def checksum(path: str) -> int:
    """The POSIX checksum (cksum) of a path with a line break, used as a short name for a folder."""
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
