"""A vault under a passphrase: what it hides, what opens it, and what is said when it does not."""

import copy
import errno
import json
import logging
import os
import pickle
import struct
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import nn
from vaults import WORDS, load, made, refused, same, save

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, PrivateStateError, VaultError
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.server_session import ServerSession
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.locks import (
    KeyLockConfig,
    Vault,
    is_locked,
    load_private_state_dict,
    private_state_dict,
)
from fedml_keylock.locks.vault.cipher import MEMORY, PASSPHRASE, Cipher, Kdf
from fedml_keylock.locks.vault.file import Stored, write_state

CHANGED = "the passphrase is wrong, or the file was changed after it was written"


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch):
    for name in (PASSPHRASE, f"{PASSPHRASE}_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def cipher():
    return Cipher(WORDS)


@pytest.fixture
def model():
    return made()


@pytest.fixture
def vault(tmp_path, cipher):
    return Vault(tmp_path / "vault", 2, "a1b2c3d4", cipher)


@pytest.fixture
def written(vault, model):
    save(vault, model, round_index=7)
    return vault


def header_of(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


def with_header(path, **changes):
    """Write the file with other words in its header, and the same ciphertext."""
    tensors, header = load_file(path), header_of(path) | changes
    path.write_bytes(serialized(tensors, {k: v for k, v in header.items() if v is not None}))


# --- what it is


def test_what_is_saved_is_loaded(written, model):
    other = made()
    assert load(written, other) == 7
    assert same(private_state_dict(other), private_state_dict(model))
    # and by another process, which has the passphrase and nothing else
    again = Vault(written.folder, 2, "a1b2c3d4", Cipher(WORDS))
    third = made()
    assert load(again, third) == 7
    assert same(private_state_dict(third), private_state_dict(model))


def test_nothing_private_can_be_read_from_the_file(written, model):
    written.keep(private_state_dict(model), round_index=3)
    plain = Vault(written.folder / "plain", 2, "a1b2c3d4")
    save(plain, model, round_index=7)
    for path, readable in (
        (written.path, False),
        (written.history_path(3), False),
        (plain.path, True),  # the control: the same search finds it there
    ):
        content = path.read_bytes()
        for name, tensor in private_state_dict(model).items():
            assert (name.encode() in content) == readable
            if tensor.numel() > 1:
                assert (tensor.numpy().tobytes() in content) == readable, name
        assert WORDS not in content
        assert path.stat().st_mode & 0o777 == 0o600
    assert load(written, made(), written.history_path(3)) == 3


def test_the_header_says_how_it_is_sealed(written):
    header = header_of(written.path)
    assert (header["cipher"], header["kdf"]) == ("aes-256-gcm", "scrypt")
    assert (header["n"], header["r"], header["p"]) == ("32768", "8", "1")
    assert len(bytes.fromhex(header["salt"])) == 16
    assert len(bytes.fromhex(header["nonce"])) == 12
    assert set(header) == {
        *("schema", "silo", "layout", "round"),
        *("cipher", "kdf", "n", "r", "p", "salt", "nonce"),
    }


def test_it_is_scrypt_and_aes_256_gcm(written, model):
    """Opened here without our code, as whoever has file and passphrase can in years to come."""
    from hashlib import scrypt

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header = header_of(written.path)
    key = scrypt(
        WORDS, salt=bytes.fromhex(header["salt"]), n=2**15, r=8, p=1, dklen=32, maxmem=2**26
    )
    sealed = load_file(written.path)["ciphertext"].numpy().tobytes()
    signed = json.dumps(header, sort_keys=True).encode()
    opened = AESGCM(key).decrypt(bytes.fromhex(header["nonce"]), sealed, signed)
    path = written.folder / "opened"
    path.write_bytes(opened)
    found = load_file(path)
    assert all(torch.equal(found[n], t) for n, t in private_state_dict(model).items())


def test_every_save_has_a_nonce_of_its_own(written, model):
    seen = set()
    for round_index in range(20):
        save(written, model, round_index=round_index)
        seen.add(header_of(written.path)["nonce"])
    assert len(seen) == 20


def test_the_key_is_derived_once_a_process(tmp_path, model, monkeypatch):
    derived = []
    original = Cipher._derive
    monkeypatch.setattr(
        Cipher, "_derive", lambda s, kdf: (derived.append(kdf), original(s, kdf))[1]
    )
    vault = Vault(tmp_path, 2, "a1", Cipher(WORDS))
    for round_index in range(5):
        vault.keep(private_state_dict(model), round_index=round_index)
        save(vault, model, round_index=round_index + 1)
    load(vault, made())
    assert len(derived) == 1
    other = Vault(tmp_path, 2, "a1", Cipher(WORDS))
    for _ in range(2):
        load(other, made())
        save(other, model, round_index=6)
    assert len(derived) == 3  # what it read, and what it writes
    assert len({kdf.salt for kdf in derived}) == 2


# --- what does not open it


def test_another_passphrase_is_refused(written):
    for words in (b"correct horse battery stapl", WORDS + b"\n", b"x"):
        other = Vault(written.folder, 2, "a1b2c3d4", Cipher(words))
        message = refused(other, f"{CHANGED} .the cipher cannot tell which.")
        assert str(written.path) in message
        assert words.decode() not in message or words == b"x"


def test_an_encrypted_vault_needs_the_flag(written):
    message = refused(Vault(written.folder, 2, "a1b2c3d4"), "it is encrypted, and .* is false")
    rekey = f"fedml-keylock vault rekey {written.folder} --silo 2 --decrypt"
    assert message.endswith(rekey)


def test_a_plain_vault_is_refused_under_the_flag(vault, model):
    save(Vault(vault.folder, 2, "a1b2c3d4"), model, round_index=7)
    message = refused(vault, "it is not encrypted, and .* is true")
    assert message.endswith(f"fedml-keylock vault rekey {vault.folder} --silo 2 --encrypt")


def test_the_remedy_for_a_file_of_the_history_names_the_vaults_folder(written, model, tmp_path):
    folder = tmp_path / "with space"
    vault = Vault(folder, 2, "a1b2c3d4")
    vault.keep(private_state_dict(model), round_index=3)
    sealed = Vault(folder, 2, "a1b2c3d4", written.cipher)
    message = refused(sealed, "it is not encrypted", sealed.history_path(3))
    assert message.endswith(f"rekey '{folder}' --silo 2 --encrypt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("silo", "3", "its silo is '3', this job has '2'"),
        ("layout", "00000000", "its layout is '00000000'"),
        ("schema", "fedml-keylock/vault/1", "its schema is"),
        ("round", "8", CHANGED),
        ("round", "07", CHANGED),
        ("extra", "x", CHANGED),
        ("nonce", "00" * 12, CHANGED),
        ("salt", "00" * 16, CHANGED),
        ("n", "16384", CHANGED),
        ("salt", "00" * 15, "its salt is not 16 bytes"),
        ("salt", "zz" * 16, "its salt is not 16 bytes"),
        ("salt", None, "its salt is not 16 bytes"),
        ("nonce", "00" * 11, "its nonce is not 12 bytes"),
        ("cipher", "rot13", "its cipher is 'rot13'"),
        ("cipher", None, "it is not encrypted"),
        ("kdf", "md5", "its key derivation is 'md5'"),
    ],
)
def test_a_changed_header_is_refused(written, name, value, message):
    with_header(written.path, **{name: value})
    assert refused(written, message)


def test_another_silos_and_another_models_vault_are_refused(written):
    """And so is another silo's whose file was given this one's header: it is authenticated."""
    assert refused(Vault(written.folder, 3, "a1b2c3d4", written.cipher), "its silo", written.path)
    assert refused(Vault(written.folder, 2, "00000000", written.cipher), "its layout")
    other = Vault(written.folder, 3, "a1b2c3d4", written.cipher)
    save(other, made(), round_index=7)
    os.replace(other.path, written.path)
    with_header(written.path, silo="2")
    assert refused(written, CHANGED)


@pytest.mark.parametrize(
    "cost",
    [
        {"n": 2**30},
        {"n": 2**20},
        {"r": 2**20},
        {"p": 5},
        {"p": 2**30},
        {"n": 0},
        {"n": 1},
        {"n": 3 * 2**13},
        {"r": 0},
        {"p": 0},
        {"n": -(2**15)},
        {"n": "\u0661"},
        {"n": "1e4"},
        {"n": ""},
        {"n": "9" * 5000},
        {"n": 2**18, "r": 16},
    ],
)
def test_a_foreign_file_cannot_ask_for_gigabytes_or_hours(written, cost, monkeypatch):
    monkeypatch.setattr(Cipher, "_derive", lambda *_: pytest.fail("a key was derived"))
    with_header(written.path, **{name: str(value) for name, value in cost.items()})
    assert refused(Vault(written.folder, 2, "a1b2c3d4", Cipher(WORDS)), "out of bounds")


def test_stronger_parameters_than_ours_are_read():
    strong = Kdf(bytes(16), n=2**18, r=8, p=1)
    assert 128 * strong.n * strong.r == MEMORY
    assert Kdf.of(strong.entries()) == strong


@pytest.mark.parametrize("keep", [0, 7, 8, 9, 100, 0.5, -1])
def test_a_truncated_file_is_refused(written, keep):
    content = written.path.read_bytes()
    written.path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    assert str(written.path) in refused(written, "damaged")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"ciphertext": torch.zeros(40)},
        {"cipher": torch.zeros(40, dtype=torch.uint8)},
        {"ciphertext": torch.zeros(40, dtype=torch.uint8), "more": torch.zeros(1)},
    ],
)
def test_a_file_without_a_ciphertext_is_refused(written, tensors):
    written.path.write_bytes(serialized(tensors, header_of(written.path)))
    assert refused(written, "it holds no ciphertext")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17])
def test_a_ciphertext_too_short_to_be_one_is_refused(written, size):
    header = header_of(written.path)
    tensors = {"ciphertext": torch.zeros(size, dtype=torch.uint8)}
    written.path.write_bytes(serialized(tensors, header))
    assert refused(written, CHANGED)


def test_what_was_sealed_and_is_no_state_is_refused(written, cipher):
    """By someone with the passphrase; it is still only data."""
    header = {n: header_of(written.path)[n] for n in ("schema", "silo", "layout", "round")}
    whole, sealed = cipher.seal(pickle.dumps(os.getcwd), header)
    tensor = torch.frombuffer(bytearray(sealed), dtype=torch.uint8)
    written.path.write_bytes(serialized({"ciphertext": tensor}, whole))
    assert refused(written, "damaged")


@given(data=st.data())
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_flipped_bit_is_refused_or_changes_nothing(whole_file, data):
    vault, content, state = whole_file
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    loads_flipped(vault, content, bit, state)


def loads_flipped(vault, content, bit, state):
    """Whether a file with one other bit is loaded, as it was saved; if not, nothing is changed."""
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    vault.path.write_bytes(flipped)
    other = made_once()
    before = private_state_dict(other)
    try:
        assert load(vault, other) == 7
    except VaultError:
        assert same(private_state_dict(other), before)
        return False
    assert same(private_state_dict(other), state)
    load_private_state_dict(other, before)
    return True


def made_once(kept=[]):  # noqa: B006  # a model for all examples
    if not kept:
        kept.append(made())
    return kept[0]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory, cipher):
    vault, model = Vault(tmp_path_factory.mktemp("vault"), 2, "a1b2c3d4", cipher), made()
    save(vault, model, round_index=7)
    return vault, vault.path.read_bytes(), private_state_dict(model)


@pytest.mark.long
def test_every_flipped_bit_of_the_header_is_refused_or_changes_nothing(whole_file, monkeypatch):
    """All of them, as the property draws few there; with a key that costs nothing to derive."""
    vault, content, state = whole_file
    quick = Cipher(WORDS)
    original = vault.cipher._key
    own = vault.cipher._own
    quick._key = lambda kdf: original(kdf) if kdf == own else bytes(32)
    vault = Vault(vault.folder, 2, "a1b2c3d4", quick)
    (length,) = struct.unpack("<Q", content[:8])
    bits = range(8 * (8 + length))
    loaded = sum(loads_flipped(vault, content, bit, state) for bit in bits)
    assert loaded < 8 * length / 10


# --- where the passphrase comes from


def private_file(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"secret words", b"secret words"),
        (b"secret words\n", b"secret words"),
        (b"secret words\r\n", b"secret words"),
        (b"secret words\n\n", b"secret words\n"),
        (b" secret words \n", b" secret words "),
        (b"\xff\xfe\n", b"\xff\xfe"),
        (b"x" * 4096 + b"\r\n", b"x" * 4096),
    ],
)
def test_the_passphrase_is_the_files_without_its_newline(tmp_path, monkeypatch, content, words):
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", private_file(tmp_path / "p", content))
    header, sealed = Cipher.from_environment().seal(b"private", {})
    assert Cipher(words).open(sealed, header) == b"private"


@pytest.mark.parametrize("words", [b"secret words", "gr\u00fcn".encode(), b"\xff\xfe"])
def test_the_passphrase_is_the_variables_bytes(monkeypatch, words):
    monkeypatch.setitem(os.environb, PASSPHRASE.encode(), words)
    header, sealed = Cipher.from_environment().seal(b"private", {})
    assert Cipher(words).open(sealed, header) == b"private"


def test_the_passphrase_file_may_be_a_link(tmp_path, monkeypatch):
    """As Kubernetes and systemd mount secrets."""
    private_file(tmp_path / "data", WORDS, 0o400)
    (tmp_path / "p").symlink_to(tmp_path / "data")
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", str(tmp_path / "p"))
    assert Cipher.from_environment()


def test_both_variables_are_one_too_many(tmp_path, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, "a")
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", private_file(tmp_path / "p", b"a"))
    with pytest.raises(ConfigError, match=f"{PASSPHRASE} and {PASSPHRASE}_FILE are both set"):
        Cipher.from_environment()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_passphrase_file_that_others_may_read_is_refused(tmp_path, monkeypatch, mode):
    path = private_file(tmp_path / "p", WORDS, mode)
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", path)
    with pytest.raises(VaultError, match=f"{PASSPHRASE}_FILE: {path}: its mode is {mode:04o}"):
        Cipher.from_environment()


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_passphrase_file_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", private_file(tmp_path / "p", content))
    with pytest.raises(ConfigError, match=r"_FILE: .* is empty"):
        Cipher.from_environment()


def test_a_missing_passphrase_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(VaultError, match=r"_FILE: .*nowhere: No such file"):
        Cipher.from_environment()


@pytest.mark.parametrize("words", [b"", b"x" * 4097])
def test_a_passphrase_has_a_sensible_length(words):
    with pytest.raises(ConfigError, match="1 to 4096 bytes"):
        Cipher(words)


def test_a_large_file_is_not_taken_for_a_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv(f"{PASSPHRASE}_FILE", private_file(tmp_path / "p", b"x" * 100_000))
    with pytest.raises(ConfigError, match="1 to 4096 bytes"):
        Cipher.from_environment()


# --- what it never says


def test_a_cipher_shows_and_gives_away_nothing(cipher, vault):
    for text in (repr(cipher), str(cipher), repr(vault), f"{vault}"):
        assert WORDS.decode() not in text
        assert "Cipher(aes-256-gcm)" in text
    for way in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(PrivateStateError, match="cannot be pickled"):
            way(cipher)


def test_what_was_read_is_not_in_its_repr(written, model, tmp_path):
    write_state(tmp_path / "f", private_state_dict(model), None, silo=2, layout="a1", round_index=7)
    text = repr(Stored.read(tmp_path / "f"))
    assert "content" not in text
    assert len(text) < 500


# --- in a job


def session(tmp_path, model, **more):
    lock = {"lock": "paper", "key_length": 16}
    fields = {**lock, "vault": str(tmp_path / "v"), "encrypt_vault": True, **more}
    args = SimpleNamespace(role="client", rank=1, round_idx=0, comm_round=1)
    made = SiloSession(args, "keylock", keylock(fields), Observer(args))
    made.adopt(model)
    return made


def plain_model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("value", [None, ""])
def test_no_passphrase_stops_a_job_before_anything_is_done(tmp_path, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv(PASSPHRASE, value)
        monkeypatch.setenv(f"{PASSPHRASE}_FILE", value)
    model = plain_model()
    with pytest.raises(ConfigError) as caught:
        session(tmp_path, model)
    message = str(caught.value)
    assert f"set {PASSPHRASE}," in message
    assert f"{PASSPHRASE}_FILE" in message
    assert "\n" not in message
    assert not is_locked(model)
    assert not (tmp_path / "v").exists()


def test_the_server_needs_no_passphrase(tmp_path):
    fields = {"lock": "paper", "vault": str(tmp_path / "v"), "encrypt_vault": True}
    args = SimpleNamespace(role="server")
    server = ServerSession(args, "keylock", keylock(fields), Observer(args))
    server.adopt(plain_model())
    assert not (tmp_path / "v").exists()


def test_a_job_saves_and_goes_on_under_the_passphrase(tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(PASSPHRASE, WORDS.decode())
    model = plain_model()
    first = session(tmp_path, model, keep_history=True)
    first.train(SimpleNamespace(model=model), None, lambda _: train(model))
    files = sorted((tmp_path / "v").rglob("*.safetensors"))
    assert [path.name for path in files] == ["round-00000.safetensors", "silo-0.safetensors"]
    assert all(Stored.read(path).sealed for path in files)
    again = plain_model()
    session(tmp_path, again)
    assert same(private_state_dict(again), private_state_dict(model))
    assert "goes on from" in caplog.text
    captured = capfd.readouterr()
    for text in (caplog.text, captured.out, captured.err):
        assert WORDS.decode() not in text
    monkeypatch.setenv(PASSPHRASE, "another")
    with pytest.raises(VaultError, match=CHANGED):
        session(tmp_path, plain_model())


def test_encryption_is_each_silos_own_affair():
    model = plain_model()
    lock = {"lock": "paper"}
    agreed = [keylock({**lock, "encrypt_vault": v}).describe(model) for v in (True, False)]
    assert agreed[0] == agreed[1]
    assert agreed[0].mark == agreed[1].mark


@pytest.mark.parametrize("value", ["yes", 1, "true", None])
def test_the_flag_is_a_truth_value(value):
    with pytest.raises(ConfigError, match=r"keylock\.encrypt_vault: .* is not allowed"):
        KeyLockConfig.from_mapping({"encrypt_vault": value})


def test_a_full_disk_leaves_the_old_file(written, model, monkeypatch):
    before = written.path.read_bytes()

    def no_space(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(VaultError, match="cannot be written: No space left"):
        save(written, model, round_index=8)
    assert written.path.read_bytes() == before


def test_what_is_too_large_for_the_cipher_is_said(written, model, monkeypatch):
    from fedml_keylock.locks.vault import cipher as module

    class TooSmall:
        def __init__(self, _key):
            pass

        def encrypt(self, *_arguments):
            raise OverflowError("Data or associated data too long. Max 2**31 - 1 bytes")

    monkeypatch.setattr(module, "AESGCM", TooSmall)
    with pytest.raises(VaultError, match=r"silo-2\.safetensors: too large to be encrypted"):
        save(written, model, round_index=8)
