"""What silos share before a job's first message, and what cannot be had beside masks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, HostError
from fedml_keylock.host import agree
from fedml_keylock.host.agree import Agreed
from fedml_keylock.host.sharing import share
from fedml_keylock.locks.rotated import Masks


def job(rank=1, **more):
    role = "server" if rank == 0 else "client"
    return SimpleNamespace(role=role, rank=rank, comm=object(), **more)


@pytest.fixture
def numbers(monkeypatch):
    """Silos' numbers of samples, as they tell one another: to be changed by a test."""
    told = {1: 5, 2: 7, 3: 9}
    pairs = {2: bytes([2] * 32), 3: bytes([3] * 32)}

    def agreed(_comm, *, number):
        own = {rank: secret for rank, secret in pairs.items() if rank in told}
        return Agreed(b"agreed" * 6, own, {**told, 1: number})

    monkeypatch.setattr(agree, "agree", agreed)
    return told


def test_masks_are_of_each_two_silos(numbers):
    defense = keylock({})
    said = share(defense, job(), samples=5, in_turn=False)
    assert said == "the silos have agreed on a secret; updates are masked"
    pairs = {1: bytes([2] * 32), 2: bytes([3] * 32)}
    assert defense._masks == Masks.of(0, pairs, {0: 5, 1: 7, 2: 9})
    assert (len(defense._masks.pairs), defense._masks.share) == (2, 9 / 5)
    del numbers[3]
    assert "updates are masked" in share(defense, job(), samples=5, in_turn=False)
    assert len(defense._masks.pairs) == 1


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("settings", "in_turn"), [({"mask": False}, False), ({"then": "krum"}, False), ({}, True)]
)
def test_that_there_are_none_is_said(settings, in_turn):
    defense = keylock(settings)
    said = share(defense, job(), samples=5, in_turn=in_turn)
    assert said.endswith("updates are not masked")
    assert not defense._masks.pairs


def test_that_there_are_none_without_mpi_is_said(tmp_path):
    args = job()
    args.comm = None
    defense = keylock({"group_key": str(tmp_path / "file")})
    assert share(defense, args, samples=5, in_turn=False).startswith("updates are not masked: ")
    with pytest.raises(ConfigError, match="without MPI silos cannot agree on a secret"):
        share(keylock({}), args, samples=5, in_turn=False)


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    "settings", [{}, {"group_key": "file"}, {"group_key": "file", "mask": False}]
)
def test_beside_a_file_there_is_an_agreed_secret_too(settings):
    defense = keylock(settings)
    share(defense, job(), samples=5, in_turn=False)
    assert defense._agreed == b"agreed" * 6
    assert bool(defense._masks.pairs) == settings.get("mask", True)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_silo_without_samples_ends_the_job_and_not_the_masks(numbers, rank):
    numbers[2] = 0 if rank == 2 else 7
    with pytest.raises(HostError, match=rf"rank {rank} \(silo {rank - 1}\) has no samples"):
        share(keylock({}), job(), samples=0 if rank == 1 else 5, in_turn=False)
    share(keylock({"mask": False}), job(), samples=0, in_turn=False)


CLIPPED = {"enable_dp": True, "dp_solution_type": "cdp", "max_grad_norm": 1.0}
ATTACKED = {"enable_attack": True, "attack_type": "byzantine"}


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("beside", "said"),
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
def test_what_changes_single_states_is_refused_beside_masks(beside, said, rank):
    """Or each state's mask is what is changed, and the average is noise."""
    args = job(rank, **beside)
    share(keylock({"mask": False}), args, samples=5, in_turn=False)
    share(keylock({"preset": "strong"}), args, samples=5, in_turn=False)
    if said is None:
        share(keylock({}), args, samples=5, in_turn=False)
        return
    with pytest.raises(ConfigError, match=f"{said}.*masks would not cancel.*mask: false"):
        share(keylock({}), args, samples=5, in_turn=False)


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
        cipher, secret = agree._derive(private[own], own, other, keys)
        assert secret == wanted[32:]
        assert cipher.decrypt(bytes(12), sealed, b"bound") == b"hello"
