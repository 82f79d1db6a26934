"""What a covered model must do: lock, train, and come out again as a plain model."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from zoo import Model, loss_of

from fedml_keylock import KeyLockConfig, export_model, lock_model, private_state_dict
from fedml_keylock.locks.paper.module import locks as locks_of

__all__ = ["exports", "locks", "public_face", "trains"]

Face = dict[str, tuple[torch.Size, torch.dtype]]


def public_face(model: nn.Module) -> Face:
    """Names, shapes and dtypes of a model's public state, in order."""
    return {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}


def locks(model: nn.Module, config: KeyLockConfig) -> None:
    """Lock it; its public face stays."""
    before = public_face(model)
    lock_model(model, config)
    after = public_face(model)
    assert list(after.items()) == list(before.items())


def trains(model: nn.Module, inputs: Tensor, *, steps: int = 2, all_act: bool = True) -> None:
    """Every private parameter is in the gradient, none of it all zeros; everything stays finite.

    One alone may have none: a shift between two layers that are linear up to a batch norm.
    """
    # no momentum: the largest models fill the memory
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(inputs))
        assert loss.isfinite(), float(loss)
        loss.backward()
        optimizer.step()
    for holder, _, lock in locks_of(model):
        gradients = {name: p.grad for name, p in lock.named_parameters()}
        for name, gradient in gradients.items():
            assert gradient is not None, f"{holder}: {name} is in no gradient"
        acts = any(g.any() for g in gradients.values() if g is not None)
        assert acts or not all_act, f"{holder} does nothing"
    optimizer.zero_grad()
    for name, tensor in private_state_dict(model).items():
        assert tensor.isfinite().all(), name


def exports(model: nn.Module, inputs: Tensor) -> float:
    """The plain copy's outputs are the locked model's; how far off, over the largest output.

    A deep network that has hardly been trained magnifies the rounding of float32 in evaluation,
    its own as much as the export's: where they differ, float64 tells whether it was that.
    """
    off = _exported_off(model, inputs)
    if off > 1e-5 and sum(p.numel() for p in model.parameters()) < 7e8:
        off = _exported_off(model.double(), inputs.double())
        model.to(inputs.dtype)
    return off


def _exported_off(model: nn.Module, inputs: Tensor) -> float:
    plain = export_model(model).eval()
    model.eval()
    assert not any("keylock" in type(m).__module__ for m in plain.modules())
    with torch.no_grad():
        expected, found = model(inputs), plain(inputs)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1))


def try_all(model: Model, config: KeyLockConfig) -> dict[str, str]:
    """Empty strings for what a model does, and for what it does not the reason."""
    found: dict[str, str] = {}
    net = model.make()
    try:
        locks(net, config)
        found["locks"] = ""
        trains(net, model.inputs())
        found["trains"] = ""
        off = exports(net, model.inputs())
        found["exports"] = "" if off <= 1e-5 else f"outputs differ by {off:.1e}"
    except Exception as error:  # the table is to say what failed, whatever it is
        stage = next(s for s in ("locks", "trains", "exports") if s not in found)
        found[stage] = f"{type(error).__name__}: {error}"
    return found


def double_backward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The slope of the gradient's size along the inputs, as an inversion attack needs it."""
    inputs = inputs.clone().requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        loss_of(model(inputs)), parameters, create_graph=True, allow_unused=True
    )
    size = torch.stack([(g**2).sum() for g in gradients if g is not None]).sum()
    (slope,) = torch.autograd.grad(size, inputs)
    return slope


def copy_runs_its_own_lock(model: nn.Module, inputs: Tensor) -> None:
    """A deep copy computes the same, and does not follow when the original is changed."""
    model.eval()
    with torch.no_grad():
        expected = model(inputs)
        copy = deepcopy(model)
        assert torch.equal(copy(inputs), expected)
        for name, parameter in model.named_parameters():
            if ".keylock." in f".{name}":
                parameter.add_(1.0)
        assert torch.equal(copy(inputs), expected)
