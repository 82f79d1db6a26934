"""The start-up file: written, read, taken back; and what happens where the plugin cannot defend.

Nothing here touches the site-packages of the environment that runs it.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from fedml_keylock import cli, doctor
from fedml_keylock.errors import HostError
from fedml_keylock.host import startup_file
from fedml_keylock.host.gate import MARK
from fedml_keylock.host.launch import RANKS
from fedml_keylock.host.startup_file import StartUp

TESTS = Path(__file__).parents[1]
JOBS = TESTS / "jobs"
HURRIED = (TESTS / "hurried" / "sitecustomize.py").read_text()
"""What else a Python that a test starts runs first: the file of that name is another's here."""


def _jobs():
    """How plugin_tests/jobs runs real jobs."""
    sys.path.append(str(JOBS))
    spec = importlib.util.spec_from_file_location("jobs_conftest", JOBS / "conftest.py")
    module = sys.modules["jobs_conftest"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_job = _jobs().run_job


def listing(folder: Path):
    """Every file and folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def command(*arguments: str):
    result = CliRunner().invoke(cli.main, list(arguments))
    return result.exit_code, result.output


# the files


@pytest.fixture
def packages(tmp_path):
    """A folder of packages with something of others in it."""
    (tmp_path / "other.pth").write_text("# theirs\n")
    (tmp_path / "fedml_keylock_startup_not.py").write_text("theirs = True\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "other.cpython-311.pyc").write_bytes(b"theirs")
    return tmp_path


def test_disable_removes_what_enable_wrote_and_nothing_else(packages):
    before, into = listing(packages), ("--into", str(packages))
    status, said = command("disable", *into)
    assert (status, said) == (0, f"not enabled in {packages}: nothing to remove\n")
    status, said = command("enable", *into)
    assert status == 0
    assert f"into {packages}" in said
    assert "fedml-keylock disable" in said
    written = listing(packages)
    new = sorted(written.keys() - before.keys())
    tag = sys.implementation.cache_tag
    assert new == [
        f"__pycache__/fedml_keylock_startup.{tag}.pyc",
        "fedml_keylock_startup.pth",
        "fedml_keylock_startup.py",
    ]
    assert all((packages / name).stat().st_mode & 0o777 == 0o644 for name in new)
    assert command("enable", *into) == (0, f"enabled already in {packages}\n")
    assert listing(packages) == written
    status, said = command("disable", *into)
    assert status == 0
    assert said == (
        f"removed fedml_keylock_startup.pth and fedml_keylock_startup.py from {packages}\n"
    )
    assert listing(packages) == before
    assert command("disable", *into)[1].startswith("not enabled")
    assert listing(packages) == before


def test_a_folder_without_a_cache_is_left_without_one(tmp_path):
    start_up = StartUp(tmp_path)
    start_up.write()
    start_up.remove()
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("name", ["module", "line"])
def test_files_of_others_are_neither_replaced_nor_removed(packages, name):
    path = getattr(StartUp(packages), name)
    path.write_text("theirs = True\n")
    before = listing(packages)
    for verb in ("enable", "disable"):
        status, said = command(verb, "--into", str(packages))
        assert status == 1
        assert said.count("\n") == 1
        assert f"{path}: it was not written by fedml-keylock enable" in said
        assert "move it away" in said
        assert listing(packages) == before


@pytest.mark.parametrize("name", ["module", "line"])
@pytest.mark.parametrize("what", ["older", "gone"])
def test_half_of_it_is_made_whole(packages, name, what):
    before = listing(packages)
    start_up = StartUp(packages)
    start_up.write()
    whole = {path: path.read_text() for path in (start_up.module, start_up.line)}
    path = getattr(start_up, name)
    if what == "gone":
        path.unlink()
    else:
        path.write_text(f"# {startup_file.MARK}\n")
    check = doctor.start_up(start_up)
    if start_up.enabled:
        assert not check.well
        assert check.remedy == "fedml-keylock enable"
    else:
        assert check.found == f"not enabled in {packages}"
    assert start_up.write()
    assert {path: path.read_text() for path in whole} == whole
    start_up.remove()
    assert listing(packages) == before


@pytest.mark.parametrize("when", ["write_text", "replace"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(packages, monkeypatch, when):
    def refuses(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    before = listing(packages)
    monkeypatch.setattr(Path, when, refuses)
    status, said = command("enable", "--into", str(packages))
    assert status == 1
    assert said == (
        f"fedml-keylock: {packages}/fedml_keylock_startup.py: cannot be written: Permission "
        f"denied; do it as the owner of {packages}, or use a virtual environment of your own\n"
    )
    assert listing(packages) == before
    monkeypatch.undo()
    StartUp(packages).write()
    monkeypatch.setattr(Path, "unlink", refuses)
    status, said = command("disable", "--into", str(packages))
    assert status == 1
    assert "cannot be removed: Permission denied" in said
    assert said.count("\n") == 1


def test_an_interpreter_without_site_packages_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(HostError, match="does not read it at its start"):
        StartUp.of_this_interpreter()
    for verb in ("enable", "disable"):
        status, said = command(verb)
        assert status == 1
        assert said.count("\n") == 1
        assert "virtual environment" in said
    assert listing(tmp_path) == {}
    flags = SimpleNamespace(flags=SimpleNamespace(no_site=1), executable="python")
    monkeypatch.setattr(startup_file, "sys", flags)
    with pytest.raises(HostError, match="-S reads no start-up files"):
        StartUp.of_this_interpreter()
    check = doctor.start_up()
    assert check.well
    assert check.found.startswith("not enabled: ")


def test_it_is_for_this_interpreters_own_packages():
    assert StartUp.of_this_interpreter().folder == Path(sysconfig.get_path("purelib"))


def test_doctor_shows_whether_and_where(packages):
    start_up = StartUp(packages)
    assert doctor.start_up(start_up).found == f"not enabled in {packages}"
    start_up.write()
    check = doctor.start_up(start_up)
    assert check.well
    assert check.found == f"enabled in {packages}; fedml-keylock disable takes it back"
    start_up.module.unlink()
    start_up.module.mkdir()
    check = doctor.start_up(start_up)
    assert not check.well
    assert "cannot be read" in check.remedy


def test_the_help_teaches():
    assert "fedml-keylock enable" in command("--help")[1]
    for verb in ("enable", "disable"):
        _, said = command(verb, "--help")
        assert len(said.splitlines()) > 6
        assert "--into" not in said
    said = command("enable", "--help")[1]
    for word in ("fedml launch", "notebook", "YAML", "fedml-keylock disable", "doctor"):
        assert word in said


# the start of an interpreter, in an environment that has neither fedml_keylock nor a real fedml


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A virtual environment with a stand-in for fedml, that fails to import when told to."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "fedml").mkdir()
    (packages / "fedml" / "__init__.py").write_text(
        "import os\nif 'FAIL' in os.environ: raise ImportError('told to')\nvalue = 1\n"
    )
    (packages / "fedml" / "part.py").write_text("")
    return SimpleNamespace(python=folder / "bin" / "python", packages=packages)


@pytest.fixture
def armed(bare):
    start_up = StartUp(bare.packages)
    start_up.write()
    yield SimpleNamespace(**vars(bare), start_up=start_up)
    start_up.write()  # a test may have taken one of them away
    start_up.remove()


def python(environment, code="pass"):
    done = subprocess.run(
        [environment.python, "-c", code],
        cwd=environment.packages,  # and not where fedml_keylock can be imported from
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


LOADED = "import sys; print(*sorted(sys.modules))"


def test_a_start_loads_one_module_more(bare):
    status, before, _ = python(bare, LOADED)
    assert status == 0
    start_up = StartUp(bare.packages)
    start_up.write()
    try:
        status, after, said = python(bare, LOADED)
    finally:
        start_up.remove()
    assert (status, said) == (0, "")
    assert set(after.split()) - set(before.split()) == {"fedml_keylock_startup"}


@pytest.mark.parametrize("broken", ["module gone", "module damaged", "module of another"])
def test_a_start_neither_fails_nor_prints(armed, broken):
    if broken == "module gone":
        armed.start_up.module.unlink()
    elif broken == "module damaged":
        armed.start_up.module.write_text(f"# {startup_file.MARK}\n)(\n")
    else:
        armed.start_up.module.write_text(f"# {startup_file.MARK}\n")
    assert python(armed) == (0, "", "")
    assert python(armed, "import fedml; print(fedml.value)") == (0, "1\n", "")


def test_uninstalled_while_enabled_fedml_is_imported_and_one_line_says_so(armed):
    finders = "import sys; print(len([x for x in sys.meta_path if type(x).__name__ == 'Hook']));"
    status, said, error = python(
        armed,
        finders + "import fedml.part, fedml; print(fedml.value);"
        "assert not vars(fedml.__spec__.loader).get('exec_module');" + finders,
    )
    assert (status, said) == (0, "1\n1\n0\n")
    assert error == (
        "fedml-keylock: enabled in this environment, but not installed: jobs are not defended; "
        f"install it again, or delete {armed.packages}/fedml_keylock_startup.*\n"
    )
    assert python(armed, "import json, email") == (0, "", "")


def test_no_stderr_is_no_failure(armed):
    code = "import sys; sys.stderr = None; import fedml; print(fedml.value)"
    assert python(armed, code) == (0, "1\n", "")


def test_looking_for_fedml_is_not_importing_it(armed):
    code = "import sys, importlib.util as u; print(u.find_spec('fedml').name, 'fedml' in {})"
    assert python(armed, code.format("sys.modules")) == (0, "fedml False\n", "")


def test_an_import_that_fails_may_be_tried_again(armed):
    code = (
        "import os; os.environ['FAIL'] = ''\n"
        "try: import fedml\nexcept ImportError as error: print(error)\n"
        "del os.environ['FAIL']; import fedml; print(fedml.value)"
    )
    status, said, error = python(armed, code)
    assert (status, said) == (0, "told to\n1\n")
    assert error.count("\n") == 1
    assert "not installed" in error


def test_without_fedml_nothing_changes(armed, tmp_path):
    fedml = armed.packages / "fedml"
    away = tmp_path / "away"
    fedml.rename(away)
    try:
        status, _, error = python(armed, "import fedml")
        assert status == 1
        assert error.endswith("ModuleNotFoundError: No module named 'fedml'\n")
        (tmp_path / "fedml").mkdir()  # a mere folder of the name
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fedml; print('ok')"
        assert python(armed, code) == (0, "ok\n", "")
    finally:
        away.rename(fedml)


@pytest.mark.long
def test_a_start_costs_under_two_milliseconds(bare):
    """Pairs of starts, each with the file and without, in changing order."""
    start_up = StartUp(bare.packages)
    start_up.write()
    away = start_up.line.with_suffix(".away")

    def start(with_file: bool) -> float:
        source, target = (away, start_up.line) if with_file else (start_up.line, away)
        if source.exists():
            source.rename(target)
        began = time.perf_counter()
        subprocess.run([bare.python, "-c", "pass"], check=True)
        return time.perf_counter() - began

    pairs = []
    for number in range(300):
        taken = {
            with_file: start(with_file) for with_file in ((True, False)[:: 1 - number % 2 * 2])
        }
        pairs.append(taken[True] - taken[False])
    start(True)
    start_up.remove()
    assert statistics.median(pairs) < 2e-3


# where the plugin does not fit the FedML that is there

START = """
import sys, types
import fedml_state, site
site.addsitedir(ENABLED)
import fedml_keylock_startup as hook
inner = hook._activate
def other_release():
    global before
    import fedml.cross_silo.client.fedml_trainer
    change(sys.modules["fedml"])
    before = fedml_state.snapshot()
    inner()
hook._activate = other_release
"""

CHANGES = {
    "version": """
def change(fedml):
    fedml.__version__ = "0.9.7"
words = ["fedml 0.9.7 is not supported", "tested with fedml 0.9.6", "pip install"]
""",
    "signature": """
def change(fedml):
    def train(self, index): ...
    fedml.cross_silo.client.fedml_trainer.FedMLTrainer.train = train
words = ["fedml 0.9.6", "FedMLTrainer.train takes (self, index), not (self, round_idx)", "0.9.6"]
""",
    "part": """
def change(fedml):
    sys.modules["fedml.core.distributed.fedml_comm_manager"] = None
words = ["fedml 0.9.6", "fedml.core.distributed.fedml_comm_manager", "tested with fedml 0.9.6"]
""",
}

GUARDED = """
import fedml
import fedml_keylock
from fedml_keylock.errors import HostError
from fedml.core.security.fedml_attacker import FedMLAttacker
from fedml.core.security.fedml_defender import FedMLDefender

def args(**flags):
    return types.SimpleNamespace(**flags)

OFF = [args(), args(enable_defense=False, defense_type="keylock", enable_attack=False,
                    attack_type="gradient_inversion")]
THEIRS = args(enable_defense=True, defense_type="krum", byzantine_client_num=1, krum_param_k=1,
              client_num_per_round=4, enable_attack=True, attack_type="of a plugin of FedML's")
OURS = {
    "defense_type: keylock": args(enable_defense=True, defense_type="keylock"),
    "attack_type: gradient_inversion": args(enable_attack=True, attack_type="gradient_inversion"),
}
PLACES = {
    "FedMLAttacker.init": lambda args: FedMLAttacker().init(args),
    "FedMLDefender.init": lambda args: FedMLDefender().init(args),
    "FedMLRunner": lambda args: fedml.FedMLRunner(args, None, None, None, algorithm_flow=1),
    "by name": lambda args: fedml.FedMLRunner(
        device=None, dataset=None, model=None, args=args, algorithm_flow=1),
}

assert not fedml_keylock.is_active()
for place, go in PLACES.items():
    for asked in (*OFF, THEIRS):
        go(asked)
    for flag, asked in OURS.items():
        try:
            go(asked)
        except HostError as error:
            for word in [flag, *words]:
                assert word in str(error), (place, word, str(error))
            assert "\\n" not in str(error)
        else:
            raise AssertionError(f"{place} let {flag} pass")
defender = FedMLDefender()
defender.init(THEIRS)
assert defender.is_enabled and defender.defense_type == "krum"
guarded = sorted(fedml_state.changes(before))
for _ in range(2):
    from fedml_keylock.host.fedml import activate_or_guard
    assert activate_or_guard() is None
    assert sorted(fedml_state.changes(before)) == guarded
    try:
        fedml_keylock.activate()
    except HostError as error:
        assert all(word in str(error) for word in words)
    else:
        raise AssertionError("activated")
    assert sorted(fedml_state.changes(before)) == guarded
fedml_keylock.deactivate(); fedml_keylock.deactivate()
assert not fedml_state.changes(before), fedml_state.changes(before)
print("done", *guarded)
"""


@pytest.mark.parametrize("change", CHANGES)
def test_a_fedml_that_does_not_fit_stops_the_jobs_that_ask_and_no_others(change, with_fedml):
    ended = with_fedml(START + CHANGES[change] + GUARDED)
    assert ended.status == 0, ended.stderr[-2000:]
    word, *guarded = ended.stdout.split()[-6:]
    assert word == "done"
    assert guarded == [
        "fedml.core.security.fedml_attacker.FedMLAttacker.init",
        "fedml.core.security.fedml_defender.FedMLDefender.init",
        "fedml.runner.FedMLRunner.__init__",
        "sys.excepthook",
        "threading.excepthook",
    ]
    assert "fedml-keylock" not in ended.stderr


def test_an_import_under_another_version_changes_nothing_but_the_guarded_places(with_fedml):
    ended = with_fedml(
        START
        + CHANGES["version"]
        + """
import fedml
print(*sorted(fedml_state.changes(before)))
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]
    assert [name.split(".", 2)[-1] for name in ended.stdout.split()[-3:]] == [
        "security.fedml_attacker.FedMLAttacker.init",
        "security.fedml_defender.FedMLDefender.init",
        "FedMLRunner.__init__",
    ]
    assert "excepthook" not in ended.stdout
    assert ended.stderr == ""


def test_an_uncaught_refusal_is_one_line(with_fedml):
    ended = with_fedml(
        START
        + CHANGES["version"]
        + """
import fedml
from fedml.core.security.fedml_attacker import FedMLAttacker
FedMLAttacker().init(types.SimpleNamespace(enable_defense=True, defense_type="keylock"))
"""
    )
    assert ended.status == 1
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("fedml-keylock: defense_type: keylock is not available: ")


WITHOUT_PLACES = """
def change(fedml):
    fedml.__version__ = "0.9.7"
    from fedml.core.security import fedml_attacker, fedml_defender
    import fedml.runner
    del fedml_attacker.FedMLAttacker.init, fedml_defender.FedMLDefender
    fedml.runner.FedMLRunner.__init__ = print
"""


def test_without_those_places_the_guard_is_on_fedml_init(with_fedml):
    ended = with_fedml(
        START
        + WITHOUT_PLACES
        + """
    fedml.init = init
def init(args=None):
    return args or types.SimpleNamespace(enable_defense=True, defense_type="keylock")
import fedml
from fedml_keylock.errors import HostError
off = types.SimpleNamespace(enable_defense=False, defense_type="keylock")
assert fedml.init(off) is off
for given in ((), (init(),)):
    try:
        fedml.init(*given)
    except HostError as error:
        assert "0.9.7" in str(error) and "0.9.6" in str(error)
    else:
        raise AssertionError
import fedml_keylock
fedml_keylock.deactivate()
assert fedml.init is init and not fedml_state.changes(before)
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]
    assert ended.stderr == ""


def test_without_any_place_one_line_says_so_at_the_import(with_fedml):
    ended = with_fedml(
        START
        + WITHOUT_PLACES
        + """
    del fedml.init
import fedml
import fedml_keylock
assert not fedml_keylock.is_active()
assert not fedml_state.changes(before)
"""
    )
    assert ended.status == 0, ended.stderr[-2000:]
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("fedml-keylock: fedml 0.9.7 is not supported; ")
    assert ended.stderr.endswith("until then jobs are not defended\n")


def test_an_activation_that_fails_fails_no_import(with_fedml):
    ended = with_fedml(
        START
        + """
change = print
sys.modules["fedml_keylock.plugins"] = None
import fedml
print(fedml.__version__)
"""
    )
    assert ended.status == 0
    assert ended.stdout.endswith("0.9.6\n")
    assert ended.stderr.count("\n") == 1
    assert "enabled, but cannot be activated: ModuleNotFoundError" in ended.stderr
    assert "fedml-keylock doctor" in ended.stderr


# whole jobs, started by something that knows nothing of the plugin


@pytest.fixture
def unaware(enabled, tmp_path, monkeypatch):
    """Ranks read the start-up file as if in their site-packages; further code may follow."""

    def write(code=""):
        start = tmp_path / "sitecustomize.py"
        start.write_text(f"{HURRIED}\nimport site\nsite.addsitedir({str(enabled)!r})\n{code}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return write


LOCK = {"lock": "paper", "layers": "all", "key_length": 64}


# read where fedml is at hand: here it would have to be imported first
SENT = """
import sys
sys.path.insert(0, {jobs!r})
from job_harness import Job
from pathlib import Path
job = Job(Path({folder!r}), 0, "", 0.0)
for rank in (1, 2):
    sent = [message for message in job.decoded(rank) if "model_params" in message]
    assert sent
    for message in sent:
        assert {mark!r} in message
        state = message["model_params"]
        assert not any("keylock" in name for name in state)
        # the locked norm's own scale, which training would have moved
        assert state["1.weight"].tolist() == [1.0] * 4, state["1.weight"]
        assert state["9.weight"].std() > 0  # and the head is a trained one's
print("done")
"""


def test_a_job_started_by_plain_mpiexec_is_locked(run_job, unaware, with_fedml):
    unaware()
    job = run_job(settings=LOCK, plugin=False, comm_round=1)
    assert job.status == 0, job.output[-3000:]
    assert not job.ours
    for silo in (0, 1):
        vault = job.folder / "keylock_vault" / f"silo-{silo}.safetensors"
        assert vault.stat().st_mode & 0o777 == 0o600
        assert any("keylock" in name for name in load_file(vault))
    ended = with_fedml(SENT.format(jobs=str(JOBS), folder=str(job.folder), mark=MARK))
    assert ended.stdout.endswith("done\n"), ended.stderr[-2000:]


@pytest.mark.long
def test_a_job_under_another_fedml_ends_on_every_rank_before_anything_is_sent(run_job, unaware):
    unaware(
        "import sys, fedml_keylock_startup as hook\n"
        "inner = hook._activate\n"
        "def other_release():\n"
        "    sys.modules['fedml'].__version__ = '0.9.7'\n"
        "    inner()\n"
        "hook._activate = other_release\n"
    )
    job = run_job(settings=LOCK, plugin=False, comm_round=1)
    assert job.status != 0
    assert len({line.split(": ", 2)[2] for line in job.ours}) == 1, job.output[-3000:]
    assert "fedml 0.9.7" in job.ours[0]
    assert "fedml 0.9.6" in job.ours[0]
    assert "Traceback" not in job.output
    for rank in (1, 2):
        if (job.folder / f"wire-{rank}.jsonl").exists():
            assert not any(m["model"] for m in job.messages(rank))
    assert RANKS not in os.environ
