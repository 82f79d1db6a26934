"""A silo keeps no key by which what was sent before could be opened later."""

from __future__ import annotations

import gc
from types import SimpleNamespace

from fedml_keylock.builtin import keylock
from fedml_keylock.host import silo_session
from fedml_keylock.host.key_agreement import Handshake
from fedml_keylock.host.observer import Observer
from fedml_keylock.types import JobSecrets


def test_the_private_key_is_gone_when_the_silos_have_agreed(monkeypatch):
    agreed = JobSecrets(bytes(32), 0, {1: bytes(32), 2: bytes(32)}, {}, bytes(32))
    monkeypatch.setattr(silo_session, "agree", lambda *_args, **_named: agreed)
    args = SimpleNamespace(
        role="client",
        rank=1,
        comm=object(),
        client_num_in_total=3,
        client_num_per_round=3,
        comm_round=3,
    )
    session = silo_session.SiloSession(args, "keylock", keylock({}), Observer(args))
    session.agree([*[None] * 4, {0: 5}])
    assert not any(isinstance(held, Handshake) for held in gc.get_referents(session.__dict__))
