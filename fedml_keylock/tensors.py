"""Helps with tensors and states: bytes, fingerprints, copies, names, and threads."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .errors import first_line

__all__ = [
    "PREFIXES",
    "as_integers",
    "buffers_kept",
    "copied",
    "copy_of",
    "deep_copy",
    "fingerprint",
    "infinite_in",
    "one_thread",
    "raw",
    "real",
    "sparse",
    "tensors_of",
    "under",
    "with_versions",
]


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name. Nothing in the file is ever executed.

    Raises:
        ValueError: it is not such a file, or is damaged; in one line.

    Example:
        >>> from safetensors.torch import save
        >>> tensors_of(save({"key": torch.ones(2)}))
        {'key': tensor([1., 1.])}
        >>> tensors_of(b"")
        Traceback (most recent call last):
        ValueError: Error while deserializing: header too small

    """
    try:
        return load(content)
    except KeyError as error:  # safetensors knows more types than its torch part
        raise ValueError(f"it has numbers of a type that cannot be read: {error}") from None
    # types and sizes that do not fit raise errors of many kinds
    except (SafetensorError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(first_line(error)) from None


def as_integers(
    state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Round a state's average back to integers where the original has integers.

    It rounds and does not truncate: three thirds of 5 may add up to less than 5.

    Example:
        >>> as_integers({"n": torch.tensor(4.9999995)}, {"n": torch.int64})
        {'n': tensor(5)}

    """
    found = {}
    for name, dtype in dtypes.items():
        if name in state:
            average = state[name]
            found[name] = (average.round() if average.is_floating_point() else average).to(dtype)
    return found


def infinite_in(state: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors with infinite numbers, such as a causal mask kept as a buffer.

    Example:
        >>> infinite_in({"w": torch.ones(2), "mask": torch.full((2,), -torch.inf)})
        ['mask']

    """
    return [
        name
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta
        if bool(tensor.isinf().any())
    ]


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state's tensors, each into memory of its own."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy, even of a model that keeps tensors of its last forward pass.

    Old weight norm and spectral norm do: torch refuses to copy tensors with a gradient function.

    Example:
        >>> model = nn.utils.weight_norm(nn.Linear(2, 1))
        >>> deep_copy(model).weight.shape
        torch.Size([1, 2])

    """
    kept = [value for module in model.modules() for value in tree_leaves(vars(module))]
    computed = [value for value in kept if isinstance(value, Tensor) and not value.is_leaf]
    return deepcopy(model, {id(value): value.detach().clone() for value in computed})


def copy_of(model: nn.Module) -> nn.Module:
    """A runnable copy of a model, even where ``deepcopy`` fails or its copy does not run.

    Beyond `deep_copy`, it removes wrappers: torch's parallel and compiled models and Opacus' hooks.
    The copy has the same names.

    Example:
        >>> model = nn.utils.spectral_norm(nn.Linear(2, 1))
        >>> _ = model(torch.ones(1, 2))
        >>> copy_of(model)(torch.ones(1, 2)).shape
        torch.Size([1, 1])

    """
    inner = _WRAPPERS.get(type(model).__name__)
    if inner is not None:
        model = _Wrapped(inner, getattr(model, inner))
    copy = deep_copy(model)
    if hasattr(copy, "autograd_grad_sample_hooks"):
        copy.remove_hooks()  # type: ignore[operator]  # Opacus'
    return copy


_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
PREFIXES = tuple(f"{inner}." for inner in dict.fromkeys(_WRAPPERS.values()))
"""Prefixes that torch's wrappers add to every name in a state."""


class _Wrapped(nn.Module):
    """A module under another name."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (module,) = self.children()
        return module(*args, **kwargs)


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the buffers of modules afterwards, if the code inside changes or replaces them.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with buffers_kept(norm.modules()):
        ...     _ = norm(torch.rand(3, 2))
        >>> norm.num_batches_tracked
        tensor(0)

    """
    kept = [
        (module._buffers, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for table, name, buffer, before in kept:
                table[name] = buffer
                # a buffer whose entries share memory, as `expand` makes, cannot be written
                if not torch.equal(buffer, before):
                    buffer.resize_(before.shape).copy_(before)


def raw(tensor: Tensor) -> memoryview:
    """A tensor's numbers in order, as bytes; without a copy if they are contiguous.

    Example:
        >>> raw(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).t()).tolist()
        [1, 3, 2, 4]

    """
    flat = tensor.detach().cpu().contiguous().flatten()
    flat = flat.as_strided(flat.shape, (1,))  # a tensor of one entry may have any stride
    # as bytes, since numpy has no bfloat16; not by Tensor.numpy(), after which a job could not
    # resize its tensor, as observers of quantization do
    return np.from_dlpack(flat.view(torch.uint8)).data


def real(tensor: Tensor) -> Tensor:
    """A tensor's numbers without a graph; complex numbers get a last dimension of 2.

    Example:
        >>> real(torch.tensor([1 + 2j]))
        tensor([[1., 2.]])

    """
    bare = tensor.detach()
    return torch.view_as_real(bare.resolve_conj()) if bare.is_complex() else bare


def sparse(tensor: Tensor) -> str | None:
    """Why a tensor cannot be sent; None if it can.

    Example:
        >>> sparse(torch.ones(2).to_sparse())
        'is torch.sparse_coo: send it dense: tensor.to_dense()'

    """
    if tensor.layout is torch.strided:
        return None
    return f"is {tensor.layout}: send it dense: tensor.to_dense()"


def fingerprint(settings: object, tensors: Iterable[Tensor]) -> str:
    """Sixteen hex digits that identify settings, by repr, and tensors, by type, shape and numbers.

    Example:
        >>> fingerprint("dlg", [torch.zeros(2)]) == fingerprint("dlg", [torch.ones(2)])
        False

    """
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(raw(tensor))
    return digest.hexdigest()[:16]


def under(owner: str, name: str) -> str:
    """The full name of a module's member; the model's own name is empty.

    Example:
        >>> under("layer1.0", "weight"), under("", "weight")
        ('layer1.0.weight', 'weight')

    """
    return ".".join(filter(None, (owner, name)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread: for the same figures on every machine, and one process a core.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1

    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def with_versions(state: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the module versions of another: some modules ask for them on loading.

    Example:
        >>> with_versions({"w": torch.zeros(1)}, torch.nn.Linear(1, 1).state_dict())._metadata[""]
        {'version': 1}

    """
    made = OrderedDict(state)
    if hasattr(of, "_metadata"):  # torch keeps the versions on the dict itself
        made._metadata = of._metadata  # type: ignore[attr-defined]
    return made
