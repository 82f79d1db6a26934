"""Lines of sealing, key agreement and lock: rotated, each taken out or changed, for mutants.py.

`python plugin_tests/locks/sealed/sealed_mutants.py` runs all, with words those whose name has one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mutants

TABLE = {
    ("locks/sealed/keystream", "sealed_keys"): [
        ("keys: the context is not in them", "label.encode(), *context)", "label.encode())"),
        ("keys: all purposes have one", "label.encode(), *context)", 'b"", *context)'),
        (
            "keys: parts are joined without their lengths",
            'len(part).to_bytes(8, "big") + part',
            "part",
        ),
    ],
    ("locks/sealed/keystream", "sealed_reference"): [
        (
            "keystream: words are those of no key",
            'return np.frombuffer(self._draw(4 * count), dtype="<i4")',
            'return np.frombuffer(Keystream(bytes(32))._draw(4 * count), dtype="<i4")',
        ),
    ],
    ("locks/sealed/encoding", "sealed_state"): [
        (
            "encoding: float64 payloads are written to",
            "own.to(torch.float64, copy=True)",
            "own.double()",
        ),
        ("encoding: zeros lose their sign", "        if still.any():", "        if False:"),
    ],
    ("locks/sealed/encoding", "sealed_encoding"): [
        (
            "encoding: bounds sum to more than 2^31 - 1",
            "(2**31 - 1 - len(self.samples)) //",
            "2**31 //",
        ),
        (
            "encoding: low words have a bit more",
            "return 31 - (len(self.samples) - 1).bit_length()",
            "return 32 - (len(self.samples) - 1).bit_length()",
        ),
        (
            "encoding: low words have a bit less",
            "return 31 - (len(self.samples) - 1).bit_length()",
            "return 30 - (len(self.samples) - 1).bit_length()",
        ),
        (
            "encoding: floats are not clipped",
            "            moved.clamp_(-float(bound), float(bound))\n",
            "",
        ),
        (
            "encoding: integers are not clipped",
            "return moved.clamp_(-bound, bound) * samples",
            "return moved * samples",
        ),
        (
            "encoding: truncated, not rounded",
            "        moved.round_()\n",
            "        moved.trunc_()\n",
        ),
        (
            "encoding: integers are averaged downwards",
            "torch.div(2 * sums + total, 2 * total",
            "torch.div(2 * sums, 2 * total",
        ),
        (
            "encoding: what came infinite is counted",
            "(~torch.isfinite(moved) & torch.isfinite(base)).sum()",
            "(~torch.isfinite(moved)).sum()",
        ),
        (
            "encoding: clipped entries are not counted",
            "clipped = int((moved.abs() > bound).sum())\n            moved",
            "clipped = 0\n            moved",
        ),
        ("encoding: infinite entries are not counted", "self.infinite += infinite", "pass"),
        ("encoding: matrices have less headroom", "HEADROOM = 4\n", "HEADROOM = 3\n"),
        ("encoding: vectors have more headroom", "HEADROOM_VECTOR = 22", "HEADROOM_VECTOR = 30"),
        (
            "encoding: an infinity sets the step",
            "size if math.isfinite(size) else _largest(flat[torch.isfinite(flat)])",
            "size if math.isfinite(size) else 0.0",
        ),
        ("encoding: a power of two has the next step", "exponent - (mantissa == 0.5)", "exponent"),
        (
            "encoding: the form depends on numbers",
            'elif tensor.dim() <= 1:\n        kind = "vector"',
            'elif tensor.dim() <= 1 and bool(tensor.any()):\n        kind = "vector"',
        ),
    ],
    ("locks/sealed/tag", "sealed_verification"): [
        (
            "tag: both rows are one",
            "self._last * int(wide[0]) + int(np.dot(secret[:-1], wide[1:]))",
            "int(np.dot(secret, wide))",
        ),
        ("tag: there is one", "% 2**64, self._sums[1] % 2**64", "% 2**64, 0"),
        (
            "tag: the keystream begins anew with every part",
            "        self._last = int(secret[-1])\n",
            "",
        ),
        (
            "tag: sums of limbs may be anything",
            "    if words.min() < 0 or words.max() > silos * (2**LIMB - 1):\n        return None\n",
            "",
        ),
        (
            "tag: a limb is left out",
            "sum(int(word) << (LIMB * k) for k, word in enumerate(half))",
            "sum(int(word) << (LIMB * k) for k, word in enumerate(half[:3]))",
        ),
    ],
    ("locks/sealed/neighbours", "sealed_neighbours"): [
        (
            "neighbours: too few",
            "min(complete, colluders // 2 + 1)",
            "min(complete, (colluders + 1) // 2)",
        ),
        ("neighbours: to one side only", "for sign in (1, -1)}", "for sign in (1,)}"),
    ],
    ("locks/sealed/sealing", "sealed_secrecy"): [
        ("sealing: no masks", "for n in sorted(self.pairs)]", "for n in ()]"),
        (
            "sealing: words are not covered",
            "            cover(words, flat[start : start + len(words)])\n",
            "            flat[start : start + len(words)] = words\n",
        ),
        (
            "sealing: the trailer is not covered",
            "cover(np.concatenate([counters, split_tags(tag.value)]), trailer.numpy())",
            "trailer[:] = torch.tensor([*counters, *split_tags(tag.value)])",
        ),
    ],
    ("locks/sealed/sealing", "sealed_neighbours"): [
        ("sealing: no pad of its own", "        found.append((self.pad_key(self.place), 1))\n", ""),
        (
            "sealing: no pad of the next",
            "            found.append((self.pad_key(self.place + 1), -1))\n",
            "            pass\n",
        ),
        ("sealing: both of a pair add their mask", "1 if self.place < n else -1", "1"),
    ],
    ("locks/sealed/sealing", "sealed_keys"): [
        (
            "sealing: pads are one for all",
            'derive(self.group, "pad", self.context, place.to_bytes(4, "big"))',
            'derive(self.group, "pad", self.context)',
        ),
        (
            "sealing: masks do not depend on who shares them",
            'derive(self.pairs[neighbour], "mask", self.context, places)',
            'derive(self.pairs[neighbour], "mask", self.context)',
        ),
        (
            "sealing: the tag's key is another purpose's",
            'derive(self.group, "tag", self.context)',
            'derive(self.group, "pad", self.context, bytes(4))',
        ),
    ],
    ("locks/sealed/sealing", "sealed_verification"): [
        ("sealing: counters are not tagged", "    tag.update(counters)\n", ""),
        ("sealing: neither tagged nor verified", "    tag.update(trailer[:COUNTERS])\n", ""),
        (
            "sealing: tags are not compared",
            "if join_tags(trailer[COUNTERS:], len(encoding.shares.samples)) != tag.value:",
            "if False:",
        ),
        ("sealing: forms are not checked", "    check_form(encoding, message)\n", ""),
        (
            "sealing: a server adds what it is given",
            "total = OrderedDict((name, words.clone())",
            "total = OrderedDict((name, words)",
        ),
    ],
    ("locks/sealed/sealing", "sealed_encoding"): [
        (
            "sealing: a counter outgrows its word",
            "[min(counts.clipped, most), min(counts.infinite, most)]",
            "[counts.clipped, counts.infinite]",
        ),
    ],
    ("locks/sealed/rounds", "sealed_keys"): [
        ("rounds: keys do not depend on the transcript", "self.secrets.transcript,", ""),
        (
            "rounds: keys do not depend on the round",
            '            self.round.to_bytes(8, "big"),\n',
            "",
        ),
        ("rounds: keys do not depend on the chain", "self._chain,\n            json", "json"),
        (
            "rounds: keys do not depend on who takes part",
            "json.dumps([silos, encoding",
            "json.dumps([encoding",
        ),
        ("rounds: keys do not depend on shares", "encoding.shares.samples, encoding", "encoding"),
        ("rounds: keys do not depend on steps", "encoding.steps, steps]", "steps]"),
        (
            "rounds: keys do not depend on the graph",
            "encoding.steps, steps]).encode()",
            "encoding.steps]).encode()",
        ),
        ("rounds: keys do not depend on the schema", "            schema_of(encoding.base),\n", ""),
        (
            "rounds: the chain stays as it was",
            'self._chain = hashlib.sha256(framed(b"chain"',
            '_ = hashlib.sha256(framed(b"chain"',
        ),
        (
            "rounds: secrets stay as they were",
            "        self.secrets = ratcheted(self.secrets)\n",
            "",
        ),
        (
            "rounds: pairs' secrets stay as they were",
            'derive(secrets.group, "ratchet"), pairs=pairs)',
            'derive(secrets.group, "ratchet"))',
        ),
    ],
    ("locks/sealed/rounds", "sealed_secrecy"): [
        ("rounds: a second message is sealed", "        if self._used:\n", "        if False:\n"),
        (
            "rounds: what fails half-way is tried again",
            "        self._used = True  # whatever",
            "        pass  # whatever",
        ),
    ],
    ("locks/sealed/rounds", "sealed_verification"): [
        (
            "rounds: an average may come first",
            "        if not self._sealed or self.record is None:\n",
            "        if self.record is None:\n",
        ),
        (
            "rounds: another first model is taken",
            "        elif self.round or self._used or digest != self._chain:\n",
            "        elif self.round or self._used:\n",
        ),
        (
            "rounds: the first model stands for an average",
            "self.round or self._used or digest",
            "self.round or digest",
        ),
    ],
    ("locks/sealed/rounds", "sealed_state"): [
        (
            "rounds: the first model is the job's own tensors",
            "self.base, self._chain = _kept(first), digest",
            "self.base, self._chain = dict(first), digest",
        ),
        (
            "rounds: an average is the job's own tensors",
            "self.base, self.round = _kept(opened.state), self.round + 1",
            "self.base, self.round = opened.state, self.round + 1",
        ),
    ],
    ("locks/sealed/rounds", "sealed_rounds"): [
        (
            "rounds: another shape is taken for the same tensor",
            "came.shape == tensor.shape and ",
            "",
        ),
    ],
    ("locks/sealed/rounds", "sealed_lock"): [
        (
            "rounds: the farewell says one sample",
            "        samples = self.secrets.samples.get(self.secrets.silo, 1.0)\n",
            "        samples = 1.0\n",
        ),
    ],
    ("locks/sealed/notices", "sealed_notices"): [
        ("notices: of another round", "notice.round == own.round", "True"),
        ("notices: of another model", "notice.chain == own.chain", "True"),
        ("notices: of another schema", "notice.schema == own.schema", "True"),
        (
            "notices: one key for all labels",
            "secrets.pairs[silo], label,",
            'secrets.pairs[silo], "",',
        ),
        ("notices: one nonce both ways", "int(sender > receiver)", "0"),
        ("notices: samples in no order", "for silo in sorted(found)]", "for silo in found]"),
    ],
    ("locks/sealed/record", "sealed_record"): [
        (
            "record: it always opens the silo's own messages",
            "tuple(keys.covers()) if own else ()",
            "tuple(keys.covers())",
        ),
        (
            "record: signs are left out",
            "(np.subtract if sign > 0 else np.add)(part, secret, out=part)",
            "np.subtract(part, secret, out=part)",
        ),
    ],
    ("locks/sealed/transform", "sealed_record"): [
        (
            "transform: a colluder knows all masks",
            "        if colluding and self.silos > 2:\n",
            "        if False:\n",
        ),
    ],
    ("locks/sealed/lock", "sealed_lock"): [
        (
            "lock: a diverged job goes on",
            "        if opened.counts.infinite:\n            raise UpdateRefused(_diverged(done))",
            "        if False:\n            raise UpdateRefused(_diverged(done))",
        ),
        (
            "lock: any first model is taken",
            "        if wanted is not None and not (own if",
            "        if False and not (own if",
        ),
        ("lock: all but one silo may collude", "silos < colluders + 2", "silos < colluders + 1"),
    ],
    ("locks/composed", "sealed_lock"): [
        (
            "lock: the second vault is not encrypted",
            "= self._cipher, self._layout, self._in_turn",
            "= None, self._layout, self._in_turn",
        ),
        (
            "lock: paper's first model is compared before it is locked",
            "        wire.remember(model)\n",
            "",
        ),
    ],
    ("host/key_agreement", "sealed_handshake"): [
        (
            "agreement: samples bound to no rank",
            "nonce, packed, _place(self.rank) + own)",
            "nonce, packed, own)",
        ),
        (
            "agreement: signatures of no rank",
            "self.roster.sign(_place(self.rank) + own)",
            "self.roster.sign(own)",
        ),
        (
            "agreement: signatures are not verified",
            "self.roster.verify(_place(rank) + body, signature, rank=rank)",
            "pass",
        ),
        (
            "agreement: an own hello that was changed",
            "        if hellos.get(self.rank) != self.hello:\n",
            "        if False:\n",
        ),
        (
            "agreement: a hello of any length",
            "            if len(hello) != self.length:\n",
            "            if False:\n",
        ),
        (
            "agreement: pairs bound to no transcript",
            "_place(low) + _place(high) + transcript)",
            "_place(low) + _place(high))",
        ),
        (
            "agreement: the group's bound to no transcript",
            'group = _derive(self.file, b"group" + transcript)',
            'group = _derive(self.file, b"group")',
        ),
        (
            "agreement: a group secret that is no secret",
            'group = _derive(self.file, b"group" + transcript)',
            'group = _derive(b"", b"group" + transcript)',
        ),
        (
            "agreement: the file is not in the group's",
            "_derive(group + handshake.file,",
            "_derive(group,",
        ),
        (
            "agreement: answers bound to no transcript",
            "cipher.encrypt(nonce, group, transcript)",
            "cipher.encrypt(nonce, group, None)",
        ),
        (
            "agreement: the leader draws nothing",
            "group, answers = os.urandom(SECRET), {}",
            "group, answers = bytes(SECRET), {}",
        ),
        (
            "agreement: lengths are not checked before",
            "                if size != length:\n",
            "                if False:\n",
        ),
        (
            "agreement: the transcript is of no hellos",
            "hashlib.sha256(LABEL + listed).digest()",
            "hashlib.sha256(LABEL).digest()",
        ),
    ],
    ("host/roster", "sealed_handshake"): [
        (
            "roster: ranks that are not in it",
            "        if key is None:\n            raise HostError(",
            "        if key is None:\n            return\n            raise HostError(",
        ),
    ],
    ("host/silo_session", "sealed_handshake"): [
        (
            "session: a server leaves silos out",
            "            if len(hellos) != each:",
            "            if False:",
        ),
    ],
    ("locks/rotated/lock", "rotated_wire"): [
        (
            "rotated: a second state is sent",
            "if self._sent.get(self._silo, -1) >= rotation.round:",
            "if False:",
        ),
        ("rotated: silos in turn are one", "        self._silo = silo\n", ""),
        ("rotated: changed integers are sent", "        self._check_integers(payload)\n", ""),
        (
            "rotated: the nonce is not in the key",
            "JobKey.derive(self._secret, self._nonce, digest(message))",
            "JobKey.derive(self._secret, digest(message))",
        ),
        ("rotated: the round does not go on", "            rotation.round = round_index + 1\n", ""),
        (
            "rotated: it is sent as it is",
            "        rotated = rotation.rotate(payload)\n",
            "        rotated = dict(payload)\n",
        ),
    ],
    ("locks/rotated/rotation", "rotated_wire"): [
        ("rotated: a part is sent", "        if missing:\n", "        if False:\n"),
    ],
}
"""By module, and the tests of this folder that should see it: name, what is there, and instead."""

MUTANTS = [
    mutants.Mutant(name, f"{module}.py", old, new, f"plugin_tests/locks/sealed/test_{tests}.py")
    for (module, tests), rows in TABLE.items()
    for name, old, new in rows
]

if __name__ == "__main__":
    mutants.MUTANTS[:] = MUTANTS
    sys.exit(mutants.main())
