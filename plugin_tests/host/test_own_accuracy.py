"""A silo's accuracy under its own lock: how it is measured, when, and that it disturbs nothing."""

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from job_arguments import PAPER, arguments, made
from torch import nn

from fedml_keylock.host.own_accuracy import measure
from fedml_keylock.host.session_of import session_of


class Picks(nn.Module):
    """Says the class of the largest input, half the time with dropout in training."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x)


DATA = [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]


def silo(tmp_path, *, own_accuracy=True, **changes):
    keylock = {**PAPER, "vault": tmp_path, "own_accuracy": own_accuracy}
    session = session_of(arguments(keylock=keylock, **changes))
    session.adopt(made())
    return session


def test_without_a_test_of_its_own_right_answers_are_counted():
    assert measure(SimpleNamespace(), Picks(), DATA, "cpu", None) == 0.75
    none = SimpleNamespace(test=lambda data, device, args: None)
    assert measure(none, Picks(), DATA, "cpu", None) == 0.75


def test_the_trainers_own_test_is_believed():
    own = SimpleNamespace(test=lambda *_: {"test_correct": 3, "test_total": 12, "test_loss": 1})
    assert measure(own, Picks(), DATA, "cpu", None) == 0.25


@pytest.mark.parametrize(
    "data",
    [
        [],
        [(torch.rand(2, 3, 4), torch.zeros(2).long())],  # not (n, classes)
        [(torch.rand(2, 4), torch.zeros(2, 4))],  # not one label an input
    ],
)
def test_what_is_no_classification_gives_no_number(data):
    assert measure(SimpleNamespace(), Picks(), data, "cpu", None) is None


def test_training_goes_on_as_if_nothing_had_been_measured():
    model = Picks()
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    shuffled = SimpleNamespace(test=lambda *_: {"test_correct": torch.rand(1), "test_total": 1})
    measure(shuffled, model, DATA, "cpu", None)
    assert model.training
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("own", [False, True])
def test_a_test_in_train_mode_moves_no_norm_and_no_random_numbers(own):
    """Guards the buffers in `measure`, of a trainer's own model too, and two more generators."""
    model, other = nn.BatchNorm1d(4).train(), nn.BatchNorm1d(4).train()
    tested = other if own else model

    def test(data, device, args):
        np.random.rand()  # as jobs draw
        random.random()
        return {"test_correct": float(tested(data[0][0]).sum()), "test_total": 4}

    before, numpy, python = dict(tested.state_dict()), np.random.get_state(), random.getstate()
    before = {name: tensor.clone() for name, tensor in before.items()}
    measure(SimpleNamespace(test=test, model=other), model, DATA, "cpu", None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tested.state_dict().items())
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy[1]).all()
    assert np.random.get_state()[2] == numpy[2]


def test_a_norm_that_is_frozen_in_a_model_that_trains_stays_frozen():
    """Guards the modes in `measure`: of the model's own alone all layers had it."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    model[0].eval()
    assert measure(SimpleNamespace(), model, DATA, "cpu", None) is not None
    assert [module.training for module in model.modules()] == [True, False, True]


def test_a_failing_test_does_not_end_the_job(tmp_path, caplog):
    session, told = silo(tmp_path, frequency_of_the_test=1), []
    session.tell, session._trained = told.append, 1

    def broken(*_):
        raise ZeroDivisionError("nothing to test")

    session.report_accuracy(SimpleNamespace(test=broken), DATA, "cpu")
    assert told == []
    assert (
        "silo 1 (rank 2), round 0: its accuracy cannot be measured: ZeroDivisionError"
        in caplog.text
    )
    assert "nothing to test" not in caplog.text  # what its own code says may be of its data


def test_a_silo_tells_fedml_its_accuracy_under_a_name_of_its_own(tmp_path):
    session, told = silo(tmp_path, frequency_of_the_test=1), []
    session.tell = told.append
    own = SimpleNamespace(test=lambda *_: {"test_correct": 1, "test_total": 3})
    session.report_accuracy(own, DATA, "cpu")  # nothing was trained yet
    session._trained = 3
    session.report_accuracy(own, None, "cpu")  # this silo has no test data
    assert told == []
    session.report_accuracy(own, DATA, "cpu")
    assert told == [{"keylock/silo_1/accuracy_with_own_key": 0.3333, "round": 2}]


@pytest.mark.parametrize(
    ("changes", "rounds"),
    [
        ({"frequency_of_the_test": 1}, [0, 1, 2, 3, 4]),
        ({"frequency_of_the_test": 2}, [0, 2, 4]),
        ({"frequency_of_the_test": 3}, [0, 3, 4]),  # and the last one
        ({}, []),
        ({"frequency_of_the_test": 0}, []),
        ({"frequency_of_the_test": 1, "own_accuracy": False}, []),
    ],
)
def test_a_silo_tests_when_the_server_does(changes, rounds, tmp_path):
    session = silo(tmp_path, comm_round=5, **changes)
    found = []
    for trained in range(6):
        session._trained = trained
        if session.tests_now():
            found.append(session.last_round)
    assert found == rounds


def test_after_the_last_round_nobody_is_tested_under_anothers_lock(tmp_path):
    session = silo(tmp_path, comm_round=1, frequency_of_the_test=1, client_num_in_total=3)
    session.enter(2)
    assert not session.tests_now()  # nothing has been trained yet
    session._trained = 1
    assert session.tests_now()
    session.enter(0)  # FedML gives it one more silo, whose lock is not loaded any more
    assert not session.tests_now()


# --- where the server would read class shares from it


def sealed(tmp_path, **settings):
    keylock = {"vault": tmp_path / "vault", **settings}
    session = session_of(arguments(keylock=keylock, frequency_of_the_test=1))
    session.adopt(made())
    session._trained = 1
    return session


OWN = SimpleNamespace(test=lambda *_: {"test_correct": 1, "test_total": 4})
LINE = "silo 1, aggregate of round 0: accuracy in the silo 0.2500"


def test_what_a_silo_measures_goes_to_its_own_log(tmp_path, caplog):
    session, told = sealed(tmp_path), []
    session.tell = told.append
    with caplog.at_level(logging.INFO):
        session.report_accuracy(OWN, DATA, "cpu")
        session._trained = 2
        session.report_accuracy(OWN, DATA, "cpu")
    assert told == []
    assert "accuracy in the silo" not in caplog.text
    log = tmp_path / "vault" / "silo-1.log"
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(LINE)
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_silo_measures_is_told_where_that_is_asked_for(tmp_path, caplog):
    session, told = sealed(tmp_path, tell_accuracy=True), []
    session.tell = told.append
    with caplog.at_level(logging.INFO):
        session.report_accuracy(OWN, DATA, "cpu")
    assert told == [{"keylock/silo_1/accuracy_with_own_key": 0.25, "round": 0}]
    assert LINE in caplog.text
    assert not (tmp_path / "vault" / "silo-1.log").exists()
