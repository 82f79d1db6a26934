"""A malicious server, for measurements: in one round it sends silos a manipulated model.

Only `gradient_inversion.active` switches it on, and it announces itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import click
import torch
from torch import Tensor, nn

from ..defense import Defense
from ..errors import ConfigError, reason_of
from ..inversion import ActiveAttack
from ..tensors import copied
from .job_configuration import Arguments
from .server_attacker import Attacker

__all__ = ["ActiveServer"]


@dataclass
class ActiveServer:
    """The manipulated models that a server sends.

    Attributes:
        attacker: the section's attacks, which hold the test data.
        attack: the attack that makes the models.
        round: index of the round in which they are sent.
        silos: number of silos that get one.
        restores: whether the job continues from the model before the attack, and not from the
            average of the answers.
        seed: seed of the models.
        model: the job's model before it was protected.
        own: by silo, a copy of the state sent only to it in that round.

    """

    attacker: Attacker
    attack: ActiveAttack
    round: int
    silos: int
    restores: bool
    seed: int
    model: nn.Module | None = field(default=None, repr=False)
    own: dict[int | None, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    _honest: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _armed: Mapping[int | None, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def begin(cls, attacker: Attacker, args: Arguments, defense: Defense | None) -> ActiveServer:
        """Check before the job whether the attack can run.

        Raises:
            ConfigError: the attack sends no models, or cannot in this job or round.

        """
        name = str(attacker.settings.active)
        where, attack = f"{attacker.settings.section}.active: {name}", attacker.attacks[name]
        (index,) = attacker.rounds
        if not isinstance(attack, ActiveAttack):
            raise ConfigError(
                f"{where} reads what a server receives, and sends nothing; leave active out, and "
                "name it in attacks"
            )
        if args.training_type != "cross_silo":
            raise ConfigError(f"{where} is for training_type: cross_silo, where a server sends")
        hidden = defense is not None and (defense.seals or defense.transforms_updates)
        if hidden and index:
            raise ConfigError(
                f"{where} in round {index}: after the first model the server sends what only silos "
                f"can read ({defense.title if defense else ''}); set rounds: [0]"
            )
        return cls(
            attacker,
            attack,
            index,
            int(args.client_num_per_round),
            not hidden,
            int(getattr(args, "random_seed", 0)),
        )

    def outgoing(
        self, state: Mapping[str, Tensor], silo: int, round_index: int
    ) -> Mapping[str, Tensor]:
        """The state that a silo is sent in a round.

        If the attack cannot make one, it is the server's own state, with a notice.
        """
        if round_index == self.round:
            if self._honest is None:
                self._honest = copied(state)
                self._arm()
            sent = self._armed.get(silo, self._armed.get(None, state))
            if silo in self._armed:
                self.own[silo] = sent
            return sent
        self.own = {}
        if round_index == self.round + 1 and self.restores and self._armed:
            assert self._honest is not None
            return self._honest
        return state

    def _arm(self) -> None:
        public, state = self.attacker.public, self._honest
        assert self.model is not None
        assert state is not None
        try:
            if public is None:
                raise ConfigError("the job's test data gives no (c, h, w) images")
            self.model.load_state_dict(state, strict=False)
            made = self.attack.arm(
                self.model,
                silos=self.silos,
                input_shape=tuple(public.images.shape[1:]),
                bounds=self.attacker.bounds,
                public=public,
                generator=torch.Generator().manual_seed(self.seed),
            )
        except Exception as error:  # any attack may fail on any model
            click.echo(
                f"fedml-keylock: {self.attack.name}: this server sends its own model: "
                f"{reason_of(error)}",
                err=True,
            )
            return
        # under the names and types that silos expect
        self._armed = {
            silo: OrderedDict((name, armed.get(name, own).to(own)) for name, own in state.items())
            for silo, armed in made.items()
        }
        after = (
            "the model that it would have sent, and the round is lost"
            if self.restores
            else "the average of what comes back, as it cannot send another model later"
        )
        click.echo(
            f"fedml-keylock: this server ATTACKS the silos: in round {self.round} it sends a model "
            f"made by {self.attack.name} in place of the job's; the job goes on from {after} "
            "(gradient_inversion.active)",
            err=True,
        )
