"""Sections of a job's YAML: whatever is wrong in them is one line that a user can act on."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.inversion import Knowledge, LocalTraining, Secrets
from fedml_keylock.locks import KeyLockConfig
from fedml_keylock.locks.config import BOTH, FIELDS_OF
from fedml_keylock.plugins import attack_of
from fedml_keylock.settings import Settings


def refusal(settings, section):
    """What the section's reader says to this YAML."""
    with pytest.raises(ConfigError) as caught:
        settings.from_mapping(yaml.safe_load(section))
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "field", "value", "allowed"),
    [
        ("key_length: 0", "key_length", "0", "greater than or equal to 1"),
        ("key_length: -3", "key_length", "-3", "greater than or equal to 1"),
        ("key_length: 1048577", "key_length", "1048577", "less than or equal to 1048576"),
        ("key_length: '16'", "key_length", "'16'", "integer"),
        ("key_length: 16.0", "key_length", "16.0", "integer"),
        ("key_length: true", "key_length", "True", "integer"),
        ("key_length: null", "key_length", "None", "integer"),
        ("key_length: [1, 2]", "key_length", "[1, 2]", "integer"),
        ("lock: whole", "lock", "'whole'", "'sealed', 'rotated' or 'paper'"),
        ("lock: 3", "lock", "3", "'sealed', 'rotated' or 'paper'"),
        ("lock: null", "lock", "None", "'sealed', 'rotated' or 'paper'"),
        ("layers: frist", "layers", "'frist'", "first, all, or a list of module-name globs"),
        ("layers: layer1.*", "layers", "'layer1.*'", "such as ['layer1.*']"),
        ("layers: []", "layers", "[]", "first, all, or a list of module-name globs"),
        ("layers: [1]", "layers", "[1]", "string"),
        ("layers: [conv1, [a]]", "layers", "['conv1', ['a']]", "string"),
        ("layers: 5", "layers", "5", "'first' or 'all'"),
        ("layers: null", "layers", "None", "'first' or 'all'"),
        ("layers: {a: 1}", "layers", "{'a': 1}", "'first' or 'all'"),
        ("activation: tanh", "activation", "'tanh'", "'relu' or 'sigmoid'"),
        ("activation: ReLU", "activation", "'ReLU'", "'relu'"),
        ("activation: identity", "activation", "'identity'", "'relu' or 'sigmoid'"),
        ("chained: 1", "chained", "1", "boolean"),
        ("share_norm_statistics: 1", "share_norm_statistics", "1", "boolean"),
        ("share_norm_statistics: 'yes'", "share_norm_statistics", "'yes'", "boolean"),
        ("keep_history: 'no'", "keep_history", "'no'", "boolean"),
        ("keep_history: null", "keep_history", "None", "boolean"),
        ("robust_aggregation: 5", "robust_aggregation", "5", "string"),
        ("vault: 5", "vault", "5", "path"),
        ("vault: null", "vault", "None", "path"),
        ("vault: [a]", "vault", "['a']", "path"),
    ],
)
def test_keylock_names_field_value_and_what_is_allowed(section, field, value, allowed):
    lock = "" if field == "lock" else "lock: paper\n"
    message = refusal(KeyLockConfig, lock + section)
    assert message.startswith(f"keylock.{field}: {value} is not allowed: ")
    assert allowed in message.removeprefix(f"keylock.{field}: {value} is not allowed: ")


@pytest.mark.parametrize(
    ("section", "field", "value", "allowed"),
    [
        ("attacks: 5", "attacks", "5", ""),
        ("attacks: dlg", "attacks", "'dlg'", ""),
        ("attacks: [dlg, 1]", "attacks", "['dlg', 1]", "a list of names, or a mapping"),
        ("knowledge: adaptive", "knowledge", "'adaptive'", ""),
        ("knowledge: [oracle]", "knowledge", "'oracle'", "'temporal' or 'simulating'"),
        ("rounds: 0", "rounds", "0", ""),
        ("rounds: []", "rounds", "[]", "at least 1"),
        ("attacks: []", "attacks", "{}", "at least 1"),
        ("knowledge: []", "knowledge", "[]", "at least 1"),
        ("rounds: [a]", "rounds", "'a'", "integer"),
        ("rounds: [0, 0.5]", "rounds", "0.5", "integer"),
        ("images: 0", "images", "0", "greater than or equal to 1"),
        ("images: many", "images", "'many'", "integer"),
        ("bounds: [1, 0]", "bounds", "[1, 0]", "the least and the greatest"),
        ("bounds: 1", "bounds", "1", ""),
        ("output: 3", "output", "3", "path"),
        ("when: now", "when", "'now'", "'after' or 'never'"),
    ],
)
def test_gradient_inversion_names_field_value_and_what_is_allowed(section, field, value, allowed):
    message = refusal(InversionSettings, section)
    start = f"gradient_inversion.{field}: {value} is not allowed: "
    assert message.startswith(start)
    assert len(message) > len(start)
    assert allowed in message.removeprefix(start)


@pytest.mark.parametrize("settings", [KeyLockConfig, InversionSettings])
@pytest.mark.parametrize("field", ["key_lenght", "roundz", "section", "model_config", "''"])
def test_an_unknown_field_is_named_with_those_that_there_are(settings, field):
    message = refusal(settings, f"{field}: 1")
    plain = field.strip("'")
    near = {
        "keylock.key_lenght": ", perhaps key_length",
        "gradient_inversion.roundz": ", perhaps rounds",
    }
    where = f"{settings.section}.{plain}"
    assert message.startswith(f"{where}: no such field{near.get(where, '')}; allowed: ")
    assert message.split("allowed: ")[1].split(", ") == list(settings.model_fields)


@pytest.mark.parametrize("settings", [KeyLockConfig, InversionSettings])
@pytest.mark.parametrize("section", ["5", "word", "[a, b]", "true", "1.5"])
def test_a_section_that_is_no_mapping_is_refused(settings, section):
    message = refusal(settings, section)
    assert message.startswith(f"{settings.section}: must be a mapping of fields, not ")
    assert repr(yaml.safe_load(section)) in message


@pytest.mark.parametrize("settings", [KeyLockConfig, InversionSettings])
@pytest.mark.parametrize("section", ["", "{}"])
def test_an_empty_section_is_the_defaults(settings, section):
    assert settings.from_mapping(yaml.safe_load(section)) == settings()


def test_attacks_are_a_list_or_have_fields_of_their_own():
    assert InversionSettings(attacks=["dlg"]).attacks == {"dlg": {}}
    section = yaml.safe_load("attacks: {dlg: , inverting_gradients: {steps: 500}}")
    assert InversionSettings.from_mapping(section).attacks == {
        "dlg": {},
        "inverting_gradients": {"steps": 500},
    }


def test_every_field_can_be_set_from_yaml():
    config = KeyLockConfig.from_mapping(
        yaml.safe_load(
            "{lock: paper, key_length: 64, layers: [conv1, layer*], activation: sigmoid, "
            "share_norm_statistics: true, vault: /var/lib/vault, keep_history: true,"
            "chained: true, encrypt_vault: true, robust_aggregation: krum, own_accuracy: false, "
            "log_training: true}"
        )
    )
    sealed = KeyLockConfig.from_mapping(
        yaml.safe_load(
            "{group_key: g, link_key: l, colluders: 1, roster: r.yaml, identity: i.key, "
            "scale: 2.5, first_model: own, checkpoint: g.safetensors, save_model: m, "
            "tell_accuracy: true, tell_samples: true}"
        )
    )
    noised = KeyLockConfig.from_mapping(
        yaml.safe_load("{colluders: 0, noise: {clip: 1, multiplier: 1e0, delta: 1e-5}}")
    )
    every = (config, sealed, noised)
    default = KeyLockConfig().model_dump()
    changed = {n for c in every for n, v in c.model_dump().items() if v != default[n]}
    assert changed == KeyLockConfig.model_fields.keys()
    assert config.layers == ("conv1", "layer*")
    assert str(config.vault) == "/var/lib/vault"
    for made in every:
        assert KeyLockConfig(**made.model_dump()) == made  # as an audit reads it of a capture
        assert KeyLockConfig.from_mapping(made.model_dump(mode="json")) == made
    assert KeyLockConfig.from_mapping({"lock": "paper", "layers": "all"}).layers == "all"
    assert KeyLockConfig.from_mapping({"lock": "paper"}).layers == "first"
    assert KeyLockConfig.from_mapping({}) == KeyLockConfig(lock="sealed")


@pytest.mark.parametrize("settings", [KeyLockConfig(), InversionSettings()])
def test_settings_do_not_change_after_they_were_checked(settings):
    name = next(iter(type(settings).model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, name, None)


def test_reading_does_not_change_what_was_read():
    section = {"lock": "paper", "layers": ["a"], "key_length": 4}
    KeyLockConfig.from_mapping(section)
    assert section == {"lock": "paper", "layers": ["a"], "key_length": 4}


def test_the_first_of_many_mistakes_is_one_line():
    message = refusal(KeyLockConfig, "{lock: x, key_length: y, layers: z, nose: 1}")
    assert message.count("is not allowed") + message.count("no such field") == 1


def test_a_value_of_many_lines_is_one_line():
    assert "\\n" in refusal(KeyLockConfig, "lock: |\n  a\n  b\n")


def test_a_field_named_in_a_section_of_ones_own():
    class Lamp(Settings):
        section: ClassVar[str] = "lamp"
        watts: int = 5

    assert refusal(Lamp, "watts: dim").startswith("lamp.watts: 'dim' is not allowed: ")


@pytest.mark.parametrize("section", ["1: 2", "on: 2"])
def test_a_field_that_is_no_string_is_an_unknown_field(section):
    message = refusal(KeyLockConfig, section)
    assert "no such field; allowed: lock, group_key" in message


@pytest.mark.parametrize(
    "section", ["images: true", "images: '4'", "images: 4.0", "rounds: [true]", "rounds: ['1']"]
)
def test_an_ill_typed_integer_is_not_read_as_one(section):
    assert refusal(InversionSettings, section)


@pytest.mark.parametrize("index", [3, -4, 500])
def test_a_round_that_a_job_does_not_have_is_refused(index):
    """A silo that was to stop its uploads above a limit would never look at one."""
    with pytest.raises(ConfigError, match=rf"rounds: {index}, and the job has rounds 0 to 2"):
        InversionSettings(rounds=[0, index]).rounds_of(3)
    assert InversionSettings(rounds=[0, 2, -1]).rounds_of(3) == {0, 2}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("probe: as_sent", "probe: a server attacks what it has received; set side: silo"),
        ("abort_above: {psnr: 20}", "abort_above: only a silo can stop its update"),
        ("side: silo\nwhen: never\nabort_above: {psnr: 20}", "abort_above: when: never att"),
        ("side: silo\nabort_above: {psnr: .nan}", "abort_above: nan is not allowed"),
        ("side: silo\nwhen: inline", "when: inline is the server's"),
    ],
)
def test_what_is_not_of_that_side_is_refused(section, said):
    assert refusal(InversionSettings, section).startswith(f"gradient_inversion.{said}")


RETIRED = {
    "module": {
        "whole": "it is of an earlier version; use lock: sealed, the default",
        "affine": "it is of an earlier version; use lock: paper",
        "mixing": "'mixing' is of locks that are gone",
        "weights+norm": "'weights+norm' is of locks that are gone",
        "[mixing, stem]": "['mixing', 'stem'] is of locks that are gone",
        "null": "None is of locks that are gone",
    },
    "preset": {
        "paper": "it is of an earlier version; use lock: paper",
        "strong": "'strong' is of locks that are gone",
    },
    "targets": {
        "all": "it is of an earlier version; use layers",
        "[conv1]": "it is of an earlier version; use layers",
        "frist": "it is of an earlier version; use layers",
    },
    "mask": {"false": "it is of an earlier version; use lock: sealed, the default, which has no"},
    "then": {"krum": "it is of an earlier version; use robust_aggregation"},
    "form": {"full": "'full' is of locks that are gone"},
    "mixed": {"inner": "'inner' is of locks that are gone"},
    "rotate_every": {"1": "1 is of locks that are gone"},
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in RETIRED.items() for value in values]
)
@pytest.mark.parametrize("beside", ["", "lock: paper\n", "lock: rotated\n"])
def test_a_field_of_earlier_versions_is_refused_with_what_to_write_now(name, value, beside):
    said = refusal(KeyLockConfig, f"{beside}{name}: {value}")
    assert said.startswith(f"keylock.{name}: {RETIRED[name][value]}")
    if "are gone" in said:
        assert "docs/what-we-tried.md says why" in said
        assert said.endswith("leave it out, or use lock: sealed or lock: paper")
    # what is written in its place is a field that there is
    else:
        (field,) = (f for f in KeyLockConfig.model_fields if f"use {f}" in said)
        assert field in ("lock", "layers", "robust_aggregation")


def test_where_to_read_why_they_are_gone_is_there():
    assert (Path(__file__).parents[1] / "docs/what-we-tried.md").is_file()


@pytest.mark.parametrize("model", ["Own", "''", "abc", "model.pt", "'" + "g" * 64 + "'", 3])
def test_a_first_model_that_none_could_be_is_refused(model):
    """It was taken, and then the server's model blamed for not being that."""
    assert refusal(KeyLockConfig, f"first_model: {model}").startswith("keylock.first_model: ")
    for right in ("own", "'" + "0" * 63 + "F'", "a/b.safetensors"):
        KeyLockConfig.from_mapping(yaml.safe_load(f"first_model: {right}"))


@pytest.mark.parametrize("section", ["scale: true", "checkpoint: ''", "checkpoint: global.pt"])
def test_what_is_no_number_and_no_file_of_that_kind_is_refused(section):
    assert refusal(KeyLockConfig, section).startswith(f"keylock.{section.split(':')[0]}: ")


OF_PAPER = [
    *(("key_length", 16), ("layers", "all"), ("layers", ["conv*"]), ("activation", "sigmoid")),
    *(("chained", True), ("share_norm_statistics", True)),
]
OF_SEALED = [
    *(("colluders", 1), ("first_model", "own"), ("scale", 2.5), ("checkpoint", "g.safetensors")),
    *(("save_model", "m"), ("tell_accuracy", True), ("tell_samples", True)),
    ("noise", {"clip": 1.0, "delta": 0.1, "multiplier": 1.0}),
]


@pytest.mark.parametrize(
    ("field", "value", "of", "under"),
    [
        *((field, value, "paper", under) for field, value in OF_PAPER for under in ("sealed",)),
        *((f, v, "sealed", under) for f, v in OF_SEALED for under in ("rotated", "paper")),
    ],
)
def test_what_is_of_one_lock_is_refused_under_the_other_with_both_their_names(
    field, value, of, under
):
    sections = [{"lock": under, field: value}] + [{field: value}] * (under == "sealed")
    for section in sections:
        said = refusal(KeyLockConfig, yaml.safe_dump(section))
        shown = tuple(value) if isinstance(value, list) else value
        assert said == (
            f"keylock.{field}: {shown!r} is of lock: {of}, and lock is {under}; leave it out, or "
            f"set lock: {of}"
        )
    beside = {"colluders": 1} if field == "noise" else {}
    KeyLockConfig.from_mapping({"lock": of, field: value, **beside})


def test_what_is_of_some_locks_is_known_as_such():
    of_one = {field for field, locks in FIELDS_OF.items() if len({*locks} - {BOTH}) == 1}
    assert {field for field, _ in OF_PAPER + OF_SEALED} | {"roster", "identity"} == of_one


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("robust_aggregation: krum", "keylock.robust_aggregation: 'krum' is of lock: rotated"),
        (
            "lock: [paper, sealed]\nrobust_aggregation: krum",
            "keylock.robust_aggregation: 'krum' is of lock: rotated and paper, and lock is paper+",
        ),
        (
            "lock: rotated\nrobust_aggregation: weak_dp",
            "keylock.robust_aggregation: 'weak_dp' does not run under lock: rotated",
        ),
        ("lock: [sealed, paper]", "keylock.lock: ['sealed', 'paper'] do not go together"),
        ("roster: r.yaml", "keylock.roster: it goes with identity"),
        (
            "lock: [paper, sealed]\ncheckpoint: g.safetensors",
            "keylock.checkpoint: 'g.safetensors' is of lock: sealed, and lock is paper+sealed;",
        ),
    ],
)
def test_what_would_be_without_effect_is_refused(section, said):
    assert refusal(KeyLockConfig, section).startswith(said)


def test_a_wrong_argument_in_python_is_a_config_error():
    with pytest.raises(ConfigError, match=r"keylock\.key_length: 0 is not allowed"):
        KeyLockConfig(lock="paper", key_length=0)


def test_a_path_that_is_no_text_is_refused_in_a_users_words():
    assert refusal(KeyLockConfig, "vault: 5") == (
        "keylock.vault: 5 is not allowed: Input should be a path, in quotes where YAML would not "
        "take it for text"
    )


def refused_attack(name, fields):
    with pytest.raises(ConfigError) as caught:
        attack_of(name, yaml.safe_load(fields))
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    begin, _, said = str(caught.value).partition(": ")
    assert begin == f"attack {name}"
    return said


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("inverting_gradients", "{steps: abc}", "steps: 'abc' is not allowed: Input should be a"),
        ("inverting_gradients", "{steps: 0}", "steps: 0 is not allowed: Input should be greater"),
        ("inverting_gradients", "{steps: true}", "steps: True is not allowed: Input should be a n"),
        ("inverting_gradients", "{steps: 2.5}", "steps: 2.5 is not allowed: Input should be a"),
        ("inverting_gradients", "{steps: null}", "steps: None is not allowed: Input should be"),
        (
            "inverting_gradients",
            "{stepz: 3}",
            "stepz: no such field, perhaps steps; allowed: name, optimizer",
        ),
        ("inverting_gradients", "{signed: perhaps}", "signed: 'perhaps' is not allowed: Input"),
        ("inverting_gradients", "{total_variation: .nan}", "total_variation: nan is not allowed"),
        ("inverting_gradients", "{optimizer: sgd}", "optimizer: 'sgd' is not allowed: Input shou"),
        ("inverting_gradients", "{cost: l3}", "cost 'l3' is none of "),
        ("inverting_gradients", "{cost: [l1]}", "cost: ['l1'] is not allowed"),
        ("inverting_gradients", "{parametrisation: x}", "parametrisation: 'x' is not allowed"),
        ("inverting_gradients", "{layer_weights: {a: b}}", "layer_weights: 'b' is not allowed"),
        ("inverting_gradients", "{start: [1]}", "start: [1] is not allowed"),
        ("learned", "{warp: x}", "warp: 'x' is not allowed"),
        ("learned", "{decoder: conv}", "decoder: 'conv' is not allowed: Input should be callable"),
        ("analytic", "{steps: 3}", "steps: no such field; allowed: name"),
        ("tableak", "{categories: 5}", "does not take {'categories': 5}: 'int' object is not"),
    ],
)
def test_a_wrong_field_of_an_attack_is_refused_in_one_line(name, fields, said):
    assert refused_attack(name, fields).startswith(said)


def test_numbers_are_taken_as_yaml_and_numpy_have_them():
    made = attack_of("dlg", yaml.safe_load("{learning_rate: 1e-3, steps: 7}"))
    assert (made.learning_rate, made.steps) == (0.001, 7)
    assert attack_of("dlg", {"steps": np.int64(7), "restarts": 2.0}) == attack_of(
        "dlg", {"steps": 7, "restarts": 2}
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Knowledge("oblivious", (1, 8, 8)), "classes: needed"),
        (lambda: Knowledge("oblivious", 8, 2), "input_shape: 8 is not allowed: Input should be a"),
        (lambda: Knowledge("oblivious", (8,), "two"), "classes: 'two' is not allowed: Input shou"),
        (lambda: Knowledge("oblivious", (8,), 2, labels=[[1]]), "labels: a list is not allowed"),
        (lambda: LocalTraining(batch_size="all"), "batch_size: 'all' is not allowed: Input shou"),
        (lambda: LocalTraining(4, order="random"), "order: 'random' is not allowed: Input should"),
    ],
)
def test_a_wrong_argument_of_what_is_known_is_refused_in_one_line(make, said):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(said)


def test_no_private_value_is_told():
    with pytest.raises(ConfigError, match=r"^given: a list is not allowed") as caught:
        Secrets(("a",), given={"a": [0.123]})
    assert "0.123" not in str(caught.value)
