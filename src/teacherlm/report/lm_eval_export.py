"""Write results of `teacherlm evaluate` in the format of lm-eval, for tools that read lm-eval's results.

A result is given as its file (results/MODEL/TASK.json) or as the folder of its model. For each model this writes
OUTPUT/MODEL/results_TIME.json with the metrics of all tasks, and samples_TASK_TIME.jsonl with the samples of each, as
`lm_eval --log_samples --output_path OUTPUT` does. TIME is the time of the evaluation, so that the same results give the
same files.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.flags import flag, parse
from teacherlm.core.names import file_name
from teacherlm.core.outputs import require_writable
from teacherlm.core.records import write_records
from teacherlm.core.terminal import plural, printable
from teacherlm.report.find_runs import result_files
from teacherlm.report.lm_eval_format import ended, results_of, samples_of
from teacherlm.report.scored import Scored, read_results


@dataclass(frozen=True)
class ExportFlags:
    """The results to write, and where."""

    results: tuple[Path, ...] = flag(positional=True, help="results: files TASK.json, or folders of models with them")
    output: Path = flag(help="folder in which each model gets a folder with lm-eval's files")


def main() -> None:
    flags = parse(
        ExportFlags, __doc__, example="teacherlm export-lm-eval results/smollm2-135m --output lm-eval-results"
    )
    models = read_models(flags.results)
    exported = {one.path: samples_of(one) for scored in models.values() for one in scored}
    require_own_names(models)
    require_writable(flags.output)
    for folder, scored in models.items():
        time = max(ended(one) for one in scored)
        name = time.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
        place = flags.output / model_folder(scored[0])
        tasks = {task: samples for one in scored for task, samples in exported[one.path].items()}
        for task, samples in tasks.items():
            write_records(place / f"samples_{file_name(task)}_{name}.jsonl", samples)
        with whole_file(place / f"results_{name}.json") as file:  # last, because readers look for it
            json.dump(results_of(scored, exported, time), file, indent=2)
            file.write("\n")
        said = f"wrote {plural(len(tasks), 'task')} of {folder} to {place}"
        print(f"export-lm-eval: {printable(said)}")


def read_models(places: Iterable[Path]) -> dict[Path, list[Scored]]:
    """Folder of a model -> its results, which have samples.

    Raises:
        UserError: there is no result, or one cannot be read or lacks its samples.
    """
    found: dict[Path, list[Scored]] = defaultdict(list)
    for place in places:
        files = result_files(place)
        if not files:
            raise UserError(
                f"{place}: no result; a file TASK.json of `teacherlm evaluate`, or its folder, was expected"
            )
        missing: list[str] = []
        for scored in read_results(files, missing):
            samples = scored.path.with_name(f"{scored.path.stem}_samples.jsonl")
            if not samples.is_file():
                raise UserError(f"{samples}: no such file; it has the samples of {scored.path}; score the model again")
            if scored not in found[scored.path.parent]:
                found[scored.path.parent].append(scored)
        if missing:
            raise UserError(missing[0])
    return dict(found)


def require_own_names(models: Mapping[Path, Sequence[Scored]]) -> None:
    """Refuse models whose files would get into one folder.

    Raises:
        UserError: two models have the same name.
    """
    places: dict[str, Path] = {}
    for folder, scored in models.items():
        other = places.setdefault(model_folder(scored[0]), folder)
        if other != folder:
            raise UserError(f"{folder} and {other} have the same name; export each of them with another --output")


def model_folder(scored: Scored) -> str:
    """The name of the model's folder: that of our results, which is shorter than lm-eval's name of a local path."""
    parts = scored.path.resolve().parent.parts
    return file_name("__".join(parts[-2:]) if scored.step else parts[-1])
