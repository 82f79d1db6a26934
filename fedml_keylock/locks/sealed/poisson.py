"""Draws secret Poisson batches: each example of a silo is in a batch independently."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from ...errors import ConfigError

__all__ = ["Examples", "drawn"]

_KINDS = "a DataLoader over a dataset with indices, or FedML's list of batches (x, y) of tensors"


@dataclass(frozen=True)
class Examples:
    """A silo's data, example by example.

    Attributes:
        dataset: with indices.
        indices: of the silo's examples in the dataset, each once.
        collate: makes a batch from examples; None for torch's own.
        workers: how many processes load examples.

    """

    dataset: Dataset[Any]
    indices: Sequence[int]
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0

    @classmethod
    def of(cls, data: Any) -> Examples:
        """The examples in a silo's data.

        Raises:
            ConfigError: single examples cannot be accessed.

        Example:
            >>> import torch
            >>> len(Examples.of([(torch.rand(4, 2), torch.arange(4))] * 3))
            12

        """
        if isinstance(data, DataLoader):
            return cls(data.dataset, _indices(data), data.collate_fn, data.num_workers)
        if not isinstance(data, (list, tuple)) or not data or not all(map(_is_batch, data)):
            raise _not_drawn(f"the silo's data is {_kind(data)}")
        whole: ConcatDataset[Any] = ConcatDataset([TensorDataset(*batch) for batch in data])
        return cls(whole, range(len(whole)))

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, chosen: Sequence[Sequence[int]]) -> list[Any]:
        """Batches of the chosen examples, by their indices among the silo's.

        An empty batch becomes one of the first example, which must not count.

        Raises:
            ConfigError: an example's shape depends on the batch: padded to the longest of a batch,
                it would have another gradient with each of the others.

        """
        places = [[self.indices[place] for place in batch or (0,)] for batch in chosen]
        made = self._collated(places)
        if self.collate not in (None, default_collate):
            alone = self._collated([batch[:1] for batch in places])
            if [*map(_shapes, made)] != [*map(_shapes, alone)]:
                raise ConfigError(
                    "keylock.noise: unit: example: the loader's collate_fn makes the shape of an "
                    "example depend on others of its batch: pad all examples to one length"
                )
        return made

    def _collated(self, places: list[list[int]]) -> list[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=places,
            collate_fn=self.collate,
            num_workers=self.workers,
        )
        return [*loader]


def drawn(count: int, rate: float) -> list[int]:
    """Choose which of `count` examples are in a batch: each independently, by system entropy.

    Args:
        count: how many there are.
        rate: the probability of each, to 2^-64 and never above.

    Example:
        >>> drawn(3, 1.0), drawn(3, 1e-20)
        ([0, 1, 2], [])

    """
    if rate >= 1:
        return [*range(count)]
    words = np.frombuffer(os.urandom(8 * count), dtype="<u8")
    chosen: list[int] = np.flatnonzero(words < np.uint64(int(rate * 2.0**64))).tolist()
    return chosen


def _indices(loader: DataLoader[Any]) -> Sequence[int]:
    """The indices of a loader's examples in its dataset, in any order."""
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        raise _not_drawn(f"the silo's {type(loader.dataset).__name__} has no indices")
    if type(loader.batch_sampler) is not BatchSampler:
        raise _not_drawn(f"the silo's loader has batches by {_kind(loader.batch_sampler)}")
    if isinstance(sampler, SubsetRandomSampler):
        return sorted({*map(int, sampler.indices)})
    size = len(loader.dataset)  # type: ignore[arg-type]  # the sampler has used it already
    whole = isinstance(sampler, RandomSampler) and (sampler.replacement, len(sampler)) == (0, size)
    if not whole and not isinstance(sampler, SequentialSampler):
        raise _not_drawn(f"the silo's loader samples by {_kind(sampler)}")
    return range(size)


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    """The shape of one example in each tensor of a batch."""
    return [tuple(t.shape[1:]) for t in tree_leaves(batch) if isinstance(t, Tensor)]


def _is_batch(batch: Any) -> bool:
    """Whether it is a batch of tensors with one example a row."""
    if not isinstance(batch, (list, tuple)) or not batch:
        return False
    if not all(isinstance(part, Tensor) and part.dim() for part in batch):
        return False
    return len({len(part) for part in batch}) == 1


def _kind(data: Any) -> str:
    if isinstance(data, (list, tuple)) and data:
        return f"a {type(data).__name__} of {type(data[0]).__name__}"
    return f"a {type(data).__name__}"


def _not_drawn(what: str) -> ConfigError:
    return ConfigError(
        f"keylock.noise: unit: example draws batches itself, and {what}: give the silo {_KINDS}"
    )
