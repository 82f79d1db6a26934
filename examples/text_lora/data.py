"""English to train on, which every Python has: its own language reference; a word is a token.

A silo trains in each round on a few new sentences, with one step, as a keyboard does with what was
typed that day.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor

WORDS = 400
"""The vocabulary: the most frequent words, 0 for any other."""
LENGTH = 8
"""Words of a text."""
TEST = 64
"""Texts that nobody trains on."""


class Corpus:
    """All texts as token ids ``(texts, LENGTH)``, and the words that the ids stand for."""

    def __init__(self) -> None:
        prose = " ".join(topics[name] for name in sorted(topics))
        words = re.findall(r"[a-z]+", prose.lower())
        self.words = ["?", *(word for word, _ in Counter(words).most_common(WORDS - 1))]
        index = {word: number for number, word in enumerate(self.words)}
        ids = torch.tensor([index.get(word, 0) for word in words])
        texts = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        known = texts[(texts == 0).sum(1) == 0]
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        self.texts = known[order]

    def read(self, ids: Tensor) -> str:
        """The words that ids stand for."""
        return " ".join(self.words[number] for number in ids.tolist())


class SiloLoader:
    """What a silo trains on in this round: FedML keeps the round in `args.round_idx`."""

    def __init__(self, args, silo: int, texts: Tensor) -> None:
        self.args, self.texts = args, texts[silo :: args.client_num_in_total]

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        texts = self.of_round(self.args.round_idx)
        return iter([(texts, texts)])

    def of_round(self, index: int) -> Tensor:
        """The texts ``(batch_size, LENGTH)`` of a round."""
        size = self.args.batch_size
        return self.texts[torch.arange(index * size, (index + 1) * size) % len(self.texts)]


def load_data(args):
    """FedML's dataset tuple of eight. Every rank holds all of it, as in FedML's own examples."""
    texts = Corpus().texts
    test, train = texts[:TEST], texts[TEST:]
    silos = {s: SiloLoader(args, s, train) for s in range(args.client_num_in_total)}
    sizes = {silo: len(loader.texts) for silo, loader in silos.items()}
    tests = [(test, test)]
    return len(train), TEST, None, tests, sizes, silos, dict.fromkeys(silos, tests), WORDS
