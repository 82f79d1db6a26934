"""What silos agree on before a job's first message, and what cannot be had beside masks."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, HostError
from fedml_keylock.host import key_agreement
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.server_session import ServerSession
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.types import JobSecrets


def job(rank=1, **more):
    role = "server" if rank == 0 else "client"
    each = {"client_num_in_total": 3, "client_num_per_round": 3, "comm_round": 3}
    return SimpleNamespace(role=role, rank=rank, **{"comm": object(), **each, **more})


def agree(defense, args, samples=5):
    """As when FedML's runner begins, on any rank."""
    kind = ServerSession if args.role == "server" else SiloSession
    kind(args, "keylock", defense, Observer(args)).agree([*[None] * 4, {args.rank - 1: samples}])


@pytest.fixture(autouse=True)
def said(caplog):
    """What a silo logs of the agreement."""
    with caplog.at_level(logging.INFO):
        yield lambda: caplog.messages[-1]


@pytest.fixture
def numbers(monkeypatch):
    """Silos' numbers of samples, as they tell one another: to be changed by a test."""
    told = {0: 5, 1: 7, 2: 9}
    pairs = {1: bytes([2] * 32), 2: bytes([3] * 32)}

    def agreed(_comm, *, samples):
        own = {silo: secret for silo, secret in pairs.items() if silo in told}
        return JobSecrets(b"agreed" * 6, 0, own, {**told, 0: samples})

    monkeypatch.setattr(key_agreement, "agree", agreed)
    return told


def test_each_two_silos_have_a_secret_for_masks(numbers, said):
    defense = keylock({})
    agree(defense, job())
    assert said() == (
        "silo 0 (rank 1), round 0: the silos have agreed on a secret; updates are masked"
    )
    pairs = {1: bytes([2] * 32), 2: bytes([3] * 32)}
    assert defense._secrets == JobSecrets(b"agreed" * 6, 0, pairs, {0: 5, 1: 7, 2: 9})
    del numbers[2]
    agree(defense, job())
    assert said().endswith("updates are masked")
    assert set(defense._secrets.pairs) == {1}


IN_TURN = {"client_num_in_total": 4}


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("settings", "changes"),
    [({"mask": False}, {}), ({"robust_aggregation": "krum"}, {}), ({}, IN_TURN)],
)
def test_that_there_are_none_is_said(settings, changes, said):
    defense = keylock(settings)
    agree(defense, job(**changes))
    assert said().endswith("the silos have agreed on a secret; updates are not masked")
    assert defense._secrets == JobSecrets(b"agreed" * 6)


def test_that_there_are_none_without_mpi_is_said(tmp_path, said):
    agree(keylock({"group_key": str(tmp_path / "file")}), job(comm=None))
    assert "updates are not masked: over this backend" in said()
    for rank in (0, 1):
        with pytest.raises(ConfigError, match="without MPI silos cannot agree on a secret"):
            agree(keylock({}), job(rank, comm=None))


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    "settings", [{}, {"group_key": "file"}, {"group_key": "file", "mask": False}]
)
def test_beside_a_file_there_is_an_agreed_secret_too(settings):
    defense = keylock(settings)
    agree(defense, job())
    assert defense._secrets.group == b"agreed" * 6
    assert bool(defense._secrets.pairs) == settings.get("mask", True)


def test_a_defense_that_shares_nothing_asks_nothing_of_the_other_silos(monkeypatch, caplog):
    monkeypatch.setattr(key_agreement, "agree", lambda *_, **__: 1 / 0)
    defense = keylock({"lock": "paper"})
    assert not key_agreement.takes_secrets(defense)
    assert key_agreement.takes_secrets(keylock({}))
    agree(defense, job())
    agree(defense, job(comm=None))
    assert caplog.messages == []


@pytest.mark.parametrize("rank", [1, 2])
def test_a_silo_without_samples_ends_the_job_and_not_the_masks(numbers, rank):
    numbers[1] = 0 if rank == 2 else 7
    with pytest.raises(HostError, match=rf"rank {rank} \(silo {rank - 1}\) has no samples"):
        agree(keylock({}), job(), samples=0 if rank == 1 else 5)
    agree(keylock({"mask": False}), job(), samples=0)


CLIPPED = {"enable_dp": True, "dp_solution_type": "cdp", "max_grad_norm": 1.0}
ATTACKED = {"enable_attack": True, "attack_type": "byzantine"}


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("beside", "refusal"),
    [
        (CLIPPED, "max_grad_norm clips"),
        (ATTACKED, "attack_type: byzantine changes"),
        (ATTACKED | {"attack_type": "model_replacement"}, "changes single silos'"),
        (CLIPPED | {"max_grad_norm": None}, None),
        (CLIPPED | {"dp_solution_type": "ldp"}, None),
        (CLIPPED | {"enable_dp": False}, None),
        (ATTACKED | {"attack_type": "label_flipping"}, None),
        (ATTACKED | {"attack_type": "gradient_inversion"}, None),
    ],
)
def test_what_changes_single_states_is_refused_beside_masks(beside, refusal, rank):
    """Or each state's mask is what is changed, and the average is noise."""
    args = job(rank, **beside)
    agree(keylock({"mask": False}), args)
    agree(keylock({"lock": "paper"}), args)
    if refusal is None:
        agree(keylock({}), args)
        return
    with pytest.raises(ConfigError, match=f"{refusal}.*masks would not cancel.*mask: false"):
        agree(keylock({}), args)


def test_fedml_has_these_attacks():
    """By the names that are compared with."""
    from fedml.core.security import constants

    assert constants.ATTACK_METHOD_BYZANTINE_ATTACK == "byzantine"
    assert constants.BACKDOOR_ATTACK_MODEL_REPLACEMENT == "model_replacement"


def test_a_cipher_and_a_pair_s_secret_are_derived_apart_and_bound_to_both_silos():
    """Recomputed here: HKDF (RFC 5869) of the two keys' X25519, for both keys and both ranks."""
    made = X25519PrivateKey.from_private_bytes
    private = {7: made(b"7" * 32), 300: made(b"3" * 32)}
    keys = {rank: key.public_key().public_bytes_raw() for rank, key in private.items()}
    shared = private[7].exchange(private[300].public_key())
    info = b"fedml-keylock agreed secret 1" + keys[7] + keys[300] + bytes([0, 0, 0, 7, 0, 0, 1, 44])
    wanted = HKDF(algorithm=SHA256(), length=64, salt=None, info=info).derive(shared)
    sealed = ChaCha20Poly1305(wanted[:32]).encrypt(bytes(12), b"hello", b"bound")
    for own, other in ((7, 300), (300, 7)):
        cipher, secret = key_agreement._derive(private[own], own, other, keys)
        assert secret == wanted[32:]
        assert cipher.decrypt(bytes(12), sealed, b"bound") == b"hello"
