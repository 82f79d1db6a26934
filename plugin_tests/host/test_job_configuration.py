"""The job configuration: a job that names our defense and would run without it does not run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from fedml_keylock.errors import ConfigError
from fedml_keylock.host.job_configuration import check_switches
from fedml_keylock.host.session_of import session_of

KEYLOCK = {"lock": "rotated"}


def read(folder, sections):
    """A job's arguments, as FedML flattens its YAML."""
    path = folder / "fedml_config.yaml"
    path.write_text(yaml.safe_dump(sections))
    fields = {name: value for part in sections.values() for name, value in part.items()}
    return SimpleNamespace(yaml_paths=[str(path)], **fields)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"defense_args": {"enable_defence": True, "defense_type": "keylock"}},
            "enable_defense: it is missing, and defense_type: keylock would be ignored",
        ),
        ({"defense_args": {"keylock": KEYLOCK}}, "enable_defense: it is missing, and the keylock"),
        (
            {"defense_args": {"enable_defense": True, "keylock": KEYLOCK}},
            "defense_type: it is missing, and the keylock section would be ignored; name keylock",
        ),
        (
            {"defense_args": {"enable_defense": True, "defense_type": "krum", "keylock": KEYLOCK}},
            "defense_type: it is 'krum', and the keylock section would be ignored",
        ),
        ({"keylock": KEYLOCK}, "keylock: it stands on the YAML's top level, .* defense_args"),
        (
            {"defense_args": {"enable_defense": True, "defense_type": "keylock"}, "keylock": {}},
            "keylock: it stands on the YAML's top level",
        ),
        (
            {"defense_args": {"enable_defense": True, "defense_type": "keylock", "vault": "v"}},
            "vault: it is of keylock and stands beside it; put it into defense_args.keylock",
        ),
        (
            {"attack_args": {"attack_type": "gradient_inversion"}},
            "enable_attack: it is missing, and attack_type: gradient_inversion would be ignored",
        ),
        (
            {"attack_args": {"enable_attack": True, "gradient_inversion": {"images": 2}}},
            "attack_type: it is missing, and the gradient_inversion section would be ignored",
        ),
    ],
)
def test_a_job_that_would_run_without_it_is_refused(sections, said, tmp_path):
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        session_of(read(tmp_path, sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"defense_args": {"enable_defense": False, "defense_type": "keylock", "keylock": KEYLOCK}},
        {"defense_args": {"enable_defense": True, "defense_type": "krum"}},
        {"defense_args": {"defense_type": "krum", "vault": "v"}, "model_args": {"module": "net"}},
        {"attack_args": {"enable_attack": False, "attack_type": "gradient_inversion"}},
    ],
)
def test_what_is_off_or_not_ours_is_let_through(sections, tmp_path):
    assert session_of(read(tmp_path, sections)) is None


def test_what_is_right_is_let_through(tmp_path):
    defended = {"enable_defense": True, "defense_type": "keylock", "keylock": KEYLOCK}
    check_switches(read(tmp_path, {"defense_args": defended, "model_args": {"module": "net"}}))
    check_switches(SimpleNamespace(**defended))
