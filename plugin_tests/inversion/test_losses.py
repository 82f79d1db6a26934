"""Losses: the true image costs nothing under each, images come back, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.metrics import ssim_aligned
from fedml_keylock.inversion import (
    Knowledge,
    Loss,
    analytic,
    dlg,
    gradinversion,
    grnn,
    idlg,
    inverting_gradients,
    loss_of,
)
from fedml_keylock.inversion.engine.assemble import assemble
from fedml_keylock.inversion.engine.observe import observe
from fedml_keylock.inversion.labels import find_labels
from fedml_keylock.types import ClientUpdate

OUTPUTS = 4
MARKS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.3, -1.2, 0.8, 0.1], [-0.4, 0.9, 2.0, -0.7]])


def focal(outputs, targets):
    """A job's own loss of classes."""
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def cubed(outputs, targets):
    """A job's own loss of values."""
    return (outputs - targets).abs().pow(3).mean()


class ByPixel(nn.Sequential):
    """A class for each pixel of a smaller picture."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 6, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(6, OUTPUTS, 3, 1, 1))


def classifier(*more):
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(216, OUTPUTS), *more
    )


def case(text, targets=None, more=(), images=2):
    """A loss, a model with weights as DLG's, images, targets, and the update of one step."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ByPixel() if text == "pixels" else classifier(*more)
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
        pictures = torch.rand(images, 1, 3, 3)
    # smooth ones
    pictures = nn.functional.interpolate(pictures, size=12, mode="bicubic").clamp(0, 1)
    if targets is None:
        shape = (images, 6, 6) if text == "pixels" else (images,)
        targets = torch.arange(images * 36).view(-1)[: torch.Size(shape).numel()].view(shape) % 3
    else:
        targets = targets[:images]
    own = {"focal": focal, "cubed": cubed}.get(text)
    name = "CrossEntropyLoss()" if text == "pixels" else text
    loss = (Loss.of(own) if own else loss_of(name, where="loss")).seen(targets)
    function = own or loss.function  # torch's own, not ours
    gradients = torch.autograd.grad(function(model(pictures), targets), list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = {n: before[n] - step for n, step in zip(before, gradients, strict=True)}
    return loss, model, pictures, targets, ClientUpdate(before, after, 1.0)


def known(loss, model, pictures, labels=None):
    shape = tuple(model(pictures[:1]).shape[1:])
    return Knowledge(
        "oblivious",
        input_shape=(1, 12, 12),
        classes=shape[0],
        output_shape=shape,
        batch=len(pictures),
        loss=loss,
        labels=labels,
    )


CASES = [
    ("CrossEntropyLoss()", None),
    ("CrossEntropyLoss(label_smoothing=0.2)", None),
    ("CrossEntropyLoss(weight=[1, 2, 3, 4], label_smoothing=0.2)", None),
    ("CrossEntropyLoss(weight=[1, 2, 3, 4], reduction='sum')", None),
    ("CrossEntropyLoss(ignore_index=3)", None),
    ("NLLLoss(weight=[1, 2, 3, 4])", None),
    ("pixels", None),
    ("BCEWithLogitsLoss(pos_weight=[1, 2, 3, 4])", MARKS),
    ("BCELoss(reduction='sum')", MARKS),
    ("MultiLabelSoftMarginLoss()", MARKS),
    ("MSELoss()", VALUES),
    ("L1Loss()", VALUES),
    ("SmoothL1Loss(beta=0.5)", VALUES),
    ("HuberLoss(delta=0.5)", VALUES),
    ("PoissonNLLLoss()", VALUES.abs()),
    ("cubed", VALUES),
    ("focal", None),
]


def ending(text):
    """What a model ends in under such a loss."""
    if text.startswith("NLL"):
        return (nn.LogSoftmax(1),)
    return (nn.Sigmoid(),) if text.startswith("BCELoss") else ()


@pytest.mark.parametrize(("text", "targets"), CASES)
def test_the_true_images_cost_nothing(text, targets):
    """With targets that are known, and with those that are searched for where they are true."""
    images = 1 if text == "focal" else 2
    loss, model, pictures, targets, update = case(text, targets, ending(text), images)
    for labels in (targets[None], None):
        if labels is None and "ignore_index" in text:
            continue  # refused: see below
        knowledge = known(loss, model, pictures, labels)
        attack = dlg()
        seen = observe([update], model, knowledge)
        objective = assemble(attack, [update], seen, knowledge, labels, torch.Generator())
        parts = {"images": pictures[None]}
        if labels is None:
            parts["labels"] = targets[None]
            if loss.targets == "marks":
                parts["labels"] = 80 * targets[None] - 40
            if loss.targets == "classes":
                hot = nn.functional.one_hot(targets, OUTPUTS).movedim(-1, 1)[None]
                parts["labels"] = 80.0 * hot - 40
        cost, _ = objective.value(objective.layout.join(parts))
        assert float(cost) < 1e-8
        parts["images"] = 1 - pictures[None]
        cost, _ = objective.value(objective.layout.join(parts))
        assert float(cost) > 1e-4


@pytest.mark.parametrize(
    ("text", "targets"),
    [CASES[1], CASES[7], CASES[10], CASES[-1]],
)
@pytest.mark.usefixtures("one_thread")
def test_an_image_comes_back_with_targets_that_nobody_told(text, targets):
    loss, model, pictures, targets, update = case(text, targets, images=1)
    found = dlg(steps=30, restarts=2).reconstruct(
        [update],
        model,
        knowledge=known(loss, model, pictures),
        generator=torch.Generator().manual_seed(0),
    )
    assert float(ssim_aligned(found.images[0], pictures)) > 0.95
    assert torch.allclose(found.labels[0].float(), targets.float(), atol=0.05)


@pytest.mark.usefixtures("one_thread")
def test_another_loss_than_the_jobs_does_not_explain_the_update():
    """So that a loss that is not passed on is seen."""
    loss, model, pictures, targets, update = case("MSELoss()", VALUES, images=1)
    attack = dlg(steps=12)
    costs = []
    for one, labels in ((loss, targets[None]), (Loss.of(nn.CrossEntropyLoss()), None)):
        found = attack.reconstruct(
            [update],
            model,
            knowledge=known(one, model, pictures, labels),
            generator=torch.Generator().manual_seed(0),
        )
        costs.append(float(found.cost))
    assert costs[0] < 1e-4 < 1e-2 < costs[1]


def head_update(text, scale, label, bias=True):
    """The gradients of a head whose logits are as sure as the scale, for one image."""
    head = nn.Linear(5, OUTPUTS, bias=bias)
    with torch.no_grad():
        head.weight.copy_(scale * torch.eye(OUTPUTS, 5))
        if bias:
            head.bias.zero_()
    inputs = torch.tensor([[0.1, 1.0, 0.2, 0.3, 0.4]])  # the model says class 1
    loss = loss_of(text, where="loss")
    gradients = torch.autograd.grad(
        loss.function(head(inputs), torch.tensor([label])), list(head.parameters())
    )
    said = {n: g[None] for (n, _), g in zip(head.named_parameters(), gradients, strict=True)}
    return head, said, Knowledge("oblivious", input_shape=(5,), classes=OUTPUTS, loss=loss)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("label", range(OUTPUTS))
def test_a_smoothed_label_is_read_off_unless_the_model_is_surer_than_it(scale, label):
    """iDLG's rule names a wrong class there: the true one's gradient is above the others'."""
    update = head_update("CrossEntropyLoss(label_smoothing=0.2)", scale, label)
    if scale == 10.0 and label == 1:
        with pytest.raises(AttackError, match="the model is surer of an image than its label"):
            find_labels(*update)
        assert int(update[1]["bias"].argmin()) != label
    else:
        assert find_labels(*update).tolist() == [[label]]


@pytest.mark.parametrize(
    ("text", "batch", "reason"),
    [
        ("MSELoss()", 1, r"MSELoss\(\): labels are read off the gradient of cross entropy; set"),
        ("BCELoss()", 1, r"BCELoss\(\): labels are read off"),
        ("CrossEntropyLoss(label_smoothing=0.2)", 2, "several images without smoothed labels; set"),
        ("CrossEntropyLoss(weight=[1, 2, 3, 4])", 2, "several images without weighted classes;"),
        (
            "CrossEntropyLoss(weight=[1, 2, 3, 4], label_smoothing=0.2)",
            1,
            "of an image without weighted classes and smoothed labels",
        ),
        ("NLLLoss()", 1, "only of outputs that end in log_softmax"),
    ],
)
def test_labels_are_not_read_off_where_that_does_not_hold(text, batch, reason):
    targets = {"MSELoss()": VALUES, "BCELoss()": MARKS}.get(text)
    more = (nn.Sigmoid(),) if text[:3] in ("BCE", "NLL") else ()
    loss, model, pictures, _, update = case(text, targets, more, images=batch)
    for attack in (idlg(steps=1), inverting_gradients(steps=1)):
        with pytest.raises(AttackError, match=reason) as refused:
            attack.reconstruct(
                [update],
                model,
                knowledge=known(loss, model, pictures),
                generator=torch.Generator(),
            )
        assert str(refused.value).endswith("set labels: optimise")
    without = head_update("CrossEntropyLoss(label_smoothing=0.2)", 1.0, 0, bias=False)
    with pytest.raises(AttackError, match="head's bias, and it has none; set labels: optimise"):
        find_labels(*without)


def test_the_first_layers_input_is_divided_whatever_the_loss():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, OUTPUTS))
    pictures = torch.rand(1, 1, 12, 12)
    gradients = torch.autograd.grad(
        nn.functional.mse_loss(model(pictures), VALUES[:1]), list(model.parameters())
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = {n: before[n] - g for n, g in zip(before, gradients, strict=True)}
    knowledge = known(loss_of("MSELoss", where="loss"), model, pictures)
    update = ClientUpdate(before, after, 1.0)
    found = analytic().reconstruct(
        [update], model, knowledge=knowledge, generator=torch.Generator()
    )
    assert torch.allclose(found.images[0], pictures, atol=1e-3)
    assert found.labels.tolist() == [[-1]]  # not found


def test_what_is_not_searched_for_is_refused():
    for text, reason in (
        ("CrossEntropyLoss(ignore_index=3)", "of which class 3 is ignored"),
        ("focal", "only of one image"),
    ):
        loss, model, pictures, _, update = case(text)
        with pytest.raises(AttackError, match=reason):
            dlg().reconstruct(
                [update],
                model,
                knowledge=known(loss, model, pictures),
                generator=torch.Generator(),
            )
    loss, model, pictures, _, update = case("pixels")
    for attack in (grnn(labels="optimise"), gradinversion()):
        with pytest.raises(AttackError, match=r"one label an image|of one class an image; set"):
            attack.reconstruct(
                [update],
                model,
                knowledge=known(loss, model, pictures),
                generator=torch.Generator(),
            )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("KLDivLoss()", "'KLDivLoss()': KLDivLoss is not attacked; of torch.nn's losses Cross"),
        ("MSELoss(reduction='none')", "MSELoss without a reduction gives no number"),
        ("Focal()", "is neither a class of torch.nn such as CrossEntropyLoss("),
        ("CrossEntropyLoss(smooth=1)", "unexpected keyword argument 'smooth'"),
        ("nowhere:loss", "No module named 'nowhere'"),
        ("math:pi", "'math:pi' is no function"),
        ("__import__('os').getcwd()", "is neither a class of torch.nn"),
    ],
)
def test_a_setting_that_names_no_loss_is_refused(text, reason):
    with pytest.raises(ConfigError) as refused:
        loss_of(text, where="--loss")
    assert str(refused.value).startswith("--loss: ")
    assert reason in str(refused.value)


def test_labels_that_do_not_fit_the_outputs_are_refused():
    for text, labels, outputs in (
        ("MSELoss()", torch.tensor([1, 2]), (3,)),
        ("BCELoss()", torch.tensor([1, 3]), (3,)),
        ("CrossEntropyLoss()", torch.tensor([1, 2]), (3, 6, 6)),
        ("CrossEntropyLoss()", torch.tensor([[0.5, 0.5, 0.0]]), (3,)),
    ):
        with pytest.raises(AttackError, match="takes no targets"):
            loss_of(text, where="loss").fitted(labels, outputs)
    assert loss_of("MSELoss", where="").fitted(torch.tensor([1, 2]), (1,)).tolist() == [[1], [2]]
