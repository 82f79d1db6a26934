"""A file of tensors that is damaged, or anybody's, is one clear error, whoever reads it."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import save
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import AttackError, VaultError
from fedml_keylock.evaluation.audit.work import Result
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.update_history import fingerprints
from fedml_keylock.locks import KeyLockConfig, export_model, lock_model
from fedml_keylock.locks.rotated.round_rotation import digest
from fedml_keylock.locks.vault import Cipher
from fedml_keylock.locks.vault.file import Stored, write_state
from fedml_keylock.tensors import buffers_kept, fingerprint, raw, tensors_of
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


ODD = {
    "strided": torch.arange(6.0).reshape(2, 3).t(),
    "empty": torch.zeros(0),
    "scalar": torch.tensor(3),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16),
}


def test_the_bytes_of_any_tensor():
    for tensor in ODD.values():
        assert bytes(raw(tensor)) == bytes(tensor.contiguous().untyped_storage())
    assert raw(torch.ones(2, requires_grad=True)).nbytes == 8


def test_digests_are_what_they_were():
    """Results are found by them, what is locked is bound to them, and vaults hold them."""
    assert fingerprint(("dlg", 1), ODD.values()) == "ee848be0782a8368"
    assert digest(ODD).hex()[:16] == "59426a111a35ec41"
    assert {name: found.hex() for name, found in fingerprints(ODD).items()} == {
        "strided": "1b286723f37b9b61",
        "empty": "e4a6a0577479b2b4",
        "scalar": "ea840b78bdcd26e2",
        "bfloat16": "9b8f747539e3b9c9",
    }


def test_a_vaults_checksum_is_what_it_was(tmp_path):
    path = tmp_path / "silo-2.safetensors"
    state = {name: tensor.contiguous() for name, tensor in ODD.items()}
    write_state(path, state, None, silo=2, layout="a1", round_index=7)
    assert Stored.read(path).header["sha256"][:16] == "e8d1b78342f660a9"


def test_a_tensor_whose_bytes_were_read_may_still_be_resized():
    """Guards `raw`: ``Tensor.numpy()`` forbids it for good, also to the job's own model."""
    tensor = torch.zeros(0)
    raw(tensor)
    assert tensor.resize_(3).shape == (3,)


class Buffers(nn.Module):
    """One that shares its memory with itself, and others that are changed in each way."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(1).expand(2, 2))
        for name in ("counted", "averaged", "replaced", "resized"):
            self.register_buffer(name, torch.zeros(2))

    def forward(self):
        self.counted += 1
        self.averaged.data.add_(1)  # behind the back of the tensor's version
        self.replaced = torch.ones(2)
        self.resized.resize_(3).fill_(1)


def test_buffers_are_put_back_however_they_were_changed():
    model = Buffers()
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with buffers_kept(model.modules()):
        model()
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0], name
        assert torch.equal(buffer, before[name][1]), name


@pytest.mark.parametrize("lock", ["sealed", "rotated", "paper"])
def test_what_a_model_computed_last_is_copied_with_it(lock):
    """As the old weight norm keeps its weight, with a gradient function."""
    model, plain = (
        nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(8, 3))
        for _ in range(2)
    )
    images = torch.rand(2, 1, 4, 4)
    lock_model(model, KeyLockConfig(lock=lock))
    expected = model.eval()(images)
    assert torch.allclose(export_model(model)(images), expected, atol=1e-5)
    plain(images)
    assert keylock({"lock": lock}).attacker_model(plain).model(images).shape == (2, 3)
