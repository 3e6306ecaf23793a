"""What a newcomer types, in a minimal Debian: `make prove` runs it, some twenty minutes a Debian on two cores."""

import os
import shutil
import subprocess

import pytest
from support.programs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a root of a Debian, as root")
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is missing: apt-get install debootstrap")
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_commands_of_the_readme(suite: str) -> None:
    done = subprocess.run(["bash", ROOT / "tests/newcomer/run.sh", suite], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": make test-fast\n" in done.stderr
