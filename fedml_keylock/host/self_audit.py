"""Lets a silo attack its own update before it sends it; only the silo has the truth to score."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..defense import Defense
from ..errors import AttackError, KeyLockError, UpdateRefused, reason_of
from ..evaluation.audit import Protection, Subject, audit, probe
from ..evaluation.audit.procedure import NOT_SCORED
from ..evaluation.audit.training import output_shape
from ..evaluation.audit.trial import Trial
from ..evaluation.contrast import of_one_colour
from ..evaluation.leakage import LeakageRow, Worst
from ..evaluation.report import LeakageReport
from ..evaluation.section import InversionSettings
from ..evaluation.verdict import BASELINE, ORACLE
from ..inversion import LocalTraining
from ..tensors import copied, copy_of
from ..types import AttackerModel, ClientUpdate
from .job_configuration import Arguments
from .server_attacker import Attacker, images_of
from .silo_round import SiloRound

__all__ = ["MOST", "RoundStart", "SelfAudit"]

MOST = 32
"""The most images of a round for which `probe: as_sent` works."""


@dataclass(frozen=True)
class RoundStart:
    """A copy of a silo's model when a round begins, apart from the one that trains.

    Attributes:
        model: protected, with the server's weights and the silo's private state.
        private: its secret variables, by the attacker's model's names.
        plain: unprotected, with the weights that the silo computes with.
        attacker_model: the attacker's model, who knows the defense; None without a defense.

    """

    model: nn.Module
    private: Mapping[str, Tensor] = field(repr=False)
    plain: nn.Module = field(repr=False)
    attacker_model: AttackerModel | None = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, protected: nn.Module, defense: Defense | None) -> RoundStart:
        """Copy the unprotected model of the job, and the silo's protected one."""
        plain = copy_of(model)
        plain.load_state_dict(protected.state_dict())
        if defense is None:
            return cls(plain, {}, plain, None)
        own, private = defense.baseline(plain, protected)
        known = defense.attacker_model(plain)
        # if only what is sent is transformed, the silo computes with this copy
        return cls(own, private, plain if known.update_transform is None else own, known)


@dataclass
class SelfAudit:
    """One silo's audit of itself, as its YAML asks for it.

    The attacks' pictures show the silo's data: they are in a folder for this process's owner only,
    which is deleted. Only scores stay.

    Attributes:
        attacker: the section's attacks, with `side: silo`, and the server's test data.
        args: FedML's.
        model: the job's, unprotected.
        defense: the job's, or None.

    """

    attacker: Attacker
    args: Arguments
    model: nn.Module = field(repr=False)
    defense: Defense | None
    _start: RoundStart | None = field(default=None, repr=False)

    @property
    def settings(self) -> InversionSettings:
        """The `gradient_inversion` section."""
        return self.attacker.settings

    @property
    def name(self) -> str:
        """Of the defense and its settings, "keylock:paper:all"; "none" without one."""
        return self.defense.title if self.defense else "none"

    @property
    def waits(self) -> bool:
        """Whether it audits after the round's training."""
        return self._start is not None and self.settings.probe == "as_sent"

    def round_begins(self, turn: SiloRound, protected: nn.Module, data: Iterable[Any]) -> None:
        """Audit the worst case: one step on one of the silo's images, at the round's weights.

        Or, with `probe: as_sent`, remember the model.

        Args:
            turn: silo and round.
            protected: the silo's model, with the server's weights.
            data: of its training; the first images are audited.

        Raises:
            UpdateRefused: a score exceeds `abort_above`, or is missing.

        """
        self._start = None
        if turn.round not in self.attacker.rounds:
            return
        with self._spared(turn):
            self._start = start = RoundStart.of(self.model, protected, self.defense)
            if self.waits:
                return
            images, labels = self._data(data, self.settings.images, telling=True)
            subject = probe(
                start.plain,
                images,
                labels,
                protection=self._protection(start),
                public=self.attacker.public_for(output_shape(start.plain, images)),
                bounds=self.attacker.bounds,
                learning_rate=float(self.args.learning_rate),
                loss=self.attacker.loss,
                stage="trained" if turn.round else "untrained",
            )
            self._judge(turn, self._rows(subject, turn))

    def round_ends(
        self,
        turn: SiloRound,
        state: Mapping[str, Tensor],
        data: Iterable[Any],
        *,
        received: Mapping[str, Tensor] | None,
    ) -> None:
        """With `probe: as_sent`, audit what is about to be sent.

        Args:
            turn: silo and round.
            state: as it will be sent.
            data: that it trained on.
            received: the state from the server; None if the model was unchanged.

        Raises:
            UpdateRefused: a score exceeds `abort_above`, or is missing.

        """
        start = self._start
        if start is None or not self.waits:
            return
        with self._spared(turn):
            before = start.plain.state_dict() if received is None else received
            if self.defense is not None and self.defense.seals:
                # the keys that open its message exist since the silo sealed
                private = self.defense.baseline(start.plain, start.plain)[1]
            else:
                state, private = {name: state[name] for name in before}, start.private
            images, labels = self._data(data, MOST + 1)
            if len(images) > MOST:
                raise AttackError(
                    f"probe: as_sent follows at most {MOST} images a round, and it has more; use "
                    "probe: single_step"
                )
            update = ClientUpdate(
                before=copied(before),
                after=copied(state),
                learning_rate=float(self.args.learning_rate),
                silo=turn.silo,
                round=turn.round,
            )
            training = LocalTraining(
                epochs=int(self.args.epochs), batch_size=int(self.args.batch_size)
            )
            outputs, loss = output_shape(start.plain, images), self.attacker.loss.seen(labels)
            defended = start.attacker_model is not None
            subject = Subject(
                (update,),
                images[None],
                loss.fitted(labels, outputs)[None],
                start.plain,
                classes=outputs[0],
                defense=self.name,
                attacker_model=start.attacker_model,
                secrets={n: t[None] for n, t in private.items()} if defended else None,
                public=self.attacker.public_for(outputs),
                training=training if training.steps(len(images)) > 1 else None,
                bounds=self.attacker.bounds,
                loss=loss,
                output_shape=outputs,
            )
            self._judge(turn, self._rows(subject, turn))

    def _data(
        self, data: Iterable[Any], wanted: int, *, telling: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The first images; with `telling`, only those with contrast, if there are any."""
        own = images_of(data, wanted)
        if own is None:
            raise AttackError("its training data are no (c, h, w) images")
        low, high = self.attacker.bounds
        kept = ~of_one_colour((own.images - low) / (high - low))
        if not telling or not kept.any():
            kept = torch.ones_like(kept)
        return own.images[kept][:wanted], own.labels[kept][:wanted]

    def _protection(self, start: RoundStart) -> Protection | None:
        if start.attacker_model is None:
            return None
        return Protection(self.name, start.attacker_model, lambda *_: (start.model, start.private))

    def _facts(self, turn: SiloRound) -> dict[str, Any]:
        """Facts for the report: the audit's settings, and what the silo's noise has spent."""
        loss = None if self.defense is None else self.defense.privacy_loss(turn.silo)
        noise = {} if loss is None else {"noise": str(loss)}
        return {"side": "silo", "probe": self.settings.probe, **noise}

    def _folder(self, turn: SiloRound) -> Path:
        return self.settings.output / f"silo-{turn.silo}" / f"round-{turn.round:05d}"

    @contextmanager
    def _spared(self, turn: SiloRound) -> Iterator[None]:
        """Log why an audit failed, and go on; if a limit is set, send nothing."""
        try:
            yield
        except UpdateRefused:
            raise
        except Exception as error:  # from an attack, the job's model, or for lack of memory
            reason = reason_of(error)
            if self.settings.abort_above:  # what cannot be judged is not sent
                raise UpdateRefused(f"{turn.who}: it cannot be audited: {reason}") from None
            logging.warning("%s: its update cannot be audited: %s", turn.who, reason)
            failed = {self.name: reason}
            facts = self._facts(turn) | {"not run": failed}
            none = LeakageReport({}, [], torch.zeros(0, 1, 1, 1), [], facts)
            try:
                none.save(self._folder(turn), images=False)
            except KeyLockError as unwritten:
                logging.warning("%s: %s", turn.who, unwritten)

    def _judge(self, turn: SiloRound, rows: Sequence[LeakageRow]) -> None:
        """Report the worst picture's scores, and stop the upload if one is too high."""
        who, folder, limits = turn.who, self._folder(turn), self.settings.abort_above
        for metric in {"ssim_aligned": None} | limits:
            scored = [(row.worst[metric], row) for row in rows if metric in row.worst]
            found: tuple[Worst, LeakageRow] | None
            found = max(scored, key=lambda one: one[0]["score"], default=None)
            if found is None:
                if metric in limits:
                    raise UpdateRefused(f"{who}: no attack gave a {metric}, so it is not sent")
                logging.warning("%s: no attack gave a %s; see %s", who, metric, folder)
                continue
            worst, best = found
            value, by = worst["score"], best.attack
            if best.knowledge != "none":
                by = f"the {best.knowledge} attacker with {by}"
            by = f"of picture {worst['picture']}, by {by}"
            if self.defense is not None and self.defense.adds_noise:  # noise does not cover scores
                line = f"round {turn.round}: {metric} at most {value:.2f}, {by}; see {folder}"
                self.defense.note(line, silo=turn.silo)
            else:
                logging.info("%s: %s at most %.2f, %s; see %s", who, metric, value, by, folder)
                turn.tell_score(metric, value)
            if value > limits.get(metric, math.inf):
                raise UpdateRefused(
                    f"{who}: its update leaks too much: {metric} {value:.2f} {by}, and "
                    f"gradient_inversion.abort_above allows {limits[metric]:g}; "
                    f"{folder / 'report.html'} says more"
                )

    def _rows(self, subject: Subject, turn: SiloRound) -> list[LeakageRow]:
        """The attackers' rows for what the silo sends: no controls, nobody with its private state.

        Raises:
            AttackError: no attack could run; or, if a limit is set, one could not, or gave no
                picture.

        """
        # random draws of an audit must not change what the silo trains
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as work:
            report = audit(
                subject,
                self.attacker.attacks,
                self.settings.knowledge,
                output=Path(work),
                job=self._facts(turn),
            )
            report.save(self._folder(turn), images=False)
        rows = [
            row
            for row in report.leakage
            if row.defense == subject.defense and row.knowledge not in (BASELINE, ORACLE)
        ]
        failed = dict(report.job.get("not run", {}))
        for title, reason in failed.items():
            logging.warning("%s: %s: not run: %s", turn.who, title, reason)
        if self.settings.abort_above:
            scored = {Trial(row.defense, row.attack, row.knowledge).title for row in rows}
            lost = report.job.get(NOT_SCORED, {}).keys() - scored
            for title, reason in (failed | dict.fromkeys(lost, "it gave no picture")).items():
                if title.startswith(f"{subject.defense}, ") and not title.endswith(f", {ORACLE}"):
                    raise AttackError(f"{title}: {reason}")
        return rows
