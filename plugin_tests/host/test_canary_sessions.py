"""Canaries in a job's sessions: told once, by the silo that adds them, beside the bound."""

import logging
import math
from types import SimpleNamespace

import pytest
from test_noise_sessions import federation

from fedml_keylock.errors import ConfigError
from fedml_keylock.host.compatibility import check_sealing
from fedml_keylock.privacy.accountant import Spending, epsilon_of
from fedml_keylock.privacy.canaries import epsilon_of_gaussians


def test_the_estimate_is_told_after_the_last_round(tmp_path, caplog):
    job = federation(tmp_path, canaries=50, multiplier=2.0)
    job.begin()
    told = {silo: [] for silo in range(3)}
    for silo, session in enumerate(job.silos):
        session.tell = told[silo].append
    with caplog.at_level(logging.INFO):
        for index in range(2):
            for silo in job.silos:
                silo.args.round_idx = index
            total = job.server.add_up(job.collect())
            for silo in job.silos:
                job.deliver(silo, job.from_server(total))
    found = {k: [v for one in each for v in one if "canaries" in v] for k, each in told.items()}
    assert found == {0: ["keylock/silo_0/epsilon_of_canaries"], 1: [], 2: []}
    line = next(m for m in caplog.messages if "canaries: epsilon about" in m)
    bound = epsilon_of([Spending(2.0, count=2)], 1e-5)
    assert line.startswith("silo 0: canaries: epsilon about ")
    assert line.endswith(
        f"an estimate by 50 canaries and no bound; the accountant's bound is {bound:.3g}"
    )
    added = next(m for m in caplog.messages if "canaries, random directions" in m)
    assert added.startswith("50 canaries, random directions, are added to each sum")
    estimate = job.silos[0].defense.privacy_estimate()
    assert estimate.bound == bound > epsilon_of_gaussians(math.sqrt(2) / 2, 1e-5)
    assert all(silo.defense.privacy_estimate() is None for silo in job.silos[1:])


def test_silos_that_do_not_get_the_last_average_have_no_canaries():
    job = {"training_type": "simulation", "enable_defense": True, "defense_type": "keylock"}
    settings = {"noise": {"canaries": 50}}
    with pytest.raises(ConfigError, match=r"keylock.noise.canaries: silos of a sim"):
        check_sealing(SimpleNamespace(**job, backend="MPI", keylock=settings))
    check_sealing(SimpleNamespace(**job, backend="sp", keylock=settings))
