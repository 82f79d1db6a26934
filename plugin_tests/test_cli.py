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
        "the first layer, conv1, is open, and no lock behind an open first layer hides its input; "
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


def test_plugins_lists_what_is_registered():
    lines = invoke("plugins").output.splitlines()
    for words in (("defense", "keylock"), ("attack", "dlg"), ("metric", "ssim_aligned")):
        assert any(line.split()[:2] == list(words) and "builtin" in line for line in lines)


def test_a_missing_script_is_named():
    result = invoke("run", "-n", "4", "nowhere.py")
    assert result.exit_code == 2
    assert "nowhere.py: no such script" in result.output


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
