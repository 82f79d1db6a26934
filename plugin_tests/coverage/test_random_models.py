"""Random small models: lock, train two steps, take the lock out, export."""

from copy import deepcopy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trial import exports, public_face, trains

from fedml_keylock import KeyLockConfig, lock_model, unlock_model

NORMS = {
    "none": lambda c: [],
    "batch": lambda c: [nn.BatchNorm2d(c)],
    "batch, not affine": lambda c: [nn.BatchNorm2d(c, affine=False)],
    "group": lambda c: [nn.GroupNorm(1, c)],
    "instance": lambda c: [nn.InstanceNorm2d(c)],
    "instance, affine": lambda c: [nn.InstanceNorm2d(c, affine=True, track_running_stats=True)],
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "inplace": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "none": nn.Identity,
}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@st.composite
def blocks(draw):
    """Channels, kernel, groups, bias, norm, activation, dropout, residual."""
    return {
        "channels": draw(st.sampled_from([2, 4, 6])),
        "kernel": draw(st.sampled_from([1, 3])),
        "grouped": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "norm": draw(st.sampled_from(sorted(NORMS))),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "dropout": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "transposed": draw(st.booleans()),
    }


def build(described, seed):
    torch.manual_seed(seed)
    layers, channels = [], 1
    for block in described:
        out = channels if block["residual"] else block["channels"]
        groups = 2 if block["grouped"] and channels % 2 == 0 and out % 2 == 0 else 1
        kind = nn.ConvTranspose2d if block["transposed"] else nn.Conv2d
        convolution = kind(
            channels,
            out,
            block["kernel"],
            padding=block["kernel"] // 2,
            groups=groups,
            bias=block["bias"],
        )
        inner = nn.Sequential(
            convolution,
            *([nn.Dropout2d(0.0)] if block["dropout"] else []),
            *NORMS[block["norm"]](out),
            ACTIVATIONS[block["activation"]](),
        )
        layers.append(Residual(inner) if block["residual"] else inner)
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    described=st.lists(blocks(), min_size=1, max_size=4),
    layers=st.sampled_from(["first", "all"]),
    chained=st.booleans(),
    activation=st.sampled_from(["relu", "sigmoid"]),
    seed=st.integers(0, 99),
)
def test_random_models(described, layers, chained, activation, seed):
    config = KeyLockConfig(
        lock="paper", layers=layers, chained=chained, activation=activation, key_length=16
    )
    start = build(described, seed)
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(seed))

    model = deepcopy(start)
    lock_model(model, config)
    assert public_face(model) == public_face(start)
    # a random model may have a norm whose scale and shift the next one takes out
    trains(model, x, all_act=False)
    assert exports(model, x) <= 1e-5
    unlock_model(model)
    assert public_face(model) == public_face(start)
    assert torch.isfinite(model(x)).all()

    again = deepcopy(start).eval()
    lock_model(again, config)
    unlock_model(again)
    assert torch.equal(again(x), start.eval()(x))
