"""The public state: what is refused, what passes, and how much memory goes with it."""

import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.public_state import (
    TOLERANCE,
    check_payload,
    check_state,
    check_words,
    public_copy,
)
from fedml_keylock.locks import lock_model, private_state_dict, secret_variables
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


DEFENSE = keylock({"key_length": 16, "lock": "paper"})


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
    secrets = private_state_dict(silo) | secret_variables(silo)
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


def test_a_sparse_tensor_is_refused(silo, agreement):
    weight = silo.state_dict()["0.weight"]
    for odd in (weight.to_sparse(), weight.flatten(1).to_sparse_csr()):
        state = {**silo.state_dict(), "0.weight": odd}
        refused(state, agreement, r"0\.weight is torch\.sparse_.*: send it dense: tensor\.to_dense")


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 1, 3, 4), (36,), (), (4, 1, 3, 3, 1)])
def test_another_shape_is_refused(silo, agreement, shape):
    state = {**silo.state_dict(), "0.weight": torch.zeros(shape)}
    refused(state, agreement, r"0\.weight has shape \(.*\), not \(4, 1, 3, 3\)")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64])
def test_another_dtype_is_refused(silo, agreement, dtype):
    state = {**silo.state_dict(), "0.weight": torch.zeros(4, 1, 3, 3, dtype=dtype)}
    refused(state, agreement, rf"0\.weight is {dtype}, not torch\.float32")


def test_complex_numbers_that_are_not_finite_are_refused():
    state = {"w": torch.tensor([1j, complex("nan")])}
    agreed = Agreement({"w": (2,)}, {"w": torch.complex64}, {}, (), {})
    refused(state, agreed, "w is not finite")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("averaged", [False, True])
def test_one_number_that_is_not_finite_is_refused(silo, agreement, value, averaged):
    state = {n: t.clone() for n, t in silo.state_dict().items()}
    state["3.weight"][4, 3, 2, 2] = value
    refused(state, agreement, r"3\.weight is not finite", averaged=averaged)


@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_infinite_from_the_start_may_stay_so(averaged):
    """Guards `Agreement.infinite`: a causal mask in a buffer ended the job as a divergence."""
    model = made()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    agreement, state = DEFENSE.describe(model), dict(model.state_dict())
    check_state(state, agreement, who=WHO, averaged=averaged)
    for name, value in {"mask": torch.nan, "3.weight": -torch.inf}.items():
        odd = {**state, name: torch.full_like(state[name], value)}
        refused(odd, agreement, rf"{name} is not finite", averaged=averaged)


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


# --- what is sealed, and sealed words


@pytest.mark.parametrize("check", [check_payload, check_words])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "the update is a NoneType, not a state dict"),
        ([torch.zeros(1)], "the update is a list, not a state dict"),
        ({}, "the update is empty"),
        ({"w": np.zeros(2)}, r"w is a ndarray, not a tensor: send torch\.as_tensor of it"),
        ({"w": 1}, r"w is a int, not a tensor: send torch\.as_tensor of it"),
        ({"w": {"seen": 1}}, "w is a dict, not a tensor"),
        (
            {"w": torch.ones(2).to_sparse()},
            r"w is torch\.sparse_coo: send it dense: tensor\.to_dense\(\)",
        ),
    ],
)
def test_a_payload_and_words_are_tensors_by_name(check, state, said):
    with pytest.raises(UpdateRefused, match=f"^{re.escape(WHO)}: {said}$"):
        check(state, who=WHO)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_a_payload_may_be_of_any_type_and_words_are_of_one(dtype):
    good = {"w": torch.zeros(2, dtype=torch.int32)}
    assert check_words(good, who=WHO) is good
    state = {**good, "v": torch.ones(2, dtype=dtype)}
    assert check_payload(state, who=WHO) is state
    with pytest.raises(UpdateRefused, match=f"v is {dtype}, and sealed words are int32"):
        check_words(state, who=WHO)
