"""Interface of active attacks: the server sends manipulated weights, and reads the answers."""

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
    """An attack that chooses the weights that the server sends.

    `reconstruct` takes updates whose ``before`` is a state of `arm`, and whose ``after`` is a
    silo's state or the average of several, by `update_of_sum`. ``Knowledge.batch`` counts the
    images of all silos in it that were sent the same state.
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
        """Make the states that the server sends in place of the model's. Does not change the model.

        Args:
            model: the job's model, with the weights that an honest server would send.
            silos: number of silos that take part.
            input_shape: shape of an image, ``(c, h, w)``, or of a row, ``(features,)``.
            bounds: least and greatest pixel value of the model's inputs.
            public: public data of the same kind, such as the server's test data; None without any.
            generator: source of all random numbers.

        Returns:
            States of floating tensors, named as in ``model.state_dict()``, by silo index. The state
            under None is for all silos without one of their own.

        Raises:
            AttackError: the model lacks the layers that the attack needs.

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
    """The error for an update that did not start from the attack's weights."""
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
    """Make an update of one silo's sent state from the average of all.

    Args:
        sent: the states of `ActiveAttack.arm`.
        average: the average of the states that the silos returned.
        shares: each silo's weight in the average, by index; 0 for a silo that is not in it.
        learning_rate: learning rate of the silos' SGD.
        silo: the silo whose sent state is the update's start.
        round_index: index of the round.

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
