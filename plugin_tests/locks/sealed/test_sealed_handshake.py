"""Key agreement: all silos derive the same from their hellos, and whoever changes one is named."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.gate import HELLOS, JOB_NONCE, EntryNames
from fedml_keylock.host.key_agreement import Handshake
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.silo_session import SiloSession

NAMES = EntryNames("state", "silo", "samples")


def grpc_silo(tmp_path, each):
    """A silo's session over a backend where hellos pass through the server."""
    (tmp_path / "group").write_bytes(bytes(range(32)))
    (tmp_path / "group").chmod(0o600)
    args = SimpleNamespace(
        role="client", rank=1, client_num_in_total=each, client_num_per_round=each, comm_round=2
    )
    defense = keylock({"group_key": str(tmp_path / "group"), "vault": str(tmp_path)})
    session = SiloSession(args, "keylock", defense, Observer(args))
    session.agree([*[None] * 4, {0: 5}])
    session.adopt(nn.Linear(2, 2))
    return session


def test_a_server_that_leaves_silos_out_is_refused(tmp_path):
    """Or of many silos it would let two agree, one of which colludes, and read the other's update.

    Guards the count in `SiloSession.admit`.
    """
    session = grpc_silo(tmp_path, 4)
    others = [Handshake(rank, 5.0, bytes(range(32))) for rank in (2, 3, 4)]
    hellos = [f"{shake.rank}:{shake.hello.hex()}" for shake in (session._handshake, *others)]
    message = {"state": dict(session.model.state_dict()), JOB_NONCE: "0" * 32}
    for some in (hellos[:2], hellos[:3], []):
        with pytest.raises(UpdateRefused, match="hellos"):
            session.admit({**message, HELLOS: ",".join(some)}, NAMES, 0)
    entries = {**message, HELLOS: ",".join(hellos)}
    session.admit(entries, NAMES, 0)
    assert torch.equal(entries["state"]["weight"], session.model.weight)
