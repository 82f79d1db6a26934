"""A sealed job's sessions in one process, where the server passes on all that silos say."""

from __future__ import annotations

import logging
from collections import OrderedDict

import pytest
import torch
from job_arguments import arguments
from torch import nn

from fedml_keylock.errors import HostError, UpdateRefused
from fedml_keylock.host.gate import HELLO, HELLOS, EntryNames
from fedml_keylock.host.session_of import session_of

NAMES = EntryNames("model_params", "num_samples", "client_idx")
SAMPLES = (30, 50, 20)
ROUNDS = 2


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


class Federation:
    """A server and three silos: each message as FedML hands it to our gates."""

    def __init__(self, folder, *, seed=0, **settings):
        key = folder / "group"
        key.touch(mode=0o600)
        key.write_bytes(bytes(range(32)))
        keylock = {"group_key": str(key), "vault": str(folder / "vault"), **settings}
        each = {"client_num_in_total": 3, "client_num_per_round": 3, "worker_num": 3}
        each |= {"backend": "GRPC", "comm_round": ROUNDS, "learning_rate": 0.1}
        each |= {"keylock": keylock}
        dataset = [*[None] * 4, dict(enumerate(SAMPLES)), None, None, 3]
        self.server = session_of(arguments(role="server", rank=0, **each))
        self.silos = [session_of(arguments(rank=rank, **each)) for rank in (1, 2, 3)]
        for session in (self.server, *self.silos):
            session.adopt(net(seed if session is self.server else 0))
            session.agree(dataset)

    def greet(self):
        """Each silo says that it is there; what the server sees of it."""
        said = []
        for rank, silo in enumerate(self.silos, 1):
            said.append({"client_status": "ONLINE"})
            silo.emit(said[-1], NAMES, 0)
            self.server.admit(dict(said[-1]), NAMES, rank)
        return said

    def from_server(self, state, rank=1):
        entries = {"model_params": state}
        self.server.emit(entries, NAMES, rank)
        return entries

    def begin(self):
        """All silos get the first model; what they load."""
        self.greet()
        first = net_state(self.server)
        return [self.deliver(silo, self.from_server(first)) for silo in self.silos]

    def lie(self):
        """From now on the server sends what it likes, as if it had not our checks."""
        self.server._total, self.server._next_round = None, 0

    @staticmethod
    def deliver(silo, entries):
        entries = dict(entries)
        silo.admit(entries, NAMES, 0)
        return entries["model_params"]

    def upload(self, silo, index, state=None):
        """One silo's update on its way: what leaves it."""
        state = moved(silo.model, index) if state is None else state
        entries = {"model_params": state, "num_samples": SAMPLES[index]}
        silo.emit(entries, NAMES, 0)
        silo._trained += 1
        return entries

    def collect(self):
        """All silos' updates on the server, as FedML averages them."""
        found = []
        for rank, silo in enumerate(self.silos, 1):
            entries = dict(self.upload(silo, rank - 1))
            self.server.admit(entries, NAMES, rank)
            found.append((entries["num_samples"], entries["model_params"]))
        return found


def net_state(session):
    return OrderedDict((n, t.clone()) for n, t in session.model.state_dict().items())


def moved(model, index):
    """A state as a silo that has trained has it."""
    draw = torch.Generator().manual_seed(index)
    return OrderedDict(
        (n, t + (0.01 * torch.randn(t.shape, generator=draw) if t.is_floating_point() else 1))
        for n, t in model.state_dict().items()
    )


@pytest.fixture
def job(tmp_path):
    return Federation(tmp_path)


# --- hellos over the server


def test_hellos_go_with_the_first_words_and_come_back_with_the_first_model(job):
    said = job.greet()
    hellos = [bytes.fromhex(entries[HELLO]) for entries in said]
    assert len({*hellos}) == 3
    entries = job.from_server(net_state(job.server))
    relayed = dict(part.split(":") for part in entries[HELLOS].split(","))
    assert relayed == {str(rank): hello.hex() for rank, hello in enumerate(hellos, 1)}
    for silo in job.silos:
        job.deliver(silo, entries)
    secrets = [silo.defense._rounds.secrets for silo in job.silos]
    assert len({one.group for one in secrets}) == len({one.transcript for one in secrets}) == 1
    for own, one in enumerate(secrets):
        assert one.samples == dict(enumerate(map(float, SAMPLES)))
        assert all(one.pairs[other] == secrets[other].pairs[own] for other in one.pairs)
    # once they have agreed, they greet no more
    entries = {"client_status": "ONLINE"}
    job.silos[0].emit(entries, NAMES, 0)
    assert HELLO not in entries


def test_samples_in_hellos_are_not_the_server_s_to_read(job):
    import struct

    for entries in job.greet():
        hello = bytes.fromhex(entries[HELLO])
        assert not any(struct.pack(">d", float(number)) in hello for number in SAMPLES)


def test_a_hello_that_the_server_changes_ends_the_job(job):
    job.greet()
    entries = job.from_server(net_state(job.server))
    first, second, third = entries[HELLOS].split(",")
    for changed in (
        [first, second, third[:-2] + ("00" if third[-2:] != "00" else "01")],
        [first, second, "3:" + second.partition(":")[2]],
        [first[:5] + ("1" if first[5] != "1" else "2") + first[6:], second, third],
    ):
        with pytest.raises(HostError, match=r"answers in its name|keylock.group_key"):
            job.deliver(job.silos[0], {**entries, HELLOS: ",".join(changed)})
    with pytest.raises(UpdateRefused, match="with the hellos of 2 silos, and 3 take part"):
        job.deliver(job.silos[0], {**entries, HELLOS: f"{first},{second}"})


# --- a round


def test_silos_open_the_average_which_the_server_cannot_read(job):
    for loaded in job.begin():
        assert all(torch.equal(loaded[n], t) for n, t in net_state(job.server).items())
    updates = job.collect()
    assert [samples for samples, _ in updates] == [1, 1, 1]
    assert all(t.dtype == torch.int32 for _, words in updates for t in words.values())
    total = job.server.add_up(updates)
    assert job.server.is_sealed
    wanted = {
        name: sum(
            n * moved(silo.model, index)[name].double() / sum(SAMPLES)
            for index, (n, silo) in enumerate(zip(SAMPLES, job.silos, strict=True))
        )
        for name in job.server.model.state_dict()
    }
    for silo in job.silos:
        opened = job.deliver(silo, job.from_server(total))
        assert opened.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.allclose(opened[name].double(), tensor, atol=1e-6), name


@pytest.mark.parametrize("told", [False, True])
def test_the_server_is_told_samples_where_it_is_wanted(told, tmp_path):
    job = Federation(tmp_path, tell_samples=told)
    job.begin()
    assert [n for n, _ in job.collect()] == (list(SAMPLES) if told else [1, 1, 1])


def test_a_server_that_averages_fewer_or_more_is_refused(job):
    job.begin()
    updates = job.collect()
    for some in (updates[:2], [*updates, updates[0]], []):
        with pytest.raises(HostError, match=f"{len(some)} updates of 3 silos are to be averaged"):
            job.server.add_up(some)
    assert not job.server.is_sealed


@pytest.mark.parametrize("told", [False, True])
def test_an_aggregator_that_weighs_by_itself_is_refused(told, tmp_path):
    """Guards `_Samples`: weights on the server have no part in a sum, and were ignored."""
    job = Federation(tmp_path, tell_samples=told)
    job.begin()
    updates = job.collect()
    for weights in ((1, 1, 1), (1 / 3, 1 / 3, 1 / 3), SAMPLES):
        own = [(n, words) for n, (_, words) in zip(weights, updates, strict=True)]
        with pytest.raises(HostError, match="weighs the silos by numbers of its own"):
            job.server.add_up(own)
    assert job.server.add_up(updates)


def test_an_aggregator_that_changes_updates_is_refused(job):
    """Guards the types in `ServerSession.add_up`: the line said that silos had sent several."""
    job.begin()
    halved = [(n, {k: t * 0.5 for k, t in words.items()}) for n, words in job.collect()]
    with pytest.raises(HostError, match=r"changed sealed updates before .* FedMLAggOperator\.agg"):
        job.server.add_up(halved)


def test_a_trainer_may_fill_the_same_mapping_in_each_round(job):
    """Guards `SiloSession._open`, which forgets what was sealed: it was sent a second time."""
    job.begin()
    states = [net_state(silo) for silo in job.silos]
    for number in range(ROUNDS):
        updates = []
        for index, (silo, state) in enumerate(zip(job.silos, states, strict=True)):
            for tensor in state.values():
                tensor += 1
            entries = job.upload(silo, index, state)
            job.server.admit(entries, NAMES, index + 1)
            updates.append((entries["num_samples"], entries["model_params"]))
        first = net_state(job.server)["0.weight"]
        total = job.server.add_up(updates)
        for silo in job.silos:
            opened = job.deliver(silo, job.from_server(total))
            assert torch.allclose(opened["0.weight"], first + number + 1, atol=1e-5)


def test_an_average_has_the_versions_of_modules_as_fedmls_own_has(job):
    """Guards `SiloSession._open`: without them a module takes a state for an old one."""
    job.begin()
    sent = [silo.model.state_dict() for silo in job.silos]
    updates = []
    for index, (silo, state) in enumerate(zip(job.silos, sent, strict=True)):
        entries = job.upload(silo, index, state)
        job.server.admit(entries, NAMES, index + 1)
        updates.append((entries["num_samples"], entries["model_params"]))
    opened = job.deliver(job.silos[0], job.from_server(job.server.add_up(updates)))
    assert opened._metadata["1"]["version"] == sent[0]._metadata["1"]["version"] == 2


def test_a_sum_that_the_aggregator_changed_is_not_sent(job):
    job.begin()
    total = job.server.add_up(job.collect())
    name = "0.weight"
    copy = OrderedDict((n, t.clone()) for n, t in total.items())
    job.from_server(copy)  # the same words are the same sum
    fewer = {n: t for n, t in total.items() if n != name}
    other = {**total, name: total[name] + 1}
    as_floats = {**total, name: total[name].float()}
    for changed in (fewer, other, as_floats, {**total, "more": total[name]}, [total], "words"):
        with pytest.raises(UpdateRefused, match="round 0: the job's aggregator changed"):
            job.from_server(changed)


def test_a_sum_that_the_aggregator_changed_in_place_is_not_sent(job):
    job.begin()
    total = job.server.add_up(job.collect())
    total["0.weight"] += 1
    with pytest.raises(UpdateRefused, match=r"round 0: the job's aggregator changed"):
        job.from_server(total)


def test_what_no_sum_was_made_of_is_not_sent(job):
    """An aggregator that never has FedML average."""
    job.begin()
    job.from_server(net_state(job.server))  # until an update came, it is the first model
    updates = job.collect()
    for own in (net_state(job.server), updates[0][1], {}):
        with pytest.raises(UpdateRefused, match=r"computed something else of them; under lock"):
            job.from_server(own)


def test_an_aggregator_that_fails_on_words_is_told_what_to_call(job):
    with pytest.raises(HostError, match=r"aggregator failed on sealed updates \(TypeError: no\);"):
        job.server.refuse_aggregator(TypeError("no\nand more"))
    ours = UpdateRefused("w: silos have sent it in several shapes")
    with pytest.raises(UpdateRefused) as caught:
        job.server.refuse_aggregator(ours)
    assert caught.value is ours


def test_that_the_server_does_not_test_is_said_once(job, caplog):
    with caplog.at_level(logging.INFO):
        job.server.tell_sealed()
        job.server.tell_sealed()
    said = "the server: its model is sealed, and is not tested here; silos test it"
    assert [message.startswith(said) for message in caplog.messages] == [True]


# --- a server that lies


def test_the_first_model_may_come_again_and_no_other(job):
    job.begin()
    silo, first = job.silos[0], net_state(job.server)
    again = job.deliver(silo, job.from_server(first))
    assert all(torch.equal(again[n], t) for n, t in first.items())
    said = r"^silo 0 \(rank 1\), round 0: the server sent a model that is no average"
    with pytest.raises(UpdateRefused, match=said):
        job.deliver(silo, job.from_server({**first, "0.bias": first["0.bias"] + 1e-6}))
    job.upload(silo, 0)
    with pytest.raises(UpdateRefused, match=said):
        job.deliver(silo, job.from_server(first))
    with pytest.raises(UpdateRefused, match="second message in one round"):
        job.upload(silo, 0)


def test_a_model_of_the_server_s_own_is_refused_later_too(job):
    job.begin()
    total = job.server.add_up(job.collect())
    job.deliver(job.silos[0], job.from_server(total))
    job.lie()
    with pytest.raises(UpdateRefused, match="round 1: the server sent a model that is no average"):
        job.deliver(job.silos[0], job.from_server(net_state(job.server)))


def test_an_average_that_comes_before_the_silo_sent_its_update_is_refused(job):
    job.begin()
    updates = [job.upload(silo, index) for index, silo in enumerate(job.silos[1:], 1)]
    total = updates[0]["model_params"]
    with pytest.raises(UpdateRefused, match="an average before this silo sent its update"):
        job.deliver(job.silos[0], job.from_server(total))


def test_what_is_not_the_round_s_sum_is_refused_and_naming_the_round(job):
    job.begin()
    updates = job.collect()
    total = job.server.add_up(updates)
    zeros = {n: torch.zeros_like(t) for n, t in total.items()}
    shifted = {**total, "0.weight": total["0.weight"] + 1}
    twice = {n: t + updates[0][1][n] for n, t in total.items()}
    subset = {n: t - updates[2][1][n] for n, t in total.items()}
    job.lie()
    for lie in (zeros, shifted, twice, subset, updates[1][1]):
        with pytest.raises(UpdateRefused, match=r"^silo 0 .*round 0: the average is not"):
            job.deliver(job.silos[0], job.from_server(lie))
    job.deliver(job.silos[0], job.from_server(total))  # nothing had changed
    job.upload(job.silos[0], 0)
    with pytest.raises(UpdateRefused, match=r"round 1: the average is not"):
        job.deliver(job.silos[0], job.from_server(total))


@pytest.mark.parametrize(("seed", "own"), [(0, True), (7, False)])
@pytest.mark.parametrize("pinned", [None, "own"])
def test_another_first_model_than_the_silo_s_is_warned_of_or_refused(
    seed, own, pinned, tmp_path, caplog
):
    job = Federation(tmp_path, seed=seed, **({"first_model": pinned} if pinned else {}))
    with caplog.at_level(logging.INFO):
        if pinned and not own:
            with pytest.raises(UpdateRefused, match=r"round 0: the server's first model .*own"):
                job.begin()
            return
        job.begin()
    assert ("the first model is this silo's own" in caplog.text) is own
    assert ("is not the one that this silo built" in caplog.text) is not own


def test_the_job_is_not_over_before_its_last_round(job):
    job.begin()
    for trained in range(ROUNDS):
        with pytest.raises(UpdateRefused, match=f"ends the job after {trained} of {ROUNDS} rounds"):
            job.silos[0].dismiss()
        total = job.server.add_up(job.collect())
        for silo in job.silos:
            job.deliver(silo, job.from_server(total))
    job.silos[0].dismiss()


def test_after_the_last_upload_the_job_is_not_over_before_the_average_came(job):
    """Or the silo that is dismissed would have another model than the others."""
    job.begin()
    for _ in range(ROUNDS):
        total = job.server.add_up(job.collect())
        with pytest.raises(UpdateRefused, match="the server ends the job"):
            job.silos[0].dismiss()
        for silo in job.silos:
            job.deliver(silo, job.from_server(total))
    job.silos[0].dismiss()
