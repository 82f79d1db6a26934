"""What each level of knowledge grants, and what attackers make of it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from fedml_keylock import KeyLockConfig, lock_model
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.metrics import ssim_aligned
from fedml_keylock.inversion import (
    GRANTS,
    LEVELS,
    Knowledge,
    Pixels,
    PublicData,
    Secrets,
    check_level,
    dlg,
    gradinversion,
    inverting_gradients,
)
from fedml_keylock.inversion.engine.assemble import leaders
from fedml_keylock.locks import make_lock
from fedml_keylock.types import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)
NAMES = ("lock1.gamma", "lock1.beta")


@pytest.mark.parametrize(
    ("attack", "levels"),
    [
        (dlg(), {"oblivious", "adaptive", "insider", "oracle"}),
        (inverting_gradients(), {"oblivious", "adaptive", "insider", "temporal", "oracle"}),
        (gradinversion(), set(LEVELS) - {"simulating"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_attack_runs_at_the_levels_that_it_can_use(attack, levels):
    for level in LEVELS:
        if level in levels:
            check_level(attack, level)
        else:
            with pytest.raises(AttackError, match=f"{attack.name} has no use .* {level!r}"):
                check_level(attack, level)


def test_what_an_attack_needs_must_be_granted():
    class Needy:
        name, needs, uses = "needy", frozenset({"public data"}), frozenset({"public data", "kind"})

    check_level(Needy(), "simulating")
    for level in set(LEVELS) - {"simulating"}:
        with pytest.raises(AttackError, match="needy needs public data, which level"):
            check_level(Needy(), level)
    # the ladder: whoever is not oblivious or told everything knows the lock's kind
    assert all("kind" in GRANTS[level] for level in set(LEVELS) - {"oblivious", "oracle"})


def draw(count, generator):
    return {
        "lock1.gamma": 0.3 + 1.4 * torch.rand(count, 12, generator=generator),
        "lock1.beta": 0.3 * torch.randn(count, 12, generator=generator),
    }


def peers(count, value=1.0):
    return {name: torch.full((count, 12), value) for name in NAMES}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "insider"}, "an insider has a peer's private state"),
        ({"level": "insider", "secrets": Secrets(NAMES, draw=draw)}, "level 'insider'"),
        ({"level": "adaptive", "secrets": Secrets(NAMES, draw=draw, peers=peers(1))}, "'insider'"),
        ({"level": "simulating"}, "Knowledge.public is for level 'simulating', which needs it"),
        ({"public": PublicData(torch.zeros(2, 1, 28, 28), torch.zeros(2).long())}, "'simulating'"),
        (
            {
                "level": "simulating",
                "public": PublicData(torch.zeros(2, 3, 8, 8), torch.zeros(2).long()),
            },
            r"public images are \(3, 8, 8\), the silos' \(1, 28, 28\)",
        ),
        (
            {
                "level": "simulating",
                "public": PublicData(torch.zeros(2, 1, 28, 28), torch.tensor([0, 10])),
            },
            "public labels must lie in 0 to 9",
        ),
    ],
)
def test_a_level_comes_with_what_it_grants_and_with_no_more(fields, message):
    with pytest.raises(AttackError, match=message):
        replace(KNOWN, **fields)


def test_peers_and_public_data_are_whole():
    with pytest.raises(ConfigError, match=r"differ in: lock1\.beta"):
        Secrets(NAMES, draw=draw, peers={"lock1.gamma": torch.ones(1, 12)})
    with pytest.raises(ConfigError, match="a label for each"):
        PublicData(torch.zeros(2, 1, 8, 8), torch.zeros(3).long())
    with pytest.raises(ConfigError, match="floating-point images"):
        PublicData(torch.zeros(2, 1, 8, 8).long(), torch.zeros(2))
    values = PublicData(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3))
    with pytest.raises(AttackError, match="simulates needs public images of one class each"):
        Knowledge("simulating", input_shape=(1, 8, 8), classes=3, public=values)


def locked(lenet, gamma, beta):
    """The attacker's model or a silo's, with these as its lock."""
    model = lenet(channels=1, size=28, activation=nn.GELU, locks=(1,))
    with torch.no_grad():
        model.lock1.gamma.copy_(gamma)
        model.lock1.beta.copy_(beta)
    return model


def silo(lenet, seed=0):
    made = draw(1, torch.Generator().manual_seed(seed))
    return locked(lenet, *(value[0] for value in made.values()))


def run(attack, updates, lenet, knowledge, seed=0):
    return attack.reconstruct(
        updates,
        locked(lenet, torch.ones(12), torch.zeros(12)),
        knowledge=knowledge,
        generator=torch.Generator().manual_seed(seed),
    )


def watched(seen):
    """Pixels that note every iterate's unknowns."""

    class Watched(Pixels):
        def decode(self, unknowns, knowledge):
            seen.append({name: value.detach().clone() for name, value in unknowns.items()})
            return super().decode(unknowns, knowledge)

    return Watched()


def test_an_insider_starts_from_his_peers(digits, lenet, make_update):
    update, seen = make_update(silo(lenet), digits[:1], torch.tensor([0])), []
    both = {name: torch.stack([torch.zeros(12), torch.full((12,), 5.0)]) for name in NAMES}
    known = replace(KNOWN, level="insider", secrets=Secrets(NAMES, draw=draw, peers=both))
    attack = inverting_gradients(steps=1, restarts=4, parametrisation=watched(seen))
    run(attack, [update, update], lenet, known)
    gamma = seen[0]["lock1.gamma"].view(2, 4, 12)
    for update_starts in gamma:
        assert torch.equal(update_starts[:2], both["lock1.gamma"])
        # the others are a quarter of the way to a draw in 0.3 to 1.7
        assert bool((update_starts[2] > 0.07).all() and (update_starts[2] < 0.43).all())
        assert bool((update_starts[3] > 3.82).all() and (update_starts[3] < 4.18).all())
    wrong = Secrets(NAMES, draw=draw, peers={name: torch.ones(1, 3) for name in NAMES})
    with pytest.raises(AttackError, match=r"secret lock1.gamma is \(1, 3\)"):
        run(attack, [update], lenet, replace(known, secrets=wrong))


def test_leaders_are_a_silo_s_first_update():
    some = [ClientUpdate({}, {}, 1.0, silo=silo, round=r) for r, silo in enumerate([4, 7, 4, 4])]
    assert leaders(some, 1).tolist() == [0, 1, 0, 0]
    with pytest.raises(AttackError, match="no silo has two"):
        leaders(some[:2], 1)


def test_rounds_of_a_silo_share_one_lock(digits, lenet, make_update):
    """Pooled, the search explains all rounds by one lock; alone, each round by its own."""
    updates = [
        make_update(silo(lenet), digits[i : i + 1], torch.tensor([i]), silo=0, round=i)
        for i in range(3)
    ]
    other = make_update(silo(lenet, seed=9), digits[:1], torch.tensor([0]), silo=1)
    seen = []

    attack = inverting_gradients(steps=40, restarts=2, parametrisation=watched(seen))
    known = replace(KNOWN, level="adaptive", secrets=Secrets(NAMES, draw=draw))
    found = run(attack, [*updates, other], lenet, replace(known, level="temporal"))
    assert found.images.shape == (4, 1, 1, 28, 28)
    assert bool(found.cost.isfinite().all())
    # only the leaders' secrets move: of silo 0's three rounds, restart by restart, the first
    first, last = seen[0]["lock1.gamma"], seen[39]["lock1.gamma"]
    moved = (first != last).any(1)
    assert moved.tolist() == [True, False, False, True, False, False, True, True]
    # and one restart is kept for all rounds of a silo
    alone = run(attack, [*updates, other], lenet, known)
    assert not torch.equal(alone.images[1], found.images[1])


def test_rounds_that_are_pooled_are_not_parted_by_chunks(digits, lenet, make_update):
    updates = [
        make_update(silo(lenet), digits[i : i + 1], torch.tensor([i]), silo=0, round=i)
        for i in range(2)
    ]
    known = replace(KNOWN, level="temporal", secrets=Secrets(NAMES, draw=draw))
    whole, parted = (
        run(inverting_gradients(steps=12, restarts=2, chunk=chunk), updates, lenet, known)
        for chunk in (None, 1)
    )
    assert torch.allclose(whole.images, parted.images, atol=1e-4)
    assert torch.allclose(whole.cost, parted.cost, atol=1e-5)


def test_images_and_secrets_may_take_turns(digits, lenet, make_update):
    update = make_update(silo(lenet), digits[:1], torch.tensor([0]))
    seen = []

    attack = inverting_gradients(steps=10, alternate=3, parametrisation=watched(seen))
    known = replace(KNOWN, level="adaptive", secrets=Secrets(NAMES, draw=draw))
    run(attack, [update], lenet, known)
    images, gammas = (
        [not torch.equal(a[n], b[n]) for a, b in pairwise(seen[:10])]
        for n in ("images", "lock1.gamma")
    )
    turns = [True, True, False, False, False, True, True, True, False]
    assert images == turns
    assert gammas == [not turn for turn in turns]
    with pytest.raises(ConfigError, match="alternate is for adam and rmsprop"):
        dlg(alternate=3)


@pytest.mark.long
@pytest.mark.parametrize("layers", ["first", "all"])
def test_published_locks_fall_to_who_knows_of_them(layers, photos, lenet, make_update):
    """The real lock on the net of DLG, untrained: gamma and beta are found with the photo."""
    config, labels = KeyLockConfig(lock="paper", layers=layers), torch.arange(6)
    updates = []
    for photo, label in zip(photos.split(1), labels.split(1), strict=True):
        silo = lenet()
        lock_model(silo, config)  # each silo's own, from the system's entropy
        updates.append(make_update(silo, photo, label, private="keylock"))
    known = make_lock(config).attacker_model(lenet())
    secrets = Secrets(known.names, draw=known.draw)
    knowledge = Knowledge("adaptive", (3, 32, 32), 10, labels=labels[:, None], secrets=secrets)
    attack = inverting_gradients(steps=1500, total_variation=0.1, secret_learning_rate=0.02)
    found = attack.reconstruct(
        updates, known.model, knowledge=knowledge, generator=torch.Generator().manual_seed(0)
    )
    assert ssim_aligned(found.images[:, 0], photos).mean() > 0.6
