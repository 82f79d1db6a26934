"""A file of tensors that is damaged, or anybody's, is one clear error, whoever reads it."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import save

from fedml_keylock.errors import AttackError, VaultError
from fedml_keylock.evaluation.audit.work import Result
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.keylock.vault import Cipher
from fedml_keylock.keylock.vault.file import Stored, write_state
from fedml_keylock.tensors import tensors_of
from fedml_keylock.types import ClientUpdate

STATE = {"key": torch.arange(4.0)}


def in_form(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


def of_type(name, metadata):
    header = {"key": {"dtype": name, "shape": [2], "data_offsets": [0, 2]}}
    return in_form(json.dumps({"__metadata__": metadata, **header}).encode(), b"12")


DAMAGE = {
    "a broken header": lambda _: in_form(b'{"key": {'),
    # what safetensors knows and cannot make a tensor of, and what it does not know
    "an odd type": lambda metadata: of_type("F8_E8M0", metadata),
    "an unknown type": lambda metadata: of_type("Q7", metadata),
    "the end": lambda metadata: save(STATE, metadata)[:-3],
    "nothing": lambda _: b"",
}


@pytest.fixture(params=DAMAGE)
def damaged(request):
    return DAMAGE[request.param]


def fails(error, read, *args):
    with pytest.raises(error) as raised:
        read(*args)
    said = str(raised.value)
    assert said
    assert "\n" not in said
    return said


def test_the_content_of_a_file(damaged):
    fails(ValueError, tensors_of, damaged({}))
    assert torch.equal(tensors_of(save(STATE))["key"], STATE["key"])


def test_the_type_is_named():
    said = fails(ValueError, tensors_of, of_type("F8_E8M0", {}))
    assert said == "it has numbers of a type that cannot be read: 'F8_E8M0'"


def test_the_result_of_a_task(damaged):
    assert fails(AttackError, Result.of, damaged({})).startswith("damaged: ")


def test_a_captured_update(damaged, tmp_path):
    folder, name = tmp_path / "capture", "round-00000/silo-0.safetensors"
    Capture.create(folder, {"learning_rate": 0.1}).add(ClientUpdate(STATE, STATE, 0.1))
    content = damaged({})
    (folder / name).write_bytes(content)
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    for line in lines:
        if line["file"] == name:
            line |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = fails(AttackError, Capture.open(folder).load, 0, 0)
    assert f"{name}: this is no safetensors file: " in said


def of_a_vault(path, cipher=None):
    write_state(path, STATE, cipher, silo=2, layout="a1", round_index=7)
    return Stored.read(path)


def test_a_vault(damaged, tmp_path):
    path = tmp_path / "silo-2.safetensors"
    path.write_bytes(damaged(of_a_vault(path).header))
    said = fails(VaultError, lambda: Stored.read(path).state(None))
    assert said.startswith(f"vault {path}: ")
    assert "damaged (" in said or "its schema is" in said


def test_what_is_sealed_in_a_vault(damaged, tmp_path):
    """By someone with the passphrase."""
    path, cipher = tmp_path / "silo-2.safetensors", Cipher(b"correct horse")
    header = {n: of_a_vault(path, cipher).header[n] for n in ("schema", "silo", "layout", "round")}
    header, sealed = cipher.seal(damaged({}), header)
    tensor = torch.frombuffer(bytearray(sealed), dtype=torch.uint8)
    path.write_bytes(save({"ciphertext": tensor}, metadata=header))
    said = fails(VaultError, Stored.read(path).state, cipher)
    assert said.startswith(f"vault {path}: damaged (")
