"""What sealing and opening must leave as it is: the silo's own tensors, and what did not move."""

import pytest
import torch
from sealed_silos import bits_of, one_round, send, silos_of

from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.locks.vault import Vault

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ALL = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]


def state(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {"w": (3, 4), "b": (5,), "s": (), "none": (0, 2)}
    return {n: (4 * torch.randn(s, generator=generator)).to(dtype) for n, s in made.items()}


@pytest.mark.parametrize("dtype", ALL)
def test_sealing_changes_neither_the_payload_nor_what_was_received(dtype):
    """Encoding.encode: a float64 tensor is its own double(), and the payload is the silo's model.

    Guards ``copy=True`` in `Encoding._rounded`.
    """
    first, payloads = state(dtype), [state(dtype, seed) for seed in (1, 2, 3)]
    before = [bits_of(payload) for payload in payloads]
    silos = silos_of(first)
    bases = [bits_of(silo.base) for silo in silos]
    send(silos, payloads)
    assert [bits_of(payload) for payload in payloads] == before
    assert [bits_of(silo.base) for silo in silos] == bases


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_was_received_may_be_trained_in_place(dtype):
    """As under ``load_state_dict(assign=True)``, or by the handle that `lock_model` attaches.

    Guards the copies in `Rounds.begin` and `Rounds.open`: without them a silo would encode its
    update against a base that it has moved, and the average would be wrong in silence.
    """
    count = 3
    first = {"w": torch.ones(2, 3, dtype=dtype)}
    own = [{"w": first["w"]}, *({"w": first["w"].clone()} for _ in range(count - 1))]
    silos = silos_of(first)
    for wanted in (3.0, 5.0):
        for step, state in enumerate(own, 1):
            state["w"] += step
        opened = one_round(silos, own)
        own = [one.state for one in opened]
        assert all(torch.equal(s["w"], torch.full_like(s["w"], wanted)) for s in own)


LAYOUTS = {
    "tied": lambda w: {"a": w, "b": w},
    "transposed": lambda w: {"a": w.transpose(0, 1)},
    "channels_last": lambda w: {"a": w.to(memory_format=torch.channels_last)},
    "one of a column": lambda w: {"a": w[:1, 0, 0, 0]},
    "a row of many": lambda w: {"a": w[1], "b": w[:, 2]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_vault_keeps_a_first_model_of_any_layout(layout, tmp_path):
    """Guards `Rounds.begin`: safetensors writes neither tied weights nor what is not contiguous.

    And ``as_strided`` in `tensors.raw`: of one entry torch takes any stride for contiguous.
    """
    first = LAYOUTS[layout](torch.randn(4, 3, 5, 2))
    silos = silos_of(first)
    send(silos, [first] * 3)
    vault = Vault(tmp_path, 0, "layout")
    vault.save(silos[0].record.tensors, round_index=0)
    kept = Record.from_tensors(vault.load()[0]).encoding.base
    assert bits_of(kept) == bits_of(first)


def odd_bits(dtype):
    """One number of every kind of bits: zeros, denormals, infinities, NaNs of any sign and mark."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    top = 8 * dtype.itemsize - 1
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**top), 2**top - 1, (39,), generator=generator)
    infinite = torch.tensor([torch.inf], dtype=dtype).view(whole).long()
    odd = torch.cat([torch.tensor([0, 1, 5]), infinite, infinite + 1, infinite + 3, random])
    return torch.cat([odd, odd ^ -(2**top)]).to(whole).view(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(-1,), (2, -1)])
def test_what_no_silo_moves_stays_bit_for_bit(dtype, shape):
    """Frozen weights, and constants of any bits: guards ``torch.where`` in `Encoding.decode`."""
    first = {"frozen": odd_bits(dtype).reshape(shape), "trained": torch.ones(3, 3)}
    silos = silos_of(first, (3, 1, 7))
    own = [first] * 3
    for _ in range(2):
        own = [{**state, "trained": state["trained"] + 1} for state in own]
        own = [opened.state for opened in one_round(silos, own)]
        assert all(bits_of(state)["frozen"] == bits_of(first)["frozen"] for state in own)
    assert own[0]["trained"][0, 0] == 3
