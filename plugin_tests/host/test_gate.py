"""The gates: what is refused, what is let through, and how much memory goes with it."""

import pickle
from collections import OrderedDict
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
    TOLERANCE,
    check_mark,
    check_number,
    check_samples,
    check_state,
    public_copy,
)
from fedml_keylock.locks import effective_state, lock_model, private_state_dict
from fedml_keylock.types import Agreement

WHO = "silo 1 (rank 2), round 3"


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


DEFENSE = keylock({"key_length": 16, "module": "mixing"})


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


def refused(state, agreement, message, *, averaged=False):
    with pytest.raises(UpdateRefused, match=message) as caught:
        check_state(state, agreement, who=WHO, averaged=averaged)
    assert str(caught.value).startswith(f"{WHO}: ")
    assert "\n" not in str(caught.value)


def test_a_locked_models_public_state_passes(silo, agreement):
    state = silo.state_dict()
    assert check_state(state, agreement, who=WHO) is state
    assert agreement.constants  # which are checked


def test_a_model_that_lost_its_lock_is_refused(agreement):
    model = made()
    for _ in range(2):
        model(torch.rand(4, 1, 8, 8))
    refused(model.state_dict(), agreement, r"1\.\w+ is not the constant . that a locked layer")


@pytest.mark.parametrize("state", [None, 5, [], "state", torch.ones(2), nn.Linear(1, 1)])
def test_what_is_no_state_dict_is_refused(agreement, state):
    refused(state, agreement, f"the update is a {type(state).__name__}, not a state dict")


def test_any_private_name_is_refused(silo, agreement):
    state = silo.state_dict()
    secrets = private_state_dict(silo) | effective_state(silo)
    private = [name for name in secrets if "keylock" in name]
    assert len(private) > 6
    for name in private:
        refused({**state, name: secrets[name]}, agreement, f"{name} is not a public name")


def test_buffers_and_parameters_by_name_are_refused(silo, agreement):
    """What a user's own trainer might send: they hold the lock, and its norms' statistics."""
    state = silo.state_dict()
    for named in (dict(silo.named_buffers()), dict(silo.named_parameters())):
        refused({**state, **named}, agreement, "is not a public name|is not the constant")
    public = {n: b for n, b in silo.named_buffers() if "keylock" not in n}
    assert public
    refused({**state, **public}, agreement, "is not the constant")


def test_a_missing_name_is_refused(silo, agreement):
    for name in agreement.shapes:
        state = {n: t for n, t in silo.state_dict().items() if n != name}
        refused(state, agreement, f"{name} is missing")
    refused({}, agreement, r"0\.weight is missing")


@pytest.mark.parametrize("value", [3, [1.0], None, np.ones((4, 1, 3, 3), np.float32), "w"])
def test_what_is_no_tensor_is_refused(silo, agreement, value):
    state = {**silo.state_dict(), "0.weight": value}
    refused(state, agreement, rf"0\.weight is a {type(value).__name__}, not a tensor")


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 1, 3, 4), (36,), (), (4, 1, 3, 3, 1)])
def test_another_shape_is_refused(silo, agreement, shape):
    state = {**silo.state_dict(), "0.weight": torch.zeros(shape)}
    refused(state, agreement, r"0\.weight has shape \(.*\), not \(4, 1, 3, 3\)")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64])
def test_another_dtype_is_refused(silo, agreement, dtype):
    state = {**silo.state_dict(), "0.weight": torch.zeros(4, 1, 3, 3, dtype=dtype)}
    refused(state, agreement, rf"0\.weight is {dtype}, not torch\.float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("averaged", [False, True])
def test_one_number_that_is_not_finite_is_refused(silo, agreement, value, averaged):
    state = {n: t.clone() for n, t in silo.state_dict().items()}
    state["3.weight"][4, 3, 2, 2] = value
    refused(state, agreement, r"3\.weight is not finite", averaged=averaged)


@pytest.mark.parametrize("by", [TOLERANCE * 0.5, 1.0])
def test_a_constant_that_is_none_is_refused(silo, agreement, by):
    for name in agreement.constants:
        state = {n: t.clone() for n, t in silo.state_dict().items()}
        state[name].view(-1)[-1] += by if state[name].is_floating_point() else 1
        refused(state, agreement, f"{name} is not the constant [01] that a locked layer shares")


def test_an_average_of_public_states_passes(silo, agreement):
    state = silo.state_dict()
    mean = {n: (0.3 * t + 0.7 * t) for n, t in state.items()}
    assert mean["1.num_batches_tracked"].dtype == torch.float32  # as FedML makes it
    refused(mean, agreement, "num_batches_tracked is torch.float32, not torch.int64")
    assert check_state(mean, agreement, who=WHO, averaged=True) is mean


def test_an_average_of_constants_may_be_off_by_rounding_only(silo, agreement):
    for name in agreement.constants:
        near = {n: t.double() for n, t in silo.state_dict().items()}
        near[name].view(-1)[-1] += 0.9 * TOLERANCE
        check_state(near, agreement, who=WHO, averaged=True)
        near[name].view(-1)[-1] += 0.3 * TOLERANCE
        refused(near, agreement, f"{name} is not the constant", averaged=True)


def test_an_average_is_not_integers(silo, agreement):
    state = {**silo.state_dict(), "0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.int64)}
    refused(state, agreement, r"0\.weight is torch\.int64", averaged=True)


# --- what is sent


def test_what_is_sent_is_the_state(silo):
    state = silo.state_dict()
    sent = pickle.loads(pickle.dumps(public_copy(state)))
    assert list(sent) == list(state)
    for name, tensor in state.items():
        assert torch.equal(sent[name], tensor)
        assert sent[name].dtype == tensor.dtype
        assert not sent[name].requires_grad


def test_what_is_sent_brings_no_graph_and_no_attributes(silo):
    state = silo.state_dict(keep_vars=True)
    state["0.weight"].private_note = [0.1234]
    sent = public_copy(state)
    assert type(sent["0.weight"]) is torch.Tensor
    assert not hasattr(sent["0.weight"], "private_note")
    assert all(t.grad_fn is None and not t.requires_grad for t in sent.values())


BUFFER = torch.arange(5000, dtype=torch.float32)


@pytest.mark.parametrize(
    "view",
    [BUFFER[10:20], BUFFER[:1], BUFFER[::700], BUFFER[0:100].view(10, 10).T, BUFFER[7], BUFFER[:0]],
    ids=["slice", "first", "strided", "transposed", "scalar", "empty"],
)
def test_a_view_does_not_send_the_memory_behind_it(view):
    raw = len(pickle.dumps({"w": view}))
    sent = len(pickle.dumps(public_copy({"w": view})))
    own = len(pickle.dumps({"w": view.contiguous().clone()}))
    assert raw > BUFFER.nbytes  # the control: the view does carry it
    assert sent <= own + 64
    assert torch.equal(public_copy({"w": view})["w"], view)
    secret = BUFFER[4990:].numpy().tobytes()
    assert secret in pickle.dumps({"w": view})
    assert secret not in pickle.dumps(public_copy({"w": view}))


def test_what_is_whole_is_not_copied(silo):
    state = silo.state_dict()
    sent = public_copy(state)
    # a transposed tensor has memory of its own all the same
    whole = {"w": torch.rand(3, 4).T}
    assert public_copy(whole)["w"].data_ptr() == whole["w"].data_ptr()
    assert sent["0.weight"].data_ptr() == state["0.weight"].data_ptr()


def test_an_expanded_tensor_is_sent_as_it_is_seen():
    seen = torch.ones(1).expand(6)
    assert torch.equal(pickle.loads(pickle.dumps(public_copy({"w": seen})))["w"], torch.ones(6))


class Sneaky(OrderedDict):
    """A state dict with something hanging on it."""


@pytest.mark.parametrize(("kind", "result"), [(dict, dict), (OrderedDict, OrderedDict)])
def test_the_kind_of_dict_is_kept(kind, result):
    assert type(public_copy(kind(w=torch.ones(2)))) is result


def test_what_hangs_on_a_dict_is_not_sent():
    state = Sneaky(w=torch.ones(2))
    state.note = "private"
    sent = public_copy(state)
    assert type(sent) is OrderedDict
    assert b"private" not in pickle.dumps(sent)
    assert b"private" in pickle.dumps(state)


class Versioned(nn.Linear):
    _version = 5


def test_only_module_versions_that_say_nothing_are_left_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Versioned(2, 2))
    state = model.state_dict()
    before = {k: dict(v) for k, v in state._metadata.items()}
    assert before == {k: {"version": v} for k, v in [("", 1), ("0", 1), ("1", 2), ("2", 5)]}
    state._metadata["1"]["seen"] = before["1"]["seen"] = [3]  # as a module may add
    sent = pickle.loads(pickle.dumps(public_copy(state)))
    assert dict(sent._metadata) == {"1": {"version": 2}, "2": {"version": 5}}
    assert {k: dict(v) for k, v in state._metadata.items()} == before  # the state's own stays


def test_the_result_loads_strictly_and_a_version_is_seen():
    seen = []

    class Sees(Versioned):
        def _load_from_state_dict(self, state, prefix, metadata, *others):
            seen.append(metadata.get("version"))
            super()._load_from_state_dict(state, prefix, metadata, *others)

    def make():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Sees(2, 2))

    model, other = make(), make()
    model(torch.rand(3, 1, 5, 4))
    sent = pickle.loads(pickle.dumps(public_copy(model.state_dict())))
    assert other.load_state_dict(sent, strict=True) == ([], [])
    assert seen == [5]
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_a_dict_without_versions_gets_none():
    assert not hasattr(public_copy(OrderedDict(w=torch.ones(2))), "_metadata")


def test_a_round_trip_is_equal(silo, agreement):
    """Silo to server and back: what is checked is what was sent, bit for bit."""
    sent = public_copy(check_state(silo.state_dict(), agreement, who=WHO))
    received = check_state(pickle.loads(pickle.dumps(sent)), agreement, who="rank 2")
    server = made()
    server.load_state_dict(received)
    back = pickle.loads(pickle.dumps(public_copy(server.state_dict())))
    before = {n: t.clone() for n, t in silo.state_dict().items()}
    secrets = private_state_dict(silo)
    silo.load_state_dict(check_state(back, agreement, who="the server"))
    for name, tensor in silo.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in private_state_dict(silo).items():
        assert torch.equal(tensor, secrets[name])


# --- marks


def test_the_same_job_has_the_same_mark(agreement):
    check_mark(DEFENSE.describe(made()).mark, agreement, who=WHO)
    silos_own = keylock(
        {
            "key_length": 16,
            "module": "mixing",
            "vault": "/elsewhere",
            "keep_history": True,
            "encrypt_vault": True,
        }
    )
    # where a silo keeps its private state is its own affair
    check_mark(silos_own.describe(made()).mark, agreement, who=WHO)


def other_model():
    return nn.Sequential(*list(made())[:-1], nn.Linear(80, 4))


@pytest.mark.parametrize(
    ("settings", "model", "part"),
    [
        ({"key_length": 16, "module": "mixing"}, other_model, "model"),
        ({"key_length": 16, "module": "mixing", "targets": "all"}, made, "locked layers"),
        ({"key_length": 17, "module": "mixing"}, made, "settings"),
        ({"key_length": 16, "module": "affine"}, made, "settings"),
        ({"key_length": 16, "module": "mixing", "share_norm_statistics": True}, made, "settings"),
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
    other = replace(PLAIN, aggregation={"then": "krum"})
    assert PLAIN.difference(other.mark) == "settings of aggregation"
    assert other.layout == PLAIN.layout
    with pytest.raises(UpdateRefused, match="its settings of aggregation differ"):
        check_mark(other.mark, PLAIN, who=WHO)
    locked = [
        keylock({"module": "affine", "then": then}).describe(made()) for then in (None, "krum")
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
    gamma = effective_state(silo)["1.keylock.gamma"]
    with pytest.raises(UpdateRefused) as caught:
        check_samples(wrap(gamma), who=WHO)
    assert not any(f"{value:.3f}"[:-1] in str(caught.value) for value in gamma.tolist())


@pytest.mark.parametrize("number", [None, "", "0" * 31, "0" * 33, "g" * 32, "A" * 32, 7, b"0" * 32])
def test_what_is_no_number_of_a_job_is_refused(number):
    with pytest.raises(UpdateRefused, match="silo 0 came without the job's number: the plugin is"):
        check_number(number, who="silo 0")


def test_the_number_of_a_job_is_16_bytes():
    assert check_number("0f" * 16, who="silo 0") == bytes([15] * 16)
