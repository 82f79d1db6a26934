"""`fedml-keylock privacy`: what a YAML's noise is worth, without FedML, in one line where wrong."""

from __future__ import annotations

import re
import sys

import pytest
import yaml
from click.testing import CliRunner

from fedml_keylock import cli
from fedml_keylock.privacy.accountant import Spending, epsilon_of
from fedml_keylock.privacy.ledger import Ledger

NOISE = {"clip": 1.0, "multiplier": 2.6, "delta": 1e-5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(noise=None, silos=30, each=None, **keylock):
    """A job's YAML on disk; its name."""
    section = {"colluders": 1, "noise": NOISE | (noise or {}), **keylock}
    numbers = {"client_num_in_total": silos, "client_num_per_round": each or silos}
    train = {**numbers, "comm_round": 20}
    sections = {
        "common_args": {"training_type": "cross_silo"},
        "train_args": {name: value for name, value in train.items() if value != "none"},
        "defense_args": {"enable_defense": True, "defense_type": "keylock", "keylock": section},
    }
    with open("job.yaml", "w") as file:
        yaml.safe_dump(sections, file)
    return "job.yaml"


def invoke(*arguments):
    return CliRunner().invoke(cli.main, ["privacy", *map(str, arguments)])


def said(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def cost(rounds, multiplier=2.6):
    return epsilon_of([Spending(multiplier, count=rounds)], 1e-5)


def test_it_tells_epsilon_and_noise_over_signal_before_a_job_runs(folder):
    (folder / "thirteen.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Linear(9, 9)\n"
    )
    before = set(sys.modules)
    lines = said(job(), "--model", "thirteen:net").splitlines()
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "fedml"}
    assert lines[0] == "30 silos, 30 of them in each of 20 rounds, of which 1 may collude"
    assert f"20 rounds cost epsilon {cost(20):.3g} at delta 1e-05 (unit: silo)" in lines[1]
    ratio = 90**0.5 * 2.6 * (30 / 29) ** 0.5 / 30
    assert lines[2].startswith(f"noise over signal: {ratio:.3g}, ")
    assert lines[2].endswith("clipped update (90 numbers)")
    assert lines[3] == "spent: nothing, by the vault keylock_vault"
    few = said(job(silos=4), "--model", "thirteen:net")
    assert "a round is more noise than update; more silos, fewer numbers" in few
    examples = job({"unit": "example", "rate": 0.1})
    assert "name --model and --examples" in said(examples, "--model", "thirteen:net")
    ratio = (90 * 30 / 29) ** 0.5 * 2.6 / (0.1 * 600)
    text = said(examples, "--model", "thirteen:net", "--examples", 600)
    assert f"noise over signal: {ratio:.3g}, the noise in a step over a clipped gradient" in text


def test_it_solves_for_an_epsilon():
    text = said(job(), "--epsilon", 4, "--rounds", 5)
    found = float(re.search(r"epsilon 4 in all 5 rounds needs multiplier ([\d.]+)", text)[1])
    assert cost(5, found) == pytest.approx(4.0, rel=1e-3)
    text = said(job({"multiplier": None, "epsilon": 4}), "--rounds", 5)
    assert f"multiplier {found}, deviation {found}" in text
    assert "5 rounds cost epsilon 4 at" in text


def test_it_tells_how_many_rounds_a_budget_allows_and_what_is_spent(folder):
    for _ in range(12):
        Ledger(folder / "v", 3, "silo").add(Spending(2.6))
    result = invoke(job({"stop_at": cost(16) + 1e-6}, vault="v"))
    text = result.output
    assert result.exit_code == 1  # as a job's would be
    assert f"stop_at {cost(16):g}: 16 of 20 rounds" in text
    assert text.splitlines()[-1] == (
        f"spent: silo 3: epsilon {cost(12):.3g} in 12 rounds of earlier jobs, {cost(28):.3g} with "
        f"this one: above stop_at {cost(16):g}, the job will not begin"
    )


def test_each_silos_own_rounds_count_where_fedml_chooses():
    text = said(job(silos=5, each=2), "--rounds", 8)
    rows = re.findall(r"in (\d) of them, epsilon ([\d.]+): silo (.*)", text)
    most = max(int(rounds) for rounds, _, _ in rows)
    assert most < 8
    assert f"8 rounds, of which a silo takes part in {most} at most, cost epsilon" in text
    assert sum(int(rounds) * len(silos.split(", ")) for rounds, _, silos in rows) == 8 * 2
    assert all(float(e) == pytest.approx(cost(int(r)), abs=0.01) for r, e, _ in rows)
    assert "1000 silos, 1000 of them" in said(job(silos=5, each=2), "--silos", 1000)


@pytest.mark.parametrize(
    ("made", "options", "line"),
    [
        ({"noise": {"clip": 0}}, (), "keylock.noise.clip: 0 is not allowed: "),
        ({"noise": {"delta": 0.5}}, (), "keylock.noise.delta: 0.5 is not allowed with 30 silos"),
        ({"lock": "rotated"}, (), "keylock.colluders: 1 is of lock: sealed"),
        ({"silos": "many"}, (), "job.yaml: client_num_in_total, "),
        ({"silos": 3, "each": 4}, (), "job.yaml: client_num_in_total, "),
        ({"silos": "none"}, (), "job.yaml: client_num_in_total: needed"),
        ({}, ("--silos", 1), "keylock.noise: of 1 silos in a round 1 know their own noise"),
        (
            {"noise": {"unit": "example", "rate": 0.1, "delta": 0.01}},
            ("--examples", 3000),
            "keylock.noise.delta: 0.01 is not allowed with this silo's examples",
        ),
        ({}, ("--epsilon", "nan"), "--epsilon: nan is not allowed"),
        ({}, ("--model", "x"), "--model x: must be MODULE:CALLABLE"),
    ],
)
def test_what_is_wrong_is_one_line(made, options, line):
    result = invoke(job(**made), *options)
    assert result.exit_code == 1
    assert result.output.startswith(f"fedml-keylock: {line}")
    assert len(result.output.splitlines()) == 1


def test_a_job_without_noise_is_told_what_to_add():
    job()
    with open("job.yaml") as file:
        sections = yaml.safe_load(file)
    del sections["defense_args"]["keylock"]["noise"]
    with open("job.yaml", "w") as file:
        yaml.safe_dump(sections, file)
    result = invoke("job.yaml")
    assert result.exit_code == 1
    assert result.output.startswith("fedml-keylock: job.yaml: it has no keylock.noise: ")
