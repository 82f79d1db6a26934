"""Takes protections out of a copy, one at a time, and runs the tests that should see it.

`python plugin_tests/mutants.py` runs all, `python plugin_tests/mutants.py gate vault` those whose
name has one of the words. Exit status 1 when a mutant was not seen, or when its tests fail with
nothing taken out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HOST, LOCKS = "plugin_tests/host", "plugin_tests/locks"


class Mutant(NamedTuple):
    """One line less, or another one, in one file of the product; and the tests that should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "gate: the mark of a silo's agreement is not checked",
        "host/gate.py",
        "            check_mark(entries.get(MARK), agreement, who=who)\n",
        "            pass\n",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: an update is taken whatever it holds",
        "host/gate.py",
        "            check_state(update, agreement, who=who, partial=True)\n",
        "",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: silos of a round may send different names",
        "host/update_history.py",
        "        check_names(update, self._first[1], who=sender.who, whose=self._first[0].name)\n",
        "",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: an update may come again",
        "host/update_history.py",
        "        self._duplicates.check(update, sender)\n",
        "",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: a silo's other entries leave as they are",
        "host/gate.py",
        "                entries[name] = check_samples(",
        "                _ = check_samples if True else (",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: whatever a trainer returns leaves the silo",
        "host/gate.py",
        "            checked = check_state(state, agreement, who=who, partial=True)\n",
        "            checked = state\n",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: what hangs on a tensor leaves with it",
        "host/gate.py",
        "public_copy(released)",
        "released",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "gate: a model without the job's nonce is taken",
        "host/gate.py",
        'if not isinstance(nonce, str) or not re.fullmatch("[0-9a-f]{32}", nonce):',
        "if False:",
        f"{HOST}/test_gate.py",
    ),
    Mutant(
        "state: NaN and infinity pass",
        "host/public_state.py",
        "if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():",
        "if False:",
        f"{HOST}/test_public_state.py",
    ),
    Mutant(
        "state: constants of locked layers may be anything",
        "host/public_state.py",
        "    wrong = _unlike(state, agreement.constants, tolerance)\n",
        "    wrong = None\n",
        f"{HOST}/test_public_state.py",
    ),
    Mutant(
        "messages: one silo sends in another's name",
        "host/fedml/receiving.py",
        "    if named != source or message.get_sender_id() != source:\n",
        "    if False:\n",
        f"{HOST}/test_unpickling.py -k malicious_rank",
    ),
    Mutant(
        "messages: a silo sends to a silo",
        "host/fedml/receiving.py",
        "    if source and not server:\n",
        "    if False:\n",
        f"{HOST}/test_unpickling.py -k malicious_rank",
    ),
    Mutant(
        "messages: any class is made",
        "host/pickle_records.py",
        '            raise _held(f"{module}.{name}")\n',
        "            return getattr(__import__(module, fromlist=[name]), name)\n",
        f"{HOST}/test_unpickling.py -k nothing_is_run",
    ),
    Mutant(
        "silo: losses of batches are logged",
        "host.silo_training.py",
        "    if logs:\n",
        "    if True:\n",
        f"{HOST}/test_silo_session.py",
    ),
    Mutant(
        "silo: a rank takes another silo's data",
        "host/silo_session.py",
        "        if self.defense is not None and chosen not in (silo, None):\n",
        "        if False:\n",
        f"{HOST}/test_silo_session.py",
    ),
    Mutant(
        "silo: the server chooses who takes part",
        "host/silo_session.py",
        "        return silo_in_turn(self.args, self._trained) if self.seals else None\n",
        "        return None\n",
        f"{HOST}/test_silo_session.py",
    ),
    Mutant(
        "link: a message without its tag is read",
        "host/link.py",
        "        if end < 0 or not hmac.compare_digest(tag, self._tag(message, head)):\n",
        "        if end < 0:\n",
        f"{HOST}/test_link.py",
    ),
    Mutant(
        "link: a message comes twice",
        "host/link.py",
        "        self._received[sender] = number\n",
        "",
        f"{HOST}/test_link.py",
    ),
    Mutant(
        "silo: the next silo keeps the last one's lock",
        "host/silo_session.py",
        "        if self.defense is None or not self.in_turn or self._is_over():\n",
        "        if True:\n",
        f"{HOST}/test_silo_session.py",
    ),
    Mutant(
        "audit: what gives away too much is sent",
        "host/self_audit.py",
        "            if value > limits.get(metric, math.inf):\n",
        "            if False:\n",
        f"{HOST}/test_self_audit.py",
    ),
    Mutant(
        "vault: files are readable by others",
        "locks/vault/disk.py",
        "                file.write(content)\n",
        "                file.write(content)\n                os.chmod(name, 0o644)\n",
        f"{LOCKS}/vault",
    ),
    Mutant(
        "vault: files that others can read are taken",
        "locks/vault/disk.py",
        "def _check_private(found: os.stat_result, who: str, path: Path) -> None:\n",
        "def _check_private(found: os.stat_result, who: str, path: Path) -> None:\n    return\n",
        f"{LOCKS}/vault",
    ),
    Mutant(
        "vault: a damaged file is loaded",
        "locks/vault/file.py",
        'if self.header.get("sha256") != _checksum(self.header, tensors):',
        "if False:",
        f"{LOCKS}/vault",
    ),
    Mutant(
        "vault: another silo's file is loaded",
        "locks/vault/silo.py",
        "            if stored.header.get(name) != value:\n",
        "            if False:\n",
        f"{LOCKS}/vault",
    ),
    Mutant(
        "private: a locked model can be pickled",
        "locks/private.py",
        "    def __reduce_ex__(self, protocol: Any) -> NoReturn:\n",
        "    def _reduce_ex(self, protocol: Any) -> NoReturn:\n",
        f"{LOCKS}/paper/test_private_state.py {LOCKS}/paper/test_attach.py",
    ),
    Mutant(
        "private: a lock's tensors are in the model's state",
        "locks/private.py",
        "    def state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
        "    def _state_dict(self, *args: Any, **kwargs: Any) -> Any:\n",
        f"{LOCKS}/paper",
    ),
    Mutant(
        "private: running statistics of locked layers leave the silo",
        "locks/paper/private_state.py",
        "        state[prefix + name] = torch.full_like(state[prefix + name], STATISTICS[name])\n",
        "        pass\n",
        f"{LOCKS}/paper",
    ),
    Mutant(
        "secrets: keys come from torch's generator",
        "locks/entropy.py",
        "    return uniform_of(os.urandom(4 * math.prod(shape)), shape)\n",
        "    return torch.rand(shape)\n",
        f"{LOCKS}/test_entropy.py {LOCKS}/paper/test_attach.py",
    ),
    Mutant(
        "secrets: every round has the same stream",
        "locks/job_key.py",
        'round_index.to_bytes(8, "big", signed=True)',
        "bytes(8)",
        f"{LOCKS}/test_job_key.py {LOCKS}/rotated",
    ),
    Mutant(
        "configuration: fields of another lock are taken",
        "locks/config.py",
        "            if lock != self.lock and value != type(self).model_fields[name].default:\n",
        "            if False:\n",
        "plugin_tests/test_settings.py",
    ),
    Mutant(
        "configuration: a job that names the defense runs without it",
        "host/job_configuration.py",
        "        if not hasattr(args, flag):\n",
        "        if False:\n",
        f"{HOST}/test_job_configuration.py",
    ),
    Mutant(
        "rotated: masks are left out",
        "locks/rotated/lock.py",
        "        sent.update(masked(state, lock.parts, self._scales, key, lock.round))\n",
        "",
        f"{LOCKS}/rotated",
    ),
    Mutant(
        "rotated: both silos of a pair add their mask",
        "locks/rotated/mask.py",
        "            sign = 1 if key.silo < peer else -1\n",
        "            sign = 1\n",
        f"{LOCKS}/rotated",
    ),
    Mutant(
        "rotated: a state that the lock has not made is sent",
        "locks/rotated/lock.py",
        "        if made is None:\n",
        "        if False:\n",
        f"{LOCKS}/rotated",
    ),
    Mutant(
        "rotated: integers that training has changed are sent",
        "locks/rotated/lock.py",
        "        self._check_integers(state)\n",
        "",
        f"{LOCKS}/rotated",
    ),
    Mutant(
        "rotated: a second state in a round is sent",
        "locks/rotated/lock.py",
        "if self._sent is not None and self._sent[0] >= sending[0] and self._sent != sending:\n",
        "if False:\n",
        f"{LOCKS}/rotated",
    ),
    Mutant(
        "rotated: an average in which masks have not cancelled is taken",
        "locks/rotated/lock.py",
        "            if self._size is not None and size > GROWN * self._size:\n",
        "            if False:\n",
        f"{LOCKS}/rotated",
    ),
]


def copied(folder):
    """A copy of the project, without results."""
    folder.mkdir()
    for part in ("fedml_keylock", "plugin_tests", "examples", "pyproject.toml", "README.md"):
        source = ROOT / part
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, folder / part, ignore=skip)
        else:
            shutil.copy(source, folder / part)
    return folder


def status(tests, copy):
    """Exit status of the tests in a copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *tests.split()],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode


def seen(mutant, work):
    """Whether the tests fail without the line; None where the line is not there."""
    copy = copied(work / str(abs(hash(mutant.name))))
    path = copy / "fedml_keylock" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return None
    path.write_text(text.replace(mutant.old, mutant.new))
    found = status(mutant.tests, copy) == 1
    shutil.rmtree(copy)
    return found


def main():
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        work = Path(folder)
        controls = sorted({mutant.tests for mutant in chosen})
        whole = copied(work / "whole")
        for tests, code in zip(
            controls, pool.map(lambda tests: status(tests, whole), controls), strict=True
        ):
            if code:
                print(f"CONTROL  {tests} fails with nothing taken out", flush=True)
                missed += 1
        results = pool.map(lambda mutant: seen(mutant, work), chosen)
        for mutant, found in zip(chosen, results, strict=True):
            word = {True: "seen", False: "NOT SEEN", None: "GONE: its line is not there"}[found]
            print(f"{word:8} {mutant.name}", flush=True)
            missed += found is not True
    print(f"{len(chosen)} mutants, {missed} not seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
