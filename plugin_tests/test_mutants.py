"""Every protection that is taken out of a copy is seen by the tests that should see it."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT


def test_every_mutant_has_its_line_and_its_tests():
    gone = [m.name for m in MUTANTS if (ROOT / m.file).read_text().count(m.old) != 1]
    paths = {(m.name, one) for m in MUTANTS for one in m.tests if one.startswith("plugin_tests/")}
    assert gone == []
    assert [pair for pair in paths if not (ROOT / pair[1]).exists()] == []


def test_no_two_mutants_are_one():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.long
def test_every_mutant_is_seen():
    script = Path(__file__).with_name("mutants.py")
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=3600, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
