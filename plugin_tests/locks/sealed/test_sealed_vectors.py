"""Known answers of every primitive and of a whole round: what sealing must compute for ever.

They stand in docs/protocol-vectors.json for other implementations. Two here give them: the product
and the naive one. Run this file as a script to write it anew, when the protocol's version changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import naive_sealed as naive
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from sealed_silos import bits, secret, secrets_of, silos_of

from fedml_keylock.host.key_agreement import Handshake
from fedml_keylock.locks.sealed import neighbours as graph
from fedml_keylock.locks.sealed.encoding import Counts, Encoding
from fedml_keylock.locks.sealed.keystream import Keystream, derive, framed
from fedml_keylock.locks.sealed.notices import Notice, compare
from fedml_keylock.locks.sealed.rounds import digest_of, schema_of
from fedml_keylock.locks.sealed.sealing import TRAILER, add_up
from fedml_keylock.locks.sealed.shares import Shares
from fedml_keylock.locks.sealed.tag import Tag, split_tags
from fedml_keylock.types import JobSecrets

FILE = Path(__file__).parents[3] / "docs" / "protocol-vectors.json"

KEY = bytes(range(32))
DERIVED = [(bytes(32), "pad", []), (KEY, "mask", [b"context", b"\0\0\0\1\0\0\0\2"])]
TAGGED = [[], [1], [2**31 - 1, -(2**31), -1, 7]]
NUMBERS = [[1], [100, 50, 7], [1.5, 1], [3, 1, 4, 1, 5]]
GRAPHS = [(3, None, 1), (12, 3, 0), (65, None, 64), (100, 40, 99)]

SAMPLES = [100, 50, 7]
FIRST = {
    "matrix": torch.tensor([[0.75, -1.5], [0.0, -0.0]]),
    "half": torch.tensor([[0.1, -65504.0]], dtype=torch.float16),
    "brain": torch.tensor([[[3.0], [1e-3]]], dtype=torch.bfloat16),
    "bias": torch.tensor([1e-3, 1e4, -torch.inf]),
    "scalar": torch.tensor(0.0),
    "double": torch.tensor([[1 / 3, 1e-12]], dtype=torch.float64),
    "count": torch.tensor(41),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "flag": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}
PAYLOADS = [
    {
        "matrix": torch.tensor([[0.7501, -1.25], [0.0, -0.0]]),
        "half": torch.tensor([[0.1001, -65504.0]], dtype=torch.float16),
        "brain": torch.tensor([[[3.5], [2e-3]]], dtype=torch.bfloat16),
        "bias": torch.tensor([2e-3, 1.1e4, -torch.inf]),
        "scalar": torch.tensor(0.125),
        "double": torch.tensor([[1 / 7, -1e-12]], dtype=torch.float64),
        "count": torch.tensor(141),
        "bytes": torch.tensor([3, 250], dtype=torch.uint8),
        "flag": torch.tensor([True, True]),
        "none": torch.zeros(0, 3),
    },
    {**FIRST, "matrix": torch.tensor([[-99.0, 33.0], [0.5, torch.nan]])},
    {**FIRST, "count": torch.tensor(-(2**62)), "bias": torch.tensor([1e38, torch.inf, 0.0])},
]
"""Of three silos: one that learns, one that clips and is infinite, and one that does both too."""


def derived(keys):
    """The keys of the three silos' round, by what each of them has."""
    return {
        "context": keys[0].context.hex(),
        "tag key": keys[0].tag_key().hex(),
        "pad keys": [keys[place].pad_key(place).hex() for place in range(3)],
        "mask keys": {f"{i} {j}": keys[j].mask_key(i).hex() for j in range(3) for i in range(j)},
    }


class Product:
    """What the package computes, in the plain types of the file."""

    framed = staticmethod(framed)

    @staticmethod
    def derive(secret, label, context):
        return derive(secret, label, *context)

    @staticmethod
    def words(key, count):
        return Keystream(key).words(count).tolist()

    @staticmethod
    def tags(key, words):
        tag = Tag(key)
        tag.update(np.array(words, dtype=np.int32))
        return tag.value

    @staticmethod
    def limbs(value):
        return split_tags(value).tolist()

    @staticmethod
    def shares(numbers):
        shares = Shares.of(numbers)
        return [*shares.samples], shares.low_bits

    @staticmethod
    def neighbours(silos, colluders, place):
        return [*graph.neighbours(place, silos, graph.reach(silos, colluders))]

    schema, digest = staticmethod(schema_of), staticmethod(digest_of)

    @staticmethod
    def encoded(name, place):
        encoding, counts = Encoding.of({name: FIRST[name]}, Shares.of(SAMPLES)), Counts()
        (entry,), (step,) = encoding.entries, encoding.steps
        parts = encoding.encode(entry, step, PAYLOADS[place][name], place, counts)
        words = [int(word) for part in parts for word in part]
        return step, words, [counts.clipped, counts.infinite]

    @staticmethod
    def round():
        silos = silos_of(FIRST, SAMPLES)
        shares = Shares.of(SAMPLES)
        keys = [silo._keys(Encoding.of(silo.base, shares)) for silo in silos]
        sent = [s.seal(p, samples=n)[0] for s, p, n in zip(silos, PAYLOADS, SAMPLES, strict=True)]
        total = add_up(sent)
        opened = silos[2].open(total)

        def listed(message):
            return {name: words.reshape(-1).tolist() for name, words in message.items()}

        return {
            **derived(keys),
            "messages": [listed(one) for one in sent],
            "sum": listed(total),
            "average": {name: bits(tensor).hex() for name, tensor in opened.state.items()},
            "clipped": opened.counts.clipped,
            "infinite": opened.counts.infinite,
            "next chain": silos[2]._chain.hex(),
            "next group secret": silos[2].secrets.group.hex(),
        }


class Naive:
    """The same of the naive implementation."""

    framed = staticmethod(lambda *parts: naive.framed(parts))
    derive, words = staticmethod(naive.derive), staticmethod(naive.words)
    tags, limbs = staticmethod(naive.tags), staticmethod(naive.limbs)

    @staticmethod
    def shares(numbers):
        return naive.whole_samples(numbers), naive.low_bits(len(numbers))

    @staticmethod
    def neighbours(silos, colluders, place):
        return naive.near(place, silos, naive.steps_to_each_side(silos, colluders))

    schema = staticmethod(lambda state: naive.schema(naive.state_of(state)))
    digest = staticmethod(lambda state: naive.digest(naive.state_of(state)))

    @staticmethod
    def encoded(name, place):
        base, counts = naive.array_of(FIRST[name]), naive.Counters()
        own = naive.array_of(PAYLOADS[place][name])
        words = naive.encoded(own, base, SAMPLES, place, counts)
        return naive.step_of(base, 3), words, [counts.clipped, counts.infinite]

    @staticmethod
    def round():
        silos = [
            naive.Silo(s.silo, s.group, dict(s.pairs), SAMPLES, s.transcript)
            for s in secrets_of(SAMPLES)
        ]
        for silo in silos:
            silo.begin(naive.state_of(FIRST))
        keys = derived(silos)
        sent = [s.seal(naive.state_of(p)) for s, p in zip(silos, PAYLOADS, strict=True)]
        total = naive.added(sent)
        state, counts = silos[2].open(total)
        return {
            **keys,
            "messages": [{**one.words, TRAILER: one.trailer} for one in sent],
            "sum": {**total.words, TRAILER: total.trailer},
            "average": {name: b"".join(array.entries).hex() for name, array in state.items()},
            "clipped": counts.clipped,
            "infinite": counts.infinite,
            "next chain": silos[2].chain.hex(),
            "next group secret": silos[2].group.hex(),
        }


def written(state):
    """A state as the file has it."""
    return {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": [*tensor.shape],
            "bytes": bits(tensor).hex(),
        }
        for name, tensor in state.items()
    }


def sealing(of):
    """The known answers of sealing, by one implementation."""
    return {
        "framed": {"parts": ["61", "", "6263"], "bytes": of.framed(b"a", b"", b"bc").hex()},
        "derive": [
            {
                "secret": key.hex(),
                "label": label,
                "context": [part.hex() for part in context],
                "key": of.derive(key, label, context).hex(),
            }
            for key, label, context in DERIVED
        ],
        "keystream": [{"key": key.hex(), "words": of.words(key, 12)} for key in (bytes(32), KEY)],
        "tag": [
            {
                "key": KEY.hex(),
                "words": words,
                "tags": [f"{tag:016x}" for tag in of.tags(KEY, words)],
                "limbs": of.limbs(of.tags(KEY, words)),
            }
            for words in TAGGED
        ],
        "shares": [
            dict(zip(("numbers", "samples", "low bits"), (n, *of.shares(n)), strict=True))
            for n in NUMBERS
        ],
        "neighbours": [
            {
                "participants": silos,
                "colluders": colluders,
                "place": place,
                "neighbours": of.neighbours(silos, colluders, place),
            }
            for silos, colluders, place in GRAPHS
        ],
        "schema": of.schema(FIRST).hex(),
        "digest": of.digest(FIRST).hex(),
        "encoding": [
            dict(
                zip(
                    ("entry", "silo", "step", "words", "clipped and infinite"),
                    (name, place, *of.encoded(name, place)),
                    strict=True,
                )
            )
            for place, payload in enumerate(PAYLOADS)
            for name in sorted(payload)
            if payload[name] is not FIRST[name]
        ],
        "round": {
            "first model": written(FIRST),
            "samples": SAMPLES,
            "payloads": [written(payload) for payload in PAYLOADS],
            "transcript": secret(0, "transcript").hex(),
            "group secret": secret(0, "group").hex(),
            "pair secrets": {
                f"{low} {high}": secret(0, low, high).hex()
                for high in range(3)
                for low in range(high)
            },
            **of.round(),
        },
    }


def handshakes():
    """Two silos that agree by a file's secret, with keys that are always the same."""
    return [
        Handshake(
            rank,
            float(samples),
            KEY,
            None,
            X25519PrivateKey.from_private_bytes(secret("private", rank)),
            secret("nonce", rank),
        )
        for rank, samples in ((1, 100), (2, 50))
    ]


NOTE = Notice(3, secret("chain"), secret("schema"), 100.0)
WHERE = secret("where")


def agreed():
    """What the package agrees on: hellos, transcript, pair and group secret, and a notice."""
    one, two = handshakes()
    secrets, sent = one.complete({1: one.hello, 2: two.hello}), {}

    def exchange(messages, _meanwhile):
        sent.update(messages)
        return {}

    compare(NOTE, JobSecrets(KEY, 0, {1: secret("pair")}, {}, WHERE, exchange))
    hellos = [one.hello, two.hello]
    return hellos, secrets.transcript, secrets.pairs[1], secrets.group, NOTE.packed(), sent[1]


def naively_agreed():
    """The same again, from the primitives."""
    label, hellos, ranks = b"fedml-keylock agreement 2", [], [struct.pack(">I", k) for k in (1, 2)]
    private = [X25519PrivateKey.from_private_bytes(secret("private", k)) for k in (1, 2)]
    for rank, key, samples in zip(ranks, private, (100.0, 50.0), strict=True):
        own = key.public_key().public_bytes_raw() + secret("nonce", int.from_bytes(rank, "big"))
        nonce = hashlib.sha256(label + own).digest()[:12]
        cipher = ChaCha20Poly1305(naive.hkdf(KEY, label + b"hello"))
        hellos.append(own + nonce + cipher.encrypt(nonce, struct.pack(">d", samples), rank + own))
    transcript = hashlib.sha256(label + ranks[0] + hellos[0] + ranks[1] + hellos[1]).digest()
    shared = private[1].exchange(private[0].public_key())
    pair = naive.hkdf(shared, label + b"pair" + ranks[0] + ranks[1] + transcript)
    group = naive.hkdf(KEY, label + b"group" + transcript)
    note = struct.pack(">Q", 3) + secret("chain") + secret("schema") + struct.pack(">d", 100.0)
    cipher = ChaCha20Poly1305(naive.derive(secret("pair"), "notice", [WHERE]))
    return hellos, transcript, pair, group, note, cipher.encrypt(bytes(12), note, WHERE)


def agreement(of):
    """The known answers of key agreement and of a notice between two silos."""
    hellos, transcript, pair, group, note, sent = of()
    return {
        "hello": {
            "file's secret": KEY.hex(),
            "private keys": [secret("private", rank).hex() for rank in (1, 2)],
            "nonces": [secret("nonce", rank).hex() for rank in (1, 2)],
            "ranks": [1, 2],
            "samples": [100, 50],
            "hellos": [hello.hex() for hello in hellos],
            "transcript": transcript.hex(),
            "pair secret": pair.hex(),
            "group secret": group.hex(),
        },
        "notice": {
            "packed": note.hex(),
            "pair secret": secret("pair").hex(),
            "transcript": WHERE.hex(),
            "from silo 0 to silo 1": sent.hex(),
        },
    }


def vectors(primitives=Product, agreed=agreed):
    """All known answers."""
    return {
        "protocol": "fedml-keylock sealed 1",
        "what": "bytes are hexadecimal, words signed integers of 32 bits",
        **sealing(primitives),
        **agreement(agreed),
    }


KNOWN = {
    "framed/bytes": "000000000000000161000000000000000000000000000000026263",
    "derive/0/key": "21674c7a3ce55e2b5700fa1b0e01db20bbb0934ccdb9c04c240be6e253e1b0f7",
    "derive/1/key": "0e37dc6576e5e9a0947eb9e74405e7d50694800d2311571a42b89f067e4f0798",
    "keystream/1/words": [
        -1241476878,
        -794867414,
        1788539817,
        -2139672867,
        -1367974416,
        -442517174,
        832304806,
        1026998856,
        -558515186,
        -1115476811,
        900311048,
        -1718539240,
    ],
    "tag/2/tags": ["9bf31c2876cccfa8", "cefa92affac13a13"],
    "tag/2/limbs": [53160, 30412, 7208, 39923, 14867, 64193, 37551, 52986],
    "shares/2/samples": [12582912, 8388608],
    "shares/3/low bits": 28,
    "neighbours/1/neighbours": [1, 2, 10, 11],
    "schema": "b5a32c4122bec891c768409ed3273866fe589bd26bbd7f2e5498bb4bd25f7f26",
    "digest": "9786b5d6d494a1694792c60c3ef93787a9fc0806eedaebe8a27a8d0ea170049f",
    "encoding/0/words": [10686, 485577513, 0, 0, 19, 1367823977],
    "encoding/4/words": [209407340, 536687326, -32567238, -1],
    "encoding/6/words": [0, 0],
    "encoding/7/words": [4275, 10686125, 0, 0],
    "encoding/10/words": [-683911988, 683911988, 10686125, 0],
    "encoding/10/clipped and infinite": [2, 1],
    "encoding/12/words": [6, -95747678],
    "round/tag key": "ff04e74833ff78213b3ee8536902d1eaca4df2635f994a7f9bcd420d75e95136",
    "round/pad keys/2": "65e3bec28529094e3499f7f7a8d87ee7ac2ea8a1b9a5601276cd81453c21dc49",
    "round/mask keys/0 2": "6f21c9d275a9c34b8fed5849553b4d776cd4dad92243235fa07a6e9840e57fef",
    "round/messages/0/matrix": [1772949727, -603622705, 2098540444, 392160998],
    "round/messages/1/keylock.sealed": [
        -1225143418,
        661027510,
        1228373611,
        -17260501,
        -1981735098,
        1359439202,
        1377551660,
        1681351852,
        -1341674546,
        -249620289,
    ],
    "round/messages/2/bias": [
        -1024287462,
        363985038,
        -2061692575,
        -990987442,
        485291678,
        297346891,
    ],
    "round/sum/matrix": [817509896, 1102413650, -394755680, 889268815],
    "round/sum/keylock.sealed": [
        -598064949,
        515593993,
        -1005355416,
        -331778559,
        -1133263082,
        1901588612,
        -1346597505,
        1054197750,
        455762719,
        1671769901,
    ],
    "round/average/bias": "cc9f364fc5332646000080ff",
    "round/average/matrix": "6a0e17c1e89a0d41ad0e233e00000080",
    "round/average/count": "c7feb4c537d6feff",
    "round/clipped": 4,
    "round/infinite": 2,
    "round/next chain": "354dba4014040d53af05277179d5ec53ad49e90c921b304811d76fcfcd0ffe08",
    "round/next group secret": "3bb4268419f96a7f40bdc74c206b87076ae927976687503a6089d27b067c2c4f",
    "hello/transcript": "4f09961b3179c1ff9e46fecdf9e4806c0aa7cfa6b00600903d8b5a7b0edd57e5",
    "hello/pair secret": "956ea65218b8948e4061857bf1a8351ce49bd7ba742d4387b60a896fb5850f8b",
    "hello/group secret": "8dcbc5b486412aaed3f3e19adc73dfad64a64a29b8f030a2db1ca6bbbd4a6925",
    "notice/packed": (
        "000000000000000331ad779e47cf4728391673264b006a8d5ff0a463c584252f"
        "3dd19bd172547a1340280a7f8651dcfc01f58383c62a95b70a619dce89eae463"
        "112679b39962557d4059000000000000"
    ),
    "notice/from silo 0 to silo 1": (
        "9a60c3c7a8cd41483961bbf884d800b40d664669dc29aed8ad65e5abd6f4839b"
        "6d5f4f963679f75745884bd4e968c8f2efc075218b75b483c82b8b44aeaeab5f"
        "1be37b96abc59320896b50306a584bfbccec4e04aa6e8117b5b66d5502e18165"
    ),
}


def test_the_file_has_what_the_package_computes():
    assert json.loads(FILE.read_text()) == vectors()


def test_the_file_has_what_the_naive_implementation_computes():
    assert json.loads(FILE.read_text()) == vectors(Naive, naively_agreed)


@pytest.mark.parametrize("place", KNOWN)
def test_known_answers(place):
    """A table of its own: who writes the file anew does not change the protocol unseen."""
    found = vectors()
    for key in place.split("/"):
        found = found[int(key) if isinstance(found, list) else key]
    assert found == KNOWN[place]


def test_the_naive_primitives_are_those_of_their_standards():
    """RFC 5869, test case 3; and test cases 13 and 14 of GCM, which show three blocks of AES."""
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert naive.hkdf(b"\x0b" * 22, b"").hex() == okm
    blocks = (
        "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )
    assert naive.keystream(bytes(32), 48).hex() == blocks
    assert Keystream(bytes(32)).words(12).tobytes().hex() == blocks


def text(found):
    """Vectors as JSON, with a line for every list of numbers."""
    wide = json.dumps(found, indent=1)
    lists = re.compile(r"\[\s+([^][{}]+?)\s+\]")
    return lists.sub(lambda match: f"[{' '.join(match[1].split())}]", wide) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(vectors()))
