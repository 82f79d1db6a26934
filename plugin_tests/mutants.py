"""Takes protections out of a copy, one at a time, and runs the tests that should see it.

`python plugin_tests/mutants.py` runs all, `python plugin_tests/mutants.py gate vault` those whose
name has one of the words. It uses one core. Exit status 1 when a mutant was not seen, or when its
tests fail with nothing taken out.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # once, for all runs

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 300
"""Seconds that the tests of one mutant may take."""


class Mutant(NamedTuple):
    """One line less, or another one, in one file of the product; and the tests that should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


TABLE = {
    ("evaluation/audit/crew", "evaluation/test_audit.py -k forked_worker"): [
        ("audit: forked workers wait for threads", "    torch.set_num_threads(1)\n", ""),
    ],
    ("evaluation/metrics", "evaluation/test_metrics.py"): [
        ("scores: SSIM counts a mirrored border", "[..., border:-border, border:-border]", ""),
    ],
    ("evaluation/audit/score", "evaluation/test_audit.py -k noise_is_no_more"): [
        (
            "scores: what alignment alone gives is no floor",
            '        guesses.setdefault("one colour", []).append(torch.full_like(image, 0.5))\n',
            "",
        ),
    ],
    ("evaluation/audit/subject", "evaluation/test_audit.py -k cannot_run_is_refused"): [
        (
            "scores: pictures are attacked that cannot be scored",
            "        if min(height, width) < WINDOW:\n",
            "        if False:\n",
        ),
    ],
    ("host/fedml/receiving", "host/test_unpickling.py -k malicious_rank"): [
        (
            "messages: one silo sends in another's name",
            "    if named != source or message.get_sender_id() != source:\n",
            "    if False:\n",
        ),
        ("messages: a silo sends to a silo", "    if source and not server:\n", "    if False:\n"),
    ],
    ("host/gate", "locks/sealed/test_sealed_handshake.py"): [
        ("gate: a server leaves silos out", "    if len(hellos) != silos:", "    if False:"),
    ],
    ("host/gate", "host/test_gate.py"): [
        (
            "gate: the mark of a silo's agreement is not checked",
            "            check_mark(entries.get(MARK), agreement, who=who)\n",
            "            pass\n",
        ),
        (
            "gate: an update is taken whatever it holds",
            "            check_state(update, agreement, who=who, partial=True)\n",
            "",
        ),
        (
            "gate: a silo's other entries leave as they are",
            "                entries[name] = check_samples(",
            "                _ = (lambda *_, **__: None)(",
        ),
        (
            "gate: a number leaves in the memory that it is a view of",
            "                entries[name] = check_samples(",
            "                check_samples(",
        ),
        (
            "gate: whatever a trainer returns leaves the silo",
            "            checked = check_state(state, agreement, who=who, partial=True)\n",
            "            checked = state\n",
        ),
        ("gate: what hangs on a tensor leaves with it", "public_copy(released)", "released"),
        (
            "gate: a model without the job's nonce is taken",
            'if not isinstance(nonce, str) or not re.fullmatch("[0-9a-f]{32}", nonce):',
            "if False:",
        ),
        (
            "gate: a silo sends what it has not sealed",
            "released = self.release(checked, float(entries.get(names.samples, 1)))",
            "released = checked",
        ),
        (
            "gate: the server takes what is not sealed",
            "                check_words(update, who=who)\n",
            "                pass\n",
        ),
        (
            "gate: models are sent without the job's nonce",
            "        entries[JOB_NONCE] = self.nonce\n",
            "",
        ),
    ],
    ("host/job_configuration", "host/test_job_configuration.py"): [
        (
            "configuration: a job that names the defense runs without it",
            "        if not hasattr(args, flag):\n",
            "        if False:\n",
        ),
    ],
    ("host/key_agreement", "locks/sealed/test_sealed_handshake.py"): [
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
            "agreement: the transcript is of no hellos",
            "hashlib.sha256(LABEL + listed).digest()",
            "hashlib.sha256(LABEL).digest()",
        ),
        (
            "agreement: no nonce of a start",
            "_nonce: bytes = field(default_factory=lambda: os.urandom(SECRET))",
            "_nonce: bytes = bytes(SECRET)",
        ),
    ],
    ("host/key_agreement", "locks/sealed/test_sealed_vectors.py"): [
        (
            "agreement: hellos are not in their ranks' places",
            'b"".join(_place(rank) + hello for',
            'b"".join(hello for',
        ),
        (
            "agreement: a pair's secret is of no ranks",
            'b"pair" + _place(low) + _place(high) + transcript',
            'b"pair" + transcript',
        ),
    ],
    ("host/link", "host/test_link.py"): [
        (
            "link: a message without its tag is read",
            "        if end < 0 or not hmac.compare_digest(tag, self._tag(message, head)):\n",
            "        if end < 0:\n",
        ),
        ("link: a message comes twice", "        self._received[sender] = number\n", ""),
        (
            "link: a message comes where it does not belong",
            "if receiver != self._rank or number",
            "if number",
        ),
        (
            "link: the tag is not of who sends to whom",
            'made = hmac.new(self._key, head, "sha256")',
            'made = hmac.new(self._key, b"", "sha256")',
        ),
        (
            "link: its secret is the silos' own",
            "if own is not None and not is_server and group_secret(own) == secret:",
            "if False:",
        ),
    ],
    ("host/silo_training", "host/test_silo_session.py"): [
        ("silo: losses of batches are logged", "    if logs:\n", "    if True:\n"),
    ],
    ("host/mailbox", "locks/sealed/test_sealed_handshake.py"): [
        (
            "agreement: lengths are not checked before",
            "                if size != length:\n",
            "                if False:\n",
        ),
    ],
    ("host/pickle_records", "host/test_unpickling.py -k nothing_is_run"): [
        (
            "messages: any class is made",
            '            raise _held(f"{module}.{name}")\n',
            "            return getattr(__import__(module, fromlist=[name]), name)\n",
        ),
    ],
    ("host/public_state", "host/test_public_state.py"): [
        (
            "state: NaN and infinity pass",
            "if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():",
            "if False:",
        ),
        (
            "state: constants of locked layers may be anything",
            "    wrong = _unlike(state, agreement.constants, tolerance)\n",
            "    wrong = None\n",
        ),
    ],
    ("host/roster", "locks/sealed/test_sealed_handshake.py"): [
        (
            "roster: ranks that are not in it",
            "        if key is None:\n            raise HostError(",
            "        if key is None:\n            return\n            raise HostError(",
        ),
    ],
    ("host/self_audit", "host/test_self_audit.py"): [
        (
            "audit: what gives away too much is sent",
            "            if value > limits.get(metric, math.inf):\n",
            "            if False:\n",
        ),
    ],
    ("host/server_session", "host/test_sealed_sessions.py"): [
        (
            "session: a server takes any model for the sum",
            "if averaged and not _is_same(state, self._total):",
            "if False:",
        ),
        (
            "server: an aggregator's own weights are ignored",
            "        if not all(isinstance(number, _Samples) for number, _ in updates):\n",
            "        if False:\n",
        ),
        (
            "session: a server adds up some of the updates",
            "        if len(updates) != each:\n",
            "        if False:\n",
        ),
    ],
    ("host/silo_session", "host/test_forgotten_keys.py"): [
        ("agreement: the own key is kept", "        self._handshake = None\n", ""),
    ],
    ("host/silo_session", "host/test_own_accuracy.py"): [
        (
            "session: what a silo measures leaves it",
            "        if self._tells_accuracy:\n",
            "        if True:\n",
        ),
    ],
    ("host/silo_session", "host/test_sealed_sessions.py"): [
        (
            "session: the server ends the job at any time",
            "if self.defense is not None and self.given < rounds:",
            "if False:",
        ),
        (
            "session: the server is told samples",
            "if state is not None and not self.defense.tells_samples:",
            "if False:",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py"): [
        (
            "silo: a rank takes another silo's data",
            "        if self.defense is not None and chosen not in (silo, None):\n",
            "        if False:\n",
        ),
        (
            "silo: the server chooses who takes part",
            "        return silo_in_turn(self.args, self._trained) if self.seals else None\n",
            "        return None\n",
        ),
        (
            "silo: the next silo keeps the last one's lock",
            "        if self.defense is None or not self.in_turn or self._is_over():\n",
            "        if True:\n",
        ),
    ],
    ("host/update_history", "host/test_gate.py"): [
        (
            "gate: silos of a round may send different names",
            "        check_names(update, self._first[1], who=",
            "        _ = dict(who=",
        ),
        ("gate: an update may come again", "        self._duplicates.check(update, sender)\n", ""),
    ],
    ("locks/composed", "locks/sealed/test_sealed_lock.py"): [
        (
            "lock: paper's first model is compared before it is locked",
            "        self._wire.remember(model)\n",
            "",
        ),
        (
            "composed: paper's public state is sent as it is",
            "return self._wire.seal(model, payload, samples=samples)",
            "return payload",
        ),
    ],
    ("inversion/engine/exact", "inversion/test_second_derivatives.py"): [
        ("norms: layer norm's derivative", "    F.layer_norm: _layer_norm,\n", ""),
        ("norms: instance norm's derivative", "    F.instance_norm: _instance_norm,\n", ""),
        ("norms: batch norm's derivative", "    F.batch_norm: _batch_norm,\n", ""),
    ],
    ("locks/config", "test_settings.py"): [
        ("configuration: fields of another lock are taken", "or kind in locks:", "or True:"),
        (
            "configuration: any aggregator on rotated states",
            'if kind == "rotated" and then not in (None, *COMPARED):',
            "if False:",
        ),
        (
            "configuration: a roster without an identity",
            "if (self.roster is None) != (self.identity is None):",
            "if False:",
        ),
    ],
    ("locks/entropy", "locks/test_entropy.py locks/paper/test_attach.py"): [
        (
            "secrets: keys come from torch's generator",
            "    return uniform_of(os.urandom(4 * math.prod(shape)), shape)\n",
            "    return torch.rand(shape)\n",
        ),
    ],
    ("locks/job_key", "locks/test_job_key.py locks/rotated"): [
        (
            "secrets: every round has the same stream",
            'round_index.to_bytes(8, "big", signed=True)',
            "bytes(8)",
        ),
    ],
    ("locks/paper/private_state", "locks/paper/test_private_state.py"): [
        (
            "private: running statistics of locked layers leave the silo",
            "        state[prefix + name] = torch.full_like(state",
            "        _ = torch.full_like(state",
        ),
    ],
    ("locks/private", "locks/paper/test_private_state.py"): [
        (
            "private: a lock's tensors are in the model's state",
            "    def state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
            "    def _state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
        ),
    ],
    ("locks/private", "locks/paper/test_private_state.py locks/paper/test_attach.py"): [
        (
            "private: a locked model can be pickled",
            "    def __reduce_ex__(self, protocol: Any) -> NoReturn:\n",
            "    def _reduce_ex(self, protocol: Any) -> NoReturn:\n",
        ),
    ],
    ("locks/private", "locks/test_handles.py"): [
        (
            "private: a handle can be pickled",
            "    def __reduce_ex__(self, protocol: Any) -> NoReturn:\n",
            "    def _reduce_ex(self, protocol: Any) -> NoReturn:\n",
        ),
    ],
    ("locks/rotated/lock", "locks/rotated"): [
        (
            "rotated: the first model is not in the key",
            "JobKey.derive(self._secret, self._nonce, digest(message))",
            "JobKey.derive(self._secret, self._nonce)",
        ),
    ],
    ("locks/rotated/lock", "locks/sealed/test_rotated_wire.py"): [
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
        (
            "rotated: an average of any round is loaded",
            "            if rotation.is_like(restored):\n",
            "            if True:\n",
        ),
    ],
    ("locks/rotated/orthogonal", "locks/rotated/test_orthogonal.py"): [
        (
            "rotated: signs are of one kind",
            "self._passes.append((stream.signs(self._inside), block",
            "self._passes.append((stream.signs(self._inside).abs(), block",
        ),
    ],
    ("locks/rotated/rotation", "locks/sealed/test_rotated_wire.py"): [
        ("rotated: a part is sent", "        if missing:\n", "        if False:\n"),
    ],
    ("locks/rotated/turns", "locks/rotated"): [
        (
            "rotated: parts are rotated alike",
            "self.key.stream(LABEL + part.label, self.round_index)",
            "self.key.stream(LABEL, self.round_index)",
        ),
        (
            "rotated: a first model is rotated",
            "        if self.round_index == OPEN:\n",
            "        if False:\n",
        ),
        (
            "rotated: variances come back negative",
            "return flat if part.least is None else flat.clamp(min=part.least)",
            "return flat",
        ),
    ],
    ("locks/sealed/encoding", "locks/sealed/test_sealed_encoding.py"): [
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
    ],
    ("locks/sealed/encoding", "locks/sealed/test_sealed_state.py"): [
        (
            "encoding: float64 payloads are written to",
            "own.to(torch.float64, copy=True)",
            "own.double()",
        ),
        ("encoding: zeros lose their sign", "        if still.any():", "        if False:"),
    ],
    ("locks/sealed/entries", "locks/sealed/test_sealed_encoding.py"): [
        (
            "encoding: the form depends on numbers",
            "    elif tensor.dim() != 2 and ",
            "    elif bool(tensor.any()) and tensor.dim() != 2 and ",
        ),
    ],
    ("locks/sealed/first_model", "locks/sealed/test_sealed_lock.py"): [
        (
            "lock: any first model is taken",
            "        if self.wanted is not None and not (",
            "        if False and (",
        ),
        (
            "lock: another digest is taken for the wanted one",
            "digest.hex() == self._pinned",
            "True",
        ),
        (
            "lock: another model is taken for the own one",
            "self._own.get(name) == digest_of({name: t})",
            "True",
        ),
    ],
    ("locks/sealed/keystream", "locks/sealed/test_sealed_keys.py"): [
        ("keys: the context is not in them", "label.encode(), *context)", "label.encode())"),
        ("keys: all purposes have one", "label.encode(), *context)", 'b"", *context)'),
        (
            "keys: parts are joined without their lengths",
            'len(part).to_bytes(8, "big") + part',
            "part",
        ),
    ],
    ("locks/sealed/keystream", "locks/sealed/test_sealed_reference.py"): [
        (
            "keystream: words are those of no key",
            'return np.frombuffer(self._draw(4 * count), dtype="<i4")',
            'return np.frombuffer(Keystream(bytes(32))._draw(4 * count), dtype="<i4")',
        ),
    ],
    ("locks/sealed/lock", "locks/sealed/test_sealed_lock.py"): [
        ("lock: silos compare nothing at the end", "        held.agreed()\n", ""),
        (
            "lock: the vault opens a silo's own messages",
            "own = rounds.record.covers if self.config.keep_history else ()",
            "own = rounds.record.covers",
        ),
    ],
    ("locks/sealed/model_files", "locks/sealed/test_sealed_record.py"): [
        (
            "checkpoint: the sum of another round is opened",
            "    if round_index is not None and round_index != record.round:\n",
            "    if False:\n",
        ),
    ],
    ("locks/sealed/neighbours", "locks/sealed/test_sealed_lock.py"): [
        ("lock: all but one silo may collude", "silos < colluders + 2", "silos < colluders + 1"),
    ],
    ("locks/sealed/neighbours", "locks/sealed/test_sealed_neighbours.py"): [
        (
            "neighbours: too few",
            "min(complete, colluders // 2 + 1)",
            "min(complete, (colluders + 1) // 2)",
        ),
        ("neighbours: to one side only", "for sign in (1, -1)}", "for sign in (1,)}"),
    ],
    ("locks/sealed/notices", "locks/sealed/test_sealed_notices.py"): [
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
        (
            "notices: other samples than at the start",
            "        if said[secrets.silo] != secrets.samples.get(secrets.silo, own.samples):\n",
            "        if False:\n",
        ),
    ],
    ("locks/sealed/notices", "locks/sealed/test_sealed_vectors.py"): [
        (
            "notices: they are of any job",
            "secrets.pairs[silo], label, secrets.transcript",
            "secrets.pairs[silo], label",
        ),
    ],
    ("locks/sealed/record", "locks/sealed/test_sealed_record.py"): [
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
    ("locks/sealed/rehearsal", "locks/sealed/test_sealed_lock.py"): [
        ("lock: a diverged job goes on", "    if opened.counts.infinite:\n", "    if False:\n"),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_keys.py"): [
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
        (
            "rounds: a model's digest is of no numbers",
            "        found.update(raw(state[name]))\n",
            "        pass\n",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_lock.py"): [
        (
            "rounds: the farewell says one sample",
            "        samples = self.secrets.samples.get(self.secrets.silo, 1.0)\n",
            "        samples = 1.0\n",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_notices.py"): [
        (
            "rounds: what was sealed for other numbers is sent",
            "        same = early and before == self._numbers\n",
            "        same = early\n",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_rounds.py"): [
        (
            "rounds: another shape is taken for the same tensor",
            "came.shape == tensor.shape and ",
            "",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_secrecy.py"): [
        ("rounds: a second message is sealed", "        if self._used:\n", "        if False:\n"),
        (
            "rounds: what fails half-way is tried again",
            "        self._used = True  # whatever",
            "        pass  # whatever",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_state.py"): [
        (
            "rounds: the first model is the job's own tensors",
            "self.base, self._chain = _kept(first), digest",
            "self.base, self._chain = dict(first), digest",
        ),
        (
            "rounds: an average is the job's own tensors",
            "{**self.base, **_kept(opened.state)}",
            "{**self.base, **opened.state}",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_vectors.py"): [
        ("rounds: a schema has no types", "{list(e.shape)} {e.dtype}", "{list(e.shape)}"),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_verification.py"): [
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
    ("locks/sealed/seal_transform", "locks/sealed/test_sealed_record.py"): [
        ("transform: a colluder knows all masks", "        if colluding:\n", "        if False:\n"),
    ],
    ("locks/sealed/sealing", "locks/sealed/test_sealed_chain.py"): [
        ("sealing: the digest is of no words", "            digest.update(part.data)\n", ""),
    ],
    ("locks/sealed/sealing", "locks/sealed/test_sealed_encoding.py"): [
        (
            "sealing: a counter outgrows its word",
            "[min(counts.clipped, most), min(counts.infinite, most)]",
            "[counts.clipped, counts.infinite]",
        ),
    ],
    ("locks/sealed/sealing", "locks/sealed/test_sealed_keys.py"): [
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
    ("locks/sealed/sealing", "locks/sealed/test_sealed_neighbours.py"): [
        ("sealing: no pad of its own", "        found.append((self.pad_key(self.place), 1))\n", ""),
        (
            "sealing: no pad of the next",
            "            found.append((self.pad_key(self.place + 1), -1))\n",
            "            pass\n",
        ),
        ("sealing: both of a pair add their mask", "1 if self.place < n else -1", "1"),
    ],
    ("locks/sealed/sealing", "locks/sealed/test_sealed_secrecy.py"): [
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
    ("locks/sealed/sealing", "locks/sealed/test_sealed_verification.py"): [
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
            "add = torch.add if message is more[0] else Tensor.add_",
            "add = Tensor.add_",
        ),
        (
            "sealing: a sum wears no pad",
            "part = words - pad.words(len(words))",
            "part = words.copy()",
        ),
    ],
    ("locks/sealed/shares", "locks/sealed/test_sealed_encoding.py"): [
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
    ],
    ("locks/sealed/tag", "locks/sealed/test_sealed_verification.py"): [
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
    ("locks/vault/disk", "locks/vault/test_vault.py"): [
        (
            "vault: files are readable by others",
            "                file.write(content)\n",
            "                file.write(content)\n                os.chmod(name, 0o644)\n",
        ),
        (
            "vault: files that others can read are taken",
            "who: str, path: Path) -> None:\n",
            "who: str, path: Path) -> None:\n    return\n",
        ),
    ],
    ("locks/vault/file", "locks/vault/test_vault.py"): [
        (
            "vault: a damaged file is loaded",
            'if self.header.get("sha256") != _checksum(self.header, tensors):',
            "if False:",
        ),
    ],
    ("locks/vault/silo", "locks/vault/test_vault.py"): [
        (
            "vault: another silo's file is loaded",
            "            if stored.header.get(name) != value:\n",
            "            if False:\n",
        ),
    ],
}
"""By file, and the tests that should see it: name, what is there, and instead."""

MUTANTS = [
    Mutant(
        name,
        f"fedml_keylock/{file}.py",
        old,
        new,
        tuple(
            f"plugin_tests/{one}" if ".py" in one or "/" in one else one for one in tests.split()
        ),
    )
    for (file, tests), rows in TABLE.items()
    for name, old, new in rows
]


def copied(folder):
    """A copy of the project, without results."""
    for part in (
        "fedml_keylock",
        "plugin_tests",
        "docs",
        "examples",
        "pyproject.toml",
        "README.md",
    ):
        source = ROOT / part
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, folder / part, ignore=skip)
        else:
            shutil.copy(source, folder / part)


def status(tests, copy):
    """Exit status of the tests in a copy, in a process that has what all of them import."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
        own = (ROOT, ROOT / "plugin_tests")  # no more: a .venv in ROOT has the libraries
        elsewhere = [path for path in sys.path if Path(path) not in own]
        sys.path[:] = [str(copy), *elsewhere]
        os._exit(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]))
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def seen(mutant, copy, number):
    """Whether the tests fail without the line; None where the line is not there."""
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return None
    try:
        path.write_text(text.replace(mutant.old, mutant.new))
        os.utime(path, (number, number))  # or Python would take what it has compiled of another one
        return status(mutant.tests, copy) == 1
    finally:
        path.write_text(text)


def main():
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copied(copy)
        for tests in sorted({mutant.tests for mutant in chosen}):
            if status(tests, copy) != 0:
                print(f"CONTROL  {' '.join(tests)} fails with nothing taken out", flush=True)
                missed += 1
        for number, mutant in enumerate(chosen, 1):
            found = seen(mutant, copy, number)
            word = {True: "seen", False: "NOT SEEN", None: "GONE: its line is not there"}[found]
            print(f"{word:8} {mutant.name}", flush=True)
            missed += found is not True
    print(f"{len(chosen)} mutants, {missed} not seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
