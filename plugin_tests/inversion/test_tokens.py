"""Tokens that an embedding's moved rows name."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.errors import AttackError, ConfigError, LockError
from fedml_keylock.inversion import Clip, Knowledge, LocalTraining, Noise, Quantise, TokenRecovery
from fedml_keylock.inversion.tokens import embedding_tokens
from fedml_keylock.locks import KeyLockConfig, lock_model
from fedml_keylock.types import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, VOCABULARY = 20, 96
KNOWN = Knowledge("oblivious", input_shape=(LENGTH,), classes=VOCABULARY)


@pytest.fixture(scope="module")
def text():
    """A page of English as FedML's character models have it: 1 to 95, and 0 for padding."""
    letters = [ord(letter) - 31 for letter in load_wine().DESCR if 32 <= ord(letter) < 127]
    return torch.tensor(letters)


def some(text, batch, seed=0, length=LENGTH):
    """Texts, and the letter that comes after each."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, len(text) - length, (batch, 1), generator=generator)
    return text[first + torch.arange(length)], text[first + length][:, 0]


def named(texts):
    return [set(tokens.flatten().tolist()) for tokens in texts]


def recover(updates, model, knowledge=KNOWN, **fields):
    return TokenRecovery(**fields).reconstruct(updates, model, knowledge=knowledge)


class Encoder(nn.Module):
    """A small transformer: tokens and positions are embedded, perhaps with a tied head."""

    def __init__(self, *, tied=False):
        torch.manual_seed(0)
        super().__init__()
        self.places = nn.Embedding(LENGTH, 8)
        self.words = nn.Embedding(VOCABULARY, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        places = self.places(torch.arange(tokens.shape[1]))
        return self.head(self.layer(self.words(tokens) + places).mean(1))


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_fedml_s_rnn_gives_every_token_away(text, make_update, batch):
    from fedml.model.nlp.rnn import RNN_OriginalFedAvg

    torch.manual_seed(0)
    model = RNN_OriginalFedAvg(vocab_size=VOCABULARY)
    batches = [some(text, batch, seed) for seed in range(3)]
    updates = [make_update(model, *one) for one in batches]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    found = TokenRecovery().reconstruct(
        updates,
        model,
        knowledge=replace(KNOWN, batch=batch),
        progress=lambda *done: calls.append(done),
    )
    assert named(found.tokens) == named(tokens for tokens, _ in batches)
    assert (found.attack, found.knowledge) == ("tokens", "oblivious")
    assert calls == [(1, 1)]
    assert "tensor" not in repr(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(LockError, match="embedding: the rows of its gradient"):
        lock_model(model, KeyLockConfig(lock="paper"))


def test_what_is_far_back_in_a_long_text_is_missed_and_nothing_is_made_up(text, make_update):
    from fedml.model.nlp.rnn import RNN_OriginalFedAvg

    torch.manual_seed(0)
    model = RNN_OriginalFedAvg(vocab_size=VOCABULARY)
    tokens, after = some(text, 4, length=80)
    found = recover(
        [make_update(model, tokens, after)], model, replace(KNOWN, input_shape=(80,), batch=4)
    )
    (there,), (true,) = named(found.tokens), named([tokens])
    assert there < true
    assert len(there) > len(true) / 2


def test_padding_is_not_named(text, make_update):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4, padding_idx=0), nn.Flatten())
    model.append(nn.Linear(4 * LENGTH, VOCABULARY))
    tokens, after = some(text, 1)
    tokens[:, :5] = 0
    (found,) = recover([make_update(model, tokens, after)], model).tokens
    assert torch.equal(found, tokens[:, 5:].unique())


def test_positions_are_told_from_tokens_and_several_steps_name_all_of_theirs(text, make_update):
    model = Encoder()
    first, second = some(text, 2, 0), some(text, 2, 1)
    before = make_update(model, *first).before
    model.load_state_dict(make_update(model, *first, learning_rate=0.1).after)
    sent = make_update(model, *second, learning_rate=0.1).after
    known = replace(KNOWN, batch=4, training=LocalTraining(2))
    (found,) = recover([ClientUpdate(before, sent, 0.1)], model, known).tokens
    assert torch.equal(found, torch.cat([first[0], second[0]]).unique())
    with pytest.raises(AttackError, match="weight decay moves all of them"):
        recover(
            [ClientUpdate(before, sent, 0.1)],
            model,
            replace(known, training=LocalTraining(2, weight_decay=0.1)),
        )


@pytest.mark.parametrize("transform", [Clip(1e-2), Noise(1e-5), Quantise(12)])
def test_what_blurs_the_rows_needs_a_tolerance(text, make_update, transform):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(4 * LENGTH, 96))
    tokens, after = some(text, 1)
    update = make_update(model, tokens, after)
    gradient = {name: update.pseudo_gradient(name) for name in update.before}
    sent = transform.apply(gradient, torch.Generator().manual_seed(0))
    update = replace(update, after={n: update.before[n] - sent[n] for n in sent})
    known = replace(KNOWN, transforms=(transform,))
    (found,) = recover([update], model, known, tolerance=0.02).tokens
    assert torch.equal(found, tokens.unique())
    if not isinstance(transform, Clip):
        with pytest.raises(AttackError, match=f"{type(transform).__name__} moves all of them; "):
            recover([update], model, known)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Encoder(tied=True), r"words \(Embedding\), has its weight in common with head"),
        (lambda: Shifted(), r"gets tokens of shape \(20,\) as they are"),
    ],
)
def test_an_embedding_that_names_nothing_is_refused(text, make_update, make, message):
    model = make()
    with pytest.raises(AttackError, match=message) as caught:
        recover([make_update(model, *some(text, 1))], model)
    assert "\n" not in str(caught.value)


def test_a_frozen_embedding_is_refused(text, make_update):
    model = Encoder()
    update = make_update(model, *some(text, 1))
    model.words.requires_grad_(False)
    with pytest.raises(AttackError, match=r"words \(Embedding\), is frozen"):
        recover(
            [
                replace(
                    update, after={**update.after, "words.weight": update.before["words.weight"]}
                )
            ],
            model,
        )


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY + 1, 4), nn.Linear(4, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.words(tokens + 1).mean(1))


def test_a_model_without_an_embedding_and_another_level_are_refused(text, make_update):
    torch.manual_seed(0)
    images = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH, VOCABULARY))
    update = make_update(images, torch.rand(1, LENGTH), torch.tensor([3]))
    with pytest.raises(AttackError, match="has no embedding"):
        recover([update], images)
    with pytest.raises(AttackError, match="tokens has no use for the kind of level 'adaptive'"):
        recover([update], images, replace(KNOWN, level="adaptive"))
    with pytest.raises(ConfigError, match="tolerance: 1 is not allowed"):
        TokenRecovery(tolerance=1)


def test_an_embedding_names_its_tokens():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(50, 6), nn.Linear(6, 3)
    tokens = [torch.tensor([[3, 7, 7, 49], [0, 3, 11, 12]]), torch.tensor([[1, 2]])]
    gradients = []
    for batch in tokens:
        loss = cross_entropy(head(embedding(batch).mean(1)), torch.arange(len(batch)))
        gradients += torch.autograd.grad(loss, embedding.weight)
    gradient = torch.stack(gradients)
    expected = [[0, 3, 7, 11, 12, 49], [1, 2]]
    assert [found.tolist() for found in embedding_tokens(gradient)] == expected
    noisy = gradient + 1e-4 * gradient.abs().max() * torch.rand(gradient.shape)
    assert [found.tolist() for found in embedding_tokens(noisy, tolerance=1e-2)] == expected
    assert embedding_tokens(torch.zeros(1, 5, 2))[0].tolist() == []


@pytest.mark.parametrize(
    ("gradient", "tolerance", "message"),
    [
        (torch.ones(5, 2), 0.0, r"not \(5, 2\)"),
        (torch.full((1, 5, 2), float("nan")), 0.0, "NaN"),
        (torch.ones(1, 5, 2), 1.0, "below 1"),
        (torch.ones(1, 5, 2), float("nan"), "below 1"),
    ],
)
def test_an_embedding_s_gradient_that_does_not_fit_is_refused(gradient, tolerance, message):
    with pytest.raises(AttackError, match=message):
        embedding_tokens(gradient, tolerance=tolerance)
