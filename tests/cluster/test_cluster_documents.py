"""The shell blocks of the documents that are marked for a cluster do what the pages say, on the Slurm of the tests."""

import re
import sys
from pathlib import Path

import pytest
from support.documents import make_places, pages_with_blocks, run_blocks
from support.slurm_cluster import SITE, Cluster

pytestmark = pytest.mark.cluster

PAGES = pages_with_blocks("cluster")


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_for_a_cluster_do_what_the_page_says(page: str, cluster: Cluster, tmp_path: Path) -> None:
    """The nodes are small, so a tiny model has the name of the default student and teacher."""
    checkout, scratch, environment = make_places(tmp_path, sys.executable)
    (checkout / "slurm" / "site.env").write_text(SITE)
    described = checkout / "models" / "smollm2-135m.yaml"
    text, replaced = re.subn("^package: .*$", f"path: {cluster.model}", described.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    described.write_text(text)
    environment |= {"SLURM_CONF": cluster.environment["SLURM_CONF"]}
    wrong = run_blocks(PAGES[page], checkout, scratch, environment)
    assert not wrong, "\n".join(wrong)
