"""A small real FedML job; JOB_CASE says what goes wrong in it, or which custom code it brings."""

import time

import fedml
import job_recorder
import torch
from fedml.core import ClientTrainer, ServerAggregator
from fedml.ml.trainer.my_model_trainer_classification import ModelTrainerCLS
from job_parts import CASE, Net, load, mlp
from torch import nn


class Misbehaving(ModelTrainerCLS):
    """FedML's own trainer, except that silo 1 (rank 2) does as the case says."""

    def train(self, train_data, device, args):
        if CASE == "raises" and args.rank == 2:
            raise RuntimeError("the disk of silo 1 is on fire")
        super().train(train_data, device, args)

    def get_model_params(self):
        state = super().get_model_params()
        if self.args.rank == 2:
            if CASE == "nan":
                state["3.weight"] = state["3.weight"] * float("nan")
            if CASE == "part":
                del state["9.bias"]
            if CASE == "shape":
                state["3.weight"] = state["3.weight"][:2]
            if CASE == "private":
                state["3.keylock.bias_gamma"] = self.model[3].keylock.bias_gamma.detach()
            if CASE == "scale":
                state["1.weight"] = state["1.weight"] * 2
        return state


class OwnTrainer(ClientTrainer):
    """Overrides every hook, and makes its optimizer before FedML's runner has seen the model."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)

    def get_model_params(self):
        state = self.model.cpu().state_dict()
        if CASE == "super":  # what is not to be found on the wire
            torch.save(dict(state), f"trained-{self.args.rank}-{self.args.round_idx}.pt")
        return state

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def on_before_local_training(self, train_data, device, args):
        pass

    def on_after_local_training(self, train_data, device, args):
        pass

    def train(self, train_data, device, args):
        self.model.train()
        for images, labels in train_data:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def test(self, test_data, device, args):
        pass


class OwnAggregator(ServerAggregator):
    """Overrides every hook."""

    def get_model_params(self):
        return self.model.cpu().state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def on_before_aggregation(self, raw_client_model_or_grad_list):
        return raw_client_model_or_grad_list, list(range(len(raw_client_model_or_grad_list)))

    def aggregate(self, raw_client_model_or_grad_list):
        total = sum(n for n, _ in raw_client_model_or_grad_list)
        first = raw_client_model_or_grad_list[0][1]
        return type(first)(
            (k, sum(n * s[k] for n, s in raw_client_model_or_grad_list) / total) for k in first
        )

    def on_after_aggregation(self, aggregated_model_or_grad):
        return aggregated_model_or_grad

    def test(self, test_data, device, args):
        return 0.0, 0.0, None, None

    def test_all(self, train_data_local_dict, test_data_local_dict, device, args):
        return True


class Super(OwnAggregator):
    """Overrides every hook, and has FedML compute the average."""

    def aggregate(self, raw_client_model_or_grad_list):
        return ServerAggregator.aggregate(self, raw_client_model_or_grad_list)


class Raising(OwnAggregator):
    """Needs numbers."""

    def aggregate(self, raw_client_model_or_grad_list):
        raise ValueError(f"{len(raw_client_model_or_grad_list)} updates\nare no weights")


class Momentum(Super):
    """Mixes what FedML has averaged with what it has had before."""

    def aggregate(self, raw_client_model_or_grad_list):
        mean = super().aggregate(raw_client_model_or_grad_list)
        for tensor in mean.values():
            tensor += 1
        return type(mean)((name, tensor + 0) for name, tensor in mean.items())


AGGREGATORS = {
    "custom": OwnAggregator,
    "silos": OwnAggregator,
    "super": Super,
    "raising": Raising,
    "momentum": Momentum,
}


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    job_recorder.start(getattr(args, "rank", 0), backend=args.backend)
    if CASE == "silo_without_plugin" and args.rank == 2:
        import fedml_keylock

        fedml_keylock.deactivate()
        time.sleep(2)  # FedML's receiver finds what other silos have said
    if CASE == "silo_without_flag" and args.rank == 2:
        args.enable_defense = False
    device = fedml.device.get_device(args)
    torch.manual_seed(0)
    if CASE == "mlp":
        model = mlp()
    else:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) if CASE == "linear" else Net()
    if CASE == "no_statistics":
        model[1] = nn.Identity()
    if CASE in AGGREGATORS:
        trainer, aggregator = OwnTrainer(model, args), AGGREGATORS[CASE](model, args)
    else:
        trainer, aggregator = Misbehaving(model, args), None
    fedml.FedMLRunner(args, device, load(args), model, trainer, aggregator).run()
