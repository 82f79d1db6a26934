"""A job's sessions under noise: planned before it begins, counted before it is sent, and told."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from job_arguments import SIMULATED, arguments
from test_sealed_sessions import Federation, moved, net, net_state

from fedml_keylock.errors import ConfigError, UpdateRefused, VaultError
from fedml_keylock.host.job_configuration import schedule_of, silo_in_turn
from fedml_keylock.host.session_of import session_of
from fedml_keylock.locks import KeyLockConfig
from fedml_keylock.locks.sealed.notices import Notice, _cipher, _nonce
from fedml_keylock.privacy.accountant import Spending, epsilon_of
from fedml_keylock.privacy.ledger import Ledger

DELTA, Z = 1e-5, 3.0
NOISE = {"clip": 1.0, "multiplier": Z, "delta": DELTA}


def cost(rounds, z=Z):
    return epsilon_of([Spending(z, count=rounds)], DELTA)


def federation(folder, colluders=1, **noise):
    folder.mkdir(exist_ok=True)
    return Federation(folder, colluders=colluders, noise=NOISE | noise)


@pytest.fixture
def job(tmp_path):
    return federation(tmp_path)


# --- who takes part


@pytest.mark.parametrize("kind", ["cross_silo", "simulation"])
def test_the_schedule_is_what_each_rank_computes_for_itself(kind):
    numbers = {"client_num_in_total": 7, "client_num_per_round": 3, "comm_round": 5}
    args = SimpleNamespace(training_type=kind, **numbers)
    schedule = schedule_of(args)
    for index, silos in enumerate(schedule.rounds):
        for rank in (1, 2, 3):
            args.rank = rank
            assert silo_in_turn(args, index) == silos[rank - 1]
    np.random.seed(2)  # as FedML draws it
    drawn = np.random.choice(range(7), 3, replace=False)
    assert schedule.rounds[2 if kind == "simulation" else 3] == tuple(drawn)
    everyone = SimpleNamespace(training_type=kind, **numbers | {"client_num_per_round": 7})
    assert schedule_of(everyone).rounds == (tuple(range(7)),) * 5


# --- what silos tell one another


def test_silos_tell_no_numbers_of_samples(job):
    """Guards `weigh`: shares must be public, and the numbers of samples are private themselves."""
    job.begin()
    for silo in job.silos:
        assert silo.defense._rounds.secrets.samples == {0: 1.0, 1: 1.0, 2: 1.0}
    assert [samples for samples, _ in job.collect()] == [1, 1, 1]


def test_notices_tell_none_either(job):
    job.begin()
    rounds, other = (job.silos[k].defense._rounds for k in (0, 1))
    told = []

    def exchange(messages, meanwhile):
        cipher = _cipher(other.secrets, 0, "notice")
        packed = cipher.decrypt(_nonce(0, 1), messages[1], other.secrets.transcript)
        told.append(Notice.unpacked(packed).samples)
        raise UpdateRefused("enough")

    rounds.secrets = replace(rounds.secrets, exchange=exchange)
    with pytest.raises(UpdateRefused, match="enough"):
        job.upload(job.silos[0], 0)
    assert told == [1.0]


# --- before it begins


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise": NOISE}, "keylock.colluders: needed with noise"),
        ({"noise": NOISE, "colluders": 1, "tell_samples": True}, "keylock.tell_samples: "),
        ({"noise": NOISE, "colluders": 1, "tell_accuracy": True}, "keylock.tell_accuracy: "),
        ({"noise": NOISE, "colluders": 1, "log_training": True}, "keylock.log_training: "),
    ],
)
def test_what_noise_does_not_cover_is_not_told(settings, said):
    with pytest.raises(ConfigError) as caught:
        KeyLockConfig(**settings)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("colluders", "noise", "said"),
    [
        (3, {}, "of 3 silos in a round 3 know their own noise"),
        (1, {"delta": 0.4}, "keylock.noise.delta: 0.4 is not allowed with 3 silos"),
        (1, {"stop_at": 0.1}, "keylock.noise.stop_at: one round costs epsilon"),
    ],
)
def test_a_job_whose_noise_hides_nothing_does_not_begin(colluders, noise, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        federation(tmp_path, colluders, **noise)


def test_a_score_must_not_end_a_job_under_noise(tmp_path):
    audit = {"side": "silo", "abort_above": {"ssim_aligned": 0.5}}
    fields = {"enable_attack": True, "attack_type": "gradient_inversion"}
    made = arguments(
        keylock={"colluders": 0, "noise": NOISE, "vault": str(tmp_path)},
        gradient_inversion=audit,
        **fields,
    )
    with pytest.raises(ConfigError, match=r"gradient_inversion\.abort_above: beside noise"):
        session_of(made)
    made.keylock = {"vault": str(tmp_path)}
    assert session_of(made).observer.attacks_itself


def test_every_rank_solves_for_the_same_multiplier(tmp_path):
    job = federation(tmp_path, multiplier=None, epsilon=4.0)
    found = {session.defense.multiplier for session in (job.server, *job.silos)}
    assert len(found) == 1
    assert 3.99 < cost(2, found.pop()) <= 4.0
    assert {silo.defense._noise.multiplier for silo in job.silos} == {job.server.defense.multiplier}


@pytest.mark.parametrize(("size", "level"), [(2, logging.INFO), (200, logging.WARNING)])
def test_a_silo_says_at_once_what_the_noise_is_worth(tmp_path, caplog, size, level):
    settings = {"colluders": 0, "noise": NOISE | {"multiplier": 0.5}, "vault": tmp_path / "vault"}
    args = arguments(keylock=settings, rank=1, comm=object(), learning_rate=0.1)
    with caplog.at_level(logging.INFO):
        model = torch.nn.Sequential(torch.nn.Linear(size, 2), torch.nn.Linear(2, 1, bias=False))
        model[0].bias.requires_grad_(False)  # what does not train is not noised
        session_of(args).adopt(model)
    worth, ratio, *_ = caplog.records
    assert worth.getMessage() == (
        "keylock.noise: multiplier 0.5, deviation 0.5 in the sum of 2 silos without that of "
        "1; 3 rounds cost epsilon "
        f"{cost(3, 0.5):.3g} at delta 1e-05 (unit: silo)"
    )
    length = 0.5 * (2 * size + 2) ** 0.5 * 2**0.5 / 2
    assert ratio.getMessage().startswith(f"noise over signal: {length:.3g}, ")
    assert ratio.levelno == level


# --- each round


def test_what_is_spent_is_on_disk_before_it_is_sent(job):
    job.begin()
    silo = job.silos[1]
    ledger = Ledger(silo.defense.config.vault, 1, "silo")
    seen, sealed = [], silo.defense._rounds.seal

    def seal(*args, **kwargs):
        seen.append(ledger.spent)
        return sealed(*args, **kwargs)

    silo.defense._rounds.seal = seal
    job.upload(silo, 1)
    assert seen == [[Spending(Z)]] == [ledger.spent]
    assert Ledger(ledger.folder, 0, "silo").spent == []  # it has not sent anything


def test_nothing_is_sent_that_cannot_be_written_down(job):
    job.begin()
    vault = job.silos[0].defense.config.vault
    vault.chmod(0o755)
    with pytest.raises(VaultError, match="its mode is 0755"):
        job.upload(job.silos[0], 0)


def test_each_round_is_told_where_scores_are(job, caplog):
    job.begin()
    told = []
    job.silos[2].tell = told.append
    with caplog.at_level(logging.INFO):
        for index in range(2):
            for silo in job.silos:
                silo.args.round_idx = index
            total = job.server.add_up(job.collect())
            for silo in job.silos:
                job.deliver(silo, job.from_server(total))
    assert told == [{"keylock/silo_2/epsilon": round(cost(n + 1), 4), "round": n} for n in range(2)]
    for silo in range(3):
        said = f"epsilon {cost(2):.3g} at delta 1e-05 (unit: silo) after 2 rounds"
        assert f"silo {silo}, round 1: {said}" in caplog.messages


def test_the_next_job_goes_on_counting(job, tmp_path):
    job.begin()
    job.collect()
    again = federation(tmp_path)
    assert again.silos[0].defense.privacy_loss(0).rounds == 1
    again.begin()
    again.collect()
    loss = again.silos[0].defense.privacy_loss(0)
    assert (loss.epsilon, loss.rounds) == (cost(2), 2)
    assert str(loss) == f"epsilon {cost(2):.3g} at delta 1e-05 (unit: silo) after 2 rounds"


# --- a budget


def test_training_ends_in_time_on_every_rank(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        job = federation(tmp_path, stop_at=cost(1) + 1e-6)
    assert {session.args.comm_round for session in (job.server, *job.silos)} == {1}
    assert "keylock.noise.stop_at: training ends after 1 of 2 rounds" in caplog.text
    job.begin()
    total = job.server.add_up(job.collect())
    for silo in job.silos:
        job.deliver(silo, job.from_server(total))
        silo.dismiss()  # which is an error before the last round


def test_a_budget_that_is_spent_begins_no_job(tmp_path):
    limit = cost(3) + 1e-6
    for silo in (0, 1, 2):
        Ledger(tmp_path / "vault", silo, "silo").add(Spending(Z))
    federation(tmp_path, stop_at=limit)  # one of three, and this one's two
    for _ in range(2):
        Ledger(tmp_path / "vault", 1, "silo").add(Spending(Z))
    with pytest.raises(ConfigError) as caught:
        federation(tmp_path, stop_at=limit)
    assert str(caught.value) == (
        f"keylock.noise.stop_at: silo 1 has spent epsilon {cost(3):.3g} of {limit:g} in 3 rounds, "
        "as its vault says; of 2 more 0 fit: lower comm_round, or raise stop_at"
    )


def test_a_job_that_spends_beside_this_one_is_seen(tmp_path):
    job = federation(tmp_path, stop_at=cost(2) + 1e-6)
    job.begin()
    ledger = Ledger(job.silos[0].defense.config.vault, 0, "silo")
    for _ in range(2):
        ledger.add(Spending(Z))
    with pytest.raises(UpdateRefused, match=r"^silo 0 .*round 0: epsilon would pass .*stop_at"):
        job.upload(job.silos[0], 0)
    assert ledger.read().rounds == 2


# --- simulated in one process


def test_a_simulation_counts_who_takes_part(tmp_path, caplog):
    numbers = {"client_num_in_total": 5, "client_num_per_round": 3, "comm_round": 2}
    keylock = {"colluders": 0, "noise": NOISE, "vault": tmp_path / "vault"}
    args = arguments(
        **SIMULATED, **numbers, keylock=keylock, role="server", rank=0, learning_rate=0.1
    )
    session = session_of(args)
    session.adopt(net())
    session.agree([None] * 8)
    trainer = SimpleNamespace(model=session.model, set_model_params=lambda state: None)
    state = net_state(session)
    with caplog.at_level(logging.INFO):
        for silos in schedule_of(args).rounds:
            updates = []
            for silo in silos:
                session.enter(silo)
                session.load_aggregate(state, trainer)
                sent = session.exchange(
                    trainer, None, lambda _, silo=silo: moved(session.model, silo), samples=9 + silo
                )
                updates.append((9 + silo, sent))
            state = session.add_up(updates)
    spent = {silo: session.defense.privacy_loss(silo).rounds for silo in range(5)}
    taken = [silo for silos in schedule_of(args).rounds for silo in silos]
    assert spent == {silo: taken.count(silo) for silo in range(5)}
    assert 2 in spent.values()
    assert sum("unit: silo) after" in message for message in caplog.messages) == 6
