"""What a request asks for that its partition does not have, and what `make site` writes about it."""

import pytest

from teacherlm.chain.describe_site import site_env
from teacherlm.chain.partitions import Partition, excess, seconds_requested

SMALL = Partition("small", True, "", "2", "4000", "1:00:00", "3")
LARGE = Partition("large", False, "gpu:a100:4", "64+", "500000+", "2-00:00:00", "8")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("--time=01:00:00 --mem=4000M --cpus-per-task=2", ""),
        ("--time=04:00:00", "--time=04:00:00 (at most 1:00:00)"),
        ("--time=04:00:00 --time=30", ""),
        ("--mem=4G --cpus-per-task=8", "--mem=4G (at most 4000M), --cpus-per-task=8 (at most 2)"),
        ("--cpus-per-task=1 --ntasks-per-node=4", "--cpus-per-task=1 (at most 2)"),
        ("--mem=0 --time=04:00:00 --partition=large", ""),
        ("--time=3-0 --partition=large", "--time=3-0 (at most 2-00:00:00)"),
        ("--cpus-per-task=128 --mem=900G --partition=large", ""),  # some nodes have more, nobody says how much
        ("--time=04:00:00 --partition=unknown", ""),
        ("-t 30 --time=04:00:00", ""),
    ],
)
def test_only_what_is_certain_is_too_much(request_: str, said: str) -> None:
    assert excess(request_.split(), [SMALL, LARGE]) == said


def test_of_nodes_that_differ_the_largest_counts() -> None:
    kinds = [SMALL, Partition("small", True, "", "16", "64000", "1:00:00", "1")]
    assert excess(["--cpus-per-task=8", "--mem=32G"], kinds) == ""
    assert excess(["--mem=128G"], kinds) == "--mem=128G (at most 64000M)"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30", 1800), ("30:15", 1815), ("04:00:00", 14400), ("2-0", 172800), ("1-02:30", 95400), ("1-0:0:1", 86401)],
)
def test_times_of_sbatch(time: str, seconds: int) -> None:
    assert seconds_requested(time) == seconds
    assert seconds_requested("UNLIMITED") > seconds_requested("1000-0") > seconds_requested("soon") == 0


def test_a_site_with_short_limits_gets_the_lines_that_keep_them() -> None:
    lines = site_env([SMALL, LARGE], []).splitlines()
    assert "CPU_ARGS=(--time=1:00:00)" in lines
    assert not [line for line in lines if line.startswith("ENHANCE_ARGS")]
    short = site_env([SMALL], []).splitlines()
    for name in ("CPU_ARGS", "ENHANCE_ARGS", "FINETUNE_ARGS", "EVALUATE_ARGS"):
        assert f"{name}=(--time=1:00:00)" in short
    assert not [line for line in site_env([LARGE], []).splitlines() if "ARGS" in line]
