"""Notices between silos past the server: who stands elsewhere is named before anything is sent."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from sealed_silos import bits_of, one_round, secrets_of, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.notices import Notice, compare
from fedml_keylock.locks.sealed.rounds import Rounds, ratcheted
from fedml_keylock.locks.sealed.sealing import add_up

FIRST = {"w": torch.ones(2, 2), "b": torch.zeros(3)}


class Post:
    """What silos send one another past the server, in threads: each waits for all."""

    def __init__(self, silos):
        self.sent, self.log = {}, []
        self.barrier = Barrier(silos, timeout=20)
        self.on_the_way = lambda _sender, _receiver, message: message

    def of(self, own):
        def exchange(messages, meanwhile):
            for other, message in messages.items():
                self.log.append(message)
                self.sent[own, other] = self.on_the_way(own, other, message)
            meanwhile()
            self.barrier.wait()
            found = {other: self.sent[other, own] for other in messages}
            self.barrier.wait()
            return found

        return exchange


def joined(samples=(5, 2, 9), firsts=None, **more):
    """Silos that reach one another past the server, and their post."""
    post = Post(len(samples))
    silos = [
        Rounds(replace(each, samples={}, exchange=post.of(each.silo)), **more)
        for each in secrets_of(samples)
    ]
    for place, silo in enumerate(silos):
        silo.begin(FIRST if firsts is None else firsts[place])
    return silos, post


def together(silos, call):
    """What a call gives in each silo, all at once; or what it raised."""

    def tried(place):
        try:
            return call(place, silos[place])
        except UpdateRefused as error:
            return str(error)

    with ThreadPoolExecutor(len(silos)) as pool:
        return [*pool.map(tried, range(len(silos)))]


def sealed(silos, payload=FIRST, samples=(5, 2, 9)):
    def call(place, silo):
        own = payload[place] if isinstance(payload, list) else payload
        return silo.seal(own, samples=samples[place])[0]

    return together(silos, call)


def test_silos_learn_each_others_samples_and_weigh_by_them():
    """Guards `compare` and the order of samples: the round is that of silos that knew them."""
    silos, _ = joined()
    payloads = [{"w": FIRST["w"] * k, "b": FIRST["b"] + k} for k in (1.5, 2, 3)]
    total = add_up(sealed(silos, payloads))
    opened = [silo.open(total) for silo in silos]
    known = one_round(silos_of(FIRST, (5, 2, 9)), payloads)
    assert [bits_of(one.state) for one in opened] == [bits_of(one.state) for one in known]
    assert silos[0].record.encoding.shares.samples == (5, 2, 9)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_another_first_model_is_named_before_anything_is_sent(odd):
    """Guards the chain in `Notice` and the comparison: no message leaves, and none later."""
    firsts = [FIRST] * 3
    firsts[odd] = {**FIRST, "b": torch.ones(3)}
    silos, _ = joined(firsts=firsts)
    for place, said in enumerate(sealed(silos)):
        other = odd if place != odd else min({0, 1, 2} - {odd})
        assert said == (
            f"silo {other} has received another model than silo {place}; nothing is sent"
        )
    assert all("second message" in said for said in sealed(silos))


def test_another_schema_is_named():
    """Guards the schema in `Notice`."""
    said = sealed(joined()[0], [FIRST, FIRST, {"w": FIRST["w"]}])
    assert said[0] == "silo 2 sends other names, shapes or types than silo 0; nothing is sent"
    assert said[2] == "silo 0 sends other names, shapes or types than silo 2; nothing is sent"


def test_another_round_is_named_though_the_secrets_were_the_same():
    """Guards the round in `Notice`."""
    silos, _ = joined()
    silos[1].round = 4
    assert sealed(silos)[0] == "silo 1 is in another round than silo 0; nothing is sent"


def test_a_silo_behind_the_others_opens_no_notice_of_theirs():
    """Guards `ratcheted`: keys of notices are another round's too."""
    silos, _ = joined()
    total = add_up(sealed(silos))
    for silo in silos[:2]:
        silo.open(total)
    silos[2]._sealed = silos[2]._used = False  # as if it were started again
    said = sealed(silos)
    assert said[0].startswith("silo 2 is in another round than this one, or in another job: ")
    assert said[2].startswith("silo 0 is in another round than this one")


def test_after_the_last_round_all_have_opened_the_same():
    """Guards `Rounds.agreed`, and its label: no notice's key serves twice."""
    silos, post = joined()
    total = add_up(sealed(silos))
    for silo in silos:
        silo.open(total)
    assert together(silos, lambda _, silo: silo.agreed()) == [None] * 3
    assert len({*post.log}) == len(post.log) == 12
    silos[1]._chain = bytes(32)
    said = together(silos, lambda _, silo: silo.agreed())
    assert said[0] == "silo 1 has received another model than silo 0; nothing is sent"


@pytest.mark.parametrize("then", [(5, 2, 9), (5, 4, 9)])
def test_what_was_sealed_early_is_sent_only_if_the_numbers_stay(then, monkeypatch):
    """Guards `same` in `Rounds.seal`: a silo seals while the others' notices are on their way."""
    from fedml_keylock.locks.sealed import rounds

    made, sealing = [], rounds.seal
    monkeypatch.setattr(rounds, "seal", lambda *given: made.append(given) or sealing(*given))
    silos, _ = joined()
    payloads = [{"w": FIRST["w"] * k, "b": FIRST["b"] + k} for k in (1.5, 2, 3)]
    total = add_up(sealed(silos, payloads))
    for silo in silos:
        silo.open(total)
    assert len(made) == 3
    total = add_up(sealed(silos, payloads, then))
    opened = [silo.open(total).state for silo in silos]
    assert len(made) == (6 if then == (5, 2, 9) else 9)
    expected = sum(n * p["w"].double() for n, p in zip(then, payloads, strict=True)) / sum(then)
    for state in opened:
        assert torch.allclose(state["w"].double(), expected, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("bit", [0, 300, 8 * 95])
def test_a_changed_notice_is_refused(bit):
    """Guards the cipher: it is authenticated."""
    silos, post = joined()

    def changed(sender, receiver, message):
        if (sender, receiver) != (1, 0):
            return message
        flipped = int.from_bytes(message, "big") ^ 1 << bit
        return flipped.to_bytes(len(message), "big")

    post.on_the_way = changed
    said = sealed(silos)
    assert said[0].startswith("silo 1 is in another round")
    assert isinstance(said[1], dict)


def test_notices_serve_their_sender_receiver_round_and_job_only():
    """Guards `_cipher` and `_nonce`: each notice opens at one place in one round."""
    one, two, _ = secrets_of((1, 1, 1))
    note, sent = Notice(0, bytes(32), bytes(32), 5.0), {}

    def told(secrets, came, label="notice"):
        def exchange(messages, _meanwhile):
            sent[secrets.silo, label] = messages
            return came

        return compare(note, replace(secrets, exchange=exchange), label=label)

    told(one, {})
    told(two, {})
    told(one, {}, "farewell")
    assert len(sent[0, "notice"][1]) == len(note.packed()) + 16
    assert note.packed()[:72] not in sent[0, "notice"][1]
    messages = [*sent[0, "notice"].values(), *sent[1, "notice"].values()]
    messages += sent[0, "farewell"].values()
    assert len({*messages}) == 6
    told(two, {0: sent[0, "notice"][1]})  # the control
    for secrets, silo, message, label in [
        (two, 0, sent[0, "notice"][2], "notice"),  # for another silo
        (two, 0, sent[1, "notice"][0], "notice"),  # its own, sent back
        (two, 0, sent[0, "farewell"][1], "notice"),
        (ratcheted(two), 0, sent[0, "notice"][1], "notice"),
        (two, 2, sent[0, "notice"][1], "notice"),  # as if another silo had said it
        (replace(two, transcript=b"of another job"), 0, sent[0, "notice"][1], "notice"),
        (two, 0, b"", "notice"),
    ]:
        with pytest.raises(UpdateRefused, match=rf"^silo {silo} is in another round"):
            told(secrets, {silo: message}, label)


def test_without_a_way_past_the_server_what_was_said_at_the_start_holds():
    """Guards the first branch of `compare`."""
    secrets = secrets_of((5, 2, 9))[1]
    assert compare(Notice(0, b"", b"", 2.0), secrets) == [5.0, 2.0, 9.0]
    with pytest.raises(UpdateRefused, match="it says that it has 3 samples and said 2 when"):
        compare(Notice(0, b"", b"", 3.0), secrets)
    alone = replace(secrets, pairs={}, samples={})
    assert compare(Notice(0, b"", b"", 3.0), alone) == [3.0]
