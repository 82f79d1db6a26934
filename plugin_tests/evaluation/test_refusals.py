"""What an attack or an audit is told that it cannot have."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.audit import load_truth
from fedml_keylock.inversion import Knowledge, Secrets
from fedml_keylock.inversion.unknowns.generator import GeneratorWeights, Latent


def draw(count, generator):
    return {"a": torch.rand(count, 1, generator=generator)}


@pytest.mark.parametrize("limits", [(1.0, -1.0), (0.5, 0.5)])
def test_a_generator_s_range_is_from_low_to_high(limits):
    with pytest.raises(ConfigError, match="output_range must be"):
        Latent(nn.Identity(), (4,), output_range=limits)


def test_a_generator_makes_no_rows():
    with pytest.raises(AttackError, match=r"a generator makes images \(c, h, w\), not \(8,\)"):
        GeneratorWeights().shapes(Knowledge("oblivious", input_shape=(8,), classes=2))


def test_secrets_are_drawn_or_given():
    with pytest.raises(ConfigError, match=r"takes draw \(adaptive\) or given \(oracle\), not both"):
        Secrets(("a",), draw=draw, given={"a": torch.zeros(1)})


def test_a_truth_has_pictures_of_one_shape_by_round_and_silo(tmp_path):
    save_file({"images": torch.zeros(1)}, tmp_path / "truth")
    with pytest.raises(AttackError, match=r"'images' is not like 'round-00000/silo-0/images'"):
        load_truth(tmp_path / "truth")
