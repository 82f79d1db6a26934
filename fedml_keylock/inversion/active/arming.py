"""What an attack is whose server sends silos other weights than the job's, and reads the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...tensors import copy_of
from ...types import ClientUpdate
from ..base import Attack
from ..knowledge import PublicData

__all__ = ["ActiveAttack", "State", "floats", "loaded", "not_armed", "update_of_sum"]

State = dict[str, Tensor]
"""The floating tensors of a model's state, by name."""


@runtime_checkable
class ActiveAttack(Attack, Protocol):
    """An attack that begins with what the server sends.

    `reconstruct` takes what came back: ``before`` is a state of `arm`, and ``after`` that of one
    silo or the average of several, by `update_of_sum`. ``Knowledge.batch`` counts the images of all
    silos in it that were sent the same state.
    """

    def arm(
        self,
        model: nn.Module,
        *,
        silos: int,
        input_shape: tuple[int, ...],
        bounds: tuple[float, float],
        public: PublicData | None,
        generator: torch.Generator,
    ) -> dict[int | None, State]:
        """What the server sends in place of the model's own state. The model is not changed.

        Args:
            model: the job's, with the weights that it would send.
            silos: how many take part.
            input_shape: of one image, ``(c, h, w)``, or of one row, ``(features,)``.
            bounds: least and greatest pixel value, in the units that the model is fed.
            public: data of the same kind, such as the server's own test data; None without any.
            generator: of all that is drawn.

        Returns:
            States of floating tensors, named as in ``model.state_dict()``: under None for every
            silo that has none of its own under its index.

        Raises:
            AttackError: the model has no layers that it can use.

        """


def floats(model: nn.Module) -> State:
    """A copy of a model's floating tensors, by their names in its state.

    Example:
        >>> sorted(floats(nn.BatchNorm1d(2)))
        ['bias', 'running_mean', 'running_var', 'weight']

    """
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


def loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model in eval mode, with this state in place of its own."""
    copied = copy_of(model).eval()
    copied.load_state_dict(state, strict=False)
    return copied


def not_armed(name: str) -> AttackError:
    """What an attack says of an update that began from other weights than its own."""
    return AttackError(
        f"{name} needs a server that sends its own weights: these updates began from others; use "
        "an attack that reads what an honest server is sent"
    )


def update_of_sum(
    sent: Mapping[int | None, Mapping[str, Tensor]],
    average: Mapping[str, Tensor],
    shares: Sequence[float],
    *,
    learning_rate: float,
    silo: int = 0,
    round_index: int = 0,
) -> ClientUpdate:
    """What an average says, as an update of the state that one silo was sent.

    Args:
        sent: what `ActiveAttack.arm` returned.
        average: of the states that the silos sent back.
        shares: the weight of each silo in it, by its index; 0 for one that is not in it.
        learning_rate: of the silos' SGD.
        silo: the one whose state the update begins from.
        round_index: which round it was.

    Example:
        >>> sent = {0: {"w": torch.tensor(1.0)}, None: {"w": torch.tensor(5.0)}}
        >>> average = {"w": torch.tensor(2.5)}  # silo 0 moved to 0
        >>> update_of_sum(sent, average, [0.5, 0.5], learning_rate=0.1).pseudo_gradient("w")
        tensor(5.)

    """
    states = [sent[index if index in sent else None] for index in range(len(shares))]
    before = states[silo]
    after = dict(before)
    for name, tensor in before.items():
        mean = sum(share * s[name].double() for share, s in zip(shares, states, strict=True))
        after[name] = (tensor + (average[name].double() - mean)).to(tensor)
    return ClientUpdate(before, after, learning_rate, silo=silo, round=round_index)
