"""What is read of texts, where reading is known to succeed: a part of figures.py."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from text_nets import VOCABULARY, adapted, bert, gpt2, llama, text_update, texts_of
from torch import Tensor, nn
from torchmetrics.functional.text import rouge_score

from fedml_keylock.inversion import DagerAttack, Knowledge
from fedml_keylock.types import ClientUpdate

Row = tuple[str, nn.Module, Tensor, ClientUpdate]


def rows() -> Iterator[Row]:
    for batch in (1, 4, 8):
        model, texts = gpt2(width=256), texts_of(batch, 24)
        update = text_update(model, input_ids=texts, labels=texts)
        yield f"GPT-2, 2 layers, 256 wide; {batch} of 24 tokens", model, texts, update
    model, texts = llama(), texts_of(4, 16)
    update = text_update(model, input_ids=texts, labels=texts)
    yield "Llama, 2 layers, 96 wide, grouped queries; 4 of 16", model, texts, update
    for batch in (1, 4, 8):
        model, texts = bert(), texts_of(batch, 8)
        update = text_update(model, input_ids=texts, labels=torch.arange(batch) % 2)
        yield f"BERT classifier, 3 layers, 96 wide; {batch} of 8", model, texts, update
    texts = texts_of(4, 8)
    model, update = adapted(gpt2(), texts, rank=32, steps=1)
    yield "GPT-2, LoRA of rank 32 after one step; 4 of 8", model, texts, update


def lines() -> Iterator[str]:
    yield "| attack | net; texts | ROUGE-1 | ROUGE-2 | cost | time |\n|---|---|---|---|---|---|"
    known = Knowledge("oblivious", input_shape=(1,), classes=VOCABULARY)
    for where, model, texts, update in rows():
        began = time.monotonic()
        shape = replace(known, input_shape=texts.shape[1:], batch=len(texts))
        found = DagerAttack().reconstruct([update], model, knowledge=shape)
        took = time.monotonic() - began
        one, two = (rouge(found.texts[0], texts, key) for key in ("rouge1", "rouge2"))
        yield f"| dager | {where} | {one:.3f} | {two:.3f} | {found.cost[0]:.1g} | {took:.0f} s |"


def rouge(found: tuple[Tensor, ...], texts: Tensor, key: str) -> float:
    """The mean over the true texts, each with one that was found; 0 for one without."""
    said = [[" ".join(map(str, text.tolist())) for text in some] for some in (found, texts)]
    scores = torch.tensor(
        [
            [float(rouge_score(a, b, rouge_keys=key)[f"{key}_fmeasure"]) for b in said[1]]
            for a in said[0]
        ]
    )
    scores = scores.view(len(found), len(texts))
    pairs = linear_sum_assignment(scores, maximize=True)
    return float(scores[pairs].sum()) / len(texts)
