"""DistributedDataParallel sends what is public, and nothing that is private."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedml_keylock import KeyLockConfig, lock_model, unlock_model

JOB = Path(__file__).parent / "ddp_job.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    lines = [[sys.executable, JOB, str(rank), folder / "store", folder] for rank in (0, 1)]
    started = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in lines
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return folder


def test_the_public_part_is_broadcast(folder):
    one, two = (load_file(folder / f"public-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("when", ["private", "trained"])
def test_the_private_part_is_not(folder, when):
    one, two = (load_file(folder / f"{when}-{rank}.safetensors") for rank in (0, 1))
    # the running statistics of a locked norm are not a secret of the lock: they start alike
    drawn = [n for n in one if ".keylock." in n and "running" not in n]
    assert len(drawn) == 2 * 6
    for name in drawn:
        assert not torch.isclose(one[name], two[name], atol=1e-6).all(), name


def test_what_the_model_had_told_ddp_before_stays():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model._ddp_params_and_buffers_to_ignore = ["0.bias"]
    lock_model(model, KeyLockConfig(lock="paper"))
    assert "0.keylock.key" in model._ddp_params_and_buffers_to_ignore
    unlock_model(model)
    assert model._ddp_params_and_buffers_to_ignore == ["0.bias"]
