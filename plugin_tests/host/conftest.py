"""Processes that import the real FedML afresh, in a quarter of a second each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedml_keylock.host.launch import command, environment
from fedml_keylock.host.startup_file import StartUp

HERE = Path(__file__).parent

# FedML's own modules are forgotten before each fork, so that each child runs them again; what they
# import of others, which takes most of the seven seconds, stays
ZYGOTE = """
import gc, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path.insert(0, {here!r})
sys.meta_path[:] = [x for x in sys.meta_path if type(x).__module__ != "fedml_keylock_startup"]
import fedml
ours = ("fedml", "fedml_keylock", "fedml_keylock_startup")
for name in [x for x in sys.modules if x.split(".")[0] in ours]:
    del sys.modules[name]
del fedml
gc.collect(); gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps(status), file=answers, flush=True)
        continue
    status = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            path = os.path.join(asked["folder"], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        exec(asked["code"], {{"ENABLED": asked["enabled"], "__name__": "__main__"}})
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def enabled(tmp_path_factory):
    """A folder of packages with the start-up file."""
    folder = tmp_path_factory.mktemp("site-packages")
    assert StartUp(folder).write()
    return folder


@pytest.fixture(scope="session")
def with_fedml(tmp_path_factory, enabled):
    """Run code in a process of its own, which has everything at hand that FedML imports."""
    zygote = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ZYGOTE.format(here=str(HERE))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(code: str) -> Ended:
        folder = tmp_path_factory.mktemp("process")
        asked = {"code": code, "folder": str(folder), "enabled": str(enabled)}
        zygote.stdin.write(json.dumps(asked) + "\n")
        zygote.stdin.flush()
        status = json.loads(zygote.stdout.readline())
        return Ended(status, *((folder / name).read_text() for name in ("stdout", "stderr")))

    yield run
    zygote.stdin.close()
    zygote.stdout.close()
    zygote.kill()
    zygote.wait()


@pytest.fixture
def on_three_ranks(tmp_path):
    """Run a script on three MPI ranks, with the plugin or without, in the test's own folder."""

    def run(script: str, *, plugin: bool = True) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(script)
        line = command(3, ["script.py"])
        return subprocess.run(
            [part for part in line if plugin or part not in ("-m", "fedml_keylock")],
            cwd=tmp_path,
            env=environment(3) | {"PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    return run
