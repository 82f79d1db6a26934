"""What a silo may keep: it opens its round's sum and nothing else, and what files then say."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sealed_silos import bits_of, send, silos_of
from torch import nn

from fedml_keylock.errors import ConfigError, UpdateRefused, VaultError
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.model_files import (
    open_checkpoint,
    read_round,
    write_checkpoint,
    write_model,
)
from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.locks.sealed.seal_transform import SealTransform
from fedml_keylock.locks.sealed.sealing import TRAILER, add_up
from fedml_keylock.locks.vault import Vault
from fedml_keylock.types import ClientUpdate

FIRST = {
    "w": torch.linspace(-1, 1, 40).reshape(5, 8),
    "half": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).reshape(2, 3),
    "b": torch.tensor([1e-3, 1e4, -torch.inf]),
    "d": torch.tensor([[1 / 3]], dtype=torch.float64),
    "n": torch.tensor([7, -7]),
}
SAMPLES = (100, 50, 7)


def payloads(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        {n: (t + torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in FIRST.items()}
        for _ in SAMPLES
    ]


class Played:
    """Three rounds of a job: what was sent, each sum, each average, and silo 1's records."""

    def __init__(self, **more):
        silos = silos_of(FIRST, SAMPLES, **more)
        self.sent, self.sums, self.averages, self.records = [], [], [], []
        for seed in range(3):
            self.sent.append(send(silos, payloads(seed)))
            self.sums.append(add_up(self.sent[-1]))
            self.records.append(silos[1].record)
            self.averages.append([silo.open(self.sums[-1]).state for silo in silos][1])


@pytest.fixture(scope="module")
def job():
    return Played()


@pytest.fixture(scope="module")
def audited():
    return Played(keep_own=True)


def kept(record, folder):
    """A record as another process has it from the vault."""
    vault = Vault(folder, 1, "layout")
    vault.save(record.tensors, round_index=record.round)
    return Record.from_tensors(vault.load()[0])


def test_a_record_opens_the_sum_of_its_round_and_nothing_else(job, tmp_path):
    """Guards `Record.of`, `tensors`, `from_tensors`: it has S_0 and the tag's key of its round."""
    for index, record in enumerate(job.records):
        for one in (record, kept(record, tmp_path)):
            assert bits_of(one.open(job.sums[index]).state) == bits_of(job.averages[index])
            others = [*job.sums[:index], *job.sums[index + 1 :]]
            others += [message for messages in job.sent for message in messages]
            others += [add_up(job.sent[index][:2]), add_up([job.sums[index]] * 2)]
            for other in others:
                with pytest.raises(UpdateRefused, match="not the sum"):
                    one.open(other)


def test_a_record_holds_no_secret_that_a_later_round_comes_from(job):
    """Guards ``own`` in `Record.of`: without audits, neither masks nor other pads."""
    silos = silos_of(FIRST, SAMPLES)
    for index, record in enumerate(job.records):
        secrets = [silo.secrets.group for silo in silos]
        secrets += [pair for silo in silos for pair in silo.secrets.pairs.values()]
        content = [bytes(row) for row in record.tensors["sealed.keys"].tolist()]
        assert content == [record.pad_key, record.tag_key]
        assert record.covers == ()
        assert not {*content} & {*secrets}
        keys = silos[1]._keys(record.encoding)
        assert not {*content} & {key for key, _ in keys.covers()}
        total = add_up(send(silos, payloads(index)))
        for silo in silos:
            silo.open(total)


def test_with_covers_a_silo_reads_its_own_message_to_rounding(audited, tmp_path):
    """Guards `Record.uncover`, its signs, and ``share``; another silo's stays noise."""
    for index, record in enumerate(audited.records):
        for one in (record, kept(record, tmp_path)):
            own = one.uncover(audited.sent[index][1])
            for name, sent in payloads(index)[1].items():
                assert torch.allclose(own[name].double(), sent.double(), rtol=1e-2, atol=1e-5)
                assert own[name].dtype == sent.dtype
            assert torch.allclose(own["w"], payloads(index)[1]["w"], atol=3e-7)
            assert own["n"].tolist() == payloads(index)[1]["n"].tolist()
            other = one.uncover(audited.sent[index][0])
            assert not torch.allclose(other["w"], payloads(index)[0]["w"], atol=0.1)
        wrong = replace(record, covers=record.covers[:-1])
        assert not torch.allclose(wrong.uncover(audited.sent[index][1])["w"], own["w"], atol=0.1)
        assert bits_of(record.open(audited.sums[index]).state) == bits_of(audited.averages[index])


@pytest.mark.parametrize(
    "odd",
    [
        lambda kept: {},
        lambda kept: {n: t for n, t in kept.items() if n != "sealed.samples"},
        lambda kept: {**kept, "sealed.keys": kept["sealed.keys"][:1]},
        lambda kept: {**kept, "sealed.keys": kept["sealed.keys"][0]},
        lambda kept: {**kept, "sealed.signs": torch.ones(2, dtype=torch.int64)},
        lambda kept: {"rotated.key": torch.zeros(32, dtype=torch.uint8)},
    ],
)
def test_the_private_state_of_another_lock_is_refused(job, odd):
    """Guards the errors of `Record.from_tensors`."""
    with pytest.raises(VaultError, match="the private state is that of another lock"):
        Record.from_tensors(odd(job.records[0].tensors))


# files


def test_a_sealed_checkpoint_opens_with_the_vault_of_its_round(job, tmp_path):
    """Guards `write_checkpoint`, `read_round` and `open_checkpoint`."""
    path = tmp_path / "deep" / "checkpoint.safetensors"
    for index, total in enumerate(job.sums):
        write_checkpoint(path, total, round_index=index)
        assert os.stat(path).st_mode & 0o077 == 0
        assert read_round(path) == index
        read = load_file(path)
        assert bits_of(read) == bits_of(
            dict(sorted(total.items(), key=lambda e: [*read].index(e[0])))
        )
        opened = open_checkpoint(job.records[index], read, round_index=index, source=path)
        assert bits_of(opened) == bits_of(job.averages[index])
        unnamed = open_checkpoint(job.records[index], read, round_index=None, source=path)
        assert bits_of(unnamed) == bits_of(job.averages[index])


def test_the_checkpoint_before_is_what_the_vault_s_round_began_with(job):
    """A job may end between a silo's upload and the sum: the last checkpoint opens all the same."""
    path = Path("checkpoint")
    opened = open_checkpoint(job.records[2], job.sums[1], round_index=1, source=path)
    assert bits_of(opened) == bits_of(job.averages[1])


def test_a_checkpoint_of_other_rounds_or_jobs_says_so(job):
    """Guards each refusal of `open_checkpoint`."""
    path, record = Path("checkpoint"), job.records[2]
    with pytest.raises(
        ConfigError, match="checkpoint: it is of round 0, and the vault opens the last"
    ):
        open_checkpoint(record, job.sums[0], round_index=0, source=path)
    with pytest.raises(
        ConfigError, match="checkpoint: not of this vault's job, or changed since: "
    ):
        open_checkpoint(record, job.sums[0], round_index=2, source=path)
    other = silos_of(FIRST, SAMPLES, seed=1)
    total = add_up(send(other, payloads(0)))
    with pytest.raises(ConfigError, match="not of this vault's job"):
        open_checkpoint(job.records[0], total, round_index=0, source=path)
    with pytest.raises(ConfigError, match="checkpoint: it is not sealed; load it as it is"):
        open_checkpoint(record, job.averages[2], round_index=None, source=path)
    part = {TRAILER: job.sums[2][TRAILER]}
    with pytest.raises(ConfigError, match="not of this vault's job, or changed since"):
        open_checkpoint(record, part, round_index=2, source=path)


def test_other_files_have_no_round(tmp_path):
    path = tmp_path / "file"
    assert read_round(path) is None
    path.write_bytes(b"\xff" * 100)
    assert read_round(path) is None
    write_model(path, FIRST, rounds=3)
    assert read_round(path) is None


def test_the_open_model_is_a_file_that_anyone_can_load(tmp_path):
    """Guards `write_model`: tied weights and views are written out, for their owner only."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    state = {n: t.detach() for n, t in model.state_dict().items()}
    state["0.bias"] = torch.arange(8.0)[::2]
    path = tmp_path / "models" / "silo-0.safetensors"
    write_model(path, state, rounds=5)
    assert os.stat(path).st_mode & 0o077 == 0
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    fresh.load_state_dict(load_file(path))
    assert bits_of(fresh.state_dict()) == bits_of(state)
    (tmp_path / "in the way").write_text("")
    with pytest.raises(ConfigError, match="in the way/x: cannot be written"):
        write_model(tmp_path / "in the way" / "x", state, rounds=5)


# for audits


@pytest.mark.parametrize("silos", [2, 3, 5])
def test_an_audit_sees_what_server_silo_and_colluder_would_see(silos):
    """Guards `SealTransform`: the silo recovers its update, and of three a colluder does not."""
    generator = torch.Generator().manual_seed(0)
    before = {
        "w": torch.randn(20, 10, generator=generator),
        "b": torch.randn(7, generator=generator),
    }
    after = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in before.items()}
    update = ClientUpdate(before, after, 1.0)
    transform = SealTransform(entries_of(before), silos)
    sealed, private = transform.protect(update, generator)
    assert {tensor.dtype for tensor in sealed.after.values()} == {torch.int32}
    own = transform.recover(sealed, private)
    assert all(torch.allclose(own.after[n], after[n], atol=1e-6) for n in after)
    assert bits_of(own.before) == bits_of(before)
    colluder = transform.recover(sealed, private, colluding=True)
    knows = all(torch.allclose(colluder.after[n], after[n], atol=1e-6) for n in after)
    assert knows == (silos == 2)
    if silos > 2:  # what a colluder is left with is as good as what a server reads
        assert float((colluder.after["w"] - after["w"]).abs().mean()) > 1
    read = transform.read(sealed)
    assert {n: t.shape for n, t in read.after.items()} == {n: t.shape for n, t in after.items()}
    assert all(bool((t.abs() <= 1).all()) for t in read.after.values())
    assert read.before is before
    again, _ = transform.protect(update, generator)
    assert bits_of(again.after) != bits_of(sealed.after)
