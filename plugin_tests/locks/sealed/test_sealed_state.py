"""What sealing and opening must leave as it is: the silo's own tensors, and what did not move."""

import pytest
import torch
from sealed_silos import bits_of, send, silos_of

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
