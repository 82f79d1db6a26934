"""Activation leaves FedML as it was, whatever the order and however often."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, sys
import fedml_keylock
if {first!r} == "fedml":
    import fedml
assert not fedml_keylock.is_active()
hooks = sys.excepthook, threading.excepthook
fedml_keylock.deactivate()
if {first!r} == "fedml":
    from fedml_keylock.host.fedml import seams
    before = [vars(s.owner)[s.name] for s in seams()]
fedml_keylock.activate(); fedml_keylock.activate()
assert fedml_keylock.is_active()
from fedml_keylock.host.fedml import seams
assert all(hasattr(vars(s.owner)[s.name], "__wrapped__") for s in seams())
fedml_keylock.deactivate(); fedml_keylock.deactivate()
assert not fedml_keylock.is_active()
after = [vars(s.owner)[s.name] for s in seams()]
assert not any(hasattr(entry, "__wrapped__") for entry in after)
if {first!r} == "fedml":
    assert all(a is b for a, b in zip(before, after, strict=True))
assert hooks == (sys.excepthook, threading.excepthook)
fedml_keylock.activate()
import fedml
fedml.__version__ = "0.9.7"
fedml_keylock.deactivate()
try:
    fedml_keylock.activate()
except fedml_keylock.errors.HostError as error:
    assert "0.9.7" in str(error) and "0.9.6" in str(error)
else:
    raise AssertionError("an untested fedml was taken")
assert not fedml_keylock.is_active()
print("done")
"""


def run(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(first=first)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("done"), done.stderr[-2000:]


def test_fedml_first():
    run("fedml")


def test_keylock_first():
    run("fedml_keylock")
