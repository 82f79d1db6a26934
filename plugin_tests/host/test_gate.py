"""The gates: what `admit` and `emit` refuse, what passes, and what goes with it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.gate import (
    JOB_NONCE,
    MARK,
    EntryNames,
    ServerGate,
    SiloGate,
    check_mark,
    check_nonce,
    check_samples,
)
from fedml_keylock.host.update_history import Sender
from fedml_keylock.locks import lock_model, secret_variables
from fedml_keylock.types import Agreement

WHO = "silo 1 (rank 2), round 3"
PAPER = {"lock": "paper", "key_length": 16}


def made():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(80, 3),
    )


DEFENSE = keylock(PAPER)


@pytest.fixture
def agreement():
    return DEFENSE.describe(made())


@pytest.fixture
def silo():
    """A locked model, after some training steps."""
    model = made()
    lock_model(model, DEFENSE.config)
    for _ in range(3):
        model(torch.rand(4, 1, 8, 8))
    return model


# --- marks


def test_the_same_job_has_the_same_mark(agreement):
    check_mark(DEFENSE.describe(made()).mark, agreement, who=WHO)
    silos_own = keylock(
        {**PAPER, "vault": "/elsewhere", "keep_history": True, "encrypt_vault": True}
    )
    # where a silo keeps its private state is its own affair
    check_mark(silos_own.describe(made()).mark, agreement, who=WHO)


def other_model():
    return nn.Sequential(*list(made())[:-1], nn.Linear(80, 4))


@pytest.mark.parametrize(
    ("settings", "model", "part"),
    [
        (PAPER, other_model, "model"),
        ({**PAPER, "layers": "all"}, made, "locked layers"),
        ({**PAPER, "key_length": 17}, made, "settings"),
        ({**PAPER, "activation": "sigmoid"}, made, "settings"),
        ({**PAPER, "share_norm_statistics": True}, made, "settings"),
        ({"lock": "rotated"}, made, "locked layers"),
        ({}, made, "locked layers"),
    ],
)
def test_a_mark_that_differs_names_the_part(agreement, settings, model, part):
    mark = keylock(settings).describe(model()).mark
    assert agreement.difference(mark) == part
    with pytest.raises(UpdateRefused, match=f"{WHO.split()[0]}.*: its {part} differ"):
        check_mark(mark, agreement, who=WHO)


PLAIN = Agreement({"w": (2,), "b": (1,)}, {"w": torch.float32, "b": torch.float32}, {}, ("w",), {})


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"shapes": {"w": (2,), "b": (2,)}}, "model"),
        ({"shapes": {"b": (1,), "w": (2,)}}, "model"),
        ({"dtypes": {"w": torch.float32, "b": torch.float64}}, "model"),
        ({"layers": ("w", "b")}, "locked layers"),
        ({"layers": ()}, "locked layers"),
        ({"settings": {"a": 1}}, "settings"),
    ],
)
def test_every_part_of_an_agreement_is_in_its_mark(changed, part):
    other = replace(PLAIN, **changed)
    assert other.mark != PLAIN.mark
    assert PLAIN.difference(other.mark) == part
    assert other.layout != PLAIN.layout  # what is trained under one is not taken under another


def test_what_concerns_aggregation_is_in_the_mark_and_binds_no_vault():
    other = replace(PLAIN, aggregation={"robust_aggregation": "krum"})
    assert PLAIN.difference(other.mark) == "settings of aggregation"
    assert other.layout == PLAIN.layout
    with pytest.raises(UpdateRefused, match="its settings of aggregation differ"):
        check_mark(other.mark, PLAIN, who=WHO)
    locked = [
        keylock({**PAPER, "robust_aggregation": name}).describe(made()) for name in (None, "krum")
    ]
    assert locked[0].mark != locked[1].mark
    assert locked[0].layout == locked[1].layout


def test_a_mark_is_short_and_its_own():
    assert len(PLAIN.mark) == 24
    assert PLAIN.difference(PLAIN.mark) == "nothing"
    assert PLAIN.mark == replace(PLAIN).mark
    settings = replace(PLAIN, settings={"a": 1, "b": 2})
    assert settings.mark == replace(PLAIN, settings={"b": 2, "a": 1}).mark


def test_no_mark_is_refused_with_what_to_do(agreement):
    with pytest.raises(UpdateRefused, match=r"not locked: .*python -m fedml_keylock") as caught:
        check_mark(None, agreement, who=WHO)
    assert str(caught.value).startswith(f"{WHO}: ")


@pytest.mark.parametrize("mark", ["", "abc", 5, True, b"123456789012", [], {"mark": 1}])
def test_what_is_no_mark_is_refused(agreement, mark):
    with pytest.raises(UpdateRefused, match="its model differ"):
        check_mark(mark, agreement, who=WHO)


@given(st.text("0123456789abcdefg", max_size=13))
def test_only_the_mark_passes(mark):
    if mark != PLAIN.mark:
        with pytest.raises(UpdateRefused):
            check_mark(mark, PLAIN, who=WHO)


# --- weights in the average


@pytest.mark.parametrize(
    "samples", [1, 600, 0.5, np.int64(3), np.float32(2.5), torch.tensor(4), torch.tensor([4.0])]
)
def test_a_positive_number_of_samples_passes(samples):
    check_samples(samples, who=WHO)


@pytest.mark.parametrize(
    "samples",
    [
        0,
        -1,
        -0.0,
        float("nan"),
        float("inf"),
        None,
        "5",
        [5],
        {"n": 5},
        np.float64("nan"),
        np.int64(0),
        torch.tensor(0),
        torch.tensor(float("nan")),
        torch.tensor(-3.0),
        torch.tensor(1j),
    ],
    ids=repr,
)
def test_any_other_number_of_samples_is_refused(samples):
    with pytest.raises(UpdateRefused, match="not a positive number") as caught:
        check_samples(samples, who=f"{WHO}: num_samples")
    assert str(caught.value).startswith(f"{WHO}: ")


@pytest.mark.parametrize(
    "samples",
    [torch.zeros(2), torch.zeros(0), np.array([1.0, 2.0]), 10**400],
    ids=["two", "none", "array", "huge"],
)
def test_what_is_not_one_number_is_refused(samples):
    with pytest.raises(UpdateRefused, match="not a positive number"):
        check_samples(samples, who=f"{WHO}: num_samples")


@pytest.mark.parametrize("wrap", [lambda gamma: gamma.tolist(), lambda gamma: {"gamma": gamma}])
def test_a_refused_entry_is_not_quoted(silo, wrap):
    gamma = secret_variables(silo)["1.keylock.gamma"]
    with pytest.raises(UpdateRefused) as caught:
        check_samples(wrap(gamma), who=WHO)
    assert not any(f"{value:.3f}"[:-1] in str(caught.value) for value in gamma.tolist())


# --- job nonces


@pytest.mark.parametrize("nonce", [None, "", "0" * 31, "0" * 33, "g" * 32, "A" * 32, 7, b"0" * 32])
def test_what_is_no_job_nonce_is_refused(nonce):
    with pytest.raises(UpdateRefused, match="silo 0 arrived without the job nonce: the plugin is"):
        check_nonce(nonce, who="silo 0")


def test_a_job_nonce_is_16_bytes_and_another_one_in_each_job():
    assert check_nonce("0f" * 16, who="silo 0") == bytes([15] * 16)
    nonces = {check_nonce(ServerGate().nonce, who="silo 0") for _ in range(9)}
    assert len(nonces) == 9


# --- one call a direction

NAMES = EntryNames("model", "samples", "silo")
AGREED = Agreement(
    {"w": (2,), "scale": (1,)},
    {"w": torch.float32, "scale": torch.float32},
    {"scale": 1.0},
    ("layer",),
    {},
)
SILO = Sender(2, 1, 0)


def state(value=0.0, scale=1.0):
    return {"w": torch.full((2,), value), "scale": torch.full((1,), scale)}


def update(value=1.0, samples=4, **changes):
    """A silo's message, as its gate lets it out."""
    return {"model": state(value), "samples": samples, MARK: AGREED.mark, "type": 3, **changes}


def admit(gate, entries, sender=SILO, *, agreement=AGREED, before=None):
    return gate.admit(entries, NAMES, agreement, sender, before)


def emit(gate, entries, receiver=2, *, agreement=AGREED, is_sum=False):
    gate.emit(entries, NAMES, agreement, receiver, is_sum=is_sum)


def test_the_server_admits_an_update_with_its_samples():
    entries = update(samples=torch.tensor(4))
    found, samples = admit(ServerGate(), entries)
    assert found is entries["model"]
    assert (samples, type(samples)) == (4.0, float)


def test_the_server_admits_a_silo_s_word_without_an_update():
    assert admit(ServerGate(), {MARK: AGREED.mark, "type": 5}) is None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"type": 5}, "its messages are not locked"),
        (update(**{MARK: None}), "its messages are not locked"),
        (update(**{MARK: replace(AGREED, settings={"a": 1}).mark}), "its settings differ from the"),
        (update(model={"w": torch.ones(3)}), r"w has shape \(3,\), not \(2,\)"),
        (update(model={**state(), "key": torch.ones(1)}), "key is not a public name"),
        (update(model=state(scale=1.2)), "scale is not the constant 1"),
        (update(model={}), "the update is empty"),
        (update(model=[1]), "the update is a list, not a state dict"),
        (update(samples=None), ": samples is a NoneType, not a positive number"),
        (update(samples=-3), ": samples is a int, not a positive number"),
    ],
)
def test_the_server_names_whom_it_refuses_and_why(entries, said):
    with pytest.raises(UpdateRefused, match=rf"^rank 2 \(silo 1\), round 0(: |.*){said}"):
        admit(ServerGate(), entries)


def test_samples_that_are_missing_are_refused_beside_an_update():
    entries = update()
    del entries["samples"]
    with pytest.raises(UpdateRefused, match="samples is a NoneType"):
        admit(ServerGate(), entries)


def test_all_silos_of_a_round_send_the_same_names():
    gate, part = ServerGate(), {"w": torch.ones(2)}
    admit(gate, update(), Sender(1, 0, 0))
    with pytest.raises(UpdateRefused, match=r"\(silo 1\), round 0: scale is missing, which rank 1"):
        admit(gate, update(model=part))
    # another round may have others
    admit(gate, update(2.0, model=part), Sender(1, 0, 1))
    with pytest.raises(UpdateRefused, match="scale is sent, and was not by rank 1"):
        admit(gate, update(3.0), Sender(2, 1, 1))


def test_a_silo_s_last_update_is_refused_once_the_model_has_changed():
    gate = ServerGate()
    for value in (0.0, 1.0):
        emit(gate, {"model": state(value)})
        sender = SILO._replace(round=int(value))
        if not value:
            admit(gate, update(5.0), sender)
    with pytest.raises(UpdateRefused, match="round 1: it sent the update of round 0 again"):
        admit(gate, update(5.0), sender)


def test_attacks_are_given_whole_states_only():
    before, step = state(8.0), {"w": torch.ones(2), "scale": torch.zeros(1)}
    for gate in (ServerGate(reads_states=True), ServerGate()):
        assert admit(gate, update(9.0), before=before)
        assert admit(gate, update(model=step), SILO._replace(round=1))  # nothing to compare with
    assert admit(gate, update(model=step), SILO._replace(round=2), before=before)
    for agreement in (AGREED, None):
        with pytest.raises(
            UpdateRefused, match=re.escape(f"{SILO.who}: attack_type: gradient_inv")
        ):
            admit(
                ServerGate(reads_states=True),
                update(model=step),
                agreement=agreement,
                before=before,
            )


def test_without_a_defense_nothing_is_asked_and_nothing_added():
    gate, entries = ServerGate(), {"model": state(scale=3.0)}
    assert admit(gate, {"model": {"x": 1}}, agreement=None) == ({"x": 1}, 1.0)
    emit(gate, entries, agreement=None)
    assert entries.keys() == {"model"}
    assert entries["model"]["scale"] == 3


def test_the_server_emits_constants_as_agreed_and_its_nonce():
    gate, weights = ServerGate(), torch.ones(2)
    entries = {"model": {"w": weights, "scale": torch.tensor([0.3])}, "type": 1}
    emit(gate, entries)
    assert entries["model"]["w"] is weights
    assert entries["model"]["scale"] == 1
    assert entries[JOB_NONCE] == gate.nonce
    word = {"type": 5}
    emit(gate, word)
    assert word == {"type": 5}


def through(release=lambda state, samples: state):
    return SiloGate(release)


def model_message(**changes):
    return {"model": state(scale=1 + 1e-4), JOB_NONCE: "41" * 16, **changes}


def test_a_silo_admits_an_average_with_its_nonce():
    entries = model_message()
    found, nonce = through().admit(entries, NAMES, AGREED, who=WHO)
    assert found is entries["model"]
    assert nonce == b"A" * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "the update is a NoneType"),
        ({"model": {}}, "the update is empty"),
        ({"model": {"k": torch.ones(1)}}, "k is not a public name"),
        ({"model": state(float("nan"))}, "w is not finite"),
        ({"model": state(scale=1.01)}, "scale is not the constant 1"),
        ({JOB_NONCE: None}, "arrived without the job nonce"),
    ],
)
def test_a_silo_refuses_any_other_model(changes, said):
    with pytest.raises(UpdateRefused, match=f"{re.escape(WHO)}.*{said}"):
        through().admit(model_message(**changes), NAMES, AGREED, who=WHO)


def test_a_silo_emits_what_the_defense_releases_under_its_mark():
    asked = []

    def release(state, samples):
        asked.append((state, samples))
        return {"w": 2 * state["w"]}

    own = state(1.0)
    entries = {"model": own, "samples": torch.tensor(7), "type": 3, "word": None}
    found = through(release).emit(entries, NAMES, AGREED, who=WHO)
    assert asked == [(own, 7.0)]
    assert found is entries["model"]
    assert torch.equal(found["w"], torch.full((2,), 2.0))
    assert entries == {"model": found, "samples": 7.0, "type": 3, "word": None, MARK: AGREED.mark}
    assert type(entries["samples"]) is float


def test_a_silo_s_other_words_go_under_its_mark_too():
    entries = {"type": 5}
    assert through().emit(entries, NAMES, AGREED, who=WHO) is None
    assert entries == {"type": 5, MARK: AGREED.mark}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {**state(), "gamma": torch.ones(1)}}, "gamma is not a public name"),
        ({"model": state(scale=1 + 1e-6)}, "scale is not the constant 1"),
        ({"note": torch.rand(5)}, "message entry note is a Tensor, not a positive number"),
        ({"note": [1.0]}, "message entry note is a list, not a positive number"),
        ({"note": {"a": 1}}, "message entry note is a dict, not a positive number"),
    ],
)
def test_nothing_else_leaves_a_silo(changes, said):
    released = []
    entries = {"model": state(), "samples": 3, **changes}
    with pytest.raises(UpdateRefused, match=f"{re.escape(WHO)}: {said}"):
        through(lambda *given: released.append(given)).emit(entries, NAMES, AGREED, who=WHO)
    assert not released
    assert MARK not in entries


def test_what_is_released_brings_no_memory_of_its_own():
    whole = torch.arange(5000.0)
    entries = {"model": state()}
    sent = through(lambda *_: {"w": whole[:2]}).emit(entries, NAMES, AGREED, who=WHO)
    assert sent["w"].untyped_storage().nbytes() == 8


# --- sealed words

SEALED = replace(AGREED, constants={}, sealed=True)


def words(value=1):
    return {"w": torch.full((2,), value, dtype=torch.int32)}


def test_the_server_admits_sealed_words_of_any_names_and_shapes():
    """What silos send is theirs to agree on; the server adds it up, and reads nothing of it."""
    sent = {"gradient of it": torch.zeros(2, 3, dtype=torch.int32)}
    found, samples = admit(ServerGate(), update(model=sent), agreement=SEALED)
    assert found is sent
    assert samples == 4.0


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (update(), "w is torch.float32, and sealed words are int32"),
        (update(model={**words(), "x": torch.zeros(2).long()}), "x is torch.int64"),
        (update(model={"w": [1]}), "w is a list, not a tensor"),
        (update(model={}), "the update is empty"),
        (update(model="words"), "the update is a str, not a state dict"),
        (update(model=words(), samples=0), "samples is a int, not a positive number"),
        (update(model=words(), **{MARK: None}), "its messages are not locked"),
        (update(model=words(), **{MARK: AGREED.mark[:-1]}), "differ from the server's"),
    ],
)
def test_the_server_admits_nothing_but_sealed_words_where_silos_seal(entries, said):
    with pytest.raises(UpdateRefused, match=rf"^rank 2 \(silo 1\), round 0(: |.*){said}"):
        admit(ServerGate(), entries, agreement=SEALED)


def test_a_sum_is_emitted_as_it_is():
    """Also where a name of it is a constant of the lock that the model has beside it."""
    both, entries = replace(AGREED, sealed=True), {"model": {"scale": words()["w"][:1]}}
    emit(ServerGate(), entries, agreement=both, is_sum=True)
    assert torch.equal(entries["model"]["scale"], torch.ones(1, dtype=torch.int32))
    first = {"model": {"scale": torch.tensor([3.0])}}
    emit(ServerGate(), first, agreement=both)
    assert first["model"]["scale"] == 1


class Counting(nn.Linear):
    """Has a number in its state that is no tensor."""

    def get_extra_state(self):
        return 3

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("lock", ["sealed", "rotated"])
def test_what_is_no_tensor_in_a_state_is_no_part_of_the_agreement(lock):
    """It ended in a traceback before the job began; a trainer may leave it out."""
    agreed = keylock({"lock": lock}).describe(nn.Sequential(Counting(2, 2)))
    assert agreed.shapes == {"0.weight": (2, 2), "0.bias": (2,)}


@pytest.mark.parametrize("agreement", [AGREED, SEALED])
@pytest.mark.parametrize("odd", [{"w": np.zeros(2)}, {"w": {"seen": 1}}, [1], nn.Linear(1, 1)])
def test_the_server_emits_no_model_that_is_no_tensors_by_name(odd, agreement):
    """It ended in a traceback of the digest of what it sends."""
    with pytest.raises(UpdateRefused, match=r"^the server's model: .* is a .*, not a "):
        emit(ServerGate(), {"model": odd}, agreement=agreement)


def test_a_silo_seals_any_tensors_and_releases_nothing_else():
    """A payload may have names and shapes of its own, and numbers that are not finite."""
    own = {"m": torch.full((3,), float("nan")), "n": torch.zeros((), dtype=torch.bool)}
    asked = []

    def seal(state, samples):
        asked.append((dict(state), samples))
        return words()

    entries = {"model": own, "samples": 7}
    sent = through(seal).emit(entries, NAMES, SEALED, who=WHO)
    assert asked == [(own, 7.0)]
    assert list(sent) == ["w"]
    assert sent["w"].dtype == torch.int32
    for odd, said in (([1], "is a list, not a state dict"), ({"k": 1.0}, "k is a float, not a te")):
        with pytest.raises(UpdateRefused, match=f"{re.escape(WHO)}: .*{said}"):
            through(seal).emit({"model": odd, "samples": 7}, NAMES, SEALED, who=WHO)
    assert len(asked) == 1


def test_a_silo_takes_what_comes_sealed_to_be_checked_where_it_is_opened():
    entries = {"model": words(), JOB_NONCE: "41" * 16}
    found, _ = through().admit(entries, NAMES, SEALED, who=WHO)
    assert found is entries["model"]
    with pytest.raises(UpdateRefused, match="w is a NoneType, not a tensor"):
        through().admit({**entries, "model": {"w": None}}, NAMES, SEALED, who=WHO)
