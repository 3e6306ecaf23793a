"""ATLAS's 5-shot setting on a real Slurm, as people run it: a job array with a model for each of the 57 domains.

`make prove ONLY=all_domains` runs it, as root, after `bash tests/cluster/install.sh`.
"""

from pathlib import Path

import pytest
from support.atlas_models import make_passages, make_small_mmlu, make_tiny_bert, make_tiny_t5, write_lines
from support.files import read_lines
from support.programs import ROOT
from support.slurm_cluster import Cluster, only_log

pytestmark = [pytest.mark.xdist_group("named"), pytest.mark.slow, pytest.mark.timeout(3600)]


def test_an_array_over_all_domains(cluster: Cluster, shared_data: Path) -> None:
    """Real questions, four per domain for the test, and tiny models. Each task starts on its own."""
    place = cluster.place / "atlas"
    domains = sorted(path.name.removesuffix("_dev.csv") for path in (shared_data / "mmlu" / "dev").glob("*_dev.csv"))
    assert len(domains) == 57
    site = cluster.place / "domains.env"
    asked = "ATLAS_ARGS=(--nodes=1 --ntasks-per-node=1 --gres=none --mem=1500M --cpus-per-task=1 --time=10)"
    site.write_text((cluster.place / "site.env").read_text() + asked + "\n")
    flags = "--n_context 2 --retriever_n_context 3 --text_maxlength 128 --generation_max_length 4 --dropout 0"
    words = {
        "DATA_DIR": place,
        "RUNS": place / "runs",
        "MMLU_DATA": make_small_mmlu(place / "mmlu", shared_data / "mmlu", domains),
        "READER": make_tiny_t5(place / "t5"),
        "RETRIEVER": make_tiny_bert(place / "bert"),
        "PASSAGES": write_lines(place / "passages.jsonl", make_passages(41)),
        "MODEL_PATH": "none",
        "PRECISION": "fp32",
        "SIZE": "tiny",
        "FLAGS": f"{flags} --total_steps 4 --warmup_steps 1 --eval_freq 2 --per_gpu_batch_size 2",
        "TEACHERLM_CACHE": place / "cache",
        "SITE": site,
    }
    result = cluster.run("bash", str(ROOT / "slurm" / "chain.sh"), "atlas-5-shot", **words)
    assert result.returncode == 0, result.stderr
    states = cluster.await_end("atlas/runs", seconds=3000)
    assert {state for of_job in states.values() for state in of_job} == {"COMPLETED"}
    results = place / "experiments" / "tiny-mmlu-5-shot"
    for domain in domains:
        assert len(read_lines(results / domain / f"{domain}.test-step-4.jsonl")) == 4
    lines = only_log(cluster, "atlas/runs", "score").splitlines()
    table = {line.split("\t")[0].strip() for line in lines if "\t" in line}
    assert {*domains, "all"} <= table
    print("\n".join(lines))
