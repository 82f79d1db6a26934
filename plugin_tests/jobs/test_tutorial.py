"""Every command of the tutorial runs, in its order, and prints what the page says that matters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = (
    "lock                   none: this job was not defended",
    "the server could read  every silo's update as it is",
    "no defense (undefended baseline)",
    "lock                   sealed",
    "the server could read  no update and no average",
    "images not recovered",
    "hides single updates; their sum leaks to a colluding silo",
    "epsilon 8 at delta 1e-05 (unit: example) after 100 rounds",
    "of 300 digits right",
)


@pytest.mark.long
def test_every_command_of_the_tutorial_runs(tmp_path):
    page = (ROOT / "docs" / "tutorial.md").read_text()
    install, *steps = re.findall(r"```sh\n(.*?)```", page, flags=re.S)
    assert "pip install" in install
    folder = shutil.copytree(ROOT / "examples" / "tutorial", tmp_path / "tutorial")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-ec", "\n".join(steps)],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    for words in SAYS:
        assert words in ran.stdout, words
