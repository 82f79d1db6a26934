"""Parametrises rows of a table: columns of numbers, and categories as one-hot groups."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...errors import AttackError, ConfigError
from ...settings import checked
from ..knowledge import Knowledge
from .pixels import Parametrisation, Unknowns

__all__ = ["TableRows"]


@checked
class TableRows(Parametrisation):
    """Rows with columns of numbers, and groups of columns that each encode a category.

    The softmax relaxation of TabLeak (Vero, Balunovic, Dimitrov and Vechev, ICML 2023, arXiv
    2210.01785): a categorical feature's columns are the softmax of logits, so that they are never
    negative and sum to 1. The optimiser's box keeps numbers within ``Knowledge.bounds``, where the
    source has a sigmoid.

    A result holds the softmax itself, which shows the attacker's confidence in a category: the
    entropy of the source's section 4.2.

    Attributes:
        categories: for each categorical feature the columns of its one-hot group. Columns in no
            group are numbers.

    Raises:
        ConfigError: a group has fewer than two columns, skips one, or shares one with another.

    Example:
        >>> rows = TableRows((range(2, 5),))
        >>> rows.shapes(Knowledge("oblivious", input_shape=(6,), classes=2, batch=4))
        {'numbers': (4, 3), 'logits': (4, 3)}

    """

    categories: tuple[range, ...] = ()
    makes_labels = False

    def __post_init__(self) -> None:
        for group in self.categories:
            if group.step != 1 or len(group) < 2 or group.start < 0:
                raise ConfigError(
                    f"a categorical feature has two neighbouring columns or more, not {group}"
                )
        columns = [column for group in self.categories for column in group]
        if len(set(columns)) != len(columns):
            raise ConfigError("a column belongs to two categorical features")

    def shapes(self, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
        """Numbers and logits of the rows.

        Raises an AttackError if the inputs are not rows, lack these columns, or the bounds exclude
        the 0 or the 1 of a one-hot group.
        """
        if len(knowledge.input_shape) != 1:
            raise AttackError(
                f"a row of a table has input_shape (features,), not {knowledge.input_shape}"
            )
        (features,) = knowledge.input_shape
        for group in self.categories:
            if group.stop > features:
                raise AttackError(
                    f"a categorical feature has columns up to {group.stop - 1}, and a row has "
                    f"{features}: the last is {features - 1}"
                )
        low, high = knowledge.bounds
        if self.categories and not low <= 0 < 1 <= high:
            raise AttackError(f"one-hot columns are 0 and 1, outside of the bounds {(low, high)}")
        logits = sum(len(group) for group in self.categories)
        return {
            "numbers": (knowledge.batch, features - logits),
            "logits": (knowledge.batch, logits),
        }

    def draw(self, count: int, knowledge: Knowledge, generator: Generator) -> dict[str, Tensor]:
        """Numbers uniform between the bounds, logits between -1 and 1."""
        made = {
            name: torch.rand((count, *shape), generator=generator, device=generator.device)
            for name, shape in self.shapes(knowledge).items()
        }
        low, high = knowledge.bounds
        return {"numbers": low + (high - low) * made["numbers"], "logits": 2 * made["logits"] - 1}

    def decode(self, unknowns: Unknowns, knowledge: Knowledge) -> tuple[Tensor, Tensor | None]:
        """Assemble every column in its place."""
        chosen = [column for group in self.categories for column in group]
        numbers = [column for column in range(knowledge.input_shape[0]) if column not in chosen]
        groups = torch.split(unknowns["logits"], [len(group) for group in self.categories], dim=-1)
        parts = [unknowns["numbers"], *(logits.softmax(-1) for logits in groups)]
        place = torch.tensor([*numbers, *chosen], device=unknowns["numbers"].device).argsort()
        return torch.cat(parts, dim=-1)[..., place], None

    def rates(self, knowledge: Knowledge) -> dict[str, float]:
        """For numbers as for pixels, about a column's deviation. Logits unscaled."""
        low, high = knowledge.bounds
        return {"numbers": (high - low) / 4, "logits": 1.0}

    def box(self, knowledge: Knowledge) -> dict[str, tuple[float, float]]:
        """The bounds, for numbers only."""
        return {"numbers": knowledge.bounds}
