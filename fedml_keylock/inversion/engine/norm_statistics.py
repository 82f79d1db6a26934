"""Computes the batch statistics at a model's normalisation layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import AttackError
from ..knowledge import Statistics

__all__ = ["batch_statistics", "given_statistics"]


@contextmanager
def batch_statistics(model: nn.Module, names: Iterable[str]) -> Iterator[Statistics]:
    """Collect mean and variance, each ``(c,)``, of the inputs of these modules inside the context.

    The variance is over n and not n - 1, as BatchNorm normalises. AttackError for a module that
    runs twice, and so has no single input.

    Example:
        >>> import torch
        >>> norm = nn.Sequential(nn.BatchNorm1d(1))
        >>> with batch_statistics(norm, ["0"]) as found:
        ...     _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> found
        {'0': (tensor([2.]), tensor([1.]))}

    """
    found: Statistics = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(_see, found, name))
        for name in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _see(found: Statistics, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if name in found:
        raise AttackError(f"the model runs {name} more than once: it has no statistics of its own")
    channels = inputs[0].transpose(0, 1).flatten(1)
    found[name] = channels.mean(1), channels.var(1, unbiased=False)


def given_statistics(
    model: nn.Module, given: Mapping[str, tuple[Tensor, Tensor]], *, updates: int, like: Tensor
) -> Statistics:
    """Check ``Knowledge.statistics`` against the attacker's model; returns the dtype of ``like``.

    They map a BatchNorm module's name to mean and variance, each ``(u, c)``. AttackError for other
    modules or shapes, and impossible values.

    Example:
        >>> import torch
        >>> norm = nn.Sequential(nn.BatchNorm2d(3))
        >>> public = {"0": (torch.zeros(1, 3), torch.ones(1, 3))}
        >>> list(given_statistics(norm, public, updates=1, like=torch.zeros(1)))
        ['0']

    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    unknown = sorted(set(given) - set(norms))
    if unknown:
        raise AttackError(f"the attacker's model has no BatchNorm {', '.join(unknown)}")
    checked = {}
    for name, (mean, variance) in given.items():
        expected = (updates, norms[name].num_features)
        for what, value in (("mean", mean), ("variance", variance)):
            if value.shape != expected:
                raise AttackError(
                    f"the {what} of {name} is {tuple(value.shape)} where {expected} is needed"
                )
            if not value.isfinite().all():
                raise AttackError(f"the {what} of {name} has NaN or infinite values")
        if (variance < 0).any():
            raise AttackError(f"the variance of {name} is below 0")
        checked[name] = mean.detach().to(like), variance.detach().to(like)
    return checked
