"""Texts that a transformer's gradient gives away, and what of it the attack cannot read."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from text_nets import VOCABULARY, adapted, bert, gpt2, llama, text_update, texts_of

from fedml_keylock.errors import AttackError
from fedml_keylock.inversion import DagerAttack, Knowledge, LocalTraining
from fedml_keylock.types import ClientUpdate

# not importorskip: its import takes seconds, and every worker of the suite collects this
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed"),
]
KNOWN = Knowledge("oblivious", input_shape=(8,), classes=VOCABULARY)


def read(update, model, batch=1, length=8, **fields):
    known = replace(KNOWN, batch=batch, input_shape=(length,))
    return DagerAttack(**fields).reconstruct([update], model, knowledge=known)


def rows(texts):
    return sorted(text.tolist() for text in texts)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_gpt_s_texts_are_read_exactly(batch):
    model, texts = gpt2(), texts_of(batch, 8)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = read(text_update(model, input_ids=texts, labels=texts), model, batch)
    assert rows(found.texts[0]) == rows(texts)
    assert found.cost.max() < 1e-4
    assert torch.equal(found.tokens[0], texts.unique())
    assert (found.attack, found.knowledge) == ("dager", "oblivious")
    assert "tensor" not in repr(found)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_texts_of_different_lengths_that_begin_alike_are_told_apart():
    model, texts = gpt2(), texts_of(3, 8)
    texts[1, :3] = texts[0, :3]
    labels, there = texts.clone(), torch.ones_like(texts)
    labels[2, 5:], there[2, 5:], texts[2, 5:] = -100, 0, 0
    update = text_update(model, input_ids=texts, labels=labels, attention_mask=there)
    found = read(update, model, 3)
    assert rows(found.texts[0]) == rows([texts[0], texts[1], texts[2, :5]])


def test_a_rounded_step_of_a_small_rate_is_read():
    model, texts = gpt2(), texts_of(4, 8)
    found = read(text_update(model, 0.05, input_ids=texts, labels=texts), model, 4)
    assert rows(found.texts[0]) == rows(texts)


def test_a_llama_without_positions_and_with_grouped_queries_is_read():
    model, texts = llama(), texts_of(4, 8)
    found = read(text_update(model, input_ids=texts, labels=texts), model, 4)
    assert rows(found.texts[0]) == rows(texts)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_encoder_s_texts_are_found(batch):
    model, texts = bert(), texts_of(batch, 8)
    update = text_update(model, input_ids=texts, labels=torch.arange(batch) % 2)
    found = read(update, model, batch)
    assert rows(found.texts[0]) == rows(texts)


def test_adapters_show_texts_but_for_their_last_token():
    texts = texts_of(2, 6)
    model, update = adapted(gpt2(), texts, rank=16, steps=1)
    assert all("lora_" in name for name in update.before)
    found = read(update, model, 2, 6)
    assert rows(found.texts[0]) == rows(texts[:, :-1])


@pytest.mark.parametrize(
    ("rank", "steps", "message"),
    [(16, 0, "zero before the first step; take"), (4, 1, "more tokens than the rank of an")],
)
def test_adapters_that_show_nothing_are_refused(rank, steps, message):
    model, update = adapted(gpt2(), texts_of(2, 6), rank, steps)
    with pytest.raises(AttackError, match=message):
        read(update, model, 2, 6)


def refused(update, model, batch=1, length=8, **fields):
    with pytest.raises(AttackError) as caught:
        read(update, model, batch, length, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_batch_with_as_many_tokens_as_the_layers_are_wide_is_no_result():
    model, texts = gpt2(width=32), texts_of(8, 8)
    said = refused(text_update(model, input_ids=texts, labels=texts), model, 8)
    assert "rank 31, of a width of 32: every token is in its span" in said
    assert "no result" in said


def test_what_is_no_gradient_is_no_result():
    model, texts = gpt2(), texts_of(1, 8)
    update = text_update(model, input_ids=texts, labels=texts)
    generator = torch.Generator().manual_seed(0)
    words = {n: torch.randn(t.shape, generator=generator) for n, t in update.after.items()}
    assert "no gradient of it; no result" in refused(ClientUpdate(update.before, words, 1.0), model)


def test_dropout_is_no_result():
    model, texts = gpt2(embd_pdrop=0.1), texts_of(2, 8)
    said = refused(text_update(model, input_ids=texts, labels=texts), model, 2)
    assert "no token is in its span" in said
    assert "dropout" in said


def test_other_refusals_say_what_it_is():
    model, texts = gpt2(), texts_of(1, 8)
    update = text_update(model, input_ids=texts, labels=texts)
    for knowledge, message in (
        (replace(KNOWN, level="adaptive"), "no use for the kind of level 'adaptive'"),
        (replace(KNOWN, input_shape=(1, 4, 4)), "input_shape is the"),
        (replace(KNOWN, training=LocalTraining(1)), "does not simulate"),
        (replace(KNOWN, input_shape=(65,)), r"does not take tokens of shape \(1, 65\)"),
    ):
        with pytest.raises(AttackError, match=message):
            DagerAttack().reconstruct([update], model, knowledge=knowledge)
    one = gpt2(layers=1)
    said = refused(text_update(one, input_ids=texts, labels=texts), one)
    assert "has 1 self-attention layers whose projections are known" in said
    short = bert(layers=2)
    said = refused(text_update(short, input_ids=texts, labels=torch.tensor([1])), short)
    assert "it does not show all tokens" in said
    for layer in model.transformer.h:
        layer.attn.c_attn.weight.requires_grad_(False)
    said = refused(text_update(model, input_ids=texts, labels=texts), model)
    assert "transformer.h.0.attn is frozen" in said


def test_a_search_that_grows_is_no_result():
    model, texts = gpt2(), texts_of(4, 8)
    update = text_update(model, input_ids=texts, labels=texts)
    said = refused(update, model, 4, most=2)
    assert "no more than 2 are followed: the search is infeasible, and no result" in said
