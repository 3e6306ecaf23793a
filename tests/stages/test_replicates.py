"""Runs that differ only in the seed are one row, which unfolds; other runs are never joined."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.compared import read_csv
from support.pages import missing, page_of, table
from support.programs import only_error
from support.replicates import change_manifest, write_seed, write_texts_and_dataset
from support.report_runs import DIGEST, write_run

from teacherlm.report.resampling import difference_of, mean_interval
from teacherlm.report.significance import mcnemar

NAME = "tiny_text"
JOINED = "tiny_text, checkpoint-{} (3 seeds)"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an untrained student, and no finetuning."""
    return write_run(tmp_path_factory.mktemp("runs") / "creak" / "all", None, ())


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "runs" / "creak" / "all"))


def right(run: Path, name: str) -> np.ndarray:
    """Whether a model is right on each question."""
    samples = (run / "evaluate" / name / "creak_samples.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["acc"] for line in samples])


def rights(run: Path, name: str, seeds: tuple[int, ...] = (0, 1, 2), step: int = 6) -> np.ndarray:
    return np.stack([right(run, f"{name}_seed{seed}/checkpoint-{step}") for seed in seeds])


def names(rows: list[list]) -> list[str]:
    return [row[0] for row in rows]


def test_three_seeds_are_one_row_that_unfolds(inside: Callable, run: Path) -> None:
    for seed in (2, 0, 1):
        write_seed(run, NAME, seed)
    page = page_of(inside, run)
    assert missing(page) == []
    rows = table(page, "accuracy-creak")
    below = {step: [f"{NAME}_seed{seed}, checkpoint-{step}" for seed in (0, 1, 2)] for step in (3, 6)}
    assert names(rows) == ["tiny (untrained)", JOINED.format(3), *below[3], JOINED.format(6), *below[6]]
    for step, place in ((3, 1), (6, 5)):
        right_SQ = rights(run, NAME, step=step)
        _, epoch, questions, value, interval, loss = rows[place]
        assert (epoch, questions, value) == (str(step // 3), [60], [pytest.approx(right_SQ.mean())])
        assert interval == list(mean_interval(right_SQ))
        assert loss == pytest.approx([np.mean([row[5] for row in rows[place + 1 : place + 4]])])
        assert [row[3] for row in rows[place + 1 : place + 4]] == [[share] for share in right_SQ.mean(1)]
    body = page.xpath("//table[@id='accuracy-creak']/tbody/tr")
    assert [row.get("class") for row in body] == [None, *2 * [None, "member", "member", "member"]]
    assert [button.text for button in page.xpath("//table[@id='accuracy-creak']//button")] == [
        JOINED.format(3),
        JOINED.format(6),
    ]


def test_the_terminal_shows_one_row_and_the_seeds_below_it(inside: Callable, run: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_seed(run, NAME, seed)
    for result in (inside("report", run), inside("compare", run, "--output", tmp_path / "compared")):
        lines = result.stdout.splitlines()
        place = next(n for n, line in enumerate(lines) if JOINED.format(6) in line)
        assert lines[place].startswith(f"| {JOINED.format(6)} ")
        assert [line.split(",")[0] for line in lines[place + 1 : place + 4]] == [
            f"|   {NAME}_seed{seed}" for seed in (0, 1, 2)
        ]


def test_comparisons_use_all_seeds(inside: Callable, run: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_seed(run, NAME, seed)
        write_seed(run, "tiny_cot_tail", seed, arguments={"task_type": "cot_tail"}, answers=seed + 10)
    result = inside("compare", run, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "pairs-creak.csv")
    joined = [f"{name}, checkpoint-6 (3 seeds)" for name in ("tiny_cot_tail", NAME)]
    of_groups = [row for row in rows if row[0] not in {f"tiny_cot_tail_seed{n}, checkpoint-6" for n in range(3)}]
    of_groups = [row for row in of_groups if row[9]]  # the single seeds have no p that is corrected
    assert [row[:2] for row in of_groups] == [
        ["tiny (untrained)", joined[0]],
        ["tiny (untrained)", joined[1]],
        joined,
    ]
    untrained = right(run, "tiny")[None]
    matrices = [(untrained, rights(run, "tiny_cot_tail")), (untrained, rights(run, NAME))]
    matrices += [(rights(run, "tiny_cot_tail"), rights(run, NAME))]
    for row, (first_SQ, second_SQ) in zip(of_groups, matrices, strict=True):
        expected = difference_of(first_SQ, second_SQ)
        assert row[2:5] == ["60", "", ""]
        assert float(row[5]) == pytest.approx(second_SQ.mean() - first_SQ.mean())
        assert [float(cell) for cell in row[6:9]] == [*expected.interval_95, expected.p]
    place = rows.index(of_groups[2])
    for seed, row in enumerate(rows[place + 1 : place + 4]):
        assert row[:2] == [f"{name}_seed{seed}, checkpoint-6" for name in ("tiny_cot_tail", NAME)]
        a, b = rights(run, "tiny_cot_tail")[seed], rights(run, NAME)[seed]
        counts = int((a > b).sum()), int((b > a).sum())
        assert [int(cell) for cell in row[3:5]] == list(counts) and float(row[8]) == mcnemar(*counts)
    head = (tmp_path / "pairs-creak.csv").read_text().splitlines()[0]
    assert head.endswith(",p,p (Holm)")


def test_one_name_stands_for_all_seeds(inside: Callable, run: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_seed(run, NAME, seed)
        write_seed(run, f"{NAME}_more", seed, arguments={"num_train_epochs": 3.0})
    result = inside("compare", NAME, "--runs", run.parent.parent, "--output", tmp_path / "compared")
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "compared" / "accuracy-creak.csv")
    assert f"{NAME}, checkpoint-6 (2 seeds)" in names(rows) and not any("more" in row[0] for row in rows)


def test_many_names_have_a_folder_of_a_short_name(inside: Callable, run: Path) -> None:
    runs = run.parent.parent
    names_of_seeds = [f"{NAME}_{'long' * 9}_seed{seed}" for seed in range(6)]
    for seed, name in enumerate(names_of_seeds):
        write_seed(run, name.rpartition("_seed")[0], seed)
    result = inside("compare", *names_of_seeds, "--runs", runs)
    assert result.returncode == 0, result.stderr
    [folder] = (runs / "compare").iterdir()
    assert folder.name.startswith(names_of_seeds[0]) and len(folder.name) == 200
    assert f"{NAME}_{'long' * 9}, checkpoint-6 (6 seeds)" in (folder / "index.html").read_text()


def test_texts_that_were_drawn_with_other_seeds_are_the_same_data(inside: Callable, run: Path) -> None:
    for seed in (0, 1, 2):
        write_seed(run, NAME, seed, dataset=write_texts_and_dataset(run, seed))
    assert JOINED.format(6) in names(table(page_of(inside, run), "accuracy-creak"))


def test_training_sets_of_other_benchmarks_lie_in_their_folders(inside: Callable, run: Path) -> None:
    for seed in (0, 1, 2):
        own = write_texts_and_dataset(run, seed)
        other = write_texts_and_dataset(run.parent.parent / "ecqa" / "all", seed, temperature=0.5)
        write_seed(run, NAME, seed, datasets=(own, other))
    assert JOINED.format(6) in names(table(page_of(inside, run), "accuracy-creak"))


def other_texts(run: Path) -> None:
    for seed in (0, 1):
        write_seed(run, NAME, seed, dataset=write_texts_and_dataset(run, seed, temperature=1.0 - seed))


def same_seed(run: Path) -> None:
    """A copy of a run says nothing new."""
    write_seed(run, NAME, 0)
    write_seed(run, f"{NAME}_copy", 0)


def unfinished(run: Path) -> None:
    for seed in (0, 1):
        write_seed(run, NAME, seed)
    (run / "finetune" / f"{NAME}_seed1" / "manifest.json").unlink()


def two_with(**differs: object) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        write_seed(run, NAME, 0)
        write_seed(run, NAME, 1, **differs)

    return write


@pytest.mark.parametrize(
    "write",
    [
        two_with(arguments={"learning_rate": 1e-05}),
        two_with(arguments={"num_train_epochs": 3.0}),
        two_with(arguments={"early_stop": 2}),
        two_with(dataset="another dataset"),
        two_with(student="e" * 64),
        other_texts,
        same_seed,
        unfinished,
    ],
    ids=["rate", "epochs", "more", "dataset", "student", "texts", "same seed", "unfinished"],
)
def test_runs_that_differ_in_something_else_are_not_joined(
    inside: Callable, run: Path, write: Callable[[Path], None]
) -> None:
    write(run)
    result = inside("report", run)
    assert result.returncode == 0, result.stderr
    assert "seeds)" not in (run / "report" / "index.html").read_text()
    assert result.stdout.startswith("report: ")


@pytest.mark.parametrize("differs", [{"questions": 50}, {"scored_as": {"seed": 0, "num_fewshot": 5}}])
def test_results_on_different_questions_are_not_joined_and_a_line_says_so(
    inside: Callable, run: Path, differs: dict
) -> None:
    two_with(**differs)(run)
    page = page_of(inside, run)
    assert not any("seeds)" in name for name in names(table(page, "accuracy-creak")))
    said = [line for line in missing(page) if line.startswith("replicates: ")]
    assert said == [
        f"replicates: {NAME}_seed0, checkpoint-{step} and {NAME}_seed1, checkpoint-{step} differ only in the seed, and "
        "are not joined on creak: they were scored on different questions or with different settings"
        for step in (3, 6)
    ]


def test_a_last_checkpoint_that_is_not_scored_is_not_joined_with_other_epochs(inside: Callable, run: Path) -> None:
    for seed in (0, 1, 2):
        write_seed(run, NAME, seed)
    shutil.rmtree(run / "evaluate" / f"{NAME}_seed2" / "checkpoint-6")
    page = page_of(inside, run)
    pairs = {tuple(row[:2]) for row in table(page, "pairs-creak")}
    assert ("tiny (untrained)", "tiny_text, checkpoint-6 (2 seeds)") in pairs
    assert ("tiny (untrained)", "tiny_text_seed2, checkpoint-3") in pairs


def test_last_checkpoints_of_different_epochs_are_joined(inside: Callable, run: Path) -> None:
    """With --early_stop, the last checkpoint of each seed is the outcome of the same method."""
    for seed in (0, 1):
        write_seed(run, NAME, seed, arguments={"early_stop": 1})
    path = run / "finetune" / f"{NAME}_seed1" / "manifest.json"
    outputs = json.loads(path.read_text())["outputs"]
    change_manifest(path, outputs={"checkpoint-3": outputs["checkpoint-3"]})
    for place in (path.parent, run / "evaluate" / f"{NAME}_seed1"):
        shutil.rmtree(place / "checkpoint-6")
    page = page_of(inside, run)
    [pair] = [row for row in table(page, "pairs-creak") if "seeds)" in row[1]]
    expected = np.mean([right(run, f"{NAME}_seed0/checkpoint-6"), right(run, f"{NAME}_seed1/checkpoint-3")])
    assert pair[1] == f"{NAME}, last checkpoints (2 seeds)"
    assert pair[5] == [pytest.approx(expected - right(run, "tiny").mean())]
    rows = names(table(page, "accuracy-creak"))
    assert f"{NAME}, checkpoint-3 (2 seeds)" in rows and f"{NAME}_seed0, checkpoint-6" in rows


def test_scores_with_further_flags_are_joined_among_themselves(inside: Callable, run: Path) -> None:
    for seed in (0, 1):
        write_seed(run, NAME, seed, scored_as={"permutations": "none"})
        for step in (3, 6):
            place = run / "evaluate-12345678" / f"{NAME}_seed{seed}" / f"checkpoint-{step}"
            shutil.copytree(run / "evaluate" / f"{NAME}_seed{seed}" / f"checkpoint-{step}", place)
            change_manifest(place / "creak.manifest.json", arguments={"permutations": "all"})
    found = [name for name in names(table(page_of(inside, run), "accuracy-creak")) if "seeds)" in name]
    assert found == [
        *(f"{NAME}, checkpoint-{step} (2 seeds)" for step in (3, 6)),
        *(f"{NAME}, evaluate-12345678, checkpoint-{step} (2 seeds)" for step in (3, 6)),
    ]


def test_manifests_that_lead_in_a_circle_end(inside: Callable, run: Path) -> None:
    """The dataset's manifest, which anybody may have written, says that it was made from itself."""
    dataset = write_texts_and_dataset(run, 0)
    path = run / "enhance" / "teacher_seed0" / "CREAK" / "manifest.json"
    manifest = json.loads(path.read_text())
    change_manifest(path, inputs={"cot": {"path": "x", "sha256": manifest["outputs"]["dataset"]["sha256"]}})
    for seed in (0, 1):
        write_seed(run, NAME, seed, dataset=dataset)
    assert f"{NAME}, checkpoint-6 (2 seeds)" in names(table(page_of(inside, run), "accuracy-creak"))


def test_a_seed_that_is_no_number_is_no_seed(inside: Callable, run: Path) -> None:
    two_with()(run)
    for seed, wrong in ((0, "0"), (1, True)):
        path = run / "finetune" / f"{NAME}_seed{seed}" / "manifest.json"
        change_manifest(path, arguments={"seed": wrong})
    assert not any("seeds)" in name for name in names(table(page_of(inside, run), "accuracy-creak")))


def test_without_replicates_a_page_has_no_script_for_them(inside: Callable, run: Path) -> None:
    write_seed(run, NAME, 0, student=DIGEST)
    page_of(inside, run)
    html = (run / "report" / "index.html").read_text()
    assert "button.unfold" not in html and "seeds" not in html


def test_a_name_of_no_seed_is_one_line(inside: Callable, run: Path) -> None:
    write_seed(run, NAME, 0)
    assert "tiny: " not in only_error(inside("compare", "tiny_te", "--runs", run.parent.parent))
