import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.errors import AttackError
from fedml_keylock.inversion import Knowledge, Secrets
from fedml_keylock.inversion.cost import cosine, squared_l2
from fedml_keylock.inversion.engine.objective import Layout, Objective
from fedml_keylock.inversion.labels import find_head, label_of_one
from fedml_keylock.inversion.optim.adam import BatchedAdam
from fedml_keylock.inversion.optim.lbfgs import BatchedLBFGS
from fedml_keylock.inversion.prior import Prior, total_variation


def rosenbrock(x):
    return (100 * (x[..., 1::2] - x[..., ::2] ** 2) ** 2 + (1 - x[..., ::2]) ** 2).sum(-1) * 0.01


def gradient_of(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(rosenbrock(x).sum(), x)[0]


def test_each_row_of_lbfgs_goes_where_torch_s_goes():
    starts = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, ours = starts.clone(), BatchedLBFGS(history=200)
    for _ in range(41):
        rows = ours.step(rows, gradient_of(rows))
    for start, row in zip(starts, rows, strict=True):
        x = start.clone().requires_grad_()
        theirs = torch.optim.LBFGS([x], max_iter=41, max_eval=100, history_size=200)
        theirs.step(lambda x=x, o=theirs: _closure(x, o))
        assert torch.allclose(row, x.detach(), rtol=1e-6, atol=1e-8)


def _closure(x, optimizer):
    optimizer.zero_grad()
    loss = rosenbrock(x)
    loss.backward()
    return loss


def test_lbfgs_rows_do_not_touch_one_another_and_can_be_left_out():
    starts = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone, together = BatchedLBFGS(), BatchedLBFGS()
    one, three = starts[1:2], starts.clone()
    three[0] = float("nan")
    for step in range(12):
        one = alone.step(one, gradient_of(one))
        three = together.step(three, gradient_of(three))
        if step == 5:
            together.select(torch.tensor([1, 2]))
            three = three[1:]
    assert torch.allclose(one[0], three[0], rtol=1e-9, atol=1e-12)


def test_lbfgs_stops_a_row_that_has_arrived():
    optimizer = BatchedLBFGS()
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert torch.equal(optimizer.step(x, x)[0], x[0])
    assert optimizer.stopped.tolist() == [True, False]


def test_adam_is_torch_s_with_a_sign_a_box_and_a_decay():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(8, 2, 3, generator=generator)
    signed = torch.tensor([True, True, False])
    low, high = torch.tensor([-9.0, 0.45, -9]), torch.full((3,), 9.0)
    ours = BatchedAdam(torch.full((3,), 0.1), signed=signed, low=low, high=high, milestones=[5])
    rows = torch.full((2, 3), 0.5)
    x = rows.clone().requires_grad_()
    theirs = torch.optim.Adam([x], lr=0.1)
    decay = torch.optim.lr_scheduler.MultiStepLR(theirs, [5])
    for gradient in gradients:
        rows = ours.step(rows, gradient)
        x.grad = torch.where(signed, gradient.sign(), gradient)
        theirs.step()
        decay.step()
        x.data = x.data.clamp(low, high)
    assert torch.allclose(rows, x.detach(), atol=1e-6)


def test_costs_compare_all_layers_together_and_leave_out_weight_zero():
    generator = torch.Generator().manual_seed(0)
    left = [torch.randn(4, *s, generator=generator) for s in [(3, 2), (5,)]]
    right = [torch.randn(4, *s, generator=generator) for s in [(3, 2), (5,)]]
    flat = [torch.cat([part.flatten(1) for part in parts], 1) for parts in (left, right)]
    ones = torch.ones(4, 2)
    assert torch.allclose(cosine(left, right, ones), 1 - torch.cosine_similarity(*flat))
    relative = (flat[0] - flat[1]).square().sum(1) / flat[1].square().sum(1)
    assert torch.allclose(squared_l2(left, right, ones), relative)
    first = torch.tensor([1.0, 0.0]).expand(4, 2)
    for cost in (cosine, squared_l2):
        assert torch.allclose(cost(left, right, first), cost(left[:1], right[:1], ones[:, :1]))
        assert cost(right, right, ones).abs().max() < 1e-6


def test_total_variation_of_each_candidate():
    images = torch.zeros(2, 3, 1, 4, 4)
    images[1, ..., ::2] = 1
    assert total_variation(images).tolist() == [0, 1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_the_label_is_read_off_the_head(bias, trained):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5, bias=bias))
    if trained:
        with torch.no_grad():
            model[3].weight.mul_(10)
    weights, biases = [], []
    labels = torch.arange(20) % 5
    for label in labels:
        loss = cross_entropy(model(torch.rand(1, 1, 4, 4)), label[None])
        gradients = torch.autograd.grad(loss, model[3].parameters())
        weights.append(gradients[0])
        biases += gradients[1:]
    assert find_head(model, 5) == ("3.weight", "3.bias" if bias else None)
    found = label_of_one(torch.stack(weights), torch.stack(biases) if bias else None)
    assert torch.equal(found, labels)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(AttackError, match="no linear layer with 7 outputs"):
        find_head(nn.Linear(3, 5), 7)


@pytest.mark.parametrize("states", [1, 2])
def test_objective_is_what_a_loop_over_candidates_computes(lenet, states):
    model = lenet(1, 16, locks=(1,))
    generator = torch.Generator().manual_seed(0)
    secrets = {n: p.detach() for n, p in model.named_parameters() if n.startswith("lock")}
    torch.func.replace_all_batch_norm_modules_(model)
    public = {
        name: value.detach() + 0.1 * torch.randn(states, *value.shape, generator=generator)
        for name, value in model.named_parameters()
        if name not in secrets
    }
    state = torch.tensor([0, 1, 0]) % states
    labels = torch.tensor([[1, 2], [3, 3], [0, 9]])
    targets = {
        name: torch.randn(3, *value.shape[1:], generator=generator)
        for name, value in public.items()
    }
    layout = Layout({"images": (2, 1, 16, 16), **{n: tuple(v.shape) for n, v in secrets.items()}})
    knowledge = Knowledge(
        "adaptive",
        input_shape=(1, 16, 16),
        classes=10,
        batch=2,
        secrets=Secrets(tuple(secrets), draw=lambda count, generator: {}),
    )
    objective = Objective(
        model=model,
        knowledge=knowledge,
        layout=layout,
        state=state,
        public=public,
        fixed={},
        update=torch.arange(3),
        rates=torch.ones(3),
        labels=labels,
        targets=targets,
        weights=torch.ones(3, len(targets)),
        cost=cosine,
        prior=Prior(total_variation=0.1),
    )
    rows = torch.rand(3, sum(layout.sizes), generator=generator)
    costs, gradients = objective(rows)
    for index in range(3):
        row = rows[index : index + 1].clone().requires_grad_()
        parts = {name: part[0] for name, part in layout.split(row).items()}
        weights = {n: v[state[index]].clone().requires_grad_() for n, v in public.items()}
        images = parts.pop("images")
        logits = torch.func.functional_call(model, {**weights, **parts}, (images,))
        loss = cross_entropy(logits, labels[index])
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        flat = torch.cat([part.flatten() for part in found])
        target = torch.cat([targets[name][index].flatten() for name in weights])
        cost = 1 - torch.cosine_similarity(flat, target, dim=0)
        prior = 0.1 * total_variation(images[None]).sum()
        (expected,) = torch.autograd.grad(cost + prior, row)
        assert costs[index].item() == pytest.approx(cost.item(), abs=1e-5)
        assert torch.allclose(gradients[index], expected[0], rtol=1e-3, atol=1e-6)
