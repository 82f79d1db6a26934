"""What is no sum of a round's messages is refused, names the round, and changes nothing."""

import numpy as np
import pytest
import torch
from sealed_silos import bits_of, one_round, send, silos_of

from fedml_keylock.errors import HostError, UpdateRefused
from fedml_keylock.locks.sealed.keystream import Keystream
from fedml_keylock.locks.sealed.rounds import Rounds
from fedml_keylock.locks.sealed.sealing import TRAILER, add_up
from fedml_keylock.locks.sealed.tag import TAG_WORDS, Tag, join_tags, split_tags

FIRST = {
    "w": torch.linspace(-1, 1, 12).reshape(3, 4),
    "v": torch.linspace(-2, 1, 12).reshape(3, 4),
    "b": torch.tensor([0.5, -3.0]),
    "n": torch.tensor(17),
}
SAMPLES = (5, 2, 9)


def payloads(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        {n: (t + torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in FIRST.items()}
        for _ in SAMPLES
    ]


def shifted(name, index, by):
    def change(job):
        job.total[name].view(-1)[index] += by
        return job.total

    return change


def swapped(one, two):
    def change(job):
        job.total[one], job.total[two] = job.total[two], job.total[one]
        return job.total

    return change


def rearranged(name, order):
    def change(job):
        flat = job.total[name].view(-1)
        flat[: len(order)] = flat[list(order)].clone()
        return job.total

    return change


def of_all(function):
    return lambda job: {name: function(words) for name, words in job.total.items()}


CHANGES = {
    **{
        f"shifted by {by} in {name} at {index}": shifted(name, index, by)
        for name, index in [("w", 0), ("v", 11), ("b", 0), ("b", 3), ("n", 0), ("n", 1)]
        for by in (1, -1, 2**16, -(2**31))
    },
    **{f"shifted in the trailer at {k}": shifted(TRAILER, k, 1) for k in range(2 + TAG_WORDS)},
    **{f"the last bit of the trailer at {k}": shifted(TRAILER, k, -(2**31)) for k in (0, 2, 9)},
    "doubled": of_all(lambda words: 2 * words),
    "3.9 times": of_all(lambda words: (3.9 * words).to(torch.int32)),
    "negated": of_all(lambda words: -words),
    "inverted": of_all(lambda words: ~words),
    "zeros": of_all(torch.zeros_like),
    "chance": of_all(lambda words: torch.randint_like(words, -(2**31), 2**31 - 1)),
    "one silo's message": lambda job: job.sent[0],
    "of all but one": lambda job: add_up(job.sent[:2]),
    "of all but the first": lambda job: add_up(job.sent[1:]),
    "one silo's twice": lambda job: add_up([*job.sent, job.sent[1]]),
    "one silo's in place of another's": lambda job: add_up([job.sent[0], job.sent[0], job.sent[2]]),
    "the last round's sum": lambda job: job.last,
    "of this round's and the last's": lambda job: add_up([job.total, job.last]),
    "one silo's of the last round": lambda job: add_up([*job.sent[:2], job.before[2]]),
    "the last round's trailer": lambda job: {**job.total, TRAILER: job.last[TRAILER]},
    "the two tags swapped": rearranged(TRAILER, (0, 1, 6, 7, 8, 9, 2, 3, 4, 5)),
    "the counters swapped with a limb": rearranged(TRAILER, (2, 1, 0)),
    "two entries swapped": swapped("w", "v"),
    "two words swapped": rearranged("w", (1, 0)),
    "low and high words swapped": rearranged("b", (2, 3, 0, 1)),
    "an entry missing": lambda job: {n: w for n, w in job.total.items() if n != "b"},
    "the trailer missing": lambda job: {n: w for n, w in job.total.items() if n != TRAILER},
    "an entry more": lambda job: {**job.total, "x": torch.zeros(1, dtype=torch.int32)},
    "another type": of_all(lambda words: words.to(torch.int64)),
    "floating point": of_all(lambda words: words.float()),
    "another shape": lambda job: {**job.total, "w": job.total["w"].reshape(4, 3)},
    "as the model is": lambda job: {n: t.clone() for n, t in FIRST.items()},
    "nothing": lambda job: {},
}


class Job:
    """Silos in their second round, which have all sent."""

    def __init__(self):
        self.silos = silos_of(FIRST, SAMPLES)
        self.before = send(self.silos, payloads(1))
        self.last = add_up(self.before)
        for silo in self.silos:
            silo.open(self.last)
        self.own = payloads(2)
        self.own[1]["b"][0] = 1e12  # so that a counter is not 0
        self.sent = send(self.silos, self.own)
        self.total = add_up(self.sent)


def standing(silo):
    """Everything that a refused message must leave as it is."""
    return (
        bits_of(silo.base),
        silo.round,
        silo.secrets,
        silo._chain,
        silo._sealed,
        silo._used,
        silo.record.round,
        silo.record.tag_key,
        bits_of(silo.record.encoding.base),
    )


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_sum_is_refused_and_changes_nothing(change):
    """Guards `Tag`, `check_form`, the comparison in `open_sum`, and the order in `Rounds.open`.

    The right sum opens afterwards, in every silo alike.
    """
    job = Job()
    right = {name: words.clone() for name, words in job.total.items()}
    before = [standing(silo) for silo in job.silos]
    wrong = CHANGES[change](job)
    for silo in job.silos:
        for _ in range(2):
            with pytest.raises(UpdateRefused, match=r"^round 1: "):
                silo.open(wrong)
    assert [standing(silo) for silo in job.silos] == before
    opened = [silo.open(right) for silo in job.silos]
    assert [bits_of(one.state) for one in opened] == [bits_of(opened[0].state)] * 3
    mean = sum(n * p["w"] for n, p in zip(SAMPLES, job.own, strict=True)) / sum(SAMPLES)
    assert torch.allclose(opened[0].state["w"], mean, atol=1e-6)
    assert opened[0].counts.clipped == 1


def test_the_message_says_what_has_happened():
    job = Job()
    with pytest.raises(UpdateRefused) as error:
        job.silos[0].open(CHANGES["zeros"](job))
    assert str(error.value) == (
        "round 1: the average is not the sum of what the silos sent in this round, with "
        "each of them once: the server, or somebody on the network, has changed it; nothing was "
        "loaded"
    )
    with pytest.raises(UpdateRefused, match=r"^round 1: b is missing$"):
        job.silos[0].open(CHANGES["an entry missing"](job))
    with pytest.raises(UpdateRefused, match=r"^round 1: x is not one of its names$"):
        job.silos[0].open(CHANGES["an entry more"](job))
    with pytest.raises(
        UpdateRefused, match=r"w is \(4, 3\) of torch.int32, not \(3, 4\) of torch.i"
    ):
        job.silos[0].open(CHANGES["another shape"](job))


def test_a_shift_that_repairs_one_tag_is_caught_by_the_other():
    """Guards both rows: knowing the tag's key, one silo's words are moved so that t1 stays."""
    job = Job()
    tag_key = job.silos[0].record.tag_key
    unit = np.zeros(12 + 12 + 4 + 2 + 2, dtype=np.int32)

    def weight(index):
        one = unit.copy()
        one[index] = 1
        tag = Tag(tag_key)
        tag.update(one)
        return tag.value

    pad = Keystream(job.silos[0].record.pad_key).words(len(unit) + TAG_WORDS)[len(unit) :]
    tags = join_tags(job.total[TRAILER].numpy()[2:] - pad, 3)
    for repaired in ((), (0,), (1,), (0, 1)):
        wrong = {name: words.clone() for name, words in job.total.items()}
        wrong["b"].view(-1)[0] += 1
        moved = [(tags[row] + weight(0)[row] * (row in repaired)) % 2**64 for row in (0, 1)]
        wrong[TRAILER][2:] = torch.from_numpy(split_tags(tuple(moved)) + pad)
        if repaired != (0, 1):
            with pytest.raises(UpdateRefused, match="not the sum"):
                job.silos[0].open(wrong)
    job.silos[0].open(wrong)  # the control: with both repaired, it is a sum


def test_tags_are_exact_at_both_ends_of_words_and_of_silos():
    """Guards `Tag.update`, `split_tags` and `join_tags`: modulo 2^64, of up to 32,768 silos."""
    generator = np.random.default_rng(0)
    words = generator.integers(-(2**31), 2**31, 1000).astype(np.int32)
    words[:4] = 2**31 - 1, -(2**31), -1, 0
    whole, parts = Tag(bytes(32)), Tag(bytes(32))
    whole.update(words)
    for part in np.split(words, [0, 1, 7, 7, 600]):
        parts.update(part)
    assert whole.value == parts.value
    secret = Keystream(bytes(32)).longs(1001).tolist()
    for row in (0, 1):
        pairs = zip(secret[row:], words.tolist(), strict=False)
        assert whole.value[row] == sum(r * x for r, x in pairs) % 2**64
    for silos in (1, 2, 32_768):
        value = (2**64 - 1, 12345678901234567890)
        total = (split_tags(value).astype(np.int64) * silos).astype(np.int32)
        assert join_tags(total, silos) == tuple(one * silos % 2**64 for one in value)


# the order of a round


def test_an_average_before_this_silo_has_sent_is_refused():
    """Guards ``_sealed`` in `Rounds.open`, in the first round and in later ones."""
    job = Job()
    fresh = silos_of(FIRST, SAMPLES)[0]
    with pytest.raises(
        UpdateRefused, match=r"^round 0: the server sent an average before this sil"
    ):
        fresh.open(job.last)
    early = silos_of(FIRST, SAMPLES)
    one_round(early, payloads(1))
    before = bits_of(early[0].base)
    with pytest.raises(
        UpdateRefused, match=r"^round 1: the server sent an average before this sil"
    ):
        early[0].open(job.last)
    assert bits_of(early[0].base) == before
    assert early[0].round == 1


def test_a_sum_is_opened_once():
    """Guards ``_sealed = False`` in `Rounds.open`."""
    job = Job()
    for silo in job.silos:
        silo.open(job.total)
    before = [standing(silo) for silo in job.silos]
    for silo in job.silos:
        with pytest.raises(UpdateRefused, match=r"^round 2: the server sent an average before"):
            silo.open(job.total)
    assert [standing(silo) for silo in job.silos] == before


def test_there_is_one_first_model():
    """Guards `Rounds.begin`: another is refused, until it has sent the same again is nothing."""
    silo, other = silos_of(FIRST)[0], {**FIRST, "n": torch.tensor(18)}
    digest = silo.begin(FIRST)
    assert silo.begin(dict(reversed(FIRST.items()))) == digest
    with pytest.raises(
        UpdateRefused, match=r"^round 0: the server sent a model that is no average"
    ):
        silo.begin(other)
    assert bits_of(silo.base) == bits_of(FIRST)
    silos = silos_of(FIRST)
    sent = send(silos, [FIRST] * 3)
    with pytest.raises(UpdateRefused, match=r"^round 0: the server sent a model that is no"):
        silos[0].begin(FIRST)  # of a job of one round it would be the final model
    silos[0].open(add_up(sent))
    for model in (FIRST, other, dict(silos[0].base)):
        with pytest.raises(UpdateRefused, match=r"^round 1: the server sent a model that is no"):
            silos[0].begin(model)


def test_nothing_is_sealed_before_the_first_model_came():
    silo = Rounds(silos_of(FIRST)[0].secrets)
    assert not silo.begun
    with pytest.raises(HostError, match="before the first model arrived"):
        silo.seal(FIRST)
    silo.begin(FIRST)
    assert silo.begun
    silo.seal(FIRST)


def test_a_payload_that_is_refused_may_be_sent_right_afterwards():
    """Guards the order in `Rounds.seal`: nothing was derived yet, nor told to the other silos."""
    silos = silos_of(FIRST, SAMPLES)
    with pytest.raises(UpdateRefused, match="new: the server has not sent"):
        silos[0].seal({**FIRST, "new": torch.ones(1)}, samples=5)
    assert one_round(silos, payloads(1))


def test_a_part_of_a_state_is_a_payload_too():
    """As with adapters, or norms that stay in the silo. Guards `Rounds._base_of`."""
    silos = silos_of(FIRST, SAMPLES)
    for seed in (1, 2):
        some = [{"w": one["w"], "n": one["n"]} for one in payloads(seed)]
        opened = one_round(silos, some)
        assert opened[0].state.keys() == {"w", "n"}
        mean = sum(n * p["w"] for n, p in zip(SAMPLES, some, strict=True)) / sum(SAMPLES)
        assert torch.allclose(opened[0].state["w"], mean, atol=1e-6)


def test_silos_that_send_other_parts_open_nothing():
    """Guards the schema in the keys' context, where nothing but the server reaches silos."""
    silos = silos_of({"a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    sent = send(silos, [{"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)}])
    sent[2]["a"] = sent[2].pop("b")
    with pytest.raises(UpdateRefused, match="not the sum"):
        silos[0].open(add_up(sent))


def test_messages_of_other_forms_are_not_added_up():
    """Guards `add_up`, on the server."""
    one = silos_of(FIRST)[0].seal(FIRST)[0]
    for other, said in [
        ({n: w for n, w in one.items() if n != "b"}, "b: one silo has sent it and another has not"),
        ({**one, "x": one["b"]}, "x: one silo has sent it"),
        ({**one, "b": one["b"].long()}, "b: silos have sent it in several shapes or types"),
        ({**one, "b": one["b"][:1]}, "b: silos have sent it in several"),
    ]:
        with pytest.raises(UpdateRefused, match=said):
            add_up([one, other])
    kept = bits_of(one)
    add_up([one, one, one])
    assert bits_of(one) == kept
