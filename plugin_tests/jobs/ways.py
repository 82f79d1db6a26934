"""A real FedML job whose trainer trains in the ways that JOB_WAYS names, each on its own model.

The ways are those of public federated-learning code, written anew and small. Several run in one
job: what is exchanged is the states of all, under the names of their ways. Without JOB_WAYS all
do. What each silo holds after each exchange is in held-RANK.pt. JOB_AGGREGATOR names what is
unusual on the server.
"""

import copy
import os
from collections import OrderedDict

import fedml
import torch
from fedml.core import ClientTrainer
from fedml.ml.aggregator.agg_operator import FedMLAggOperator
from fedml.ml.aggregator.default_aggregator import DefaultServerAggregator
from fedml.ml.trainer.fedprox_trainer import FedProxModelTrainer
from torch import nn
from torch.ao import quantization
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

DIMS, HIDDEN, CLASSES = 8, 12, 3


def net():
    body = nn.Sequential(nn.Linear(DIMS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(HIDDEN, CLASSES)))


def smooth():
    body = nn.Sequential(nn.Linear(DIMS, HIDDEN), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(HIDDEN, CLASSES)))


def frozen(model):
    copied = copy.deepcopy(model).eval()
    return copied.requires_grad_(requires_grad=False)


class FedAvg(ClientTrainer):
    """Sends its state and loads what comes: each way changes what is its own."""

    make = staticmethod(net)

    @staticmethod
    def shared(model):
        """What server and silos exchange of a model."""
        return model.state_dict()

    def get_model_params(self):
        return self.shared(self.model)

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters, strict=False)

    def own(self):
        """What the silo has beside its model."""
        return {}

    def optimizer(self):
        return torch.optim.SGD(self.model.parameters(), self.args.learning_rate)

    def loss(self, images, labels):
        return functional.cross_entropy(self.model(images), labels)

    def train(self, train_data, device, args):
        self.model.train()
        optimizer = self.optimizer()
        for images, labels in train_data:
            optimizer.zero_grad()
            self.loss(images, labels).backward()
            self.step(optimizer)

    def step(self, optimizer):
        optimizer.step()


class FedProx(FedProxModelTrainer):
    """FedML's own: a proximal term against a deep copy of the state."""

    make = staticmethod(net)
    shared = staticmethod(FedAvg.shared)
    own = FedAvg.own


class Ditto(FedAvg):
    """A personal model, drawn to the global one."""

    def train(self, train_data, device, args):
        if args.round_idx == 0:
            self.personal = copy.deepcopy(self.model)
        anchor = copy.deepcopy(self.model)
        super().train(train_data, device, args)
        optimizer = torch.optim.SGD(self.personal.parameters(), args.learning_rate)
        for images, labels in train_data:
            optimizer.zero_grad()
            pairs = zip(self.personal.parameters(), anchor.parameters(), strict=True)
            drawn = sum((p - a.detach()).square().sum() for p, a in pairs)
            (functional.cross_entropy(self.personal(images), labels) + 0.5 * drawn).backward()
            optimizer.step()

    def own(self):
        return self.personal.state_dict()


class PFedMe(FedAvg):
    """A personal model for each batch; the one that is sent follows it, set by `.data`."""

    make = staticmethod(smooth)

    def train(self, train_data, device, args):
        sent = [p.detach().clone() for p in self.model.parameters()]
        for images, labels in train_data:
            optimizer = torch.optim.SGD(self.model.parameters(), args.learning_rate)
            for _ in range(2):
                optimizer.zero_grad()
                pairs = zip(self.model.parameters(), sent, strict=True)
                drawn = sum((p - s).square().sum() for p, s in pairs)
                (functional.cross_entropy(self.model(images), labels) + drawn).backward()
                optimizer.step()
            for parameter, at in zip(self.model.parameters(), sent, strict=True):
                at -= 0.5 * (at - parameter.data)
        for parameter, at in zip(self.model.parameters(), sent, strict=True):
            parameter.data = at.data.clone()


class FedRep(FedAvg):
    """The body is shared and the head is the silo's: first the one is trained, then the other."""

    @staticmethod
    def shared(model):
        return OrderedDict((n, t) for n, t in model.state_dict().items() if "head" not in n)

    def train(self, train_data, device, args):
        for part in ("head", "body"):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith(part))
            super().train(train_data, device, args)


class Alternating(FedAvg):
    """The body is trained and sent in one round, the head in the next."""

    def part(self):
        return "head" if self.args.round_idx % 2 else "body"

    def optimizer(self):
        chosen = [p for n, p in self.model.named_parameters() if n.startswith(self.part())]
        return torch.optim.SGD(chosen, self.args.learning_rate)

    def get_model_params(self):
        whole = self.model.state_dict().items()
        return OrderedDict((n, t) for n, t in whole if n.startswith(self.part()))


class FedBN(FedAvg):
    """Norms are the silo's own; the others are copied into the state, name by name."""

    def set_model_params(self, model_parameters):
        for name, tensor in self.model.state_dict().items():
            if "body.1" not in name:
                tensor.data.copy_(model_parameters[name])


class ByData(FedAvg):
    """Takes parameters by `.data`, in their order."""

    make = staticmethod(smooth)

    def set_model_params(self, model_parameters):
        for old, new in zip(self.model.parameters(), model_parameters.values(), strict=True):
            old.data = new.data.clone()


class Parameters(FedAvg):
    """Sends parameters, with the graph on them, and no buffers; keeps what comes as its anchor."""

    def get_model_params(self):
        return OrderedDict(self.model.named_parameters())

    def set_model_params(self, model_parameters):
        self.anchor = model_parameters
        super().set_model_params(model_parameters)

    def step(self, optimizer):
        for name, parameter in self.model.named_parameters():
            parameter.grad += 0.1 * (parameter.detach() - self.anchor[name].detach())
        super().step(optimizer)


class Scaffold(FedAvg):
    """Control variates go beside the state, under names that the first model does not have."""

    make = staticmethod(smooth)

    def __init__(self, model, args):
        super().__init__(model, args)
        self.control = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        self.common = copy.deepcopy(self.control)

    def set_model_params(self, model_parameters):
        super().set_model_params(model_parameters)
        for name in self.common:
            if f"control.{name}" in model_parameters:
                self.common[name] = model_parameters[f"control.{name}"]
        self.start = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.steps = 0

    def step(self, optimizer):
        for name, parameter in self.model.named_parameters():
            parameter.grad += self.common[name] - self.control[name]
        super().step(optimizer)
        self.steps += 1

    def get_model_params(self):
        scale = self.steps * self.args.learning_rate
        for name, parameter in self.model.named_parameters():
            moved = (self.start[name] - parameter.detach()) / scale
            self.control[name] = self.control[name] - self.common[name] + moved
        controls = {f"control.{name}": tensor for name, tensor in self.control.items()}
        return OrderedDict({**self.model.state_dict(), **controls})

    def own(self):
        return self.common


class FedNova(FedAvg):
    """What training changed, divided by the silo's own number of steps."""

    def set_model_params(self, model_parameters):
        super().set_model_params(model_parameters)
        self.start, self.steps = copy.deepcopy(self.model.state_dict()), 0

    def step(self, optimizer):
        super().step(optimizer)
        self.steps += 1

    def get_model_params(self):
        made = OrderedDict()
        for name, tensor in self.model.state_dict().items():
            made[name] = tensor
            if tensor.is_floating_point():
                made[name] = self.start[name] + 3 * (tensor - self.start[name]) / self.steps
        return made


class FedDyn(FedAvg):
    """A linear term that is kept over rounds, and a proximal one."""

    make = staticmethod(smooth)

    def __init__(self, model, args):
        super().__init__(model, args)
        self.linear = [torch.zeros_like(p) for p in model.parameters()]

    def train(self, train_data, device, args):
        self.anchor = [p.detach().clone() for p in self.model.parameters()]
        super().train(train_data, device, args)
        for index, parameter in enumerate(self.model.parameters()):
            self.linear[index] -= 0.1 * (parameter.detach() - self.anchor[index])

    def loss(self, images, labels):
        added = 0.0
        for p, h, a in zip(self.model.parameters(), self.linear, self.anchor, strict=True):
            added = added - (p * h).sum() + 0.05 * (p - a).square().sum()
        return super().loss(images, labels) + added


class Distilled(FedAvg):
    """Learns from the model that came, as its teacher."""

    def train(self, train_data, device, args):
        self.teacher = frozen(self.model)
        super().train(train_data, device, args)

    def loss(self, images, labels):
        scores, told = self.model(images), self.teacher(images)
        near = functional.kl_div(scores.log_softmax(1), told.softmax(1), reduction="batchmean")
        return functional.cross_entropy(scores, labels) + near


class Moon(FedAvg):
    """Features near those of the global model, and far from those of the silo's last one."""

    last = None

    def train(self, train_data, device, args):
        self.given = frozen(self.model)
        super().train(train_data, device, args)
        self.last = frozen(self.model)

    def loss(self, images, labels):
        features = self.model.body(images)
        loss = functional.cross_entropy(self.model.head(features), labels)
        if self.last is None:
            return loss
        pairs = [
            functional.cosine_similarity(features, other.body(images))
            for other in (self.given, self.last)
        ]
        target = torch.zeros(len(images), dtype=torch.long)
        return loss + functional.cross_entropy(torch.stack(pairs, 1) / 0.5, target)


class Sam(FedAvg):
    """Two passes a batch; between them the weights are moved, and then put back by `copy_`."""

    def train(self, train_data, device, args):
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), args.learning_rate, momentum=0.9)
        for images, labels in train_data:
            optimizer.zero_grad()
            self.loss(images, labels).backward()
            kept = [p.detach().clone() for p in self.model.parameters()]
            size = torch.stack([p.grad.norm() for p in self.model.parameters()]).norm()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.05 * parameter.grad / size)
            optimizer.zero_grad()
            self.loss(images, labels).backward()
            for parameter, at in zip(self.model.parameters(), kept, strict=True):
                parameter.data.copy_(at)
            optimizer.step()


class Ema(FedAvg):
    """A moving average of the weights is what it sends; it is kept over rounds."""

    def __init__(self, model, args):
        super().__init__(model, args)
        mean = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
        self.mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=mean, use_buffers=True)

    def step(self, optimizer):
        super().step(optimizer)
        self.mean.update_parameters(self.model)

    def get_model_params(self):
        return self.mean.module.state_dict()

    def own(self):
        return self.mean.state_dict()


class KeptOptimizer(FedAvg):
    """Adam, made before FedML has the model, and kept over rounds."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.adam = torch.optim.Adam(model.parameters(), 0.01, eps=1e-3)

    def optimizer(self):
        return self.adam


class Schedule(FedAvg):
    """A learning rate by the round, from a scheduler that is kept."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.sgd = torch.optim.SGD(
            model.parameters(), args.learning_rate, nesterov=True, momentum=0.5
        )
        self.by_round = torch.optim.lr_scheduler.CosineAnnealingLR(self.sgd, T_max=3)

    def optimizer(self):
        return self.sgd

    def train(self, train_data, device, args):
        super().train(train_data, device, args)
        self.by_round.step()


class Checkpoints(FedAvg):
    """Writes the state each epoch, and ends with that of the best."""

    def train(self, train_data, device, args):
        losses = []
        for epoch in range(3):
            super().train(train_data, device, args)
            self.model.eval()
            with torch.no_grad():
                losses.append(sum(self.loss(*batch).item() for batch in train_data))
            torch.save(self.model.state_dict(), f"rank-{args.rank}-epoch-{epoch}.pt")
        best = losses.index(min(losses))
        self.model.load_state_dict(torch.load(f"rank-{args.rank}-epoch-{best}.pt"))


class Parallel(FedAvg):
    """Trains through DataParallel."""

    def loss(self, images, labels):
        return functional.cross_entropy(nn.DataParallel(self.model)(images), labels)


class Tied(FedAvg):
    """Two layers with one weight."""

    @staticmethod
    def make():
        model = nn.Sequential(*(nn.Linear(DIMS, DIMS) for _ in range(3)), nn.Linear(DIMS, CLASSES))
        model[2].weight = model[0].weight
        return model


class Half(FedAvg):
    """The whole model is of bfloat16."""

    @staticmethod
    def make():
        return smooth().bfloat16()

    def loss(self, images, labels):
        return super().loss(images.bfloat16(), labels)


class HalfSent(FedAvg):
    """Sends half of the bytes: the state as float16."""

    make = staticmethod(smooth)

    def get_model_params(self):
        return OrderedDict((n, t.half()) for n, t in self.model.state_dict().items())


class Frozen(FedAvg):
    """A frozen body whose norm was put into eval mode once; only what learns is sent."""

    def __init__(self, model, args):
        super().__init__(model, args)
        model.train()
        model.body.requires_grad_(requires_grad=False).eval()

    @staticmethod
    def shared(model):
        return OrderedDict((n, t) for n, t in model.state_dict().items() if "head" in n)

    def optimizer(self):
        learning = filter(lambda p: p.requires_grad, self.model.parameters())
        return torch.optim.SGD(learning, self.args.learning_rate)

    def train(self, train_data, device, args):
        optimizer = self.optimizer()
        for images, labels in train_data:
            optimizer.zero_grad()
            self.loss(images, labels).backward()
            optimizer.step()


class Adapters(FedAvg):
    """Low-rank adapters beside a frozen layer; they alone are sent."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(DIMS, CLASSES).requires_grad_(requires_grad=False)
            self.lora_a = nn.Parameter(torch.randn(2, DIMS) / 4)
            self.lora_b = nn.Parameter(torch.zeros(CLASSES, 2))

        def forward(self, images):
            return self.base(images) + images @ self.lora_a.T @ self.lora_b.T

    make = Layer

    @staticmethod
    def shared(model):
        return OrderedDict((n, t) for n, t in model.state_dict().items() if "lora" in n)


class Accumulated(FedAvg):
    """A step for two batches, with gradients clipped."""

    def train(self, train_data, device, args):
        self.model.train()
        optimizer = self.optimizer()
        optimizer.zero_grad()
        for index, (images, labels) in enumerate(train_data):
            (self.loss(images, labels) / 2).backward()
            if index % 2:
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


class Differences(FedAvg):
    """Sends what training changed, and adds the average of it to what it had."""

    start = None

    def set_model_params(self, model_parameters):
        if self.start is None:
            super().set_model_params(model_parameters)
        else:
            moved = {n: t + model_parameters[n] for n, t in self.start.items()}
            super().set_model_params(moved)
        self.start = copy.deepcopy(self.model.state_dict())

    def get_model_params(self):
        return OrderedDict((n, t - self.start[n]) for n, t in self.model.state_dict().items())


class WarmUp(Differences):
    """The same with a learning rate that begins a thousand times smaller."""

    make = staticmethod(smooth)

    def optimizer(self):
        rate = self.args.learning_rate * (1e-3 if self.args.round_idx == 0 else 1)
        return torch.optim.SGD(self.model.parameters(), rate)


class FedSgd(FedAvg):
    """Sends gradients; each silo takes the step of their average."""

    make = staticmethod(smooth)
    begun = False

    def set_model_params(self, model_parameters):
        if not self.begun:
            self.begun = True
            return super().set_model_params(model_parameters)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter -= self.args.learning_rate * model_parameters[name]
        return None

    def train(self, train_data, device, args):
        self.model.zero_grad()
        for images, labels in train_data:
            (self.loss(images, labels) / len(train_data)).backward()

    def get_model_params(self):
        return OrderedDict((n, p.grad) for n, p in self.model.named_parameters())


class Opposed(FedSgd):
    """Silos whose gradients nearly cancel, until in the last round they do not."""

    make = staticmethod(lambda: nn.Sequential(nn.Linear(DIMS, CLASSES)))

    def train(self, train_data, device, args):
        for parameter in self.model.parameters():
            way = 1.0 if args.rank == 1 or args.round_idx == 2 else -0.999 * SIZES[0] / SIZES[1]
            parameter.grad = torch.full_like(parameter, way)


class Random(FedAvg):
    """Dropout and shuffled batches: both draw from torch's own generator."""

    @staticmethod
    def make():
        return nn.Sequential(nn.Linear(DIMS, HIDDEN), nn.Dropout(0.3), nn.Linear(HIDDEN, CLASSES))

    def train(self, train_data, device, args):
        shuffled = DataLoader(train_data.dataset, 8, shuffle=True)
        super().train(shuffled, device, args)


class OwnCopy(FedAvg):
    """Trains a copy of the model that FedML gave it, and no longer knows that one."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.net = copy.deepcopy(model)

    def on_before_local_training(self, train_data, device, args):
        self.model = self.net


class Quantized(FedAvg):
    """Training for quantization: observers hold infinities until their first batch.

    https://github.com/googlecolab/colabtools/issues/2834
    """

    @staticmethod
    def make():
        model = smooth().train()
        model.qconfig = quantization.QConfig(
            activation=quantization.default_fake_quant,
            weight=quantization.default_weight_fake_quant,
        )
        return quantization.prepare_qat(model)


class Fourier(FedAvg):
    """Complex weights behind a Fourier transform.

    https://github.com/neuraloperator/neuraloperator/issues/88
    """

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            count = DIMS // 2 + 1
            self.weight = nn.Parameter(torch.randn(count, count, dtype=torch.cfloat) / 2)
            self.shift = nn.Parameter(torch.zeros(count, dtype=torch.cfloat))
            self.head = nn.Linear(DIMS, CLASSES)

        def forward(self, images):
            waves = torch.fft.rfft(images) @ self.weight + self.shift
            return self.head(torch.fft.irfft(waves, n=DIMS).tanh())

    make = Layer


class Compiled(FedAvg):
    """The model goes through torch.compile first: its names begin with ``_orig_mod``.

    https://github.com/pytorch/pytorch/issues/101107
    """

    @staticmethod
    def make():
        return torch.compile(net(), backend="eager")


class Gan(FedAvg):
    """A generator and a discriminator with an optimizer each, both exchanged.

    https://github.com/FedML-AI/FedML/pull/127
    """

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = nn.Sequential(
                nn.Linear(4, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIMS)
            )
            judge = nn.utils.spectral_norm(nn.Linear(DIMS, HIDDEN))
            self.judged = nn.Sequential(judge, nn.Tanh(), nn.Linear(HIDDEN, 1))

        def forward(self, images):
            return self.judged(images).expand(-1, CLASSES)

    make = Pair

    def __init__(self, model, args):
        super().__init__(model, args)
        # with less it would make steps of rounding, of gradients that are zero
        both = (model.made, model.judged)
        self.adams = [torch.optim.Adam(one.parameters(), 0.01, eps=1e-3) for one in both]

    def train(self, train_data, device, args):
        self.model.train()
        draw = torch.Generator().manual_seed(10 * args.round_idx + args.rank)
        told = functional.binary_cross_entropy_with_logits
        for images, _ in train_data:
            one, none = torch.ones(len(images), 1), torch.zeros(len(images), 1)
            made = self.model.made(torch.randn(len(images), 4, generator=draw))
            for adam in self.adams[::-1]:
                adam.zero_grad()
                judged = self.model.judged
                if adam is self.adams[0]:
                    told(judged(made), one).backward()
                else:
                    (told(judged(images), one) + told(judged(made.detach()), none)).backward()
                adam.step()


class Normed(FedAvg):
    """Weight norm in its old form, whose weight is no leaf, and in its new one.

    https://github.com/pytorch/pytorch/issues/102981
    """

    @staticmethod
    def make():
        first = nn.utils.weight_norm(nn.Linear(DIMS, HIDDEN))
        second = nn.utils.parametrizations.weight_norm(nn.Linear(HIDDEN, HIDDEN))
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


class Table(FedAvg):
    """An embedding with sparse gradients."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(60, HIDDEN, sparse=True)
            self.head = nn.Linear(HIDDEN, CLASSES)

        def forward(self, images):
            return self.head(self.table((images * 4 + 30).long().clamp(0, 59)))

    make = Bag


class MixedPrecision(FedAvg):
    """Autocast and a gradient scaler; each silo has a learning rate and epochs of its own."""

    def train(self, train_data, device, args):
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.AdamW(self.model.parameters(), 0.02 / args.rank, eps=1e-3)
        self.model.train()
        for _ in range(args.rank):
            for images, labels in train_data:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = self.loss(images, labels)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()


class Pruned(FedAvg):
    """Layers under the masks of torch's pruning."""

    @staticmethod
    def make():
        model = net()
        prune.l1_unstructured(model.body[0], "weight", amount=0.3)
        return model


class OwnClasses(FedAvg):
    """Each silo has a head of its own shape, in its trainer; only the body is exchanged.

    https://github.com/KCL-BMEIS/UltraFlwr/issues/28
    """

    make = staticmethod(smooth)
    shared = staticmethod(FedRep.shared)

    def __init__(self, model, args):
        super().__init__(model, args)
        self.head = nn.Linear(HIDDEN, CLASSES + args.rank)

    def optimizer(self):
        parts = nn.ModuleList([self.model.body, self.head])
        return torch.optim.SGD(parts.parameters(), self.args.learning_rate)

    def loss(self, images, labels):
        return functional.cross_entropy(self.head(self.model.body(images)), labels)

    def own(self):
        return self.head.state_dict()


class Odd(FedAvg):
    """Tensors without entries, parameters of one number, and names in any letters.

    https://github.com/flwrlabs/flower/issues/4344
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.nobody = smooth(), nn.Embedding(0, 5)
            self.größe = nn.Parameter(torch.ones(()))
            self.by = nn.ParameterDict({"a b/c": nn.Parameter(torch.zeros(1))})
            self.register_buffer("later", torch.empty(0))
            self.register_buffer("absent", None)

        def forward(self, images):
            return self.net(images * self.größe) + self.by["a b/c"]

    make = Net


class Workers(FedAvg):
    """Batches come from two worker processes.

    https://github.com/mlcommons/storage/issues/415
    """

    def train(self, train_data, device, args):
        super().train(DataLoader(train_data.dataset, 8, num_workers=2), device, args)


WAYS = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "ditto": Ditto,
    "pfedme": PFedMe,
    "fedrep": FedRep,
    "alternating": Alternating,
    "fedbn": FedBN,
    "by_data": ByData,
    "by_parameter": Parameters,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "distilled": Distilled,
    "moon": Moon,
    "sam": Sam,
    "ema": Ema,
    "kept_optimizer": KeptOptimizer,
    "schedule": Schedule,
    "checkpoints": Checkpoints,
    "parallel": Parallel,
    "tied": Tied,
    "bfloat": Half,
    "half_sent": HalfSent,
    "frozen": Frozen,
    "adapters": Adapters,
    "accumulated": Accumulated,
    "differences": Differences,
    "warm_up": WarmUp,
    "fedsgd": FedSgd,
    "opposed": Opposed,
    "random": Random,
    "own_copy": OwnCopy,
    "quantized": Quantized,
    "fourier": Fourier,
    "compiled": Compiled,
    "gan": Gan,
    "normed": Normed,
    "table": Table,
    "mixed_precision": MixedPrecision,
    "pruned": Pruned,
    "own_classes": OwnClasses,
    "odd": Odd,
    "workers": Workers,
}


NAMES = os.environ.get("JOB_WAYS", ",".join(WAYS)).split(",")


def joined(states):
    """The states of several ways as one, whose names begin with the way's."""
    return OrderedDict((f"{way}.{n}", t) for way, s in states.items() for n, t in s.items())


def parted(state):
    """What `joined` has joined."""
    parts = {way: OrderedDict() for way in NAMES}
    for name, tensor in state.items():
        way, _, rest = name.partition(".")
        parts[way][rest] = tensor
    return parts


class Together(ClientTrainer):
    """Trains in each of the ways in turn."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.ways = {way: WAYS[way](model[way], args) for way in NAMES}
        self.held = []

    def get_model_params(self):
        return joined({way: one.get_model_params() for way, one in self.ways.items()})

    def set_model_params(self, model_parameters):
        for way, state in parted(model_parameters).items():
            self.ways[way].set_model_params(state)
        self.note()

    def note(self):
        """Keep what the silo holds now."""
        now = {
            way: joined({"model": one.model.state_dict(), "own": one.own() if self.held else {}})
            for way, one in self.ways.items()
        }
        self.held.append(copy.deepcopy(now))
        torch.save(self.held, f"held-{self.args.rank}.pt")

    def on_before_local_training(self, train_data, device, args):
        for way in self.ways.values():
            way.on_before_local_training(train_data, device, args)

    def train(self, train_data, device, args):
        for way in self.ways.values():
            way.train(train_data, device, args)

    def test(self, test_data, device, args):
        right = total = 0
        for way in self.ways.values():
            way.model.eval()
            dtype = next(way.model.parameters()).dtype
            for images, labels in test_data:
                right += int((way.model(images.to(dtype)).argmax(1) == labels).sum())
                total += len(labels)
        return {"test_correct": right, "test_total": total}


class Aggregator(DefaultServerAggregator):
    """FedML's own, for what silos share."""

    def get_model_params(self):
        return joined({way: WAYS[way].shared(self.model[way]) for way in NAMES})

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters, strict=False)

    def test(self, test_data, device, args):
        return 0.0, 0.0, None, None

    def test_all(self, train_data_local_dict, test_data_local_dict, device, args):
        return True


class Uniform(Aggregator):
    """Weighs all silos alike."""

    def aggregate(self, raw_client_model_or_grad_list):
        alike = [(1, state) for _, state in raw_client_model_or_grad_list]
        return FedMLAggOperator.agg(self.args, alike)


class Shares(Aggregator):
    """Gives the same weights as shares."""

    def aggregate(self, raw_client_model_or_grad_list):
        total = sum(n for n, _ in raw_client_model_or_grad_list)
        shares = [(n / total, state) for n, state in raw_client_model_or_grad_list]
        return FedMLAggOperator.agg(self.args, shares)


class Momentum(Aggregator):
    """FedOpt: the server takes a step with momentum along what the silos changed."""

    velocity = None

    def aggregate(self, raw_client_model_or_grad_list):
        mean = FedMLAggOperator.agg(self.args, raw_client_model_or_grad_list)
        before = self.get_model_params()
        step = {n: before[n] - t for n, t in mean.items()}
        if self.velocity is not None:
            step = {n: 0.9 * self.velocity[n] + t for n, t in step.items()}
        self.velocity = step
        return OrderedDict((n, before[n] - t) for n, t in step.items())


class Optimizer(Aggregator):
    """Silos' gradients go into an optimizer on the server."""

    def aggregate(self, raw_client_model_or_grad_list):
        mean = FedMLAggOperator.agg(self.args, raw_client_model_or_grad_list)
        for name, parameter in self.model.named_parameters():
            parameter.grad = mean[name]
        torch.optim.Adam(self.model.parameters(), 0.01).step()
        return self.get_model_params()


class Clipping(Aggregator):
    """Clips each update to a norm before they are averaged."""

    def on_before_aggregation(self, raw_client_model_or_grad_list):
        clipped = []
        for number, state in raw_client_model_or_grad_list:
            size = torch.cat([t.flatten().float() for t in state.values()]).norm()
            by = min(1.0, 50.0 / float(size))
            clipped.append((number, OrderedDict((n, t * by) for n, t in state.items())))
        return clipped, list(range(len(clipped)))


class Median(Aggregator):
    """The median of each number."""

    def aggregate(self, raw_client_model_or_grad_list):
        states = [state for _, state in raw_client_model_or_grad_list]
        return OrderedDict((n, torch.stack([s[n] for s in states]).median(0)[0]) for n in states[0])


class Watching(Aggregator):
    """Loads the average as soon as it has it, and tests and writes it."""

    def aggregate(self, raw_client_model_or_grad_list):
        mean = super().aggregate(raw_client_model_or_grad_list)
        self.model.load_state_dict(mean)
        torch.save(self.model.state_dict(), "server.pt")
        return mean


class Dropping(Aggregator):
    """Leaves one silo out."""

    def on_before_aggregation(self, raw_client_model_or_grad_list):
        return raw_client_model_or_grad_list[1:], [1]


AGGREGATORS = {
    "uniform": Uniform,
    "shares": Shares,
    "momentum": Momentum,
    "optimizer": Optimizer,
    "clipping": Clipping,
    "median": Median,
    "watching": Watching,
    "dropping": Dropping,
}

SIZES = (48, 32)


def load():
    """Two silos with unequal numbers of samples, and other classes."""
    draw = torch.Generator().manual_seed(5)
    centres = torch.randn(CLASSES, DIMS, generator=draw)
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    loaders = {}
    for silo, size in enumerate(SIZES):
        labels = torch.multinomial(shares[silo], size, replacement=True, generator=draw)
        images = centres[labels] + 0.5 * torch.randn(size, DIMS, generator=draw)
        loaders[silo] = DataLoader(TensorDataset(images, labels), 8)
    numbers = dict(enumerate(SIZES))
    return sum(SIZES), 8, None, loaders[0], numbers, loaders, dict(loaders), CLASSES


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    torch.manual_seed(0)
    model = nn.ModuleDict({way: WAYS[way].make() for way in NAMES})
    aggregator = AGGREGATORS.get(os.environ.get("JOB_AGGREGATOR"), Aggregator)(model, args)
    fedml.FedMLRunner(args, device, load(), model, Together(model, args), aggregator).run()
