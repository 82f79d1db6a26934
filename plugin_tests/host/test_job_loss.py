"""Which loss an attacker takes a job to minimise, and that a guess is said."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.job_loss import loss_of_job
from fedml_keylock.host.server_attacker import Attacker

JOB = SimpleNamespace(dataset="photos", rank=0)


class Smooth(nn.Module):
    """A loss of the job's own."""

    def forward(self, outputs, targets):
        return (outputs - targets).square().sqrt().mean()


class OfClass:
    """A trainer whose class holds the loss, and which has a model too."""

    judge = nn.BCEWithLogitsLoss(torch.tensor([1.0, 2.0]))

    def __init__(self):
        self.model = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("trainer", "said", "targets"),
    [
        (SimpleNamespace(criterion=nn.MSELoss()), "MSELoss()", "values"),
        (
            SimpleNamespace(crit=nn.CrossEntropyLoss(label_smoothing=0.1), model=nn.Linear(2, 2)),
            "CrossEntropyLoss(label_smoothing=0.1)",
            "classes",
        ),
        (OfClass(), "BCEWithLogitsLoss(weight=[1.0, 2.0])", "marks"),
        (SimpleNamespace(loss_fn=Smooth()), "the trainer's loss_fn, Smooth", "own"),
        # nothing is held, or two are
        (SimpleNamespace(model=nn.Linear(2, 2)), "CrossEntropyLoss(), assumed", "classes"),
        (SimpleNamespace(a=nn.MSELoss(), b=nn.L1Loss()), "CrossEntropyLoss(), assumed", "classes"),
    ],
)
def test_a_trainer_tells_by_what_it_holds(trainer, said, targets):
    found = loss_of_job(None, JOB, trainer)
    assert (str(found), found.targets) == (said, targets)
    named = loss_of_job("HuberLoss(delta=2.0)", JOB, trainer)
    assert str(named) == "HuberLoss(delta=2.0)"


def test_what_is_not_attacked_is_refused_before_the_job():
    with pytest.raises(ConfigError, match="loss: the trainer's criterion: KLDivLoss is not attack"):
        loss_of_job(None, JOB, SimpleNamespace(criterion=nn.KLDivLoss()))
    with pytest.raises(ConfigError, match=r"^gradient_inversion.loss: 'Focal' is neither"):
        loss_of_job("Focal", JOB, None)


@pytest.mark.parametrize("dataset", ["mnist", "stackoverflow_lr", "fed_shakespeare"])
def test_fedmls_own_trainers_minimise_what_is_said_of_them(dataset):
    from fedml.ml.trainer.trainer_creator import create_model_trainer

    args = SimpleNamespace(dataset=dataset)
    trainer = create_model_trainer(nn.Linear(1, 1), args)
    kind = type(trainer)
    found = str(loss_of_job(None, args, None))
    assert found == str(loss_of_job(None, args, trainer))
    assert f"criterion = nn.{found}".replace("'", '"') in inspect.getsource(kind.train)
    own = type("Own", (kind,), {"train": lambda self, *_: None})
    assert loss_of_job(None, args, object.__new__(own)).assumed


@pytest.mark.parametrize(("loss", "said"), [(None, True), ("CrossEntropyLoss", False)])
def test_a_guess_is_said_in_one_line(loss, said, capsys):
    section = InversionSettings(attacks=["dlg"], loss=loss)
    attacker = Attacker.begin(section, rounds=1, defended=False)
    attacker.see_trainer(JOB, SimpleNamespace())
    line = (
        "fedml-keylock: gradient_inversion.loss: not named, and not found in the trainer: "
        "CrossEntropyLoss() is assumed\n"
    )
    assert capsys.readouterr().err == (line if said else "")
