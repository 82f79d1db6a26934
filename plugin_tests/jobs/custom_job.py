"""A small real FedML job with a trainer of its own; JOB_CASE says what is unusual about it."""

import copy
import os
from collections import OrderedDict

import fedml
import job_recorder
import torch
from custom_net import Net
from fedml.core import ClientTrainer, ServerAggregator
from fedml.ml.aggregator.default_aggregator import DefaultServerAggregator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CASE = os.environ.get("JOB_CASE", "")
HEAD = ("7.weight", "7.bias")


class Trainer(ClientTrainer):
    """Trains `self.runs` and sends the state of `self.sends`: what these are is each case's own."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.net = self.runs = self.sends = model

    def get_model_params(self):
        return OrderedDict(self.sends.state_dict())

    def set_model_params(self, model_parameters):
        self.net.load_state_dict(model_parameters)

    def optimizers(self):
        return [torch.optim.SGD(self.runs.parameters(), lr=self.args.learning_rate)]

    def train(self, train_data, device, args):
        self.runs.train()
        made = self.optimizers()
        for images, labels in train_data:
            self.runs.zero_grad()
            nn.functional.cross_entropy(self.runs(images), labels).backward()
            for optimizer in made:
                optimizer.step()


class OtherName(Trainer):
    """Holds the model as `net` only. FedML sets `model` on every trainer, so it is taken off."""

    def on_before_local_training(self, train_data, device, args):
        self.model = None
        if args.round_idx:
            del self.model


class Parallel(Trainer):
    """Trains through DataParallel, and puts that in the model's place."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.runs = nn.DataParallel(model)

    def train(self, train_data, device, args):
        self.model = self.runs
        super().train(train_data, device, args)


class Compiled(Trainer):
    """Trains through torch.compile."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.runs = torch.compile(model, backend="aot_eager")


class ParallelNames(Parallel):
    """Sends the wrapper's state, under the wrapper's names."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.sends = self.runs


class CompiledNames(Compiled):
    """The same of torch.compile."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.sends = self.runs


class Copy(Trainer):
    """Trains and sends a copy of the model that it was given, which is locked by then."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.net = self.runs = self.sends = copy.deepcopy(model)


class EarlyCopy(Trainer):
    """The same of the model as it was before it was locked."""

    def __init__(self, model, args):
        own = copy.deepcopy(model)
        super().__init__(model, args)
        self.net = self.runs = self.sends = own


class Head(Trainer):
    """Sends the head only, and takes only the head from the server."""

    def get_model_params(self):
        names = HEAD[:1] if CASE == "uneven" and self.args.rank == 2 else HEAD
        return OrderedDict((name, self.net.state_dict()[name]) for name in names)

    def set_model_params(self, model_parameters):
        self.net.load_state_dict(model_parameters, strict=False)


class Gradients(Trainer):
    """Sends the mean gradient of its data, and leaves steps to the server; its lock it trains."""

    def optimizers(self):
        lock = [p for n, p in self.net.named_parameters() if "keylock" in n]
        return [torch.optim.SGD(lock, lr=self.args.learning_rate)]

    def train(self, train_data, device, args):
        total = None
        for batch in train_data:
            super().train([batch], device, args)
            found = {n: p.grad for n, p in self.net.named_parameters() if p.grad is not None}
            total = {n: g + (total[n] if total else 0) for n, g in found.items()}
        self.mean = {n: g / len(train_data) for n, g in total.items()}

    def get_model_params(self):
        public = self.net.state_dict()
        if CASE == "gradients_by_parameter":
            return OrderedDict(self.mean)
        return OrderedDict((n, g) for n, g in self.mean.items() if n in public)


class Differences(Trainer):
    """Sends what training changed."""

    def set_model_params(self, model_parameters):
        super().set_model_params(model_parameters)
        self.start = copy.deepcopy(self.net.state_dict())

    def get_model_params(self):
        return OrderedDict((n, t - self.start[n]) for n, t in self.net.state_dict().items())


class TwoOptimizers(Trainer):
    """One for what is not a bias, with weight decay, and one for the rest, as many do by name."""

    def optimizers(self):
        named, rate = list(self.runs.named_parameters()), self.args.learning_rate
        weights, biases = ([p for n, p in named if ("bias" in n) is b] for b in (False, True))
        made = [torch.optim.SGD(weights, rate, weight_decay=1e-4)]
        return made if CASE == "no_biases" else [*made, torch.optim.SGD(biases, rate)]


class Matrices(Trainer):
    """Its optimizer has no vectors, and so nothing of the lock."""

    def optimizers(self):
        chosen = [p for p in self.runs.parameters() if p.dim() > 1]
        return [torch.optim.SGD(chosen, lr=self.args.learning_rate)]


class Merging(DefaultServerAggregator):
    """Knows that silos send a part, gradients or differences; gives them the whole state."""

    def aggregate(self, raw_client_model_or_grad_list):
        mean = super().aggregate(raw_client_model_or_grad_list)
        merged = OrderedDict((n, t.clone()) for n, t in self.model.state_dict().items())
        for name, tensor in mean.items():
            if isinstance(TRAINER, Gradients):
                merged[name] -= self.args.learning_rate * tensor
            elif isinstance(TRAINER, Differences):
                merged[name] = merged[name] + tensor
            else:
                merged[name] = tensor
        return merged


class HeadOnly(DefaultServerAggregator):
    """Averages the head, and sends silos the head."""

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters, strict=False)


TRAINERS: dict[str, tuple[type[Trainer], type[ServerAggregator] | None]] = {
    "other_name": (OtherName, None),
    "parallel": (Parallel, None),
    "parallel_names": (ParallelNames, None),
    "compiled": (Compiled, None),
    "compiled_names": (CompiledNames, None),
    "copy": (Copy, None),
    "early_copy": (EarlyCopy, None),
    "head": (Head, Merging),
    "head_only": (Head, HeadOnly),
    "uneven": (Head, Merging),
    "gradients": (Gradients, Merging),
    "gradients_by_parameter": (Gradients, Merging),
    "differences": (Differences, Merging),
    "two_optimizers": (TwoOptimizers, None),
    "no_biases": (TwoOptimizers, None),
    "matrices": (Matrices, None),
}


def load():
    draw = torch.Generator().manual_seed(5)
    images = torch.rand(64, 1, 8, 8, generator=draw)
    labels = (images.mean((1, 2, 3)) * 3).long()
    parts = dict(enumerate(torch.arange(64).chunk(2)))
    loaders = {s: DataLoader(TensorDataset(images[p], labels[p]), 16) for s, p in parts.items()}
    test = DataLoader(TensorDataset(images, labels), 64)
    return 64, 64, None, test, dict.fromkeys(parts, 32), loaders, dict.fromkeys(parts, test), 3


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    job_recorder.start(args.rank)
    device = fedml.device.get_device(args)
    if CASE == "hub":  # data and model are FedML's own, as the YAML names them
        data, classes = fedml.data.load(args)
        model = fedml.model.create(args, classes)
        fedml.FedMLRunner(args, device, data, model).run()
    else:
        torch.manual_seed(0)
        model = Net()
        own, aggregator = TRAINERS[CASE]
        TRAINER = own(model, args)
        theirs = aggregator(model, args) if aggregator else None
        fedml.FedMLRunner(args, device, load(), model, TRAINER, theirs).run()
