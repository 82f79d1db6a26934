"""Activation leaves FedML as it was, whatever the order and however often."""

from __future__ import annotations

import pytest

PLAIN = """
import sys
import fedml_state
"""

# what of FedML there is when its import has ended, before anything of ours is put in
WATCHED = """
inner = hook._activate
def seen():
    global before
    # owners of seams that fedml does not import
    import fedml.cross_silo.client.fedml_trainer_dist_adapter
    import fedml.cross_silo.server.fedml_aggregator
    before = fedml_state.snapshot()
    inner()
hook._activate = seen
"""

WITHOUT = (
    PLAIN
    + """
import fedml_keylock.host.startup as hook
hook._activate = lambda: None
hook.arm()
"""
    + WATCHED
)

WITH = (
    PLAIN
    + """
import site
site.addsitedir(ENABLED)
import fedml_keylock_startup as hook
assert "fedml_keylock" not in sys.modules
"""
    + WATCHED
)

ORDERS = {
    "fedml first": PLAIN
    + """
import fedml
before = fedml_state.snapshot()
import fedml_keylock
assert not fedml_keylock.is_active()
fedml_keylock.deactivate()
""",
    "fedml_keylock first": WITHOUT
    + """
import fedml_keylock
assert not fedml_keylock.is_active()
fedml_keylock.deactivate()
import fedml
assert not fedml_keylock.is_active()
""",
    "activation imports fedml": WITHOUT
    + """
import fedml_keylock
fedml_keylock.activate()
assert fedml_keylock.is_active()
""",
    "start-up file, fedml first": WITH
    + """
import fedml
import fedml_keylock
assert fedml_keylock.is_active()
""",
    "start-up file, fedml_keylock first": WITH
    + """
import fedml_keylock
assert not fedml_keylock.is_active()
fedml_keylock.deactivate()
import fedml
assert fedml_keylock.is_active()
""",
    "start-up file, activation imports fedml": WITH
    + """
import fedml_keylock
fedml_keylock.activate()
assert fedml_keylock.is_active()
""",
    "start-up file, a part of fedml first": WITH
    + """
from fedml.core.security.fedml_defender import FedMLDefender
assert hasattr(FedMLDefender.init, "__wrapped__")
import fedml_keylock
assert fedml_keylock.is_active()
""",
    "start-up file, the import fails at first": WITH
    + """
import pathlib, torch
sys.modules["dotenv"], dotenv = None, sys.modules["dotenv"]
try:
    import fedml
except ModuleNotFoundError:
    assert "fedml_keylock" not in sys.modules
else:
    raise AssertionError
sys.modules["dotenv"] = dotenv
import fedml, fedml_keylock
assert fedml_keylock.is_active()
""",
    "start-up file, read twice": WITH
    + """
site.addsitedir(ENABLED, set())
assert sum(type(finder).__name__ == "Hook" for finder in sys.meta_path) == 1
import fedml, fedml_keylock
assert fedml_keylock.is_active()
""",
}

EVERY_SEQUENCE = """
from itertools import product
import fedml, fedml_keylock
from fedml_keylock.host.fedml import seams

def changed():
    return sorted(fedml_state.changes(before))

if fedml_keylock.is_active():
    first = changed()
    fedml_keylock.deactivate()
assert not changed(), changed()
fedml_keylock.activate()
active = changed()
assert {"sys.excepthook", "threading.excepthook", "fedml._manage_mpi_args"} <= set(active)
assert len(active) == len(seams()) + 2, active  # the seams, the two hooks, and nothing else
assert globals().get("first", active) == active
fedml_keylock.deactivate()
assert not changed(), changed()
for length in (1, 2, 3, 4):
    for sequence in product(("activate", "deactivate"), repeat=length):
        for name in sequence:
            getattr(fedml_keylock, name)()
        assert fedml_keylock.is_active() == (sequence[-1] == "activate"), sequence
        assert changed() == (active if fedml_keylock.is_active() else []), sequence
        fedml_keylock.deactivate()
        assert not changed(), (sequence, changed())
print("done")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_after_any_order_fedml_is_as_it_was(order, with_fedml):
    ended = with_fedml(ORDERS[order] + EVERY_SEQUENCE)
    assert ended.stdout.strip().endswith("done"), ended.stderr[-2000:]
    assert ended.status == 0
    assert "fedml-keylock" not in ended.stderr


def test_what_a_change_is(with_fedml):
    """The control: the comparison sees what it is for."""
    ended = with_fedml(
        PLAIN
        + """
import fedml
before = fedml_state.snapshot()
assert not fedml_state.changes(before)
from fedml.runner import FedMLRunner
raw = FedMLRunner.__init__
FedMLRunner.__init__ = lambda *args: raw(*args)
fedml.added = 1
sys.excepthook = print
found = fedml_state.changes(before)
assert sorted(found) == [
    "fedml.added is new", "fedml.runner.FedMLRunner.__init__", "sys.excepthook"], found
FedMLRunner.__init__ = raw
del fedml.added
sys.excepthook = sys.__excepthook__
assert not fedml_state.changes(before)
import fedml.cross_silo.client.fedml_trainer_dist_adapter
import fedml.cross_silo.server.fedml_aggregator
assert not fedml_state.changes(before)
print(len(before[0]), "owners")
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]
    assert int(ended.stdout.split()[-2]) > 500


def test_an_explicit_activation_refuses_another_fedml_and_changes_nothing(with_fedml):
    ended = with_fedml(
        PLAIN
        + """
import fedml
fedml.__version__ = "0.9.7"
before = fedml_state.snapshot()
import fedml_keylock
from fedml_keylock.errors import HostError
for _ in range(2):
    try:
        fedml_keylock.activate()
    except HostError as error:
        assert "fedml 0.9.7" in str(error) and "fedml 0.9.6" in str(error)
        assert "\\n" not in str(error)
    else:
        raise AssertionError("an untested fedml was taken")
    assert not fedml_keylock.is_active()
    assert not fedml_state.changes(before)
fedml.__version__ = "0.9.6"
fedml_keylock.activate()
assert fedml_keylock.is_active()
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]


def test_jobs_over_mpi_need_no_grpc(with_fedml):
    """FedML has grpcio in an extra, which the demo's environment does without."""
    ended = with_fedml(
        PLAIN
        + """
for name in [name for name in sys.modules if name.partition(".")[0] == "grpc"]:
    del sys.modules[name]
sys.modules["grpc"] = None
import fedml_keylock
fedml_keylock.activate()
assert fedml_keylock.is_active()
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]
