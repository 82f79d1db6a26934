"""Every protection that is taken out of a copy is seen by the tests that should see it."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_every_mutant_is_seen():
    script = Path(__file__).with_name("mutants.py")
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=3600, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
