"""The silos of a sealed job in one process, with secrets that are the same in every run."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedml_keylock.locks.sealed.rounds import Rounds
from fedml_keylock.locks.sealed.sealing import Opened, add_up
from fedml_keylock.types import JobSecrets

State = Mapping[str, Tensor]


def secret(*parts: object) -> bytes:
    """32 bytes that look like chance, of a seed."""
    return hashlib.sha256(repr(parts).encode()).digest()


def secrets_of(
    samples: Sequence[float], *, seed: object = 0, transcript: bytes = b""
) -> list[JobSecrets]:
    """What silos with so many samples each have agreed on."""
    silos = range(len(samples))
    return [
        JobSecrets(
            secret(seed, "group"),
            own,
            {other: secret(seed, *sorted((own, other))) for other in silos if other != own},
            dict(enumerate(samples)),
            transcript or secret(seed, "transcript"),
        )
        for own in silos
    ]


def silos_of(
    first: State,
    samples: Sequence[float] = (1, 1, 1),
    *,
    seed: object = 0,
    transcript: bytes = b"",
    **more: object,
) -> list[Rounds]:
    """Silos that have received the first model; further arguments are those of `Rounds`."""
    secrets = secrets_of(samples, seed=seed, transcript=transcript)
    silos = [Rounds(each, **more) for each in secrets]
    for silo in silos:
        silo.begin(first)
    return silos


def send(silos: Sequence[Rounds], payloads: Sequence[State]) -> list[dict[str, Tensor]]:
    """What each silo sends of its payload."""
    return [
        silo.seal(payload, samples=silo.secrets.samples[silo.secrets.silo])[0]
        for silo, payload in zip(silos, payloads, strict=True)
    ]


def one_round(silos: Sequence[Rounds], payloads: Sequence[State]) -> list[Opened]:
    """A whole round: what each silo opens."""
    total = add_up(send(silos, payloads))
    return [silo.open(total) for silo in silos]


def bits(tensor: Tensor) -> bytes:
    """A tensor's numbers as bytes, in their order."""
    flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def bits_of(state: State) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """A state, such that two are equal if they are so bit for bit."""
    return {name: (t.dtype, tuple(t.shape), bits(t)) for name, t in state.items()}
