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

import fedml  # noqa: F401  # once, for all runs
import hypothesis.strategies  # noqa: F401
import pytest
import torch

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
    ("evaluation/audit/sums", "evaluation/test_sums.py"): [
        ("sums: a round has as many silos as asked", "if count < silos:", "if False:"),
        ("sums: of any rounds", "(subject.stages[row], update.round)", "(subject.stages[row], 0)"),
        ("sums: silos weigh the same", "(u.samples / total)", "(1 / len(updates))"),
        ("sums: of silos that began with other models", "if not same or", "if"),
        (
            "sums: of updates of other rates",
            "if not same or other.learning_rate != first.learning_rate:",
            "if not same:",
        ),
        ("sums: of models that are locked", "if transform is None:", "if False:"),
        (
            "sums: of updates that a peer opens",
            "if all(torch.equal(own[name]",
            "if not all(torch.equal(own[name]",
        ),
        ("sums: of updates that nobody opens", "if secrets is None:", "if False:"),
        (
            "sums: batch norm is one step too",
            "if training is None and not _is_one_step(subject, plain, groups[0]):",
            "if False:",
        ),
        (
            "sums: what is sealed is the sum",
            "subject.defense: recovered(subject)",
            "subject.defense: subject.updates",
        ),
    ],
    ("evaluation/audit/plan", "evaluation/test_sums.py"): [
        ("sums: an attacker knows how many pictures", '"batch": silos * subject.batch, ', ""),
    ],
    ("evaluation/evidence", "evaluation/test_sums.py"): [
        ("sums: a light is made of them", "if not row.knowledge.startswith(SUM)]", "]"),
    ],
    ("evaluation/audit/procedure", "evaluation/test_sums.py"): [
        (
            "sums: a cost counts for each silo",
            "cost[[rows[0] for rows in groups]] = scored.cost",
            "for rows, one in zip(groups, scored.cost): cost[rows] = one",
        ),
    ],
    ("inversion/engine/objective", "evaluation/test_sums.py"): [
        ("sums: one silo has all pictures", "order.chunk(self.knowledge.silos, 1)", "[order]"),
    ],
    ("inversion/engine/local_training", "evaluation/test_sums.py"): [
        (
            "sums: an order is over all silos' pictures",
            "(noise + torch.arange(silos)",
            "(noise + 0 * torch.arange(silos)",
        ),
    ],
    ("inversion/knowledge", "evaluation/test_sums.py"): [
        ("sums: pictures that no silo has", "if self.batch % self.silos:", "if False:"),
    ],
    ("commands/subjects", "evaluation/test_sums.py"): [
        (
            "sums: noise is of a job that is not there",
            "if request.sums and defense is not None and defense.adds_noise:",
            "if False:",
        ),
    ],
    ("commands/attacking", "evaluation/test_sums.py"): [
        (
            "sums: of no silos",
            "if not all(word.isdecimal() and int(word) for word in words):",
            "if False:",
        ),
    ],
    ("host/active_server", "host/test_active_server.py"): [
        ("active server: models in the open under a lock", "if hidden and index:", "if False:"),
        (
            "active server: any attack sends models",
            "if not isinstance(attack, ActiveAttack):",
            "if False:",
        ),
        (
            "active server: the job goes on from its model",
            "if round_index == self.round + 1 and self.restores and self._armed:",
            "if False:",
        ),
        ("active server: every round is attacked", "if round_index == self.round:", "if True:"),
        (
            "active server: it is not said",
            'f"fedml-keylock: this server ATTACKS',
            'f"fedml-keylock:',
        ),
    ],
    ("host/observer", "host/test_active_server.py"): [
        (
            "active server: a silo's own model is taken for everyone's",
            "if self.active is not None and silo in self.active.own:\n            return self",
            "if False:\n            return self",
        ),
    ],
    ("evaluation/section", "host/test_active_server.py"): [
        (
            "active server: it is on by itself",
            "active: str | None = None",
            'active: str = "imprint"',
        ),
    ],
    ("locks/sealed/first_model", "jobs/test_active_jobs.py -m long -k pins"): [
        (
            "active server: a pinned first model is another",
            "if self.wanted is not None and not (",
            "if False and not (",
        ),
    ],
    ("inversion/text/dager", "inversion/test_dager.py"): [
        ("dager: a span of everything is searched", "if one.rank >= width - 1:", "if False:"),
        (
            "dager: a layer that lacks tokens is believed",
            "if behind.rank < span.rank:",
            "if False:",
        ),
        (
            "dager: repeats of a first token pass for texts",
            "texts = _without_repeats(texts)",
            "pass",
        ),
    ],
    ("inversion/text/assembly", "inversion/test_dager.py"): [
        ("dager: a search without an end goes on", "if len(prefixes) > most:", "if False:"),
    ],
    ("inversion/text/attention", "inversion/test_dager.py"): [
        (
            "dager: the first step of adapters is not told",
            'if any(".lora_A." in name for name in names):',
            "if False:",
        ),
    ],
    ("inversion/text/span", "inversion/test_dager.py"): [
        (
            "dager: a rank is made of noise",
            "if not len(falls) or falls.max() < _GAP:",
            "if not len(falls):",
        ),
    ],
    ("commands/deploy", "test_cli_weights.py -k refused_in_one_line"): [
        ("weights: a pickle is run", "weights_only=True)\n", "weights_only=False)\n"),
    ],
    ("evaluation/audit/pictures", "evaluation/test_pictures.py"): [
        (
            "pictures: hidden folders are classes",
            "if path.is_dir() and not _is_hidden(path))",
            "if path.is_dir())",
        ),
        (
            "pictures: hidden files are read",
            "path.is_file() and not _is_hidden(path)",
            "path.is_file()",
        ),
        (
            "pictures: 16 bits are cut off at 8",
            'grey16 = upright.mode.startswith("I")',
            "grey16 = False",
        ),
        ("pictures: alpha is dropped", "if not picture.has_transparency_data:", "if True:"),
        ("pictures: one colour is attacked", "if bool(of_one_colour(image)):", "if False:"),
        (
            "pictures: empty classes shift labels",
            "for path in folder.iterdir() if path.is_dir()",
            "for path in folder.iterdir() if path.is_dir() and _pictures(path)",
        ),
    ],
    ("evaluation/audit/subject", "evaluation/test_pictures.py"): [
        (
            "pictures: public labels are not the model's",
            '            check_labels(self.public.labels, self.classes, whose="public labels")\n',
            "            pass\n",
        ),
    ],
    ("evaluation/metrics", "evaluation/test_pictures.py -k one_colour"): [
        (
            "scores: what is of one colour is recognised",
            "channels.masked_fill(flat_channels(truth), torch.nan).nanmean(1)",
            "channels.mean(1)",
        ),
    ],
    ("host/public_state", "host/test_public_state.py -k finite"): [
        (
            "state: an infinite number in a weight is sent",
            "odd = torch.isnan if name in agreement.infinite else _not_finite",
            "odd = torch.isnan",
        ),
    ],
    ("host/session", "host/test_silo_session.py -k average_has_integers"): [
        (
            "average: integers are cut off",
            "{**state, **integers}, state) if integers else state",
            "state, state)",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py -k average_has_integers"): [
        (
            "average: integers are cut off when a silo loads it",
            "opened if self.seals else self.with_integers(opened)",
            "opened",
        ),
    ],
    ("host/silo_session", "host/test_key_agreement.py -k weighs_nothing"): [
        (
            "agreement: a silo that weighs nothing trains",
            "samples = self._said = self.check_samples(",
            "samples = self._said = (lambda number: number)(",
        ),
    ],
    ("host/silo_session", "host/test_key_agreement.py -k as_fedml_reads"): [
        (
            "agreement: a silo weighs another number than it has told",
            "if self.seals and self._said not in (None, number):",
            "if False:",
        ),
    ],
    ("host/self_audit", "host/test_self_audit.py -k one_colour"): [
        (
            "audit: a silo attacks pictures of one colour",
            "if not telling or not kept.any():",
            "if True:",
        ),
    ],
    ("locks/paper/placement", "locks/paper/test_opacus.py"): [
        (
            "paper: a model that opacus watches is locked",
            "if any(hasattr(parameter, PER_EXAMPLE) for parameter in model.parameters()):",
            "if False:",
        ),
    ],
    ("locks/paper/trace", "locks/paper/test_attach.py -k buffer_that_counts"): [
        ("paper: a trace changes buffers", "with buffers_kept(modules):", "if True:"),
    ],
    ("locks/rotated/round_rotation", "locks/rotated/test_rotation.py -k infinite"): [
        ("rotation: infinite numbers", "for name in infinite_in(state):", "for name in ():"),
    ],
    ("locks/sealed/shares", "locks/sealed/test_sealed_rounds.py -k fractions"): [
        (
            "shares: small fractions weigh alike",
            "up = BITS - math.frexp(max(numbers))[1]",
            "up = 20",
        ),
    ],
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
            "        if not hmac.compare_digest(tag, self._tag(message, head)):\n",
            "        if False:\n",
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
            "if (tensor.is_floating_point() or tensor.is_complex()) and odd(tensor).any():",
            "if False:",
        ),
        (
            "state: constants of locked layers may be anything",
            "    wrong = _unlike(state, agreement.constants, tolerance)\n",
            "    wrong = None\n",
        ),
        (
            "state: private names leave the silo",
            "        if name not in agreement.shapes:\n            raise",
            "        if False:\n            raise",
        ),
        ("state: any shape passes", "    if tuple(tensor.shape) != shape:\n", "    if False:\n"),
        (
            "state: any type passes",
            "    if tensor.dtype != dtype and not (averaged",
            "    if False and not (averaged",
        ),
        (
            "state: a view brings its memory",
            "            bare = bare.clone()\n",
            "            pass\n",
        ),
        ("state: modules may say anything of themselves", " if isinstance(v, int) and v != 1", ""),
        (
            "state: a part passes for a whole",
            "        elif not partial:\n",
            "        elif False:\n",
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
        (
            "audit: what cannot be audited is sent, whatever the limit",
            "            if self.settings.abort_above:  # what cannot be judged is not sent\n",
            "            if False:\n",
        ),
        (
            "audit: an attack that fails beside another is no matter to a limit",
            "in (failed | dict.fromkeys(",
            "in ({} | dict.fromkeys(",
        ),
        (
            "audit: an attack that diverged is no matter to a limit",
            "in (failed | dict.fromkeys(lost",
            "in (failed | dict.fromkeys(()",
        ),
        (
            "audit: an error of torch ends the job",
            "        except Exception as error:  # from an attack",
            "        except KeyLockError as error:  # of an attack",
        ),
    ],
    ("evaluation/audit/score", "host/test_self_audit.py"): [
        (
            "scores: the worst picture is the mean's",
            "(sign * values).nan_to_num(-torch.inf).argmax()",
            "(values - values.nanmean()).abs().nan_to_num(torch.inf).argmin()",
        ),
    ],
    ("evaluation/audit/controls", "evaluation/test_audit.py -k silos_loss"): [
        ("audit: controls are trained with cross entropy", "loss=subject.loss,\n", ""),
    ],
    ("evaluation/audit/plan", "evaluation/test_audit.py -k silos_loss"): [
        (
            "audit: cross entropy is attacked, whatever the loss",
            '            "loss": subject.loss,\n',
            "",
        ),
    ],
    ("host/compatibility", "host/test_compatibility.py -k contributions"): [
        (
            "job: FedML assesses locked silos' contributions",
            'if defense is not None and getattr(args, "enable_contribution", False):',
            "if False:",
        ),
    ],
    ("host/job_loss", "host/test_job_loss.py"): [
        (
            "loss: a guess is not said to be one",
            "        return replace(CROSS_ENTROPY, assumed=True)\n",
            "        return CROSS_ENTROPY\n",
        ),
        (
            "loss: FedML's trainer is believed though its train is another",
            'next((one for one in type(trainer).__mro__ if "train" in vars(one)), type(trainer))',
            "next((one for one in type(trainer).__mro__ if _OWN in one.__module__), type(trainer))",
        ),
    ],
    ("inversion/labels/__init__", "inversion/test_losses.py"): [
        (
            "labels: read off whatever the loss",
            "    if (reason := not_recovered(knowledge)) is not None:\n",
            "    if (reason := None) is not None:\n",
        ),
    ],
    ("inversion/labels/one", "inversion/test_losses.py"): [
        (
            "labels: a smoothed label is named though the model is surer",
            "    if (least > -smoothing / bias.shape[1] * (1 + 1e-3) - 1e-6).any():\n",
            "    if False:\n",
        ),
    ],
    ("inversion/engine/objective", "inversion/test_losses.py -k true_images"): [
        (
            "objective: cross entropy, whatever the loss",
            "return self.knowledge.loss(outputs, labels), found",
            "return torch.nn.functional.cross_entropy(outputs, labels), found",
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
        (
            "session: an aggregator may change the sum in place",
            "words.clone()) for name",
            "words) for name",
        ),
        (
            "session: an aggregator may change single updates",
            "        if any(dtype != torch.int32 for dtype in words):\n",
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
        ("attacks: hardsigmoid's derivative", "    F.hardsigmoid: _hardsigmoid,\n", ""),
        ("attacks: attention in a fused kernel", "            sdpa_kernel(SDPBackend.MATH),\n", ""),
    ],
    ("inversion/engine/exact", "inversion/test_any_model.py"): [
        ("attacks: functional dropout draws", "            F.dropout,\n", ""),
        (
            "attacks: a reentrant checkpoint has no gradient",
            '            patch.object(torch.utils.checkpoint, "CheckpointFunction", _Whole),\n',
            "",
        ),
    ],
    ("inversion/engine/probe", "inversion/test_any_model.py"): [
        ("attacks: a model draws its masks", "        switch_off(model, run)\n", ""),
        (
            "attacks: a derivative that is not there is left out",
            "    size.backward()",
            "    images.grad = torch.autograd.grad(size, images)[0]",
        ),
    ],
    ("inversion/engine/probe", "inversion/test_second_derivatives.py -k wrongly"): [
        (
            "attacks: whatever vmap says is believed",
            "        if _same(alone, together) or _same",
            "        if True or _same",
        ),
    ],
    ("inversion/engine/objective", "inversion/test_any_model.py"): [
        (
            "attacks: buffers go on from step to step",
            "        fixed = copied(fixed)",
            "        pass",
        ),
    ],
    ("inversion/engine/observe", "inversion/test_any_model.py"): [
        (
            "attacks: tied weights have one name",
            "**dict(model.named_parameters(remove_duplicate=False)),",
            "**dict(model.named_parameters()),",
        ),
        (
            "attacks: a wrapped model is another one",
            "    updates = [_named_as(update, tensors) for update in updates]\n",
            "",
        ),
    ],
    ("evaluation/trials", "evaluation/test_audit.py -k others_go_on"): [
        (
            "attacks: any other error ends the audit",
            "    except Exception as error:  # any failure",
            "    except ZeroDivisionError as error:  # any failure",
        ),
    ],
    ("tensors", "inversion/test_any_model.py"): [
        (
            "attacks: an old weight norm is not copied",
            "copy = deep_copy(model)",
            "copy = deepcopy(model)",
        ),
    ],
    ("host/fedml/receiving", "host/test_receiving.py -k grpc"): [
        (
            "messages: gRPC's are read as FedML reads them",
            "        _make_careful(self.com_manager, session)\n",
            "        pass\n",
        ),
    ],
    ("host/gate", "host/test_gate.py host/test_silo_session.py"): [
        (
            "gate: a silo takes any model of the server's",
            "state = check_state(state, agreement, who=who, averaged=True, partial=True)",
            "pass",
        ),
        (
            "gate: a sealed silo takes anything for a model",
            "            state = check_payload(state, who=who)\n",
            "            pass\n",
        ),
    ],
    ("host/one_process", "host/test_one_process.py"): [
        (
            "simulation: a silo takes any model of the server's",
            'check_state(state, self._agreed(), who="the server\'s model", averaged=True)',
            "pass",
        ),
        (
            "simulation: whatever a trainer returns leaves the silo",
            "checked = check_state(state, agreement, who=who)",
            "checked = state",
        ),
        (
            "simulation: a view brings its memory",
            "state = public_copy(self._seal(checked, float(samples)))",
            "state = self._seal(checked, float(samples))",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py -k tells_its_defense"): [
        ("silo: the job's nonce is ignored", "        self.defense.begin_job(nonce)\n", ""),
    ],
    ("host/silo_session", "host/test_silo_session.py -k of_another_model"): [
        (
            "silo: a trainer trains another model than the locked one",
            "            check_trainer(trainer, self.model, who=self.who)\n",
            "            pass\n",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py -k shares_a_secret"): [
        (
            "silo: a model comes before the silos have agreed",
            "if self._credentials is not None and not self._shared:",
            "if False:",
        ),
    ],
    ("host/unpickling", "host/test_receiving.py -k storage"): [
        ("messages: a storage may be on any device", " and _PLACE.fullmatch(place)", ""),
    ],
    ("locks/protocol", "locks/test_agreement.py"): [
        (
            "agreement: a setting is not in the mark",
            'own |= {"checkpoint",',
            'own |= {"colluders", "checkpoint",',
        ),
        (
            "agreement: no setting is in the mark",
            'self.config.model_dump(mode="json", exclude=own | server) | grouped',
            "grouped",
        ),
    ],
    ("disk", "locks/vault/test_vault_modes.py"): [
        (
            "vault: a lock file is everybody's to write",
            "        descriptor = os.open(path, flags, 0o600)\n",
            "        descriptor = os.open(path, flags, 0o666)\n",
        ),
        (
            "vault: a lock file may be a link",
            "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
            "os.O_RDWR | os.O_CREAT",
        ),
        (
            "vault: a silo's own log is everybody's to read",
            'os.open(path, flags, 0o600), "a"',
            'os.open(path, flags, 0o666), "a"',
        ),
        (
            "vault: a silo's own log may be a link",
            "os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW",
            "os.O_APPEND | os.O_CREAT | os.O_CLOEXEC",
        ),
        ("vault: its folder is everybody's", "exist_ok=True, mode=0o700", "exist_ok=True"),
    ],
    ("host/gate", "host/test_gate.py -k samples"): [
        (
            "gate: any number of samples is taken",
            " or not math.isfinite(number) or number <= 0:",
            ":",
        ),
    ],
    ("host/gate", "host/test_gate.py -k attacks"): [
        (
            "gate: attacks are given parts of a state",
            "            check_attackable(update, before or {}, who=who)\n",
            "            pass\n",
        ),
    ],
    ("host/gate", "host/test_gate.py -k emits_constants"): [
        (
            "gate: a server sends constants that it has changed",
            "            state.update(pinned(state, agreement))\n",
            "            pass\n",
        ),
    ],
    ("host/public_state", "host/test_gate.py -k refuses_any_other"): [
        ("state: an empty state passes", "    if partial and not state:\n", "    if False:\n"),
    ],
    ("host/one_process", "host/test_start_checks.py -k simulation"): [
        (
            "simulation: what nothing writes is asked for",
            "            check_sealing(self.args)\n",
            "            pass\n",
        ),
    ],
    ("host/session", "host/test_start_checks.py -k single_updates"): [
        (
            "start: a server may change single sealed updates",
            "            check_sealing(self.args)\n",
            "            pass\n",
        ),
    ],
    ("host/session", "host/test_sealed_sessions.py host/test_key_agreement.py"): [
        (
            "agreement: over gRPC with neither roster nor group_key",
            "if credentials is not None and not credentials.group_key and not self._comm:",
            "if False:",
        ),
        (
            "start: silos in turn cannot say who takes part",
            "if self.seals and self._comm is None and self.in_turn:",
            "if False:",
        ),
    ],
    ("host/session", "host/test_start_checks.py -k module"): [
        (
            "start: a job without a model is locked",
            "        if not isinstance(model, nn.Module):\n",
            "        if False:\n",
        ),
    ],
    ("host/session_of", "host/test_job_configuration.py host/test_compatibility.py"): [
        ("start: settings that FedML would ignore", "    check_switches(args)\n", ""),
    ],
    ("host/session_of", "host/test_compatibility.py"): [
        (
            "start: jobs of any kind are defended",
            "    check_job(args, name, defense.robust_aggregation if defense else None)\n",
            "",
        ),
    ],
    ("host/compatibility", "host/test_compatibility.py"): [
        ("start: what does not fit is run", "        if not fits:\n", "        if False:\n"),
        (
            "start: any defense of FedML's runs beside the lock",
            "    if robust_aggregation not in ROBUST_AGGREGATIONS:\n",
            "    if False:\n",
        ),
    ],
    ("host/compatibility", "host/test_start_checks.py -k single_updates"): [
        (
            "start: FedML attacks sealed updates",
            'if getattr(args, "enable_attack", False) and attack in _ON_STATES:',
            "if False:",
        ),
        (
            "start: FedML adds noise to sealed updates",
            'if getattr(args, "enable_dp", False) and word(args, "dp_solution_type") == "cdp":',
            "if False:",
        ),
    ],
    ("host/compatibility", "host/test_link.py"): [
        (
            "start: a link key that nothing uses",
            'if settings.get("link_key") is not None and args.backend != "GRPC":',
            "if False:",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_start_checks.py -k flow"): [
        (
            "start: a flow of algorithms is run undefended",
            "        if algorithm_flow is not None:\n",
            "        if False:\n",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_start_checks.py -k greets"): [
        (
            "agreement: silos do not greet",
            "            session.greeting = _greeting()\n",
            "            pass\n",
        ),
    ],
    ("host/key_agreement", "host/test_start_checks.py -k greeting"): [
        (
            "agreement: a hello comes without the greeting",
            "dict.fromkeys(others, greeting + hello)",
            "dict.fromkeys(others, hello)",
        ),
    ],
    ("host/fedml/receiving", "host/test_start_checks.py -k pickles"): [
        (
            "messages: a FedML that pickles elsewhere is taken",
            '    if "pickle" not in function.__code__.co_names:\n',
            "    if False:\n",
        ),
    ],
    ("host/fedml/receiving", "host/test_receiving.py -k not_defended"): [
        (
            "messages: a rank without the flag reads hellos",
            "            self.comm = _undefended(self.comm)\n",
            "            pass\n",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py -k there_is_not"): [
        (
            "silo: there is no such silo",
            "if not 0 <= silo < int(self.args.client_num_in_total):",
            "if False:",
        ),
    ],
    ("host/silo_session", "host/test_silo_session.py -k copy"): [
        (
            "silo: what was trained in a copy is sent",
            "            check_untrained(sent, self.model.state_dict(), who=self.who)\n",
            "            pass\n",
        ),
    ],
    ("host/silo_session", "host/test_start_checks.py -k vault"): [
        (
            "silo: an error of its vault has no name",
            "raise self._located(error) from None\n        if trained",
            "raise\n        if trained",
        ),
    ],
    ("host/roster", "host/test_roster.py"): [
        (
            "roster: an identity is another rank's",
            "if self._keys.get(rank) != self._private.public_key()",
            "if False and self._private.public_key()",
        ),
    ],
    ("host/roster", "test_cli_roster.py host/test_roster.py"): [
        (
            "roster: a private key is written over",
            "    if os.path.lexists(path):\n",
            "    if False:\n",
        ),
        (
            "roster: two silos have one key",
            "        if known == key and other != rank:\n",
            "        if False:\n",
        ),
    ],
    ("host/roster", "host/test_start_checks.py -k roster"): [
        ("roster: a rank may be a truth value", " or isinstance(rank, bool)", ""),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py -k nonce_of_its_own"): [
        ("vault: nonces are one", "nonce = os.urandom(NONCE)", "nonce = bytes(NONCE)"),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py"): [
        ("vault: salts are one", "Kdf(os.urandom(SALT))", "Kdf(bytes(SALT))"),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py -k header"): [
        (
            "vault: the header is not authenticated",
            "return json.dumps(dict(header), sort_keys=True).encode()",
            'return b""',
        ),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py -k gigabytes"): [
        ("vault: a file may ask for gigabytes", " or 128 * n * r > MEMORY", ""),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py -k cipher_shows"): [
        (
            "vault: a cipher is pickled with its passphrase",
            "    def __reduce_ex__(self, protocol: object) -> NoReturn:\n",
            "    def _reduce(self, protocol: object) -> NoReturn:\n",
        ),
    ],
    ("locks/vault/cipher", "locks/vault/test_vault_crypto.py -k passphrase"): [
        (
            "vault: a passphrase file that others may read",
            'with open_private(Path(path), what=f"{names_file}:", follow=True) as file:',
            'with open(path, "rb") as file:',
        ),
    ],
    ("locks/vault/file", "locks/vault/test_vault_crypto.py -k needs_the_flag"): [
        (
            "vault: an encrypted one is opened as a plain one",
            "        if self.sealed and cipher is None:\n",
            "        if False:\n",
        ),
    ],
    ("locks/vault/file", "locks/vault/test_vault_crypto.py -k under_the_flag"): [
        (
            "vault: a plain one is taken for an encrypted one",
            "        if cipher is not None and not self.sealed:\n",
            "        if False:\n",
        ),
    ],
    ("locks/vault/file", "locks/vault/test_vault.py -k foreign"): [
        ("vault: a foreign file is read", 'if header.get("schema") != SCHEMA:', "if False:"),
    ],
    ("disk", "locks/vault/test_vault.py -k someone_elses"): [
        (
            "vault: someone else's file or folder is used",
            "    if found.st_uid != os.geteuid():\n",
            "    if False:\n",
        ),
    ],
    ("disk", "locks/vault/test_vault.py -k link_in_the_files_place"): [
        ("vault: a file may be a link", "(0 if follow else os.O_NOFOLLOW)", "0"),
    ],
    ("disk", "locks/vault/test_vault.py -k on_disk_before"): [
        (
            "vault: a file takes its place before it is on disk",
            "                os.fsync(file.fileno())\n",
            "",
        ),
    ],
    ("disk", "locks/vault/test_vault.py -k no_file_is_not_replaced"): [
        ("vault: a device is replaced by a file", "        check_place(path)\n", ""),
    ],
    ("locks/vault/silo", "locks/vault/test_vault.py -k killed_process"): [
        (
            "vault: what a killed process left stays",
            '        remove_leftovers(folder, f"silo-{silo}.*")\n',
            "",
        ),
    ],
    ("locks/group_key", "locks/rotated/test_group_key.py"): [
        ("secrets: the group's may be short", "if not LEAST <= len(secret) <= MOST:", "if False:"),
        (
            "secrets: others may read the group's",
            'with open_private(path, what=f"keylock.{name}:", follow=True) as file:',
            'with path.open("rb") as file:',
        ),
    ],
    ("files", "test_files.py"): [
        ("files: they are everybody's to read", "os.O_CLOEXEC, mode))", "os.O_CLOEXEC, 0o666))"),
    ],
    ("locks/sealed/lock", "locks/sealed/test_sealed_lock.py -k collu"): [
        (
            "lock: colluders are not counted",
            "        check_colluders(1 + len(secrets.pairs), colluders)\n",
            "",
        ),
    ],
    ("locks/sealed/lock", "locks/sealed/test_sealed_lock.py -k first_model"): [
        (
            "lock: the first model is not checked",
            "                self._first.check(message, digest)\n",
            "                pass\n",
        ),
    ],
    ("locks/sealed/lock", "locks/test_lock_checks.py -k record"): [
        (
            "lock: a checkpoint is loaded without a record",
            "        if record is None:\n            raise ConfigError",
            "        if False:\n            raise ConfigError",
        ),
    ],
    ("locks/paper/layers", "locks/test_lock_checks.py -k lost"): [
        (
            "paper: a layer without its lock computes",
            ' has lost its lock ({error})") from error\n',
            ' has lost its lock ({error})") if False else error\n',
        ),
    ],
    ("locks/paper/attach", "locks/paper/test_attach.py -k key"): [
        ("paper: any key is taken", "    _check_key(key, config)\n", ""),
    ],
    ("locks/paper/lock", "locks/paper/test_gradients.py"): [
        (
            "paper: a model that was locked anew is sent",
            "        self._check_locks(model, round_index)\n",
            "",
        ),
    ],
    (
        "locks/rotated/rotation",
        "locks/rotated/test_rotation.py locks/sealed/test_rotated_wire.py",
    ): [
        (
            "rotated: another lock's state is loaded",
            "            odd\n            or kept",
            "            False\n            and kept",
        ),
    ],
    ("locks/rotated/round_rotation", "locks/sealed/test_rotated_wire.py -k part"): [
        (
            "rotated: a part is sent or opened",
            "            if missing:\n",
            "            if False:\n",
        ),
    ],
    ("locks/wire", "locks/test_lock_checks.py -k wire"): [
        (
            "lock: a model without values is locked",
            "        if any(parameter.is_meta for parameter in model.parameters()):\n",
            "        if False:\n",
        ),
    ],
    ("host/observer", "host/test_watching.py"): [
        (
            "plugins: they are given the job's own tensors",
            "copy = replace(update, before=copied(update.before), after=copied(update.after))",
            "copy = update",
        ),
    ],
    ("host/own_accuracy", "host/test_watching.py"): [
        (
            "accuracy: a test changes training's random numbers",
            ", torch.random.fork_rng(devices=[]), torch.no_grad():",
            ", torch.no_grad():",
        ),
    ],
    ("host/fedml/security", "host/test_start_checks.py -k cannot_make"): [
        (
            "start: a defense that FedML does not know is not named",
            '"defense_type is not defined" not in str(error)',
            "True",
        ),
        (
            "start: a defense of FedML's without its settings",
            "if error.obj is not theirs:",
            "if True:",
        ),
    ],
    ("host/fedml/security", "host/test_start_checks.py -k nobody_knows"): [
        (
            "start: an attack that nobody knows is none",
            "if self.is_enabled and self.attacker is None and not our_attack(args):",
            "if False:",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_unpickling.py -k names_one_rank"): [
        (
            "messages: what comes passes no gate",
            "            session.admit(msg_params.get_params(), entry_names(), int(sender))\n",
            "            pass\n",
        ),
    ],
    ("host/fedml/cross_silo", "jobs/test_jobs.py -k private"): [
        (
            "messages: what leaves passes no gate",
            "    with gated(session, msg):\n        original(self, msg)\n",
            "    original(self, msg)\n",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_unpickling.py -k carries_its_tag"): [
        (
            "link: what is sent has no tag",
            "    if session.link is not None:\n",
            "    if False:\n",
        ),
    ],
    ("host/fedml/receiving", "host/test_unpickling.py -k of_grpc"): [
        (
            "messages: over gRPC a sender has two names",
            "                sender = read.get_sender_id()\n",
            "                return read\n",
        ),
        (
            "messages: over gRPC anybody sends in another's name",
            '            _check_sender(read, sender, server=session.args.role == "server")\n',
            "            pass\n",
        ),
    ],
    ("locks/paper/attach", "locks/test_lock_checks.py -k finite"): [
        ("paper: a key may be infinite", "not key.isfinite().all() or ", ""),
    ],
    ("locks/sealed/lock", "locks/test_lock_checks.py -k before_a_job"): [
        (
            "start: a checkpoint that cannot be written",
            "            check_place(self.config.checkpoint, what=CHECKPOINT)\n",
            "            pass\n",
        ),
        (
            "start: a final model that cannot be written",
            "            check_place(self._final(silo), what=FINAL)\n",
            "            pass\n",
        ),
        (
            "start: a silo's own log that cannot be written",
            'check_place(self.config.vault / f"silo-{silo}.log", what="keylock.vault:")',
            "pass",
        ),
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
        (
            "private: what comes in replaces what is private",
            "            state[prefix + name] = tensor.detach()\n",
            "            pass\n",
        ),
        ("private: another lock's state is loaded", "    if differing:\n", "    if False:\n"),
    ],
    ("locks/private", "locks/paper/test_private_state.py"): [
        (
            "private: a lock's tensors are in the model's state",
            "    def state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
            "    def _state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
        ),
    ],
    ("locks/private", "locks/test_handles.py locks/paper/test_private_state.py"): [
        (
            "private: a handle or a locked model can be pickled",
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
    ("locks/rotated/round_rotation", "locks/rotated"): [
        (
            "rotated: parts are rotated alike",
            "self.key.stream(LABEL + part.label, self.round_index)",
            "self.key.stream(LABEL, self.round_index)",
        ),
        (
            "rotated: a first model is rotated",
            "        if self.round_index == UNROTATED:\n",
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
            "            moved.clamp_(-limit, limit)\n",
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
            "(lost & ~kept).sum()",
            "lost.sum()",
        ),
        (
            "encoding: clipped entries are not counted",
            "clipped = int((moved.abs() > limit).sum())\n            moved",
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
    ("locks/sealed/encoding", "locks/sealed/test_sealed_odd_numbers.py"): [
        (
            "encoding: what came infinite stays so whatever silos have",
            "moved = torch.where(odd, own.double(), moved)",
            "moved = torch.where(odd, 0.0, moved)",
        ),
        (
            "encoding: what one silo keeps is forgotten",
            "                moved[kept] = bound\n",
            "                moved[kept] = 0\n",
        ),
        (
            "encoding: what begins may hide what one silo keeps",
            "limit[odd] = self._begun(entry) * self.shares.samples[place] // self.shares.total",
            "limit[odd] = bound",
        ),
        (
            "encoding: zeros that begin are what came",
            "            still = torch.where(odd, (",
            "            still = still | torch.where(odd, (",
        ),
        ("encoding: what cannot begin is 0", " | (begun == 0), still)", ", still)"),
        (
            "encoding: another infinity is not counted",
            "kept = odd & ((own == base) | (own.isnan() & base.isnan()))",
            "kept = odd",
        ),
    ],
    ("host/gate", "host/test_gate.py -k no_tensors_by_name"): [
        (
            "gate: the server's model may be anything",
            '        check_payload(state, who="the server\'s model")\n',
            "",
        ),
    ],
    ("locks/protocol", "host/test_gate.py -k no_part_of_the_agreement"): [
        (
            "agreement: what is no tensor is described",
            "model.state_dict().items() if isinstance(t, Tensor)}",
            "model.state_dict().items()}",
        ),
    ],
    ("host/own_accuracy", "host/test_own_accuracy.py"): [
        ("accuracy: a test moves norms", "with buffers_kept(modules), ", "with "),
        ("accuracy: of a trainer's own model too", 'getattr(trainer, "model", None)', "None"),
        ("accuracy: a test draws from numpy", "        np.random.set_state(numpy)\n", ""),
        ("accuracy: a test draws from random", "        random.setstate(python)\n", ""),
    ],
    ("errors", "host/test_leaving.py -k say_the_kind"): [
        ("errors: our own are kept back, too", " or isinstance(error, KeyLockError):", ":"),
    ],
    ("commands/subjects", "evaluation/test_audit.py -k captures_loss"): [
        ("audit: a capture names what is imported", 'if ":" not in named:', "if True:"),
    ],
    ("evaluation/audit/shared_statistics", "evaluation/test_audit.py -k fails_midway"): [
        ("statistics: a part of them", "    if error is not None:", "    if False:"),
    ],
    ("host/server_attacker", "host/test_server_attacker.py -k fit_together"): [
        (
            "attacker: a label for each image",
            " or which.shape[:1] != some.shape[:1]:",
            ":",
        ),
        (
            "attacker: pictures of several sizes end the job",
            "if (some.shape[1:], which.shape[1:]) != tuple(one.shape[1:] for one in first):",
            "if False:",
        ),
    ],
    ("host/public_state", "host/test_public_state.py -k complex"): [
        ("state: complex numbers that are not finite", " or tensor.is_complex())", ")"),
    ],
    ("inversion/engine/evaluate", "inversion/test_any_model.py -k gpus"): [
        ("loop: a GPU is seeded", "torch.default_generator.manual_seed(0)", "torch.manual_seed(0)"),
    ],
    ("evaluation/audit/training", "inversion/test_any_model.py -k gpus"): [
        (
            "training: a GPU is seeded",
            "torch.default_generator.manual_seed(silo)",
            "torch.manual_seed(silo)",
        ),
    ],
    ("tensors", "test_tensors.py"): [
        ("tensors: a buffer put in another's place stays", "table[name] = buffer", "pass"),
        (
            "tensors: buffers that share memory are written",
            "if not torch.equal(buffer, before):",
            "if True:",
        ),
        (
            "tensors: what a model computed last ends its copies",
            "{id(value): value.detach().clone() for value in computed}",
            "{}",
        ),
        (
            "tensors: the job cannot resize what was looked at",
            "np.from_dlpack(flat.view(torch.uint8)).data",
            "flat.view(torch.uint8).numpy().data",
        ),
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
        ("rounds: keys do not depend on steps", "encoding.steps, steps, *noise]", "steps, *noise]"),
        (
            "rounds: keys do not depend on the graph",
            "encoding.steps, steps, *noise]).encode()",
            "encoding.steps, *noise]).encode()",
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
            "known.shape == tensor.shape and ",
            "",
        ),
        (
            "rounds: numbers of unknown size are sealed",
            "            if self.scale is None and sized:\n",
            "            if False:\n",
        ),
    ],
    ("locks/sealed/rounds", "locks/sealed/test_sealed_secrecy.py"): [
        ("rounds: a second message is sealed", "        if self._used:\n", "        if False:\n"),
        (
            "rounds: what fails half-way is tried again",
            "        self._used = True  # even after",
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
            "        elif self._used or digest != self._chain:",
            "        elif self._used:",
        ),
        (
            "rounds: the first model stands for an average",
            "self._used or digest != self._chain",
            "digest != self._chain",
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
    ("disk", "locks/vault/test_vault.py"): [
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
        (
            "vault: two processes write one",
            "        self.claim()\n        make_folder",
            "        make_folder",
        ),
    ],
    # what leaves a rank beside agreed messages, and what a message takes
    ("host/message_type", "host/test_leaving.py -k type"): [
        (
            "leaving: a model goes in a message of any type",
            "        if _holds_tensor(value):\n",
            "        if False:\n",
        ),
        (
            "leaving: arrays are no tensors",
            "(Tensor, torch.TypedStorage, np.ndarray)",
            "(Tensor, torch.TypedStorage)",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_leaving.py -k both_directions"): [
        (
            "leaving: a model is taken of a message of any type",
            "            check_type(msg_params.get_params(), msg_type, carriers, who=who)\n",
            "            pass\n",
        ),
    ],
    ("host/fedml/communicator", "host/test_leaving.py -k both_directions"): [
        (
            "leaving: a model is sent in a message of any type",
            "            check_type(message.get_params(), message.get_type(), carriers, who=who)\n",
            "            pass\n",
        ),
    ],
    ("host/fedml/communicator", "host/test_leaving.py -k below"): [
        (
            "leaving: a silo broadcasts",
            "setattr(Guarded, name, lambda *_, _name=name, **__: _refuse(session, _name))",
            "pass",
        ),
        (
            "leaving: a silo sends anything by args.comm",
            "                _refuse(session, name)\n",
            "                return send(self, obj, dest, tag)\n",
        ),
        (
            "leaving: a message goes by args.comm without the gate",
            "            with gated(session, obj):\n",
            "            if True:\n",
        ),
    ],
    ("host/fedml/receiving", "host/test_leaving.py -k below"): [
        (
            "leaving: FedML's managers have a communicator that sends anything",
            "guarded(session) if isinstance(session, SiloSession) else MPI.Intracomm",
            "MPI.Intracomm",
        ),
    ],
    ("host/fedml/reporting", "host/test_leaving.py -k object_store"): [
        (
            "leaving: a model is put into FedML's object store",
            "    if session is None or session.defense is None:\n",
            "    if True:\n",
        ),
    ],
    ("host/fedml/reporting", "host/test_leaving.py -k hook"): [
        ("leaving: FedML's hook logs tracebacks", "    HOOKS.stay()", "    HOOKS"),
    ],
    ("host/abort", "host/test_leaving.py -k kind_and_place"): [
        (
            "leaving: a silo prints what errors say",
            "traceback.format_exception(error)) if kept is None else _places(error)",
            "traceback.format_exception(error))",
        ),
    ],
    ("errors", "host/test_leaving.py -k others_errors"): [
        (
            "leaving: our lines have what others' errors say",
            "    if kept is not None:\n",
            "    if False:\n",
        ),
    ],
    ("host/fedml/cross_silo", "host/test_leaving.py -k from_fedml_init"): [
        (
            "leaving: a silo keeps texts from the runner on only",
            "        ) from None\n    keep_errors(args)\n",
            "        ) from None\n",
        ),
    ],
    ("host/fedml/current_job", "host/test_leaving.py -k from_fedml_init"): [
        (
            "leaving: the server keeps texts, and silos do not",
            'int(getattr(args, "rank", 0) or 0) > 0',
            'int(getattr(args, "rank", 0) or 0) == 0',
        ),
    ],
    ("host/pickle_records", "host/test_unpickling.py -k multiple_of_its_bytes"): [
        ("messages: steps take no budget", "        reader.budget.spend(cost)\n", ""),
        (
            "messages: arguments take no budget",
            "            reader.budget.spend(24 * len(reader.stack[-1]))  # arguments are copied\n",
            "            pass\n",
        ),
    ],
    ("host/pickle_records", "host/test_unpickling.py -k keys_are_text"): [
        (
            "messages: keys of any kind",
            "            if not all(type(key) in _KEYS for key in keys):\n",
            "            if False:\n",
        ),
    ],
    ("host/unpickling", "host/test_unpickling.py -k multiple_of_its_bytes"): [
        (
            "messages: wide tensors take no budget",
            "            budget.spend(math.prod(size) * whole.dtype.itemsize)\n",
            "",
        ),
        ("messages: storages take no budget", "            budget.spend(len(body))\n", ""),
        (
            "messages: arrays take no budget",
            "    budget.spend(2 * len(raw))  # changing the byte order makes another copy\n",
            "",
        ),
        (
            "messages: arrays of bytes take no budget",
            "            budget.spend(sum(map(len, args)))\n",
            "",
        ),
        (
            "messages: dictionaries take no budget",
            "budget.spend(sum(_ENTRY * len(given) for given in args if isinstance(given, dict)))",
            "pass",
        ),
    ],
    ("disk", "locks/vault/test_vault.py -k folder"): [
        ("vault: a folder that others use", "    check_folder(path)\n", ""),
    ],
    ("privacy/adaptive", "privacy/test_adaptive.py"): [
        (
            "adaptive clip: the count is not accounted for",
            "rest = 1 / math.sqrt(multiplier**-2 - votes**-2)",
            "rest = multiplier",
        ),
        ("adaptive clip: the count costs all", "if votes <= multiplier:", "if False:"),
    ],
    ("privacy/accountant", "privacy/test_accountant.py"): [
        ("accounts: delta is nan", "if not 0 < delta < 1:", "if delta <= 0 or delta >= 1:"),
        ("accounts: lost digits are free", "np.isfinite(total) & (total >= 0)", "total == total"),
        (
            "accounts: orders that are no integers",
            "ORDERS = (*range(2, 65),",
            "ORDERS = (1.5, 2.5,",
        ),
        ("accounts: sampling without a batch", "return event if rate == 1 else", "return event or"),
        ("accounts: buffers cost nothing", "noise.buffer_clip is None else 2", "True else 2"),
        ("accounts: one step of many is counted", "noise.rate or 1.0, noise.steps)", "noise.rate)"),
    ],
    ("privacy/budget", "privacy/test_budget.py"): [
        (
            "budget: delta may be a silo's share",
            "if not delta * number < 1:",
            "if delta * number > 1:",
        ),
        (
            "budget: delta is not held to silos",
            '            _check_delta(noise.delta, schedule.silos, "silos")\n',
            "            pass\n",
        ),
        (
            "budget: delta is not held to examples",
            '        _check_delta(noise.delta, number, "examples")\n',
            "        pass\n",
        ),
        ("budget: no noise is left", "    if left < 1:\n", "    if False:\n"),
        ("budget: a round too many", "default=0) > allowed:", "default=0) > allowed + 1:"),
        ("budget: other silos' rounds are a silo's", "taken.update(silos)", "taken.update([0])"),
        (
            "budget: what is spent is not held against it",
            "        if fit < left:",
            "        if False:",
        ),
        (
            "budget: earlier jobs do not count",
            "spent=page.spent, most=left)",
            "most=left)",
        ),
        (
            "budget: solved for too few rounds",
            "return max(_taken(self.schedule.rounds).values(), default=1)",
            "return 1",
        ),
        (
            "budget: noise of colluding silos is no signal",
            "units, silos = float(self.each), self.each / self.honest",
            "units, silos = float(self.each), 1.0",
        ),
    ],
    ("privacy/ledger", "privacy/test_ledger.py"): [
        (
            "ledger: a kind counts once",
            "each.rate] += each.count",
            "each.rate] = each.count",
        ),
        ("ledger: rounds do not count", "rounds=self.rounds + 1)", "rounds=1)"),
        (
            "ledger: another silo's is taken",
            'if read["schema"] != SCHEMA or read["silo"] != silo:',
            'if read["schema"] != SCHEMA:',
        ),
        ("ledger: units add up", "        if unit != self.unit:\n", "        if False:\n"),
        (
            "ledger: what is refused is written",
            "            check(page)\n",
            "",
        ),
    ],
    ("privacy/accounts", "host/test_noise_sessions.py"): [
        (
            "accounts: silos tell their samples",
            "            return 1.0\n",
            "            return samples\n",
        ),
        (
            "accounts: a job beside this one is not seen",
            "if limit is not None and epsilon_of(page.spent, self.noise.delta) > limit:",
            "if False:",
        ),
        (
            "accounts: a silo of a simulation is left out",
            "for silo in self._entered:",
            "for silo in self._entered[1:]:",
        ),
        (
            "accounts: a spent budget begins a job",
            "            self.budget.check_left(page, silo, self._done)\n",
            "            pass\n",
        ),
    ],
    ("locks/sealed/lock", "host/test_noise_sessions.py"): [
        (
            "ledger: written after sealing",
            "            self._accounts.spend(self._silo)\n"
            "        message, counts = rounds.seal(payload, samples=samples, release=release)\n",
            "            pass\n"
            "        message, counts = rounds.seal(payload, samples=samples, release=release)\n"
            "        self._accounts and self._accounts.spend(self._silo)\n",
        ),
        (
            "ledger: a simulation spends nothing",
            "            self._accounts.spend_entered()\n",
            "            pass\n",
        ),
        (
            "noise: not what epsilon needs",
            "        self._noise.multiplier = self.multiplier\n",
            "",
        ),
    ],
    ("host/session_of", "host/test_noise_sessions.py -k ends_in_time"): [
        (
            "budget: training goes on",
            "            args.comm_round = rounds\n",
            "            pass\n",
        ),
    ],
    ("host/silo_session", "host/test_noise_sessions.py"): [
        ("notices: tell samples", "weight = self.defense.weigh(samples)", "weight = samples"),
        (
            "hellos: tell samples",
            "number = self.defense.weigh(check_samples(samples, who=what))",
            "number = check_samples(samples, who=what)",
        ),
        (
            "accounts: nobody is told",
            '            turn.tell_score("epsilon", loss.epsilon)\n',
            "",
        ),
    ],
    ("host/job_configuration", "host/test_noise_sessions.py -k schedule"): [
        (
            "schedule: everyone takes part",
            "    if total == int(args.client_num_per_round):\n",
            "    if total:\n",
        ),
    ],
    ("locks/config", "host/test_noise_sessions.py -k not_told"): [
        (
            "noise: the server is told what it does not cover",
            '        for name in ("tell_samples", "tell_accuracy", "log_training"):\n',
            "        for name in ():\n",
        ),
        (
            "noise: colluders are undeclared",
            "        if self.colluders is None:\n",
            "        if False:\n",
        ),
    ],
    ("host/observer", "host/test_noise_sessions.py -k score_must"): [
        (
            "noise: a score may end a job",
            "if settings.abort_above and defense is not None and defense.adds_noise:",
            "if False:",
        ),
    ],
    ("host/one_process", "host/test_noise_sessions.py -k simulation_counts"): [
        (
            "simulation: colluders leave nobody",
            "JobSecrets(os.urandom(32), 0, pairs, samples)",
            "JobSecrets(os.urandom(32), samples=samples)",
        ),
    ],
    ("host/self_audit", "host/test_self_audit.py -k what_noise"): [
        ("audit: the report is silent on noise", 'else {"noise": str(loss)}', "else {}"),
        (
            "audit: scores leave a silo that adds noise",
            "            if self.defense is not None and self.defense.adds_noise:",
            "            if False:",
        ),
    ],
    ("evaluation/audit/average", "evaluation/test_membership.py"): [
        (
            "average: others are members, too",
            "odd.append(values[len(inside) :])",
            "odd.append(values[: len(inside)])",
        ),
    ],
    ("locks/sealed/canary_release", "locks/sealed/test_canary_release.py"): [
        (
            "canaries: the seal leaves them out",
            "return np.add(words, self._added[entry.name][start : start + len(words)])",
            "return words",
        ),
        (
            "canaries: an observer has the noise of his own, too",
            "parts.append(moved.reshape(-1).numpy() / encoding.scale - own)",
            "parts.append(moved.reshape(-1).numpy() / encoding.scale)",
        ),
    ],
    ("privacy/canaries", "privacy/test_canaries.py"): [
        (
            "canaries: none is added",
            "np.flatnonzero(drawn)",
            "np.flatnonzero(~drawn)",
        ),
        (
            "canaries: what is held out was added, too",
            "for first in (0, self.count)",
            "for first in (0, 0)",
        ),
        (
            "canaries: all rounds weigh the same",
            "clip / square * total",
            "clip * total",
        ),
    ],
    ("locks/sealed/gaussian", "locks/sealed/test_gaussian.py"): [
        (
            "gaussian: 16 bits decide all",
            "late = np.flatnonzero(slots >= self._decided)",
            "late = np.flatnonzero(slots > 2**16)",
        ),
        (
            "gaussian: the second half of a look-up is not seen",
            "        while len(equal):  # almost never",
            "        while False:",
        ),
        ("gaussian: coarse draws only", "        if self._stretch:\n", "        if False:\n"),
    ],
    ("locks/sealed/noise", "locks/sealed/test_noise.py"): [
        (
            "noise: none is drawn",
            "        drawn += words\n        return drawn",
            "        return words",
        ),
        (
            "noise: of a generator that FedML seeds",
            "Keystream(os.urandom(32))",
            "Keystream(bytes(torch.randint(256, (32,)).tolist()))",
        ),
        (
            "noise: colluding silos' noise is counted",
            "own = self.multiplier * clip / math.sqrt(self.honest)",
            "own = self.multiplier * clip / math.sqrt(self.silos)",
        ),
        (
            "noise: rounded to the nearest",
            "moved.mul_(factor).trunc_()",
            "moved.mul_(factor).round_()",
        ),
        (
            "noise: updates are not clipped",
            "factor = 0.0 if self.infinite else min(1.0, clip * MARGIN / norm if norm else 1.0)",
            "factor = 0.0 if self.infinite else 1.0",
        ),
        (
            "noise: the norm is not checked",
            "            if square > math.ldexp(",
            "            if False and square > math.ldexp(",
        ),
        ("noise: too little of it", "        if steps < LEAST:\n", "        if False:\n"),
        (
            "noise: silos under other clips are added up",
            "return [every.multiplier, every.honest, every.votes, *(clips",
            "return [*(0.0 for _ in clips)] or [*(clips",
        ),
        (
            "noise: an update that is not finite is sent",
            "            if not factor:\n                moved.zero_()\n",
            "",
        ),
        (
            "noise: what came infinite is drowned",
            "moved[~torch.isfinite(since)] = 0.0",
            "pass",
        ),
    ],
    ("locks/sealed/sealing", "locks/sealed/test_noise.py"): [
        ("noise: the norm is not asked for", "        release.check()\n", ""),
        (
            "noise: what stays at home is sent",
            "            unchanged = encoding.base[entry.name]\n",
            "            unchanged = payload[entry.name]\n",
        ),
    ],
    ("locks/sealed/job_noise", "locks/sealed/test_noise.py"): [
        (
            "noise: the observer's own noise is counted",
            "honest = honest_silos(self.silos, self.colluders)",
            "honest = self.silos - self.colluders",
        ),
        (
            "noise: buffers are sent as updates",
            "            if name in self._buffers:\n",
            "            if False:\n",
        ),
        (
            "noise: what does not train may move",
            "if name not in base or not torch.equal(payload[name].cpu(), base[name].cpu()):",
            "if False:",
        ),
        (
            "noise: the clip does not follow",
            "            self.clip = adaptive.next(self.clip, votes)\n",
            "            pass\n",
        ),
    ],
    ("locks/sealed/rehearsal", "locks/sealed/test_noise.py"): [
        (
            "noise: none in a simulation",
            "            release = released(noise, payload, canaries, own)\n",
            "            released(noise, payload, canaries, own)\n",
        ),
    ],
    ("locks/sealed/seal_transform", "host/test_self_audit.py -k what_noise"): [
        (
            "audit: noised words are read as two",
            "high = words if words.shape == entry.shape else words[1]",
            'high = words if entry.kind == "matrix" else words[1]',
        ),
    ],
    ("locks/sealed/seal_transform", "locks/sealed/test_noise.py"): [
        ("noise: none in an audit", "        if self.noise is None:\n", "        if True:\n"),
    ],
    ("locks/sealed/examples", "locks/sealed/test_sealed_examples.py"): [
        (
            "examples: truncated after they are added up",
            "own.mul_(factor).trunc_()",
            "own.mul_(factor)",
        ),
        (
            "examples: rounded to the nearest",
            "own.mul_(factor).trunc_()",
            "own.mul_(factor).round_()",
        ),
        (
            "examples: gradients are not clipped",
            "factor = (clip * MARGIN / norm).clamp(max=1.0)",
            "factor = (clip * MARGIN / norm).clamp(1.0, 1.0)",
        ),
        (
            "examples: each parameter has a clip of its own",
            "norm = torch.linalg.vector_norm(norms, dim=0)",
            "norm = norms[0]",
        ),
        (
            "examples: the norm is not checked",
            "        if (sent > limit**2).any():\n",
            "        if False:\n",
        ),
        (
            "examples: of one that is not finite something is sent",
            "            if none.any():\n",
            "            if False:\n",
        ),
        (
            "examples: who was not drawn counts",
            "{name: sample[:count] for name, sample in samples.items()}",
            "{name: sample for name, sample in samples.items()}",
        ),
        (
            "examples: a second step is taken",
            "            if self.steps == len(self._counts):\n",
            "            if False:\n",
        ),
        (
            "examples: batches are left out",
            "        if self.steps < len(self._counts):\n",
            "        if False:\n",
        ),
        (
            "examples: other batches are trained on",
            "elif not isinstance(sample, Tensor) or len(sample) != size:",
            "elif not isinstance(sample, Tensor):",
        ),
        (
            "examples: losses have other terms",
            "            elif not _is_mean(sample, grad):\n",
            "            elif False:\n",
        ),
        (
            "examples: parameters change without a step",
            "            self._check_unchanged(self._values())\n            samples",
            "            samples",
        ),
        (
            "examples: anything is sent of a step",
            "            if not ((now.double() - (since.double() - step)).abs() <= room).all():\n",
            "            if False:\n",
        ),
        ("examples: losses mix a batch", "            stack.enter_context(OneByOne())\n", ""),
        (
            "examples: steps are taken without noise",
            "                total += drawn.reshape(total.shape).to(total.device)\n",
            "",
        ),
        (
            "examples: opacus' hooks stay",
            "            stack.callback(GradSampleModule(self._model).to_standard_module)\n",
            "            GradSampleModule(self._model)\n",
        ),
        (
            "examples: optimizers are followed on",
            "            stack.callback(register_optimizer_step_pre_hook(self._before).remove)\n",
            "            register_optimizer_step_pre_hook(self._before)\n",
        ),
    ],
    ("evaluation/outcome", "evaluation/test_report_front.py"): [
        (
            "report: an attacker's failure needs no self-test",
            "    if doubt(seen, best, best_of(tests)):\n",
            "    if False:\n",
        ),
        (
            "report: an attack that fails undefended is evidence",
            "    if not seen.counts(best):\n",
            "    if False:\n",
        ),
        (
            "report: the self-test always passes",
            "        if seen.counts(best) and seen.reaches(best, SELF_TEST):\n",
            "        if True:\n",
        ),
    ],
    ("evaluation/evidence", "evaluation/test_report.py -k light_and_the_reason"): [
        (
            "report: the sum that silos have is a leak of a lock",
            "        single = [row for row in shown if not row.knowledge.startswith(SUM)]\n",
            "        single = shown\n",
        ),
    ],
    ("evaluation/report/front", "evaluation/test_report_front.py"): [
        (
            "report: who has the key passes for an attacker",
            "            if row.knowledge in (ORACLE, BASELINE) or row.defense == PUBLIC_NORM:\n",
            "            if False:\n",
        ),
        (
            "report: pictures have another stage's score",
            '        and gallery.stage in ("", row.stage)\n',
            "",
        ),
    ],
    ("evaluation/report/dossier", "evaluation/test_report_front.py -k file_says"): [
        (
            "report: what was refused is not in the file",
            'in _mapping(job.get("not run")).items():',
            "in ():",
        ),
        (
            "report: what gave no picture is not in the file",
            "in _mapping(job.get(NOT_SCORED)).items():",
            "in ():",
        ),
        (
            "report: attacks not run are not in the file",
            "    if names := job.get(ATTACKS_NOT_RUN):\n",
            "    if names := None:\n",
        ),
        (
            "report: attackers not tried are not in the file",
            "    if missing:\n",
            "    if False:\n",
        ),
        (
            "report: the picture that gave most away is not in the file",
            "        if worst is None or row.knowledge == ORACLE:\n",
            "        if True:\n",
        ),
    ],
    ("evaluation/report/page", "evaluation/test_report_front.py -k page_opens"): [
        (
            "report: pictures at the top stay where none are wanted",
            "        columns=_front(report) if images else [],\n",
            "        columns=_front(report),\n",
        ),
    ],
    ("commands/auditing", "test_cli_weights.py -k file_has"): [
        ("audit: inputs are not hashed", '"inputs": _inputs(request, first),', '"inputs": {},'),
    ],
    ("host/silo_session", "host/test_silo_session.py -k after_the_last"): [
        (
            "silo: it trains beyond the job's rounds",
            "        if self.defense is not None and self._is_over():",
            "        if False:",
        ),
    ],
    ("locks/sealed/examples", "locks/sealed/test_sealed_examples.py -k step"): [
        (
            "examples: a closure's gradients are followed",
            "        if any(p.grad_sample is not None for p in self._parameters.values()):",
            "        if False:",
        ),
        (
            "examples: another optimizer's step hides a change",
            "        if optimizer is not self._stepping:\n",
            "        if False:\n",
        ),
    ],
    ("locks/sealed/example_layers", "locks/sealed/test_sealed_examples.py -k refused"): [
        (
            "examples: a loss is a sum",
            'named.get("reduction") == "sum":',
            "False:",
        ),
        (
            "examples: terms are added up",
            "summed = func is Tensor.backward and",
            "summed = False and",
        ),
    ],
    ("locks/sealed/job_examples", "locks/sealed/test_example_rounds.py -k covers"): [
        (
            "examples: what is not noised is sent",
            "        self._check_rest(payload, base, gradients.sums)\n",
            "",
        ),
    ],
    ("locks/sealed/example_layers", "locks/sealed/test_sealed_examples.py"): [
        (
            "examples: opacus keeps a silo's data at its layers",
            "            vars(module).pop(name, None)\n        if not",
            "            pass\n        if not",
        ),
        (
            "examples: batch norms without parameters pass",
            "if known and (trains or mixes):",
            "if known and trains:",
        ),
    ],
    ("locks/sealed/poisson", "locks/sealed/test_sealed_examples.py -k padded"): [
        (
            "batches: an example's shape depends on others",
            "            if [*map(_shapes, made)] != [*map(_shapes, alone)]:\n",
            "            if False:\n",
        ),
    ],
    ("locks/sealed/poisson", "locks/sealed/test_sealed_examples.py"): [
        (
            "batches: of a generator that FedML seeds",
            "os.urandom(8 * count)",
            "np.random.bytes(8 * count)",
        ),
        (
            "batches: of one size",
            "np.flatnonzero(words < np.uint64(int(rate * 2.0**64)))",
            "np.sort(np.argsort(words)[: round(rate * count)])",
        ),
        (
            "batches: of other silos' examples",
            "        return sorted({*map(int, sampler.indices)})\n",
            "        return range(len(loader.dataset))\n",
        ),
        (
            "batches: an example twice",
            "        return sorted({*map(int, sampler.indices)})\n",
            "        return sorted(map(int, sampler.indices))\n",
        ),
    ],
    ("locks/sealed/job_examples", "locks/sealed/test_example_rounds.py"): [
        (
            "examples: what is sent is not looked at",
            "            gradients.check_step(base, payload)\n",
            "",
        ),
        (
            "examples: what is sent was not trained",
            "        gradients.check_sent(payload)\n",
            "",
        ),
        ("examples: no noise of its own", "if self.alone else None,\n", "if False else None,\n"),
        (
            "examples: noise of a generator that FedML seeds",
            "Keystream(os.urandom(32))",
            "Keystream(bytes(torch.randint(256, (32,)).tolist()))",
        ),
        (
            "examples: sums leave their range",
            ".clamp(-self.most, self.most)",
            "",
        ),
        (
            "examples: silos of other learning rates are added up",
            "return [*self.settings, self.rate, self.learning_rate]",
            "return [*self.settings, self.rate]",
        ),
        (
            "examples: other numbers of samples",
            "        if samples != examples:\n",
            "        if False:\n",
        ),
        (
            "examples: buffers are sent",
            "        return {**payload, **received}\n",
            "        return payload\n",
        ),
    ],
    ("inversion/disaggregate", "inversion/test_spear.py"): [
        (
            "spear: what is not certain is a result",
            "            if last <= self.noise < other:\n",
            "            if True:\n",
        ),
        (
            "spear: noise has a rank",
            "    rank = int(gaps.argmax()) + 1 if found else len(values)\n",
            "    rank = int(gaps.argmax()) + 1\n",
        ),
        (
            "spear: units that no input reaches make a rank",
            "rows, columns = gradient.any(1), gradient.any(0)",
            "rows, columns = gradient.any(1) | True, gradient.any(0) | True",
        ),
        (
            "spear: nothing is repaired",
            "layer.certain(_repaired(layer, chosen, found))",
            "layer.certain(chosen)",
        ),
    ],
    ("inversion/active/single", "inversion/test_active.py"): [
        (
            "imprint: any activation",
            "    check_relu(attack, loaded(model, {}), path.linear, shape=input_shape",
            "    dict(shape=input_shape",
        ),
        ("active: any weights are the attack's", "if not armed(rows, biases):", "if False:"),
        (
            "active: two pictures are one",
            "alone = (away <= off) &",
            "alone = (away <= 1e9) &",
        ),
        (
            "active: rounding is a picture",
            " & (rounded < _TOO_ROUGH * greatest)",
            "",
        ),
        (
            "active: several steps are one",
            "    check_one_step(attack.name, knowledge, instead=SEARCH)\n",
            "",
        ),
        (
            "active: nothing found is a success",
            'cost = cost.masked_fill(cost == 1, float("inf"))',
            "pass",
        ),
        (
            "active: mixtures are pictures",
            "    images, flat, labels = images[inside], flat[inside], labels[inside]\n",
            "",
        ),
    ],
    ("inversion/active/path", "inversion/test_active.py"): [
        (
            "active: whatever is behind the layer",
            "if not isinstance(behind[1], nn.Linear):",
            "if False:",
        ),
        (
            "active: a loss of no classes",
            '        if loss.targets != "classes" or',
            "        if False and",
        ),
    ],
    ("inversion/active/imprint", "inversion/test_active.py"): [
        (
            "imprint: columns behind differ",
            "behind.copy_(behind[:, :1].clone().expand_as(behind))",
            "pass",
        ),
    ],
    ("inversion/active/inconsistent_models", "inversion/test_active.py"): [
        ("inconsistent: units that live", "        if alive:", "        if False:"),
        ("inconsistent: any weights are the victim's", "        if not own:", "        if False:"),
    ],
    ("host/armed_layers", "host/test_armed_layers.py"): [
        ("guard: imprints pass", "if int(alike.sum()) >= _ROWS and", "if False and"),
        ("guard: traps pass", "    if halves and", "    if False and"),
        ("guard: dead layers pass", "        if not bool(weight.any()):", "        if False:"),
        (
            "guard: a silo's own model is warned of",
            "self._known = armed_layers(own)",
            "self._known = {}",
        ),
        (
            "guard: a transposed convolution ends the job",
            "if bias is not None and bias.shape != weight.shape[:1]:",
            "if False:",
        ),
        ("guard: it is said again and again", "        self._known |= found\n", ""),
    ],
    ("host/silo_session", "host/test_armed_layers.py -k says_it_once"): [
        (
            "guard: nobody looks",
            "            self._guard.look(opened, self.model.state_dict(), who=self.who)\n",
            "            pass\n",
        ),
    ],
    ("inversion/engine/relu_behind", "inversion/test_spear.py"): [
        (
            "spear: whatever is behind the layer",
            "    if bool(gradient[below].any()) or not bool(gradient[~below].any()):\n",
            "    if False:\n",
        ),
    ],
    ("inversion/labels/restoration", "inversion/test_labels.py -k ilrg"): [
        (
            "labels: what is not shared is divided by",
            "bias.where(some, torch.inf)",
            "bias",
        ),
    ],
    ("inversion/labels/__init__", "inversion/test_labels.py -k ilrg"): [
        (
            "labels: the head is the attacker's own",
            "head = (started(names[0]), started(names[1]))",
            "head = tuple(model.get_parameter(name)[None] for name in names)",
        ),
    ],
    ("inversion/cocktail_party", "inversion/test_cocktail_party.py"): [
        (
            "cocktail_party: mixtures are a result",
            "if alike is not None and not alike >= SEPARATED:",
            "if False:",
        ),
        (
            "cocktail_party: a cost says nothing",
            "if alike is None else 1 - alike",
            "if True else 0.0",
        ),
        (
            "cocktail_party: noise is a result",
            "        if rank > knowledge.batch:\n",
            "        if False:\n",
        ),
    ],
    ("inversion/engine/search", "inversion/test_surrogate.py -k box"): [
        (
            "attacker_model: the state leaves the line",
            "box = {SURROGATE: (0.0, 1.0), **",
            "box = {**",
        ),
    ],
    ("inversion/engine/assemble", "inversion/test_surrogate.py -k refused"): [
        (
            "attacker_model: one step is taken for several",
            "        if knowledge.training is None:\n",
            "        if False:\n",
        ),
    ],
    ("commands/summary", "test_run.py -k no_round_was_seen"): [
        ("run: a job that never ran is summed up", 'if "round" not in facts:', "if False:"),
    ],
    ("commands/summary", "test_run.py -k where_the_final_model"): [
        ("run: an earlier job's model", "if path.stat().st_mtime >= began - 1", "if True"),
    ],
    ("commands/summary", "test_run.py -k what_the_yaml_asks_for"): [
        ("run: another lock than the YAML's is claimed", "if told == lock.title:", "if True:"),
    ],
    ("commands/job_file", "test_run.py -k over_mpi_alone"): [
        (
            "run: jobs in one process are started four times",
            'if ranks is not None and getattr(args, "backend", "MPI") != "MPI":',
            "if False:",
        ),
    ],
    ("commands/job_file", "test_run.py -k rank_would_refuse"): [
        ("run: attacks are not begun before the job", "    Observer.begin(", "    (lambda *_: 0)("),
    ],
    ("commands/run", "test_run.py -k wrong_yaml"): [
        (
            "run: a YAML is not checked",
            "None if named is None else check_job_file(named, ranks=ranks)",
            "None",
        ),
    ],
    ("commands/run", "jobs/test_watched_jobs.py -k False"): [
        (
            "run: all may read a log",
            "os.close(desc",
            "os.fchmod(descriptor, 0o644)\n    os.close(desc",
        ),
    ],
    ("commands/job_file", "test_run.py -k wrong_yaml"): [
        (
            "run: other ranks than silos",
            "ranks is not None and workers is not None and ",
            "False and ",
        ),
        (
            "run: any count will do",
            "            whole_number(name, getattr(args, name), least=1)",
            "            pass",
        ),
        (
            "run: whatever a server reads",
            "                check_sealing(args)",
            "                pass",
        ),
        ("run: the last of two sections counts", "if key.value in names:", "if False:"),
        ("run: silos without a secret", 'alone = args.backend == "GRPC" and', "alone = False and"),
    ],
    ("commands/check", "test_run.py -k not_defended"): [
        ("check: a job without a defense passes", "if found.keylock is None:", "if False:"),
    ],
    ("commands/console", "test_run.py"): [
        (
            "run: ranks move the cursor",
            "click.echo(_plain(line), err=True)",
            "click.echo(line, err=True)",
        ),
        (
            "run: whatever is told is a fact",
            "if not all(_is_told(",
            "if False and not all(_is_told(",
        ),
        (
            "run: a rank's print defends a job whose YAML does not",
            'if "defense" in told and not self.defended:',
            "if False:",
        ),
        (
            "run: any silo's epsilon is the job's",
            'if "epsilon" in told and told["epsilon"] < self._epsilon:',
            "if False:",
        ),
    ],
    ("commands/silo_logs", "test_run.py -k since"): [
        ("run: an earlier job's accuracy", "file.seek(self._read.get(path, 0))", "file.seek(0)"),
    ],
    ("host/job_configuration", "test_run.py -k wrong_yaml"): [
        (
            "check: YAML takes torch",
            "from ..locks.config import",
            "from ..locks import Lock as _\nfrom ..locks.config import",
        ),
        (
            "check: a section's name is nearly ours",
            "        yield from _misspelled(section, fields)",
            "        continue",
        ),
        (
            "check: a type is nearly ours",
            "        if near and kind not in names and",
            "        if 0 and",
        ),
        (
            "check: settings of an attack stand beside it",
            "if fields.get(what) == of else ():",
            "if fields.get(what) == of == KeyLockConfig.section else ():",
        ),
    ],
    ("host/progress", "test_run.py -k listens"): [
        (
            "run: ranks tell whoever started them",
            "    if os.environ.get(LISTENING):\n        # in",
            "    if True:\n        # in",
        ),
    ],
    ("host/silo_session", "jobs/test_watched_jobs.py -k False"): [
        (
            "run: a silo's accuracy leaves it",
            "        if self._tells_accuracy:\n            logging.info(line)\n",
            "        tell(silo=turn.silo, tested=turn.round, accuracy=share)\n"
            "        if self._tells_accuracy:\n            logging.info(line)\n",
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
