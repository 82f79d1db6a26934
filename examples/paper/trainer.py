"""The job's own trainer and aggregator, as FedML lets users write them.

Each keeps, in the job's folder, how well the models that it tested did; the server also the global
model after each round, with which a job that was interrupted goes on.
"""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from fedml.core import ClientTrainer, ServerAggregator
from safetensors.torch import save_file
from training import count_right, rate, sgd, train_epoch

from fedml_keylock.files import replacing

GLOBAL = Path("global.safetensors")
"""The global model, and in its metadata after how many rounds."""


def keep(who: str, rounds: int, right: int, total: int) -> None:
    """Add one test to the file of the server, or of a silo."""
    line = {"round": rounds, "accuracy": right / total}
    with Path(f"accuracy-{who}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


class Trainer(ClientTrainer):
    """Trains with the published optimizer and schedule; each round begins with no momentum."""

    def get_model_params(self):
        return self.model.cpu().state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def train(self, train_data, device, args):
        index = args.first_round + args.round_idx
        self.model.to(device)
        optimizer = sgd(
            self.model,
            learning_rate=rate(args.learning_rate, index, args.all_rounds),
            momentum=args.momentum,
            weight_decay=args.weight_decay,
        )
        for epoch in range(args.epochs):
            train_data.epoch = index * args.epochs + epoch
            torch.manual_seed(1000 * train_data.epoch + train_data.seed)  # for VGG's dropout
            train_epoch(self.model, train_data, optimizer)

    def test(self, test_data, device, args):
        """Test the aggregate of the round that this silo trained last."""
        right, total = count_right(self.model, test_data, device)
        keep(f"silo-{self.id}", args.first_round + args.round_idx + 1, right, total)
        return {"test_correct": right, "test_total": total}


class Aggregator(ServerAggregator):
    """FedML's average."""

    def get_model_params(self):
        return self.model.cpu().state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def on_after_aggregation(self, aggregated_model_or_grad):
        mean = super().on_after_aggregation(aggregated_model_or_grad)
        mean = OrderedDict((name, tensor.cpu().contiguous()) for name, tensor in mean.items())
        done = self.args.first_round + self.args.round_idx + 1
        if done < self.args.all_rounds:
            with replacing(GLOBAL, mode=0o666) as part:
                save_file(mean, part, {"rounds": str(done)})
        return mean

    def test(self, test_data, device, args):
        right, total = count_right(self.model, test_data, device)
        keep("server", args.first_round + args.round_idx + 1, right, total)
        return right / total, None, None, None
