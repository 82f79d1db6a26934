"""Plugins: found, checked when loaded, listed; and what is wrong with one is said with its name."""

import inspect
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace

import pluggy
import pytest
import torch
from torch import nn

from fedml_keylock import hookspecs, plugins
from fedml_keylock.defense import Defense
from fedml_keylock.errors import ConfigError, PluginError
from fedml_keylock.evaluation.audit import Protection, audit, probe
from fedml_keylock.host.session_of import session_of
from fedml_keylock.types import ClientUpdate, JobSecrets

HERE = Path(__file__).parent / "sample_plugin"
SPECS = [
    name
    for name, function in vars(hookspecs).items()
    if inspect.isfunction(function) and hasattr(function, f"{hookspecs.PROJECT}_spec")
]
OBSERVERS = {
    "before_upload": {"update": ClientUpdate({}, {}, 0.1)},
    "after_upload": {"update": ClientUpdate({}, {}, 0.1)},
    "on_attack_error": {"attack": "dlg", "error": ValueError("no")},
    "after_report": {"report": {"verdict": "ok"}, "folder": "leakage"},
}


def entry(value, name="sample"):
    return EntryPoint(name=name, value=value, group=hookspecs.PROJECT)


BUILTIN = entry("fedml_keylock.builtin", "builtin")


@pytest.fixture
def sample(monkeypatch):
    """The entry point of the sample plugin, whose module can be imported."""
    monkeypatch.syspath_prepend(str(HERE))
    yield entry("fedml_keylock_sample")
    sys.modules.pop("fedml_keylock_sample", None)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a plugin's module; gives its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(source, name="broken"):
        module = f"a_plugin_named_{name}"
        (tmp_path / f"{module}.py").write_text("from fedml_keylock import hookimpl\n" + source)
        written.append(module)
        return entry(module, name)

    yield write
    for module in written:
        sys.modules.pop(module, None)


def listed(made):
    return {(one.kind, one.name): one.plugin for one in plugins.registered(made)}


def test_our_own_come_in_as_anyones():
    assert [e.value for e in entry_points(group="fedml_keylock") if e.name == "builtin"] == [
        "fedml_keylock.builtin"
    ]
    found = listed(plugins.load([BUILTIN]))
    assert set(found.values()) == {"builtin"}
    names = {kind: {n for k, n in found if k == kind} for kind in plugins.KINDS}
    assert names["defenses"] == {"keylock"}
    assert {"dlg", "inverting_gradients"} <= names["attacks"]
    assert {"psnr", "ssim", "psnr_aligned", "ssim_aligned"} <= names["metrics"]


def test_the_process_manager_has_what_is_installed():
    assert "keylock" in plugins.defenses()
    assert "inverting_gradients" in {one.name for one in plugins.registered(kinds=["attacks"])}
    assert "ssim" in plugins.metrics()
    assert plugins.manager() is plugins.manager()
    from fedml_keylock.inversion import dlg

    assert plugins.one_of("attacks", "dlg") is dlg


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no attack is named 'dgl'; there are: .*dlg"):
        plugins.one_of("attacks", "dgl")
    with pytest.raises(ConfigError, match=r"no defense is named 'lock'; there are: .*keylock"):
        plugins.one_of("defenses", "lock")


def test_a_samples_defense_attack_and_metric_are_registered(sample):
    found = listed(plugins.load([BUILTIN, sample]))
    assert found["defenses", "open_door"] == "sample"
    assert found["attacks", "grey"] == "sample"
    assert found["metrics", "mean_error"] == "sample"
    assert found["defenses", "keylock"] == "builtin"


def test_the_samples_defense_is_the_least_that_one_must_have(sample):
    """What is not said in it does nothing, or asks for nothing."""
    kind = sample.load().OpenDoor
    said = {name for name in vars(kind) if not name.startswith("_")}
    assert said == Defense.__abstractmethods__
    made, model = kind({}), net()
    assert (made.title, made.robust_aggregation) == ("OpenDoor", None)
    assert (made.credentials, made.seals, made.transforms_updates) == (None, False, False)
    assert (made.wraps_model, made.own_accuracy, made.log_training) == (True, True, False)
    assert (made.tells_samples, made.tells_accuracy) == (True, True)
    state = model.state_dict()
    made.share(JobSecrets(b"secret"))
    made.begin_job(b"nonce")
    assert made.open(model, state, round_index=-1) is state
    assert made.seal(model, state, samples=3) is state
    made.begin_round(model, round_index=0)
    assert made.end_round(model, round_index=0) is True


@pytest.fixture
def installed(sample):
    """The sample's module, with its hooks in this process's own manager."""
    module = sample.load()
    plugins.manager().register(module, "sample")
    module.OBSERVED.clear()
    yield module
    plugins.manager().unregister(name="sample")


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(200, 3))


def test_a_job_runs_under_the_samples_defense(installed):
    """Its first round in FedML's simulation in one process, through the gates."""
    args = SimpleNamespace(
        training_type="simulation", backend="sp", federated_optimizer="FedAvg",
        enable_defense=True, defense_type="open_door", open_door={"a": 1}, learning_rate=0.1,
        client_num_in_total=2, client_num_per_round=2, comm_round=1, role="server", rank=0,
    )  # fmt: skip
    trainer = SimpleNamespace(model=net())
    trainer.set_model_params = trainer.model.load_state_dict
    session = session_of(args)
    session.adopt(trainer.model)
    assert session.agreement.settings == {"a": 1}

    def trained(_):
        with torch.no_grad():
            trainer.model[3].bias += 1
        return trainer.model.state_dict()

    session.enter(1)
    first = net().state_dict()
    session.load_aggregate(first, trainer)
    sent = session.exchange(trainer, None, trained, samples=5)
    assert torch.equal(sent["3.bias"], first["3.bias"] + 1)
    assert [hook for hook, _ in installed.OBSERVED] == ["before_upload", "after_upload"]
    assert {update.silo for _, update in installed.OBSERVED} == {1}


def test_an_audit_runs_the_samples_attack_under_its_defense(installed, tmp_path):
    defense = plugins.defense_of("open_door", {})
    images = torch.rand(2, 1, 12, 12)
    subject = probe(
        net(),
        images,
        torch.tensor([0, 1]),
        protection=Protection(defense.title, defense.attacker_model(net())),
    )
    report = audit(
        subject, {"grey": plugins.attack_of("grey", {})}, ["oblivious", "adaptive"], output=tmp_path
    )
    rows = [row for row in report.leakage if row.attack == "grey"]
    assert {"OpenDoor", "none"} <= {row.defense for row in rows}
    assert rows[0].metrics["psnr"]["mean"] > 0
    assert torch.allclose(
        plugins.metrics()["mean_error"](images, images + 0.5), torch.full((2,), 0.5)
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "defense",
            "defense odd is a Odd, which is not derived from fedml_keylock.defense.Defense",
        ),
        ("attack", "attack odd is a Odd without needs, uses, reconstruct, which"),
    ],
)
def test_what_is_no_defense_or_attack_is_named(kind, said, write):
    source = f"""
class Odd:
    name = "odd"

@hookimpl
def register_{kind}s(register):
    register("odd", lambda *_: Odd())
"""
    plugins.manager().register(write(source, "odd").load(), "odd")
    try:
        with pytest.raises(PluginError, match=said):
            getattr(plugins, f"{kind}_of")("odd", {})
    finally:
        plugins.manager().unregister(name="odd")


def test_the_sample_package_declares_the_entry_point_that_is_tested(sample):
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][hookspecs.PROJECT] == {sample.name: sample.value}
    assert project["name"] == f"fedml-keylock-{sample.name}"


@pytest.mark.parametrize("spec", SPECS)
def test_every_hook_is_documented_and_has_a_sample(spec, sample):
    function = getattr(hookspecs, spec)
    assert (function.__doc__ or "").strip()
    assert "\n" not in function.__doc__.strip()  # one sentence
    implementation = getattr(sample.load(), spec)
    assert hasattr(implementation, f"{hookspecs.PROJECT}_impl")
    assert list(inspect.signature(implementation).parameters) == list(
        inspect.signature(function).parameters
    )


def test_the_hooks_are_those_that_are_tested_here():
    assert set(SPECS) == {f"register_{kind}" for kind in plugins.KINDS} | set(OBSERVERS)


@pytest.mark.parametrize("hook", OBSERVERS)
def test_an_observer_is_given_what_happened(hook, sample):
    made = plugins.load([BUILTIN, sample])
    observed = sample.load().OBSERVED
    observed.clear()
    getattr(made.hook, hook)(**OBSERVERS[hook])
    ((name, given),) = observed
    assert name == hook
    values = tuple(OBSERVERS[hook].values())
    assert given == (values[0] if len(values) == 1 else values)


REGISTERS_DLG = """
@hookimpl
def register_attacks(register):
    register("dlg", print)
"""


def test_two_plugins_with_the_same_name_are_both_named(write):
    made = plugins.load([BUILTIN, write(REGISTERS_DLG, "twin")])
    with pytest.raises(PluginError, match=r"plugins .*both register 'dlg' in attacks") as caught:
        plugins.registered(made)
    assert "builtin" in str(caught.value)
    assert "twin" in str(caught.value)


def test_the_same_name_in_another_kind_is_no_conflict(write):
    source = REGISTERS_DLG.replace("register_attacks", "register_metrics")
    found = listed(plugins.load([BUILTIN, write(source, "other")]))
    assert found["metrics", "dlg"] == "other"
    assert found["attacks", "dlg"] == "builtin"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('the dog ate it')", "RuntimeError: the dog ate it"),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such"),
        ("def (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named(write, source, reason):
    broken = write(source)
    with pytest.raises(PluginError, match="cannot be imported") as caught:
        plugins.load([BUILTIN, broken])
    message = str(caught.value)
    assert f"plugin broken ({broken.value})" in message
    assert reason in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, Exception)


def test_a_plugin_that_is_not_there_is_named():
    with pytest.raises(PluginError, match=r"plugin ghost \(nowhere_to_be_found\)"):
        plugins.load([entry("nowhere_to_be_found", "ghost")])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("@hookimpl\ndef register_defences(register): pass\n", "register_defences"),
        ("@hookimpl\ndef before_upload(upload): pass\n", "upload"),
        ("@hookimpl\ndef after_report(report, folder, extra): pass\n", "extra"),
    ],
)
def test_a_hook_that_does_not_fit_is_named(write, source, reason):
    broken = write(source)
    with pytest.raises(PluginError, match="does not fit") as caught:
        plugins.load([BUILTIN, broken])
    message = str(caught.value)
    assert f"plugin broken ({broken.value})" in message
    assert reason in message
    assert "\n" not in message


def test_a_hook_may_take_less_than_there_is(write):
    assert plugins.load([write("@hookimpl\ndef after_report(folder): pass\n", "terse")])


def test_two_entry_points_of_one_name_are_an_error(sample):
    with pytest.raises(PluginError, match=r"plugin builtin \(fedml_keylock_sample\)"):
        plugins.load([BUILTIN, entry(sample.value, "builtin")])


def test_a_blocked_plugin_registers_nothing(sample):
    made = plugins.load([BUILTIN, sample])
    made.set_blocked("sample")
    assert "sample" not in listed(made).values()
    assert "builtin" in listed(made).values()
    module = sample.load()
    module.OBSERVED.clear()
    made.hook.before_upload(update=OBSERVERS["before_upload"]["update"])
    assert module.OBSERVED == []
    made.unblock("sample")
    made.register(module, "sample")
    assert "sample" in listed(made).values()


def test_an_unregistered_plugin_registers_nothing(sample):
    made = plugins.load([BUILTIN, sample])
    assert made.unregister(name="sample") is sample.load()
    assert set(listed(made).values()) == {"builtin"}


def test_a_plugin_with_no_hooks_is_no_harm(write):
    made = plugins.load([BUILTIN, write("x = 1\n", "quiet")])
    assert isinstance(made, pluggy.PluginManager)
    assert set(listed(made).values()) == {"builtin"}
