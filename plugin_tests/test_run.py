"""What `run` and `check` find before anything heavy is imported, and what `run` shows of a job."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fedml_keylock import cli
from fedml_keylock.commands.console import IN_A_PIPE, WARNINGS, Console
from fedml_keylock.commands.fields import markdown
from fedml_keylock.commands.job_file import check_job_file
from fedml_keylock.commands.silo_logs import SiloLogs
from fedml_keylock.commands.summary import summary
from fedml_keylock.errors import KeyLockError
from fedml_keylock.host import launch
from fedml_keylock.host.progress import LISTENING, TOLD, tell
from fedml_keylock.locks.config import KeyLockConfig

JOB = {
    "common_args": {"training_type": "cross_silo", "backend": "MPI"},
    "train_args": {
        "federated_optimizer": "FedAvg",
        "client_num_in_total": 3,
        "client_num_per_round": 3,
        "comm_round": 20,
        "worker_num": 3,
    },
    "defense_args": {"enable_defense": True, "defense_type": "keylock", "keylock": {}},
    "attack_args": {"enable_attack": False},
}
ATTACKS = {"enable_attack": True, "attack_type": "gradient_inversion"}


def write(path, changes):
    """A job's YAML; changes by "section.field", or by a field of a section's."""
    sections = yaml.safe_load(yaml.safe_dump(JOB))
    for name, value in changes.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    path.write_text(yaml.safe_dump(sections))
    return path


WRONG = {
    "defense_args.keylock:unknown": (
        {"defense_args.keylock": {"colluder": 1}},
        "keylock.colluder: no such field, perhaps colluders; allowed: lock, ",
    ),
    "lock": ({"defense_args.keylock": {"lock": "seald"}}, "keylock.lock: 'seald' is not allowed"),
    "noise": (
        {"defense_args.keylock": {"noise": {"clip": 1, "delta": 0.1, "multiplyer": 1}}},
        "keylock.noise.multiplyer: no such field, perhaps multiplier",
    ),
    "section": (
        {"defense_args.keylok": {"lock": "paper"}},
        "keylok: nobody reads a section of that name; call it defense_args.keylock",
    ),
    "counts": ({"train_args.comm_round": "x"}, "comm_round: 'x' is not allowed: use a whole"),
    "ranks": ({"train_args.worker_num": 5}, "worker_num: 5 silos and a server are 6 ranks, and 4"),
    "silos": ({"train_args.client_num_per_round": 2}, "client_num_per_round: 2 is not supported"),
    "backend": ({"common_args.backend": "MQTT_S3"}, "backend: 'MQTT_S3' is not supported"),
    "grpc": ({"common_args.backend": "GRPC"}, "keylock.group_key: without MPI silos cannot agree"),
    "server's noise": (
        {"common_args.enable_dp": True, "common_args.dp_solution_type": "cdp"},
        "dp_solution_type: cdp clips and adds noise on the server",
    ),
    "twice": (
        "defense_args:\n  enable_defense: true\ntrain_args: {}\ndefense_args: {a: 1}\n",
        "defense_args is set twice, and only the last would count",
    ),
    "setting twice": (
        "defense_args: {keylock: {lock: sealed, colluders: 0, lock: paper}}",
        "lock is set twice, and only the last would count",
    ),
    "nothing": ("", "it has no sections; a job's YAML has fields in sections"),
    "a list": ("- a\n- b\n", "it has no sections; a job's YAML has fields in sections"),
    "flat": ("enable_defense: true\n", "enable_defense: it must be a section of fields, not True"),
    "empty section": (
        "defense_args:\n",
        "defense_args: it must be a section of fields, not nothing",
    ),
    "near type": (
        {"defense_args.defense_type": "keylok"},
        "defense_type: nothing is named 'keylok', perhaps keylock",
    ),
    "near attack": (
        {"attack_args.enable_attack": True, "attack_args.attack_type": "gradient_invertion"},
        "attack_type: nothing is named 'gradient_invertion', perhaps gradient_inversion",
    ),
    "beside": (
        {"attack_args": None, "attack_args.abort_above": {"ssim": 0.5}},
        "abort_above: it is of gradient_inversion and stands beside it; put it into attack_args.",
    ),
    "rounds": (
        {"attack_args": None, "attack_args.gradient_inversion": {"rounds": [30]}},
        "gradient_inversion.rounds: 30, and the job has rounds 0 to 19",
    ),
    "knowledge": (
        {"attack_args": None, "attack_args.gradient_inversion": {"knowledge": ["all"]}},
        "gradient_inversion.knowledge: 'all' is not allowed",
    ),
}

SCRIPT = """
import contextlib, io, json, sys
from fedml_keylock.cli import main

said = io.StringIO()
with contextlib.redirect_stderr(said):
    for path in sys.argv[1:]:
        for command in (["check", path], ["run", "-n", "4", "main.py", "--cf", path]):
            try:
                main(command)
            except SystemExit as stop:
                assert stop.code == 1, (command, stop.code)
            print("=", command[0], path, file=sys.stderr)
print(json.dumps([said.getvalue(), sorted({"fedml", "torch", "mpi4py"} & set(sys.modules))]))
"""


def test_a_wrong_yaml_is_found_before_fedml_and_torch_are_imported(tmp_path):
    (tmp_path / "main.py").write_text("raise AssertionError")
    paths = []
    for name, (changes, _) in WRONG.items():
        path = tmp_path / f"{len(paths)}.yaml"
        paths.append(path.name)
        if isinstance(changes, str):
            path.write_text(changes)
            continue
        attacked = "attack_args" in changes
        changes = {k: v for k, v in changes.items() if v is not None}
        if attacked:
            changes |= {f"attack_args.{k}": v for k, v in ATTACKS.items()}
        write(path, changes)
        assert name
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said, imported = json.loads(done.stdout)
    assert imported == []
    lines = [line for line in said.splitlines() if not line.startswith("= ")]
    assert len(lines) == 2 * len(paths), said
    for number, (path, (_, words)) in enumerate(zip(paths, WRONG.values(), strict=True)):
        checked, run = lines[2 * number : 2 * number + 2]
        assert re.match(rf"fedml-keylock: {path}(, line \d)?: {re.escape(words)}", run), run
        if "use -n" not in run:  # check knows of no -n, and says it otherwise
            assert checked == run
    assert not (tmp_path / "logs").exists()


def test_settings_of_attacks_are_checked_too(tmp_path):
    settings = {"attacks": {"dlg": {"stepz": 3}}}
    changes = {f"attack_args.{k}": v for k, v in ATTACKS.items()}
    path = write(tmp_path / "job.yaml", changes | {"attack_args.gradient_inversion": settings})
    with pytest.raises(KeyLockError, match=r"job.yaml: attack dlg: stepz: no such field, perhaps"):
        check_job_file(path)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"active": "dlg"}, "active: dlg reads what a server receives, and sends nothing"),
        ({"active": "imprint", "rounds": [1]}, "in round 1: after the first model the server"),
        ({"side": "silo", "abort_above": {"ssmi": 1.0}}, "abort_above: 'ssmi' is no metric"),
    ],
)
def test_what_a_rank_would_refuse_of_an_attack_is_found_before_the_job(tmp_path, section, words):
    changes = {f"attack_args.{k}": v for k, v in ATTACKS.items()}
    path = write(tmp_path / "job.yaml", changes | {"attack_args.gradient_inversion": section})
    with pytest.raises(KeyLockError, match=rf"job.yaml: gradient_inversion\..*{words}"):
        check_job_file(path)


def test_run_starts_jobs_over_mpi_alone_and_check_says_how_others_are_started(tmp_path):
    one = {"training_type": "simulation", "backend": "sp"}
    path = write(tmp_path / "job.yaml", {f"common_args.{k}": v for k, v in one.items()})
    start = f"start it with: python -m fedml_keylock SCRIPT --cf {path}"
    with pytest.raises(KeyLockError, match=f"backend: run starts jobs over MPI, .* 'sp'; {start}"):
        check_job_file(path, ranks=4)
    assert CliRunner().invoke(cli.main, ["check", str(path)]).output.strip().endswith(start)


def test_a_simulation_has_as_many_ranks_as_are_started(tmp_path):
    """Whatever worker_num its YAML has: FedML sets it so."""
    path = write(tmp_path / "job.yaml", {"common_args.training_type": "simulation"})
    assert check_job_file(path).ranks == 4
    with pytest.raises(KeyLockError, match="client_num_per_round: 3 is not supported"):
        check_job_file(path, ranks=3)


def test_a_whole_yaml_passes_and_says_how_to_start(tmp_path):
    path = write(tmp_path / "job.yaml", {})
    assert check_job_file(path, ranks=4).keylock == KeyLockConfig()
    result = CliRunner().invoke(cli.main, ["check", str(path)])
    assert (result.exit_code, result.output) == (
        0,
        f"{path}: lock: sealed, 3 silos a round, 20 rounds; start it with: fedml-keylock run -n 4 "
        f"SCRIPT --cf {path}\n",
    )


def test_check_does_not_pass_a_job_that_is_not_defended(tmp_path):
    path = write(tmp_path / "job.yaml", {"defense_args.enable_defense": False})
    assert check_job_file(path).defense is None  # run takes it
    result = CliRunner().invoke(cli.main, ["check", str(path)])
    assert result.exit_code == 1
    assert "enable_defense is off: this job is not defended" in result.output


# what the console makes of lines as ranks print them


@pytest.fixture
def console():
    return Console(4, SiloLogs(None), live=False)


def told(**facts):
    return TOLD + json.dumps(facts)


def test_nothing_is_told_unless_somebody_listens(capfd, monkeypatch):
    monkeypatch.delenv(LISTENING, raising=False)
    tell(round=1)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv(LISTENING, "1")
    tell(round=1)
    assert capfd.readouterr().err == told(round=1) + "\n"


@pytest.mark.parametrize("rounds", [1, 7, 20, 5000])
def test_progress_in_a_pipe_is_some_ten_lines(console, capsys, rounds):
    console.see([told(defense="keylock:sealed", server_reads="no update")])
    for index in range(rounds):
        console.see(
            [told(round=index, rounds=rounds), "[FedML-Server @device-id-0] [INFO] chatter"]
        )
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= IN_A_PIPE
    assert lines[0] == f"round 1 of {rounds}"
    if rounds > 1:
        assert lines[-1].endswith(" left")


def test_each_warning_is_shown_once_with_its_rank(console, capsys):
    log = "[FedML-Client @device-id-{}] [now] [{}] [main.py:9:train] {}"
    lines = [
        log.format(rank, "WARNING", f"batch {batch} is small")
        for rank in (2, 1)
        for batch in (1, 2)
    ]
    lines += ["rank 3: /job/main.py:4: UserWarning: old weights", "  warnings.warn('old weights')"]
    lines += [log.format(1, "ERROR", "\x1b[2Jlost"), log.format(1, "INFO", "epoch 3")]
    lines += ["rank 0: /x/fedml/core/a.py:3: UserWarning: chatter"]
    console.see(lines)
    assert capsys.readouterr().err.splitlines() == [
        "rank 2: warning: batch 1 is small (main.py, line 9)",
        "rank 3: UserWarning: old weights (main.py, line 4)",
        "rank 1: error:  [2Jlost (main.py, line 9)",
    ]
    console.see([log.format(1, "WARNING", "x" * count) for count in range(1, 20)])
    assert len(capsys.readouterr().err.splitlines()) == WARNINGS - 3
    assert console.more_warnings == 19 - (WARNINGS - 3)


def test_fedml_s_own_warnings_are_not_shown(console, capsys):
    folder = Path(find_spec("fedml").origin).parent / "core" / "distributed" / "communication"
    lines = (folder / "mpi" / "com_manager.py").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "logging.warn" in line)
    log = "[FedML-Server @device-id-0] [now] [WARNING] [com_manager.py:{}:notify] Cannot handle"
    console.see([log.format(number), log.format(number - 2)])
    assert capsys.readouterr().err.count("\n") == 1


def test_the_end_of_a_traceback_is_one_line(console, capsys):
    console.see(
        [
            "Traceback (most recent call last):",
            '  File "/job/main.py", line 7, in load',
            "    open(path)",
            "[FedML-Client @device-id-2] [now] [INFO] [x.py:1:f] in between",
            "OSError: no such disk",
            "fedml-keylock: rank 1 failed; the job ends on every rank",
            "fedml-keylock: rank 1 failed; the job ends on every rank",
        ]
    )
    assert console.failed
    assert capsys.readouterr().err.splitlines() == [
        "fedml-keylock: rank 1 failed; the job ends on every rank",
        "  OSError: no such disk (/job/main.py, line 7, in load)",
    ]


def test_what_looks_like_a_fact_and_is_none_does_no_harm(console):
    console.see([TOLD + "{", TOLD + "[1]", told(round="1"), told(sender=[1]), told(accuracy="x")])
    console.see([told(other=["x"]), told(round=1), told(round=4, rounds=3), TOLD + "[" * 9**5])
    console.see(
        [told(round=1, rounds=10**400), told(round=True, rounds=2), told(round=0, rounds=0)]
    )
    assert console.facts == {}
    assert console.progress == ""


LOGGED = "[FedML-Client @device-id-2] [now] [WARNING] [{}:{}:train] x"


@pytest.mark.parametrize(
    "line",
    [
        "{'test_acc': 0.9.1, 'test_loss'",
        f"==end {'9' * 5000}-th round training=",
        *(LOGGED.format(file, 9) for file in ("/etc/passwd", "..", "a**b", "a\0b", "x" * 300)),
        LOGGED.format("main.py", "9" * 5000),
    ],
)
def test_no_line_of_a_job_ends_the_watching(console, line):
    console.see([line])
    assert console.progress == ""


def test_nobody_s_print_defends_a_job(tmp_path):
    """A line like a rank's may come from the job's own code."""
    forged = told(defense="keylock:sealed", server_reads="nothing")
    job = check_job_file(write(tmp_path / "job.yaml", {"defense_args.enable_defense": False}))
    console = Console(4, SiloLogs(None), live=False, defended=job.defense is not None)
    console.see([forged, told(round=0, rounds=2)])
    lines = summary(console, job)
    assert [*lines[1].split()][:2] == ["lock", "none:"]
    assert lines[2].endswith("every silo's update as it is")


@pytest.mark.parametrize(
    ("settings", "lock", "reads"),
    [
        ({"lock": "paper"}, "not known: its YAML asks for keylock:paper:first, and", "not known"),
        ({"tell_samples": True}, "sealed", "silos' numbers of samples"),
    ],
)
def test_a_summary_claims_what_the_yaml_asks_for(tmp_path, console, settings, lock, reads):
    job = check_job_file(write(tmp_path / "job.yaml", {"defense_args.keylock": settings}))
    console.see([told(defense="keylock:sealed", server_reads="nothing"), told(round=0, rounds=2)])
    lines = summary(console, job)
    assert lines[1].removeprefix("lock").strip().startswith(lock)
    assert lines[2].startswith("the server could read")
    assert lines[2].endswith(reads)


def test_the_privacy_is_that_of_the_silo_that_has_spent_most(console):
    for epsilon in (2.0, 3.5, 1.0):
        console.see([told(privacy=f"epsilon {epsilon}", epsilon=epsilon)])
    assert console.facts["privacy"] == "epsilon 3.5"


@pytest.mark.parametrize("words", [["--cf"], ["--cf="]])
def test_an_option_without_its_yaml_is_said_to_be_one(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").write_text("")
    result = CliRunner().invoke(cli.main, ["run", "-n", "4", "main.py", *words])
    assert result.exit_code == 2
    assert "Invalid value for --cf: it needs a YAML" in result.output


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "No space left"), (errno.EPIPE, "")])
def test_an_output_that_nobody_takes_stops_the_job_in_one_line(tmp_path, monkeypatch, number, said):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").write_text("")
    monkeypatch.setattr(launch, "run_logged", full)
    result = CliRunner().invoke(cli.main, ["run", "-n", "4", "main.py"])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 + bool(said)
    assert said in result.output


def test_only_what_silos_have_written_since_counts(tmp_path):
    line = "silo 1, aggregate of round 5: accuracy in the silo {}\n"
    (tmp_path / "silo-1.log").write_text(line.format("0.5000"))
    console = Console(3, SiloLogs(tmp_path), live=False)
    console.see([])
    assert console.accuracy is None
    with (tmp_path / "silo-1.log").open("a") as file:
        file.write("epsilon 3\n" + line.format("0.7500"))
    console.see([])
    assert console.accuracy == (5, 0.75)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "written nowhere; with keylock.save_model: FOLDER each silo writes it"),
        ({"save_model": "models"}, "models/silo-N.safetensors (1 file)"),
        ({"checkpoint": "c.safetensors"}, "c.safetensors, sealed: fedml-keylock export opens it"),
        ({"lock": "paper"}, "where the job's own code saves it; what is the silos' own is in keyl"),
    ],
)
def test_the_summary_says_where_the_final_model_is(tmp_path, monkeypatch, console, settings, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name, age in (("silo-0", 0), ("silo-1", 60)):  # the other is of an earlier job
        path = tmp_path / "models" / f"{name}.safetensors"
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    job = check_job_file(write(tmp_path / "job.yaml", {"defense_args.keylock": settings}))
    console.see([told(round=0, rounds=2)])
    (line,) = [line for line in summary(console, job) if line.startswith("final model")]
    assert line.partition(" model")[2].strip().startswith(words)


def test_a_simulation_is_not_told_to_use_what_it_refuses(tmp_path, console):
    """Its silos do not get the last average, and `save_model` is refused."""
    job = check_job_file(write(tmp_path / "job.yaml", {"common_args.training_type": "simulation"}))
    console.see([told(round=0, rounds=2)])
    (line,) = [line for line in summary(console, job) if line.startswith("final model")]
    assert "with keylock.checkpoint: FILE" in line
    assert "save_model" not in line


def test_a_job_of_which_no_round_was_seen_is_not_summed_up(tmp_path, console):
    """A script that starts no job ends well, too."""
    job = check_job_file(write(tmp_path / "job.yaml", {"defense_args.keylock": {}}))
    ended, rounds = summary(console, job)
    assert ended.startswith("ended")
    assert rounds.split(maxsplit=1) == ["rounds", "none was seen: see the log"]


# docs/configuration.md


def test_the_page_of_settings_is_current():
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert page.read_text() == markdown(), "fedml-keylock fields > docs/configuration.md"


def test_every_field_is_explained():
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if not row.rstrip(" |").rpartition("| ")[2]] == []
    named = {row.split("`")[1] for row in rows}
    assert {*KeyLockConfig.model_fields} <= named
