"""Files of weights, as people keep them."""

import hashlib
import json
import re

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fedml_keylock import cli
from fedml_keylock.commands.deploy import read_checkpoint, unwrapped
from fedml_keylock.errors import ConfigError


def net():
    return nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(576, 3))


WAYS = {
    "a state_dict": lambda model: model.state_dict(),
    "a checkpoint": lambda model: {"epoch": 3, "state_dict": model.state_dict()},
    "a tutorial's checkpoint": lambda model: {"loss": 0.1, "model_state_dict": model.state_dict()},
    "of DataParallel": lambda model: {"model": nn.DataParallel(model).state_dict()},
    "of torch.compile in DataParallel": lambda model: {
        f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()
    },
}


def same(state, model):
    wanted = model.state_dict()
    return state.keys() == wanted.keys() and all(state[n].equal(t) for n, t in wanted.items())


@pytest.mark.parametrize("way", WAYS)
def test_what_torch_saves_is_read(way, tmp_path):
    model = net()
    torch.save(WAYS[way](model), tmp_path / "net.pth")
    assert same(unwrapped(read_checkpoint(tmp_path / "net.pth"), model), model)


def test_a_file_is_what_its_bytes_say(tmp_path):
    model = net()
    save_file(model.state_dict(), tmp_path / "net.bin")
    assert same(read_checkpoint(tmp_path / "net.bin"), model)


def test_a_models_own_names_stay():
    wrapped = nn.DataParallel(net())
    assert same(unwrapped(wrapped.state_dict(), wrapped), wrapped)


REFUSED = {
    "a whole module": (lambda path: torch.save(net(), path), "with weights_only=True; save the"),
    "no weights": (lambda path: path.write_text("epoch,loss\n0,1\n"), "not safetensors, and not a"),
    "nothing": (lambda path: path.touch(), "not safetensors, and not a state_dict"),
    "a cut file": (
        lambda path: (
            save_file(net().state_dict(), path),
            path.write_bytes(path.read_bytes()[:99]),
        ),
        "damaged",
    ),
    "an optimizer's": (
        lambda path: torch.save(torch.optim.SGD(net().parameters()).state_dict(), path),
        "its 'state' is not a tensor",
    ),
    "a number": (lambda path: torch.save(3, path), "holds a int, not a model's state_dict"),
    "another model's": (
        lambda path: torch.save(nn.Linear(3, 2).state_dict(), path),
        "not of this model: Error",
    ),
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            Image.effect_noise((28, 28), 60).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path


def audited(path, *options):
    words = ("--model", f"{__name__}:net", "--data", "photos", "--size", "28", "--weights", path)
    quick = ("--set", "inverting_gradients.steps=2", "--workers", "1", "--images", "1")
    words = ("audit", *words, *quick, "--defense", "none", "--knowledge", "oblivious")
    return CliRunner().invoke(cli.main, list(map(str, (*words, *options))))


@pytest.mark.parametrize("way", REFUSED)
def test_what_holds_no_such_weights_is_refused_in_one_line(way, photos):
    write, said = REFUSED[way]
    write(photos / "net.pt")
    result = audited("net.pt")
    assert result.exit_code == 1
    assert re.fullmatch(rf"fedml-keylock: --weights net\.pt: .*{said}.*\n", result.stderr)


def test_an_audit_takes_them(photos):
    torch.save(WAYS["of DataParallel"](net()), "net.pt")
    result = audited("net.pt")
    assert result.exit_code == 0, result.output
    assert "net.pt" in (photos / "keylock-audit" / "report.json").read_text()


def test_more_classes_than_the_model_has_are_one_line(photos):
    """A folder of eight classes for a model of three: those that are attacked are its own."""
    torch.save(net().state_dict(), "net.pt")
    for name in "cdefgh":
        (photos / "photos" / name).mkdir()
        Image.effect_noise((28, 28), 60).save(photos / "photos" / name / "x.png")
    result = audited("net.pt")
    assert result.exit_code == 1
    line = "fedml-keylock: public labels span 0 to 7, and the model has classes 0 to 2\n"
    assert result.stderr == line


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pt: No such file"):
        read_checkpoint(tmp_path / "none.pt")


def test_the_file_has_the_hashes_of_what_was_audited(photos):
    save_file(net().state_dict(), photos / "net.safetensors")
    result = audited("net.safetensors", "--output", "one")
    assert result.exit_code == 0, result.output
    job = json.loads((photos / "one" / "report.json").read_text())["job"]
    own = hashlib.sha256((photos / "net.safetensors").read_bytes()).hexdigest()
    assert job["inputs"]["weights"] == own
    assert {"pictures attacked, with labels", "public pictures, with labels"} < set(job["inputs"])
    assert {"Python", "torch", "fedml-keylock"} <= set(job["versions"])
    assert "dlg" in job["attacks not run"]
    assert "inverting_gradients" not in job["attacks not run"]
    assert own in (photos / "one" / "report.html").read_text()
    # other pictures, another hash
    Image.effect_noise((28, 28), 60).save(photos / "photos" / "a" / "0.png")
    audited("net.safetensors", "--output", "two")
    other = json.loads((photos / "two" / "report.json").read_text())["job"]["inputs"]
    differ = {name for name in other if other[name] != job["inputs"][name]}
    assert differ == {"pictures attacked, with labels"}
