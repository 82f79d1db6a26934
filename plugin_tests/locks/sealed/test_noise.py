"""Noise under the seal: what the sum tells of one silo, and what a silo sends of its update."""

import math

import pytest
import torch
from sealed_silos import secrets_of, silos_of
from torch import nn

from fedml_keylock import KeyLockConfig
from fedml_keylock.errors import ConfigError, LockError, UpdateRefused
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.job_examples import JobExamples
from fedml_keylock.locks.sealed.job_noise import JobNoise
from fedml_keylock.locks.sealed.lock import SealedLock
from fedml_keylock.locks.sealed.noise import ClippedUpdate, Grid, RoundNoise
from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.locks.sealed.seal_transform import SealTransform
from fedml_keylock.locks.sealed.sealing import add_up
from fedml_keylock.privacy.noise_config import NoiseConfig
from fedml_keylock.types import ClientUpdate, Schedule


def net(width=40):
    return nn.Sequential(nn.Linear(300, width), nn.BatchNorm1d(width), nn.Linear(width, 50))


def job_noise(model, silos=4, colluders=1, **fields):
    noise = JobNoise(
        NoiseConfig(**{"clip": 0.5, "multiplier": 1.0, "delta": 1e-5} | fields), colluders
    )
    noise.silos = silos
    noise.look(model)
    return noise


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(base, size=0.01):
    return {
        n: t + size * torch.randn(t.shape) if t.is_floating_point() else t + 3
        for n, t in base.items()
    }


def one_round(noises, base, payloads, **silos):
    """What each silo opens; each of them has noise of its own."""
    rounds = silos_of(base, [1.0] * len(payloads), **silos)
    total = add_up(
        [
            silo.seal(payload, release=noise.release(payload))[0]
            for silo, noise, payload in zip(rounds, noises, payloads, strict=True)
        ]
    )
    return [silo.open(total) for silo in rounds]


def vector(state, names):
    return torch.cat([state[name].double().flatten() for name in names])


@pytest.mark.parametrize(("silos", "colluders", "honest"), [(4, 1, 3), (3, 0, 2), (10, 3, 7)])
def test_a_sum_has_the_noise_that_is_claimed(silos, colluders, honest):
    """Guards the share of each silo: to 2 %; and that updates are clipped."""
    model = net(700)
    base = state_of(model)
    noise = job_noise(model, silos, colluders)
    payloads = [trained(base) for _ in range(silos)]
    weights = [name for name, _ in model.named_parameters()]
    mean = 0.0
    for payload in payloads:
        moved = vector(payload, weights) - vector(base, weights)
        mean += moved * min(1.0, 0.5 / moved.norm()) / silos
    opened = one_round([noise] * silos, base, payloads)[0].state
    left = vector(opened, weights) - vector(base, weights) - mean
    claimed = 1.0 * 0.5 * math.sqrt(silos / honest) / silos
    assert left.std() / claimed == pytest.approx(1, abs=0.02)
    assert abs(left.mean()) < 5 * claimed / 1000
    # the mean of clipped updates stands in it, and so does nothing that depends on samples
    assert float(left @ mean) / float(mean @ mean) == pytest.approx(0, abs=20 * claimed)


def test_noise_is_of_the_systems_entropy():
    """Guards `Noise`: FedML seeds torch alike on every rank."""
    model = net()
    base = state_of(model)
    noise, payload = job_noise(model), trained(base)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(one_round([noise] * 4, base, [payload] * 4)[0].state["0.weight"])
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("size", [1e-9, 0.01, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.complex64])
def test_what_is_sent_is_never_longer_than_the_clip(dtype, size):
    """Guards the truncation: rounding to the nearest may lengthen what has many entries."""
    base = {"w": torch.zeros(70_000, dtype=dtype)}
    payload = {"w": (size * torch.randn(70_000)).to(dtype)}
    noise = RoundNoise(40.0, 3, 2, {"update": 1.0})
    release = ClippedUpdate(noise, base, payload, {"w": "update"})
    grid = noise.grid("update")
    steps = torch.cat([torch.from_numpy(w).double() for w in release.words(entries_of(base)[0])])
    assert float(steps.norm()) <= 2.0**-grid.exponent
    release.check()
    plain = torch.view_as_real(payload["w"]) if dtype.is_complex else payload["w"]
    norm = float(plain.double().norm())
    exact = plain.double().flatten() * min(1.0, 1 / max(norm, 1e-99)) * 2.0**-grid.exponent
    assert bool((steps.abs() <= exact.abs()).all())
    assert float((steps - exact).abs().max()) <= 1 + 1e-6 * float(exact.abs().max())
    release.norms["update"] /= 3  # as a wrong norm would have it
    assert [*release.words(entries_of(base)[0])]
    if norm > 1:
        with pytest.raises(LockError, match="longer than its clip"):
            release.check()


@pytest.mark.parametrize(
    ("deviation", "silos", "most"), [(1.0, 2, 1.0), (2.6, 10_000, 1.0), (1e-4, 3, 1.0), (9, 64, 99)]
)
def test_no_sum_leaves_its_words(deviation, silos, most):
    grid = Grid.of(deviation, silos, most)
    step = 2.0**grid.exponent
    assert silos * (most + 14 * deviation) / step <= 2**31 - 1 - silos
    assert grid.deviation == deviation / step >= 16


def test_too_little_noise_for_so_many_silos_is_refused():
    with pytest.raises(ConfigError, match=r"keylock.noise: .* raise multiplier"):
        Grid.of(1e-6, 1000, 1.0)


def test_buffers_stay_at_home_or_have_a_clip_of_their_own():
    model = net()
    base, noise = state_of(model), job_noise(model)
    payloads = [trained(base) for _ in range(4)]
    opened = one_round([noise] * 4, base, payloads)[0]
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(opened.state[name], base[name])
        noise.keep(payloads[2])
        assert torch.equal(noise.opened(opened)[name], payloads[2][name])
    clipped = job_noise(model, buffer_clip=0.1, multiplier=1e-3)
    opened = one_round([clipped] * 4, base, payloads)[0].state
    assert torch.equal(opened["1.num_batches_tracked"], base["1.num_batches_tracked"])
    buffers = ["1.running_mean", "1.running_var"]
    assert not torch.equal(opened[buffers[0]], base[buffers[0]])
    moves = [vector(p, buffers) - vector(base, buffers) for p in payloads]
    mean = sum(m * min(1, 0.1 / m.norm()) for m in moves) / 4
    assert torch.allclose(vector(opened, buffers) - vector(base, buffers), mean, atol=1e-3)


def test_what_does_not_train_has_no_noise_and_must_not_move():
    model = net()
    model[0].requires_grad_(False)
    base, noise = state_of(model), job_noise(model)
    still = {n: base[n] if n.startswith("0.") else t for n, t in trained(base).items()}
    opened = one_round([noise] * 4, base, [still] * 4)[0].state
    assert torch.equal(opened["0.weight"], base["0.weight"])
    with pytest.raises(UpdateRefused, match=r"0\.(weight|bias) has changed"):
        one_round([noise] * 4, base, [trained(base)] * 4)
    with pytest.raises(UpdateRefused, match="nothing of what it would send trains"):
        noise.release({n: t for n, t in base.items() if n.startswith("0.")})


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_sent_as_none(odd):
    """And nothing is counted: what ends a job would tell of one silo."""
    model = net()
    base, noise = state_of(model), job_noise(model, multiplier=1e-3)
    broken = trained(base)
    broken["0.bias"][3] = odd
    opened = one_round([noise] * 4, base, [broken] * 4)[0]
    assert (opened.counts.infinite, opened.counts.clipped, opened.votes) == (0, 0, 0)
    assert float((opened.state["0.weight"] - base["0.weight"]).abs().max()) < 0.01
    assert "NaN or infinite" in noise.done


def test_what_came_infinite_stays_what_it_is():
    model = nn.Linear(3, 2)
    base, noise = state_of(model), job_noise(model, multiplier=1e-3)
    base["weight"][0] = -math.inf
    payload = trained(base, 0.1)
    opened = one_round([noise] * 4, base, [payload] * 4)[0].state
    assert bool((opened["weight"][0] == -math.inf).all())
    assert torch.allclose(opened["weight"][1], payload["weight"][1], atol=0.02)


def test_a_message_whose_norm_is_above_the_clip_is_not_sent():
    model = net()
    base, noise, payload = state_of(model), job_noise(model), trained(state_of(model))

    def wrong(base):
        release = noise.release(payload)(base)
        release.norms["update"] /= 2
        return release

    with pytest.raises(LockError, match="longer than its clip"):
        silos_of(base, [1.0] * 4)[0].seal(payload, release=wrong)


def test_silos_under_other_noise_have_other_keys():
    """Guards `Release.public`: a silo that clips elsewhere must not be added up."""
    model = net()
    base = state_of(model)
    payloads = [trained(base) for _ in range(4)]
    odd = job_noise(model, clip=0.500001)
    with pytest.raises(UpdateRefused, match="not the sum"):
        one_round([job_noise(model)] * 3 + [odd], base, payloads)


def test_a_checkpoint_of_a_noised_round_opens():
    model = net()
    base, noise = state_of(model), job_noise(model)
    rounds = silos_of(base, [1.0] * 4)
    payload = trained(base)
    messages = [silo.seal(payload, release=noise.release(payload))[0] for silo in rounds]
    record = Record.from_tensors(rounds[1].record.tensors)
    total = add_up(messages)
    kept, opened = record.open(total).state, rounds[2].open(total).state
    assert all(torch.equal(kept[name], opened[name]) for name in base)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"colluders": 3}, "none is left"),
        ({"multiplier": None, "epsilon": 2.0}, "keylock.noise.epsilon"),
    ],
)
def test_noise_that_is_none_is_refused(fields, said):
    model = net()
    colluders = fields.pop("colluders", 1)
    noise = job_noise(model, silos=3, colluders=colluders, **fields)
    with pytest.raises(ConfigError, match=said):
        noise.release(trained(state_of(model)))


def test_a_simulated_round_is_noised_too():
    model = net()
    base = state_of(model)
    section = {"clip": 0.5, "multiplier": 1.0, "delta": 1e-5}
    lock = SealedLock(KeyLockConfig(colluders=1, noise=section))
    lock.remember(model)
    payload = trained(base, 0.0)
    _, average = lock.rehearse(base, [(7.0 + k, payload) for k in range(4)])
    noise = average["0.weight"] - base["0.weight"]
    assert float(noise.std()) == pytest.approx(0.5 / math.sqrt(3) / 2, rel=0.02)


def test_the_clip_follows_the_norms_the_same_in_all_silos():
    """Guards the votes, which are sent under noise of their own, and the split of z."""
    model = nn.Linear(8, 4)
    base = state_of(model)
    noises = [job_noise(model, clip=1e-3, multiplier=0.1, adaptive={"rate": 0.5}) for _ in range(4)]
    payloads = [trained(base, 0.01 * (k + 1)) for k in range(4)]
    norms = [float((vector(p, base) - vector(base, base)).norm()) for p in payloads]
    within = []
    for _ in range(40):
        opened = one_round(noises, base, payloads)
        for noise, each in zip(noises, opened, strict=True):
            noise.opened(each)
        assert len({noise.clip for noise in noises}) == 1
        within.append(sum(norm <= noises[0].clip for norm in norms))
    assert norms[0] / 2 < noises[0].clip < 2 * norms[3]
    assert sum(within[20:]) / 20 == pytest.approx(2, abs=0.8)  # of four: the median
    noise = noises[0].of_round
    assert noise.multiplier**-2 + noise.votes**-2 == pytest.approx(0.1**-2)


def test_an_audit_recovers_what_was_sent_with_its_noise():
    """Guards `SealTransform.noise`: an oracle without noise would be another job's."""
    model = net()
    base, noise = state_of(model), job_noise(model, multiplier=3.0)
    transform = SealTransform(entries_of(base), 4, noise)
    update = ClientUpdate(base, trained(base), 1.0)
    sealed, private = transform.protect(update, torch.Generator().manual_seed(0))
    found = transform.recover(sealed, private).after
    moved = found["0.weight"] - base["0.weight"]
    assert float(moved.std()) == pytest.approx(3.0 * 0.5 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("count", [1, 4])
def test_an_audit_of_noise_on_examples_has_it_on_the_mean_of_its_pictures(count):
    model = net()
    base = state_of(model)
    fields = {"clip": 0.5, "multiplier": 3.0, "delta": 1e-5, "unit": "example", "rate": 0.1}
    noise = JobExamples(NoiseConfig(**fields), 1)
    noise._buffers = {name for name, _ in model.named_buffers()}
    transform = SealTransform(entries_of(base), 4, noise)
    update = ClientUpdate(base, trained(base), 0.2, count)
    found = transform.recover(*transform.protect(update, torch.Generator().manual_seed(0)))
    moved = found.after["0.weight"] - base["0.weight"]
    assert float(moved.std()) == pytest.approx(0.2 * 3.0 * 0.5 / math.sqrt(3) / count, rel=0.05)


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_silo_has_its_own_buffers_back_and_no_other_silos(in_turn, tmp_path):
    """A rank that serves many silos in turn is given the average for another one."""
    model = net()
    base = state_of(model)
    section = {"clip": 0.5, "multiplier": 1.0, "delta": 1e-5}
    locks = [
        SealedLock(KeyLockConfig(colluders=1, noise=section, vault=tmp_path / str(silo)))
        for silo in range(3)
    ]
    for lock, secrets in zip(locks, secrets_of([1.0] * 3), strict=True):
        lock.schedule(Schedule(3, ((0, 1, 2),)))
        lock.share(secrets)
        lock._in_turn = in_turn
        lock.remember(model)
        lock.open(model, base, round_index=-1)
        lock.enter_silo(model, silo=secrets.silo)
    payload = trained(base)
    total = add_up([lock.seal(model, payload, samples=1.0) for lock in locks])
    opened = locks[1].open(model, total, round_index=0)
    for name in ("1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(opened[name], (base if in_turn else payload)[name])
