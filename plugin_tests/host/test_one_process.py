"""A simulation in one process: the checks stand where a message would be."""

from types import SimpleNamespace

import pytest
import torch
from job_arguments import PAPER, SIMULATED, arguments, made

from fedml_keylock.errors import HostError, UpdateRefused
from fedml_keylock.host.session_of import session_of
from fedml_keylock.locks import is_locked


@pytest.fixture
def job(tmp_path):
    """A session, its trainer, and what the trainer loaded."""
    locked = {**PAPER, "vault": tmp_path}
    session = session_of(arguments(**SIMULATED, keylock=locked, role="server", rank=0))
    model, loaded = made(), []
    session.adopt(model)
    session.agree([None] * 8)
    trainer = SimpleNamespace(model=model, set_model_params=loaded.append)
    return session, trainer, loaded


def test_only_agreed_public_state_is_loaded(job):
    session, trainer, loaded = job
    session.enter(1)
    state = dict(trainer.model.state_dict())
    session.load_aggregate(state, trainer)
    assert loaded == [state]
    assert session.observer.received is state
    for wrong in ({**state, "key": torch.ones(1)}, {"4.bias": state["4.bias"]}):
        with pytest.raises(UpdateRefused, match="the server's model: "):
            session.load_aggregate(wrong, trainer)
    assert len(loaded) == 1


def exchange(job, change):
    session, trainer, _ = job
    session.enter(1)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)

    def run(_):
        loss = trainer.model(torch.rand(4, 1, 8, 8)).square().sum()
        loss.backward()
        optimizer.step()
        return change(dict(trainer.model.state_dict()))

    return session.exchange(trainer, None, run, samples=5)


def test_only_agreed_public_state_is_given_back(job):
    sent = exchange(job, lambda state: state)
    assert sent.keys() == job[1].model.state_dict().keys()
    with pytest.raises(UpdateRefused, match=r"^silo 1, round 0: key is not a public name"):
        exchange(job, lambda state: {**state, "key": torch.ones(1)})


def test_what_is_given_back_brings_no_memory_of_its_own(job):
    whole = torch.zeros(500)
    sent = exchange(job, lambda state: {**state, "4.bias": whole[:3]})
    assert sent["4.bias"].untyped_storage().nbytes() == 12


def test_the_server_tests_a_model_without_a_lock(job):
    session, trainer, _ = job
    locked = trainer.model
    with session.as_server(trainer):
        assert not is_locked(trainer.model)
        assert torch.equal(trainer.model[0].weight, locked[0].weight)
    assert trainer.model is locked
    trainer.model = made()
    with pytest.raises(HostError, match="trainer holds another model"), session.as_server(trainer):
        raise AssertionError
