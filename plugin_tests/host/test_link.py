"""Tags of messages between server and silos: what changes on the way reaches no reader."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, UpdateRefused, VaultError
from fedml_keylock.host.compatibility import check_job
from fedml_keylock.host.link import Link
from fedml_keylock.types import Credentials

SECRET = bytes(range(32))


def links(*ranks, secret=SECRET):
    return [Link(secret, rank) for rank in ranks]


def file_of(tmp_path, name, content):
    path = tmp_path / name
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def test_a_message_comes_through_with_its_sender():
    server, first, second = links(0, 1, 2)
    for message in (b"", b"model", bytes(100_000)):
        assert first.check(server.protect(message, 1)) == (message, 0)
        assert server.check(second.protect(message, 0)) == (message, 2)


def test_no_bit_of_it_can_be_changed_nor_a_byte_left_out():
    server, silo = links(0, 1)
    sent = server.protect(b"model", 1)
    for at in range(len(sent)):
        changed = bytearray(sent)
        changed[at] ^= 1
        for one in (bytes(changed), sent[:at], sent[at + 1 :]):
            with pytest.raises(UpdateRefused, match=r"without the tag of keylock.link_key"):
                silo.check(one)
    assert silo.check(sent) == (b"model", 0)


def test_another_link_key_or_none_does_not_do():
    (silo,) = links(1)
    for one in (Link(bytes(32), 0).protect(b"model", 1), pickle.dumps("model"), b""):
        with pytest.raises(UpdateRefused, match="its sender has another link_key or none"):
            silo.check(one)


def test_a_message_comes_once_in_its_order_and_where_it_belongs():
    server, first, second = links(0, 1, 2)
    sent = [server.protect(bytes([i]), 1) for i in range(3)]
    assert first.check(sent[1])[0] == b"\1"
    for one in (sent[1], sent[0]):
        with pytest.raises(UpdateRefused, match=r"rank 0 to rank 1 arrived again"):
            first.check(one)
    with pytest.raises(UpdateRefused, match=r"rank 0 to rank 1 .*does not belong"):
        second.check(sent[2])
    with pytest.raises(UpdateRefused, match=r"rank 1 to rank 0 .*does not belong"):
        first.check(first.protect(b"back", 0))
    assert first.check(sent[2])[0] == b"\2"


def test_one_started_again_goes_on_where_it_was():
    server, silo = links(0, 1)
    silo.check(server.protect(b"model", 1))
    again = Link(SECRET, 0)
    assert silo.check(again.protect(b"model", 1)) == (b"model", 0)


def test_its_file_is_not_the_silos_own(tmp_path):
    group, link = (file_of(tmp_path, name, SECRET) for name in ("group", "link"))
    both = Credentials(group_key=group, link_key=link)
    with pytest.raises(ConfigError, match=r"keylock.link_key: it is the silos' group_key"):
        Link.of(both, 1, is_server=False)
    link.write_bytes(SECRET[::-1])
    assert Link.of(both, 1, is_server=False) is not None
    group.unlink()  # the server has not got it
    server = Link.of(both, 0, is_server=True)
    assert Link(SECRET[::-1], 1).check(server.protect(b"model", 1)) == (b"model", 0)
    assert Link.of(Credentials(), 0, is_server=True) is None


def test_its_file_is_its_owner_s_and_long_enough(tmp_path):
    path = file_of(tmp_path, "link", SECRET[1:])
    credentials = Credentials(link_key=path)
    with pytest.raises(ConfigError, match=r"keylock.link_key: .* must hold 32 to 4096 random"):
        Link.of(credentials, 0, is_server=True)
    path.chmod(0o640)
    with pytest.raises(VaultError, match=r"keylock.link_key"):
        Link.of(credentials, 0, is_server=True)


def test_over_mpi_there_is_none(tmp_path):
    args = SimpleNamespace(
        training_type="cross_silo",
        backend="MPI",
        federated_optimizer="FedAvg",
        client_num_in_total=2,
        client_num_per_round=2,
        worker_num=2,
        keylock={"link_key": "link"},
    )
    with pytest.raises(ConfigError, match=r"keylock.link_key: it is for jobs over gRPC"):
        check_job(args, "keylock", None)
    args.backend = "GRPC"
    check_job(args, "keylock", None)


def test_server_and_silos_need_not_name_it_alike(tmp_path):
    from torch import nn

    marks = {keylock(s).describe(nn.Linear(2, 2)).mark for s in ({}, {"link_key": "link"})}
    assert len(marks) == 1
