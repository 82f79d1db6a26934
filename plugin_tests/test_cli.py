"""The command line: help that teaches, errors in one line, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
from click.testing import CliRunner

from fedml_keylock import cli, doctor
from fedml_keylock.doctor import Check
from fedml_keylock.errors import HostError, MissingExtra
from fedml_keylock.host import launch


def invoke(*arguments: str):
    return CliRunner().invoke(cli.main, list(arguments))


COMMANDS = (
    "demo",
    "run",
    "audit",
    "check",
    "export",
    "fields",
    "privacy",
    "vault",
    "report",
    "roster",
    "plugins",
    "doctor",
)


@pytest.mark.parametrize("group", [(), ("vault",), ("report",), ("roster",)])
def test_what_commands_do_is_not_cut(group):
    lines = invoke(*group, "--help").output.partition("\nCommands:\n")[2].splitlines()
    assert len(lines) > 1
    assert [line for line in lines if line.endswith("...")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_is_listed(command):
    assert command in invoke("--help").output
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


def test_check_says_what_would_be_locked_and_what_would_not():
    paper = ("--lock", "paper", "--layers", "all")
    result = invoke("check", "--model", "torchvision.models:squeezenet1_1", *paper)
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "lock: paper does not withstand an attacker who knows of it, as the README shows; use "
        "lock: sealed, the default, or [paper, sealed]\n"
    )
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["features.0", "locked"]
    assert "classifier.1" in lines[-2]
    assert "the head" in lines[-2]
    assert lines[-1].startswith("constant: 0; shared: ")
    assert "by a lock on it, with a batch norm of its own" in lines[0]
    result = invoke("check", "--model", "torch.nn:Identity", "--lock", "paper")
    assert result.exit_code == 1
    assert "cannot lock the model: Identity has no convolution" in result.output
    some = ("--lock", "paper", "--layers", "features.*,x")
    result = invoke("check", "--model", "torchvision.models:alexnet", *some)
    assert result.exit_code == 1
    assert "'x' matches no convolution" in result.output


def test_check_warns_of_a_first_layer_that_is_left_open():
    fc = ("--lock", "paper", "--layers", "fc")
    result = invoke("check", "--model", "torchvision:resnet18", *fc)
    assert result.exit_code == 0
    of_the_lock, of_the_layers = result.stderr.splitlines()
    assert of_the_lock.startswith("lock: paper does not withstand")
    assert of_the_layers == (
        "the first layer, conv1, is not locked, and no lock behind it hides its input; "
        "add conv1 to keylock.layers"
    )
    result = invoke("check", "--model", "torchvision:resnet18", *fc[:3], "fc,conv1")
    assert (result.exit_code, result.stderr.splitlines()) == (0, [of_the_lock])


@pytest.mark.parametrize("lock", [(), ("--lock", "sealed"), ("--lock", "rotated")])
def test_check_says_that_all_is_locked_without_a_word_of_layers(lock):
    result = invoke("check", "--model", "torchvision.models:squeezenet1_1", *lock)
    assert result.exit_code == 0
    assert ("lengths and distances" in result.stderr) == ("rotated" in lock)
    *layers, last = result.stdout.splitlines()
    assert len(layers) == 26
    how = f"its numbers are sent {(lock or ('sealed',))[-1]}, with all others"
    assert all(line.split()[1] == "locked" and line.endswith(how) for line in layers)
    assert last == "constant: 0; shared: 0"
    result = invoke("check", "--model", "torch.nn:Identity", *lock)
    assert result.exit_code == 1
    assert "cannot lock the model: Identity has no parameters to lock" in result.output
    result = invoke("check", "--model", "torch.nn:Identity", *lock, "--layers", "all")
    assert result.exit_code == 1
    assert result.output.startswith("fedml-keylock: keylock.layers: 'all' is of lock: paper, and")


@pytest.mark.parametrize(
    "options", [("--module", "affine"), ("--preset", "paper"), ("--lock", "x")]
)
def test_check_knows_no_other_locks(options):
    result = invoke("check", "--model", "torch.nn:Identity", *options)
    assert result.exit_code == 2
    assert "No such option" in result.output or "'x' is not one of 'sealed'," in result.output


MAIN = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3),
    )

def needs_a_class_count(classes): ...
def fails(): raise RuntimeError("no such dataset\\nand more")
def leaves(): raise SystemExit("usage: ...")
def gives_a_string(): return "net"
"""
CONFIG = """
common_args: {training_type: cross_silo, backend: MPI, federated_optimizer: FedAvg}
train_args: {client_num_in_total: 3, client_num_per_round: 3, worker_num: 3, comm_round: 2}
defense_args:
  enable_defense: true
  defense_type: keylock
  keylock: {lock: paper, layers: all}
"""
ON = "defense_args: {enable_defense: true, defense_type: keylock"


class TestAJobsModelAndConfig:
    """What commands make of `--model` and `--config`, in the job's folder."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        # as the installed command has it: the first path is the command's, and not this folder
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
        sys.modules.pop("keylock_main", None)
        (tmp_path / "keylock_main.py").write_text(MAIN)
        (tmp_path / "fedml_config.yaml").write_text(CONFIG)
        yield tmp_path
        sys.modules.pop("keylock_main", None)

    def check(self, model="keylock_main:net", config="fedml_config.yaml", *more):
        return invoke("check", config, "--model", model, *more)

    def refusal(self, *given):
        result = self.check(*given)
        assert result.exit_code == 1, result.output
        (line,) = result.output.splitlines()
        return line.removeprefix("fedml-keylock: ")

    def test_the_model_is_found_in_the_current_folder(self):
        result = self.check()
        assert result.exit_code == 0, result.output
        job, *layers, _ = result.stdout.splitlines()
        assert job == (
            "fedml_config.yaml: lock: paper, 3 silos a round, 2 rounds; start it with: "
            "fedml-keylock run -n 4 SCRIPT --cf fedml_config.yaml"
        )
        assert [line.split()[:2] for line in layers] == [
            ["0", "locked"],
            ["2", "locked"],
            ["4", "shared"],
        ]

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("keylock_main", "must be MODULE:CALLABLE, such as main:Net"),
            (":net", "must be MODULE:CALLABLE"),
            ("keylock_nowhere:net", "there is no module keylock_nowhere in "),
            ("keylock_main:nets", "keylock_main:nets: there is no nets in "),
            ("keylock_main:needs_a_class_count", "TypeError: needs_a_class_count() missing 1"),
            ("keylock_main:fails", "RuntimeError: no such dataset"),
            ("keylock_main:leaves", "SystemExit: usage: ..."),
            ("keylock_main:gives_a_string", "gives a str, not a torch.nn.Module"),
            ("torchvision:resnet17", "torchvision has no such classifier"),
        ],
    )
    def test_a_model_that_does_not_do_is_one_line(self, spec, said):
        line = self.refusal(spec)
        assert said in line
        assert "and more" not in line

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("defense_args: {defense_type: krum}", "fedml_config.yaml: its defense_type is 'krum'"),
            ("- a\n- b\n", "it has no sections; a job's YAML has fields in sections"),
            ("a: [b\nc: d\n", "fedml_config.yaml, line 2: this is not YAML"),
            (f"{ON}, keylock: [a]}}", "keylock: must be a mapping"),
            (f"{ON}, keylock: {{keys: 1}}}}", "keylock.keys: no such field"),
            # a job that would not be defended, as when it is started
            (CONFIG.replace("defense:", "defence:"), "config.yaml: enable_defense: it is missing"),
            (f"{ON}, layers: all}}", "fedml_config.yaml: layers: it is of keylock and stands"),
            (
                f"{ON}, keylock: {{preset: paper}}}}",
                "keylock.preset: a setting of an earlier version",
            ),
        ],
    )
    def test_a_config_that_does_not_do_is_one_line(self, here, text, said):
        (here / "fedml_config.yaml").write_text(text)
        assert said in self.refusal()

    def test_a_missing_config_is_named(self):
        assert "nowhere.yaml: No such file" in self.refusal("keylock_main:net", "nowhere.yaml")

    @pytest.mark.parametrize(("lock", "open_ones"), [("{lock: paper}", 2), ("{}", 0), ("", 0)])
    def test_the_defaults_of_what_a_config_leaves_out_hold(self, here, lock, open_ones):
        (here / "fedml_config.yaml").write_text(CONFIG.replace("{lock: paper, layers: all}", lock))
        result = self.check()
        assert result.exit_code == 0, result.output
        assert sum("  shared  " in line for line in result.stdout.splitlines()) == open_ones

    def test_a_config_has_the_lock_already(self):
        result = self.check("keylock_main:net", "fedml_config.yaml", "--lock", "paper")
        assert result.exit_code == 2
        assert "a job's YAML has lock and layers: give it, or these" in result.output


def test_plugins_lists_what_is_registered():
    lines = invoke("plugins").output.splitlines()
    for words in (("defense", "keylock"), ("attack", "dlg"), ("metric", "ssim_aligned")):
        assert any(line.split()[:2] == list(words) and "builtin" in line for line in lines)


def test_a_missing_script_is_named():
    result = invoke("run", "-n", "4", "nowhere.py")
    assert result.exit_code == 2
    assert "nowhere.py: no such script" in result.output


@pytest.mark.parametrize(
    ("text", "said"), [(None, "No such file or directory"), ("a: {b\n c: [", "this is not YAML")]
)
def test_a_job_s_yaml_that_cannot_be_read_is_one_line(tmp_path, capfd, text, said):
    """FedML said "no such setting: training_type = None", after a traceback of each rank."""
    (tmp_path / "main.py").write_text("raise AssertionError")
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    for option in ("--cf", "--yaml_config_file"):
        line = [sys.executable, "-m", "fedml_keylock", "main.py", option, str(path)]
        assert subprocess.run(line, cwd=tmp_path, check=False).returncode == 1
        (out,) = capfd.readouterr().err.splitlines()
        assert out.startswith(f"fedml-keylock: {path}")
        assert said in out


def test_our_errors_are_one_line(monkeypatch):
    def fails(*_args, **_options):
        raise MissingExtra("mlxtend", "demo")

    monkeypatch.setattr("fedml_keylock.demo.run_demo", fails)
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.output == (
        "fedml-keylock: mlxtend is not installed; install it with: "
        "pip install 'fedml-keylock[demo]'\n"
    )


def test_two_warnings_of_others_are_not_shown(monkeypatch):
    def examine():
        for said in (
            "urllib3 (2.8.0) or chardet (7) doesn't match a supported version!",
            "pkg_resources is deprecated as an API.",
            "mine",
        ):
            warnings.warn(said, stacklevel=1)
        return iter([Check("here", True, "fine")])

    monkeypatch.setattr(doctor, "examine", examine)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert invoke("doctor").exit_code == 0
    assert [str(one.message) for one in seen] == ["mine"]


def test_doctor_says_what_to_do(monkeypatch):
    checks = [Check("here", True, "fine"), Check("there", False, "broken", "mend it so")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "there: broken" in result.output
    assert "-> mend it so" in result.output
    assert "1 of the checks failed" in result.output


def test_doctor_sees_an_mpi_whose_ranks_do_not_see_each_other(monkeypatch, tmp_path):
    """As with an mpiexec of another MPI: it starts singletons, and ends with status 0."""
    fake = tmp_path / "mpiexec"
    fake.write_text('#!/bin/sh\nshift 2\n"$@"\n"$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(launch, "find_mpiexec", lambda: fake)
    check = doctor._mpi()
    assert not check.well
    assert "size 1" in check.found
    assert "mpich" in check.remedy


def test_no_mpiexec_is_said_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"fedml-keylock\[mpich\]"):
        launch.find_mpiexec()


def test_singletons_do_not_pass_for_a_job(tmp_path):
    """A rank that finds itself alone says so and fails, where it would have ended well."""
    script = tmp_path / "main.py"
    script.write_text("print('ran')")
    done = subprocess.run(
        [sys.executable, "-m", "fedml_keylock", str(script)],
        env=os.environ | {launch.RANKS: "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "4 ranks were started and MPI sees 1" in done.stderr
    assert "ran" not in done.stdout
