"""The chain on a real Slurm, which runs on this machine for the tests: `make test-cluster`."""

import itertools
import re
import subprocess
import sys

import pytest
from support.programs import ROOT, program
from support.slurm_cluster import Cluster, outputs

pytestmark = pytest.mark.cluster


@pytest.mark.xdist_group("compared")
def test_a_chain_of_jobs_makes_what_the_local_launcher_makes(
    cluster: Cluster, local_chain: subprocess.CompletedProcess
) -> None:
    result = cluster.make(SHARDS=4)
    assert result.returncode == 0, result.stderr
    jobs = cluster.jobs()
    assert [row[0] for row in jobs] == ["prepare", "enhance", "merge", "finetune", "evaluate", "report"]
    assert [row[2] for row in jobs] == ["0", "0-3", "0", "0", "0-2", "0"]
    assert [row[3] for row in jobs] == ["-", *(row[1] for row in jobs[:-1])]
    assert {state for states in cluster.await_end().values() for state in states} == {"COMPLETED"}
    records = [list(cluster.states(row[1]).values()) for row in jobs]
    for before, after in itertools.pairwise(records):
        assert max(task["EndTime"] for task in before) <= min(task["StartTime"] for task in after)

    table = local_chain.stdout.partition("== report\n")[2].partition("\nreport: ")[0]
    (report,) = cluster.place.glob("runs/*/*/chains/*/logs/report.log")
    assert table.strip() in report.read_text()
    assert outputs(cluster.place / "runs") == outputs(cluster.place / "here")

    again = cluster.make(SHARDS=4)
    assert again.returncode == 0, again.stderr
    said = [f"{row[0]}: done already" for row in jobs]
    assert again.stdout.splitlines()[1:] == [*said, "nothing to submit: all stages are done"]
    assert cluster.jobs() == jobs


def test_the_doctor_says_what_slurm_offers(cluster: Cluster) -> None:
    result = cluster.run(sys.executable, *program("doctor"))
    (line,) = re.findall(r"^(\w+) +Slurm +(.*)$", result.stdout, re.MULTILINE)
    assert line[0] == "ok"
    assert re.match(r"Slurm \d+\.\d+\S*; GPUs per node: [^;]+; arrays of up to \d+ tasks", line[1]), line


def test_a_chain_that_is_under_way_is_not_submitted_twice_and_another_waits_for_it(cluster: Cluster) -> None:
    first = cluster.make("two", EPOCHS=1)
    assert first.returncode == 0, first.stderr
    twice = cluster.make("two", EPOCHS=1)
    assert twice.returncode == 2
    assert "is under way" in twice.stderr
    other = cluster.make("two", EPOCHS=1, TASK="all")
    assert other.returncode == 0, other.stderr
    tables = sorted((cluster.place / "two").glob("*/*/chains/*/jobs.tsv"))
    rows = {table.parent.name: [line.split("\t") for line in table.read_text().splitlines()] for table in tables}
    cot, everything = rows["tiny_cot_tail_tiny_batch4_seed0"], rows["tiny_all_tiny_batch4_seed0"]
    (first_enhance, first_merge), (enhance, merge) = (
        [row for row in chain if row[0] in ("enhance", "merge")] for chain in (cot, everything)
    )
    assert {first_enhance[1], first_merge[1]} <= set(enhance[3].split())
    assert {enhance[1], first_merge[1]} <= set(merge[3].split())
    submitted = [row for row in cot + everything if row[1].isdigit()]  # a stage may be found done by now
    jobs = [row[1] for row in submitted]
    cluster.await_that(lambda: cluster.have_ended(jobs), 400)
    for row in submitted:
        assert {record["JobState"] for record in cluster.states(row[1]).values()} == {"COMPLETED"}
    logs = [log.read_text() for log in (cluster.place / "two").rglob("logs/enhance-0.log")]
    assert sorted("done already" in log for log in logs) == [False, True]


def test_a_dry_run_prints_the_lines_and_the_graph_and_submits_nothing(cluster: Cluster) -> None:
    result = cluster.make("dry $(touch pwned) 'x' ; y", DRY_RUN=1, SHARDS=4)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("sbatch ")]
    assert len(lines) == 6
    assert "--array=0-3" in lines[1]
    assert "--dependency=afterok:ID_OF_PREPARE" in lines[1]
    assert 'prepare --> enhance["enhance 0-3"]' in result.stdout
    assert not list(cluster.place.rglob("pwned"))
    assert not list((cluster.place / "dry $(touch pwned) 'x' ; y").rglob("jobs.tsv"))


def test_what_can_never_run_is_said_at_submission(cluster: Cluster) -> None:
    site = cluster.place / "wrong.env"
    site.write_text((cluster.place / "site.env").read_text() + "FINETUNE_ARGS+=(--time=48:00:00)\n")
    result = cluster.make("wrong", SITE=site)
    assert result.returncode == 0, result.stderr
    (warning,) = result.stderr.splitlines()
    assert (
        f"warning: finetune (job {cluster.job('wrong', 'finetune')}) will wait for ever: it requests more time"
        in warning
    )
    assert "(2-00:00:00) than its partition main allows; run make cancel" in warning
    assert "cancelled jobs" in cluster.steer("cancel", "wrong").stdout
    site.write_text("PARTITION=none\nCPU_PARTITION=none\n")
    refused = cluster.make("refused", SITE=site)
    assert refused.returncode == 2
    assert "Slurm refused the stage prepare" in refused.stderr
    assert not list((cluster.place / "refused").rglob("jobs.tsv"))


def test_a_model_that_jobs_would_miss_is_said_at_submission(cluster: Cluster) -> None:
    result = cluster.make("missing", STUDENT="bloomz-560m", HF_HOME=cluster.place / "hub")
    assert result.returncode == 2
    assert "bloomz-560m is not on this machine's disks" in result.stderr
    assert not list((cluster.place / "missing").rglob("jobs.tsv"))


def test_make_download_fetches_models_and_prepares_the_data(cluster: Cluster) -> None:
    words = {"STUDENT": cluster.model, "TEACHER": "field:explanation", "RUNS": cluster.place / "fetched", "LIMIT": 12}
    result = cluster.run("bash", str(ROOT / "slurm" / "download.sh"), "sample", **words)
    assert result.returncode == 0, result.stderr
    assert str(cluster.model) in result.stdout
    assert len(list((cluster.place / "fetched").rglob("SAMPLE.jsonl"))) == 1
    missing = cluster.run("bash", str(ROOT / "slurm" / "download.sh"), "sample", **{**words, "STUDENT": "no/such"})
    assert missing.returncode == 2, missing.stderr


def test_make_site_asks_slurm_and_the_chain_takes_what_it_wrote(cluster: Cluster) -> None:
    site = cluster.place / "asked.env"
    describe = [sys.executable, *program("site"), "--output", str(site)]
    shown = cluster.run(*describe).stdout
    assert "main*" in shown
    assert "gpu:2" in shown
    assert "PARTITION=main # gpu:2, at most 1:00:00" in site.read_text()
    assert "exists already" in cluster.run(*describe).stdout
    lines = cluster.make("asked", SITE=site, DRY_RUN=1).stdout.splitlines()
    assert all("--partition=main" in line for line in lines if line.startswith("sbatch "))
