"""`lock: sealed`, alone and over `lock: paper`, as a job asks it: first models, ends, and files."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sealed_silos import bits_of, secrets_of
from torch import nn

from fedml_keylock.errors import ConfigError, HostError, UpdateRefused, VaultError
from fedml_keylock.locks import KeyLockConfig, Vault, lock_model, make_lock
from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.locks.sealed.rounds import digest_of
from fedml_keylock.locks.sealed.sealing import TRAILER
from fedml_keylock.locks.vault import Cipher
from fedml_keylock.locks.vault.file import Stored

SAMPLES = (3, 1, 2)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def jobs(folder, *, samples=SAMPLES, **more):
    """Each silo's lock and model, in a job whose silos have agreed on secrets."""
    made = []
    for secrets in secrets_of(samples):
        lock, model = make_lock(KeyLockConfig(vault=folder, **more)), net()
        lock.protect(model, silo=secrets.silo, agreement=lock.describe(model))
        lock.share(secrets)
        made.append((lock, model))
    return made


def play(silos, first, rounds=2):
    """Rounds in which each silo moves its model by its own number; the last sum."""
    for lock, model in silos:
        model.load_state_dict(lock.open(model, first, round_index=-1))
    for round_index in range(rounds):
        sent = []
        for place, (lock, model) in enumerate(silos):
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor += place * tensor.requires_grad
            sent.append(lock.seal(model, state_of(model), samples=SAMPLES[place]))
        total = silos[0][0].add_up(sent)
        for lock, model in silos:
            model.load_state_dict(lock.open(model, total, round_index=round_index))
    return total


# lock: sealed


def test_a_job_trains_the_model_as_it_is(tmp_path):
    """Guards `SealedLock.open` and `seal`: (3 * 0 + 1 * 1 + 2 * 2) / 6 a round, and no vault."""
    silos = jobs(tmp_path / "vault")
    first = state_of(silos[0][1])
    play(silos, first)
    for _, model in silos:
        assert torch.allclose(model[0].weight, first["0.weight"] + 5 / 3, atol=1e-6)
        assert bits_of(state_of(model)) == bits_of(state_of(silos[0][1]))
    assert [*(tmp_path / "vault").iterdir()] == []


def test_whose_first_model_it_is_is_said(tmp_path, caplog):
    """Guards `remember` and `_first`: with the digest to copy."""
    caplog.set_level(logging.INFO)
    own, other = state_of(net()), state_of(net(1))
    lock, model = jobs(tmp_path)[0]
    lock.open(model, own, round_index=-1)
    digest = digest_of(own).hex()
    assert caplog.messages[-1] == f"the first model is this silo's own; its digest is {digest}"
    lock, model = jobs(tmp_path)[0]
    lock.open(model, other, round_index=-1)
    assert caplog.records[-1].levelno == logging.WARNING
    assert f"pin it by keylock: {{first_model: {digest_of(other).hex()}}}" in caplog.messages[-1]


def test_a_part_of_the_silo_s_own_first_model_is_its_own_and_said_once(tmp_path, caplog):
    """As where adapters alone are exchanged: honest jobs were warned of, or refused.

    Guards `remember` and ``again`` in `_first`: FedML sends the first model twice.
    """
    caplog.set_level(logging.INFO)
    own = state_of(net())
    part = {name: own[name] for name in sorted(own)[:2]}
    lock, model = jobs(tmp_path, first_model="own")[0]
    for _ in range(2):
        assert lock.open(model, part, round_index=-1) is part
    digest = digest_of(part).hex()
    assert caplog.messages == [f"the first model is this silo's own; its digest is {digest}"]


def test_a_pinned_first_model_is_the_only_one_that_is_taken(tmp_path):
    """Guards ``first_model``: own, a digest in any case, or a file."""
    own, other = state_of(net()), state_of(net(1))
    save_file(other, tmp_path / "pinned.safetensors")
    file, digest = str(tmp_path / "pinned.safetensors"), digest_of(other).hex()
    for wanted, right, wrong in [
        ("own", own, other),
        (digest, other, own),
        (digest.upper(), other, own),
        (file, other, own),
    ]:
        lock, model = jobs(tmp_path, first_model=wanted)[0]
        assert lock.open(model, right, round_index=-1) is right
        lock, model = jobs(tmp_path, first_model=wanted)[0]
        with pytest.raises(
            UpdateRefused, match=r"^round 0: the server's first model \([0-9a-f]{64}\)"
        ):
            lock.open(model, wrong, round_index=-1)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_diverged_silo_ends_the_job_in_every_silo_alike(tmp_path, odd):
    """Guards the counter in `SealedLock.open`: it names the round, and no silo or tensor.

    The silo's own log names the tensor.
    """
    silos = jobs(tmp_path)
    first, sent = state_of(silos[0][1]), []
    for place, (lock, model) in enumerate(silos):
        payload = state_of(model)
        lock.open(model, first, round_index=-1)
        if place == 1:
            payload["3.bias"][1] = odd
        sent.append(lock.seal(model, payload, samples=SAMPLES[place]))
    said = set()
    for lock, model in silos:
        with pytest.raises(UpdateRefused) as error:
            lock.open(model, lock.add_up(sent), round_index=0)
        said.add(str(error.value))
    (only,) = said
    assert only.startswith("round 0: numbers of the silos' updates were NaN or infinite: ")
    assert "3.bias" not in only
    assert [path.name for path in tmp_path.glob("*.log")] == ["silo-1.log"]
    assert "1 are not finite, in 3.bias" in (tmp_path / "silo-1.log").read_text()


def test_what_was_clipped_is_noted_in_every_silo(tmp_path, caplog):
    """Guards the note in `SealedLock.open`: what is logged, the server's host may read."""
    silos = jobs(tmp_path)
    first, sent = state_of(silos[0][1]), []
    for place, (lock, model) in enumerate(silos):
        payload = state_of(model)
        lock.enter_silo(model, silo=place)
        lock.open(model, first, round_index=-1)
        if place == 2:
            payload["3.weight"][0, :2] = 1e4
        sent.append(lock.seal(model, payload, samples=SAMPLES[place]))
    caplog.clear()
    for lock, model in silos:
        lock.open(model, lock.add_up(sent), round_index=0)
    assert not caplog.messages
    wanted = "round 0: 2 numbers of all silos' updates were clipped to the range of a round"
    noted = [(tmp_path / f"silo-{place}.log").read_text() for place in range(3)]
    assert all(wanted in text for text in noted)
    assert ["2 numbers outgrew their range" in text for text in noted] == [False, False, True]


@pytest.mark.parametrize(
    ("silos", "colluders", "refused"), [(2, 1, True), (3, 1, False), (3, 2, True), (2, 0, False)]
)
def test_of_what_colluding_silos_leave_there_must_be_two(tmp_path, silos, colluders, refused):
    """Guards ``colluders + 2`` in `SealedLock.share`."""
    if refused:
        with pytest.raises(ConfigError, match=f"of {silos} silos at most {silos - 2} may collude"):
            jobs(tmp_path, samples=(1,) * silos, colluders=colluders)
    else:
        assert jobs(tmp_path, samples=(1,) * silos, colluders=colluders)


@pytest.mark.parametrize(("silos", "colluders"), [(64, None), (65, None), (65, 31)])
def test_many_silos_are_told_how_many_may_collude(tmp_path, caplog, silos, colluders):
    """Guards the warning in `SealedLock.share`: beyond 64 the graph is not complete."""
    lock = make_lock(KeyLockConfig(vault=tmp_path, colluders=colluders))
    lock.share(secrets_of((1,) * silos)[0])
    told = "with 65 silos: masks hold while at most 31 of them collude" in caplog.text
    assert told is (silos == 65 and colluders is None)


def test_without_secrets_nothing_is_opened_or_sealed(tmp_path):
    """Guards `_begun`."""
    lock, model = make_lock(KeyLockConfig(vault=tmp_path)), net()
    lock.protect(model, silo=0, agreement=lock.describe(model))
    for call in (
        lambda: lock.open(model, state_of(model), round_index=-1),
        lambda: lock.seal(model, state_of(model), samples=1),
    ):
        with pytest.raises(HostError, match="no secret to seal with"):
            call()


def test_after_the_last_round_silos_are_asked_for_no_other_samples(tmp_path):
    """Guards the samples in `Rounds.agreed`: over gRPC every job ended in an error at its end."""
    silos = jobs(tmp_path)
    play(silos, state_of(silos[0][1]))
    for place, (lock, _) in enumerate(silos):
        lock.finish(2, silo=place)


def test_silos_compare_what_they_have_opened_before_the_model_is_written(tmp_path):
    """Guards `agreed` in `SealedLock.finish`: what a server sent to one silo only is found."""
    silos = jobs(tmp_path / "vault", save_model=tmp_path / "models")
    play(silos, state_of(silos[0][1]))
    told = []

    def exchange(messages, _meanwhile):
        told.append(sorted(messages))
        return {silo: bytes(message) for silo, message in messages.items()}  # no notice of theirs

    rounds = silos[1][0]._rounds
    rounds.secrets = replace(rounds.secrets, exchange=exchange)
    with pytest.raises(UpdateRefused, match=r"^silo 0 is in another round than this one"):
        silos[1][0].finish(2, silo=1)
    assert told == [[0, 2]]
    assert [*(tmp_path / "models").iterdir()] == []


def test_what_could_not_be_written_in_the_end_is_refused_at_the_start(tmp_path):
    """Guards `check_place`: a job would train for hours, and lose its model."""
    (tmp_path / "in the way").write_text("")
    (tmp_path / "models" / "silo-0.safetensors").mkdir(parents=True)
    for folder in ("models", "in the way", "in the way/x"):
        with pytest.raises(ConfigError, match=r"^keylock.save_model: .*/silo-0.safetensors: can"):
            jobs(tmp_path / "vault", save_model=tmp_path / folder)
    (tmp_path / "vault" / "silo-0.log").mkdir()
    with pytest.raises(ConfigError, match=r"^keylock.vault: .*/silo-0.log: cannot be written"):
        jobs(tmp_path / "vault")
    checkpoint = tmp_path / "in the way" / "global.safetensors"
    with pytest.raises(ConfigError, match=r"^keylock.checkpoint: .* cannot be wr"):
        make_lock(KeyLockConfig(checkpoint=checkpoint)).enter_server()
    make_lock(KeyLockConfig(checkpoint=tmp_path / "new" / "global.safetensors")).enter_server()
    assert [*(tmp_path / "new").iterdir()] == []


def test_a_pinned_first_model_that_cannot_be_read_is_refused_at_the_start(tmp_path):
    """Guards `FirstModel.remember`: a missing file ended the job in a traceback."""
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    for name in ("missing.safetensors", "cut.safetensors"):
        with pytest.raises(ConfigError, match=rf"^keylock.first_model: .*{name} cannot be read: "):
            jobs(tmp_path, first_model=str(tmp_path / name))


def test_checkpoints_vaults_and_the_open_model(tmp_path):
    """Guards `keep`, what `seal` saves, `load_public`, `finish`, and what stays out of a vault."""
    config = {"checkpoint": tmp_path / "sealed.safetensors", "save_model": tmp_path / "models"}
    silos = jobs(tmp_path / "vault", **config)
    total = play(silos, state_of(silos[0][1]))
    lock, model = silos[1]
    lock.keep(total, round_index=1)
    for place, (each, _) in enumerate(silos):
        each.finish(2, silo=place)
    trained = state_of(model)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        f"silo-{place}.safetensors" for place in range(3)
    ]
    assert bits_of(load_file(tmp_path / "models" / "silo-1.safetensors")).items() == (
        bits_of(trained).items()
    )
    kept = Vault(tmp_path / "vault", 1, lock.describe(net()).layout).load()[0]
    assert Record.from_tensors(kept).covers == ()
    fresh = net(5)
    lock_model(fresh, KeyLockConfig())
    lock.load_private(fresh, kept)
    sealed = load_file(tmp_path / "sealed.safetensors")
    with pytest.raises(ConfigError, match=r"^--round: of lock: rotated only"):
        lock.load_public(fresh, sealed, round_index=1, source=config["checkpoint"])
    lock.load_public(fresh, sealed, round_index=None, source=config["checkpoint"])
    assert bits_of(state_of(fresh)) == bits_of(trained)


def test_what_an_audit_in_the_job_keeps_in_memory_is_not_in_the_vault(tmp_path):
    """Guards ``own`` in `SealedLock.seal`: after `baseline` records open own messages."""
    silos = jobs(tmp_path / "vault", checkpoint=tmp_path / "sealed.safetensors")
    first = state_of(silos[0][1])
    for lock, model in silos:
        lock.open(model, first, round_index=-1)
    lock, model = silos[1]
    assert lock.baseline(net(), model)[1] == {}  # nothing was sealed yet
    lock.seal(model, first, samples=SAMPLES[1])
    assert len(Record.from_tensors(lock.baseline(net(), model)[1]).covers) == 4
    kept = Vault(tmp_path / "vault", 1, lock.describe(net()).layout).load()[0]
    assert Record.from_tensors(kept).covers == ()


def test_for_audits_the_history_has_what_opens_the_silo_s_own_messages(tmp_path):
    """Guards ``keep_history``."""
    silos = jobs(tmp_path / "vault", keep_history=True)
    play(silos, state_of(silos[0][1]))
    vault = Vault(tmp_path / "vault", 2, silos[2][0].describe(net()).layout)
    for round_index in range(2):
        record = Record.from_tensors(vault.load(vault.history_path(round_index))[0])
        assert (record.round, len(record.covers)) == (round_index, 3)


def test_a_handle_seals_what_was_trained_since(tmp_path):
    """`lock_model`: the model is trained in place, and its handle has what it was before."""
    model = net()
    lock_model(model, KeyLockConfig())
    before = state_of(model)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 1
    message, counts = model.keylock.seal(model.state_dict())
    assert counts.clipped == 0
    opened = model.keylock.open(message).state
    assert torch.allclose(opened["0.weight"], before["0.weight"] + 1, atol=1e-6)


def test_a_rehearsal_gives_the_messages_and_the_average(tmp_path):
    """Guards `rehearse`, which FedML's simulation in one process averages by."""
    lock, base = make_lock(KeyLockConfig(vault=tmp_path)), state_of(net())
    updates = [
        (n, {k: (t + place).to(t.dtype) for k, t in base.items()})
        for place, n in enumerate(SAMPLES)
    ]
    messages, average = lock.rehearse(base, updates)
    assert len(messages) == 3
    assert all(TRAILER in message for message in messages)
    assert torch.allclose(average["0.weight"], base["0.weight"] + 5 / 6, atol=1e-6)
    odd = [(1, base), (1, {**base, "3.bias": base["3.bias"] * torch.nan})]
    with pytest.raises(UpdateRefused, match=r"^round 0: numbers of the silos' updates were NaN"):
        lock.rehearse(base, odd)


# lock: [paper, sealed]


@pytest.fixture
def composed(tmp_path):
    made = []
    for secrets in secrets_of(SAMPLES):
        config = KeyLockConfig(lock=["paper", "sealed"], key_length=8, vault=tmp_path / "vault")
        lock, model = make_lock(config), net()
        lock.protect(model, silo=secrets.silo, agreement=lock.describe(model))
        lock.share(secrets)
        made.append((lock, model))
    return made


def test_over_lock_paper_its_public_state_is_sealed_and_nothing_private_leaves(composed):
    """Guards `SealedPaperLock`: seal, open, remember, and the two locks' own names."""
    lock, model = composed[0]
    assert lock.title == "keylock:paper:first+sealed"
    assert lock.seals
    assert lock.wraps_model
    assert lock.weakness == ""
    first = state_of(model)
    assert first.keys() == net().state_dict().keys()  # the public names
    play(composed, first)
    owns = [lock.private_state(model) for lock, model in composed]
    assert owns[0]
    assert any(not torch.equal(owns[0][name], owns[1][name]) for name in owns[0])
    for _, each in composed:
        assert torch.allclose(each[3].weight, first["3.weight"] + 5 / 3, atol=1e-6)
        assert bits_of(state_of(each)) == bits_of(state_of(model))


def test_over_lock_paper_messages_are_sealed_words_under_public_names(composed):
    lock, model = composed[0]
    lock.open(model, state_of(model), round_index=-1)
    message = lock.seal(model, state_of(model), samples=SAMPLES[0])
    assert message.keys() == {*net().state_dict(), TRAILER}
    assert {words.dtype for words in message.values()} == {torch.int32}
    with pytest.raises(UpdateRefused, match="second message"):
        lock.seal(model, state_of(model), samples=SAMPLES[0])


def test_over_lock_paper_the_first_model_is_compared_by_its_public_state(composed, caplog):
    """Guards the order in `SealedPaperLock.lock_for_job`."""
    caplog.set_level(logging.INFO)
    lock, model = composed[1]
    lock.open(model, state_of(model), round_index=-1)
    assert "the first model is this silo's own" in caplog.messages[-1]


def test_over_lock_paper_the_vault_is_the_published_lock_s(tmp_path):
    secrets = secrets_of(SAMPLES)[0]
    more = {"lock": ["paper", "sealed"], "key_length": 8, "vault": tmp_path / "vault"}
    lock, model = make_lock(KeyLockConfig(**more, keep_history=True)), net()
    lock.protect(model, silo=0, agreement=lock.describe(model))
    lock.share(secrets)
    lock.open(model, state_of(model), round_index=-1)
    lock.begin_round(model, round_index=0)
    lock.seal(model, state_of(model), samples=SAMPLES[0])
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors")}
    assert found == {"vault/silo-0.safetensors", "vault/silo-0/round-00000.safetensors"}
    with pytest.raises(ConfigError, match=r"a vault opens no message; leave --vault out"):
        lock.load_round(model, {}, round_index=0, source=tmp_path)


def test_an_encrypted_vault_has_no_key_in_the_open_and_is_bound_to_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDML_KEYLOCK_PASSPHRASE", "a passphrase that is long enough")
    more = {"encrypt_vault": True, "keep_history": True}
    made, model = jobs(tmp_path, samples=(1,), **more)[0]
    made.open(model, state_of(model), round_index=-1)
    made.seal(model, state_of(model), samples=1)
    files = [*made.config.vault.rglob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        assert made._rounds.record.pad_key not in file.read_bytes()
        stored = Stored.read(file)
        assert stored.header["layout"] == made.describe(net()).layout
        with pytest.raises(VaultError, match="encrypted"):
            stored.state(None)
        kept = stored.state(Cipher.from_environment())
        assert Record.from_tensors(kept).pad_key == made._rounds.record.pad_key
