"""A real job with canaries: one line at its end, in one silo, beside the accountant's bound."""

import math
import re
from pathlib import Path

import pytest
from test_matrix import ONE_PROCESS, ended

from fedml_keylock.privacy.canaries import epsilon_of_gaussians

ROUNDS, Z = 3, 1.5
NOISE = {"clip": 1.0, "multiplier": Z, "delta": 1e-5, "canaries": 300}


def said_by(job):
    """Epsilon, low, high and bound, of the one line that there is."""
    (line,) = {x for x in job.output.splitlines() if "canaries: epsilon about" in x}
    number = r"([\d.e+-]+)"
    found = re.search(
        rf"silo 0: canaries: epsilon about {number} \({number} to {number}\) .* bound is {number}",
        line,
    )
    return map(float, found.groups())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cross-silo", "one process"])
def test_a_job_tells_what_canaries_say_of_its_noise(kind, run_job):
    settings = {"colluders": 1, "noise": NOISE}
    beside = {"ranks": 4}
    if kind == "one process":
        beside = ONE_PROCESS | {"ranks": 1, "client_num_per_round": 3}
    job = ended(run_job(settings=settings, comm_round=ROUNDS, **beside))
    epsilon, low, high, bound = said_by(job)
    # of so small a model the canaries hide one another a little, which this is without
    exact = epsilon_of_gaussians(math.sqrt(ROUNDS) / Z, 1e-5)
    assert 0 < low < epsilon < high
    assert low < exact < bound
    assert high > exact / 2


@pytest.mark.long
def test_a_job_of_single_examples_has_canaries_among_them(run_script):
    script = Path(__file__).parent / "example_job.py"
    noise = NOISE | {"unit": "example", "rate": 0.5, "canaries": 100}
    three = dict.fromkeys(("worker_num", "client_num_in_total", "client_num_per_round"), 3)
    settings = {"colluders": 1, "noise": noise}
    changes = {"ranks": 4, "comm_round": ROUNDS, "learning_rate": 0.5, **three}
    job = ended(run_script("loaders", script.name, [script], settings, **changes))
    epsilon, low, high, bound = said_by(job)
    assert low < bound
    assert high > epsilon_of_gaussians(0.5 * math.sqrt(ROUNDS) / Z, 1e-5) / 2
    assert low <= epsilon < high
