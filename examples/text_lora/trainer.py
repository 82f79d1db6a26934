"""Trains a causal transformer, and sends its adapters only where it has some."""

from collections import OrderedDict

import torch
from fedml.core import ClientTrainer
from fedml.ml.aggregator.default_aggregator import DefaultServerAggregator
from torch import Tensor, nn


def shared(model: nn.Module) -> OrderedDict[str, Tensor]:
    """What is sent, by the model's own names: peft's get_peft_model_state_dict changes them."""
    state = model.state_dict()
    adapters = {name: tensor for name, tensor in state.items() if "lora_" in name}
    return OrderedDict(adapters or state)


def tested(model: nn.Module, data, device) -> dict[str, float]:
    """How many next words the model has right, as FedML's own tests say it."""
    model.to(device).eval()
    right = total = loss = 0.0
    with torch.no_grad():
        for texts, _ in data:
            said = model(input_ids=texts.to(device), labels=texts.to(device))
            right += float((said.logits[:, :-1].argmax(2) == texts[:, 1:].to(device)).sum())
            total += texts[:, 1:].numel()
            loss += float(said.loss) * texts[:, 1:].numel()
    return {"test_correct": right, "test_loss": loss, "test_total": total}


class TextTrainer(ClientTrainer):
    """One step of SGD on each batch, on the loss of the next word."""

    def get_model_params(self):
        return shared(self.model)

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters, strict=False)

    def train(self, train_data, device, args):
        self.model.to(device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=args.learning_rate)
        for texts, labels in train_data:
            optimizer.zero_grad()
            self.model(input_ids=texts.to(device), labels=labels.to(device)).loss.backward()
            optimizer.step()

    def test(self, test_data, device, args):
        return tested(self.model, test_data, device)


class TextAggregator(DefaultServerAggregator):
    """FedML's own, for what `TextTrainer` sends."""

    def get_model_params(self):
        return shared(self.model)

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters, strict=False)

    def _test(self, test_data, device, args):
        return tested(self.model, test_data, device)
