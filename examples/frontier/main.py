"""The FedML job behind every point: FedAvg in FedML's own one-process simulation.

The same algorithm as over MPI (../mnist_cross_silo), and cheaper: every silo in turn, in one
process. `run.py` writes its YAML and starts it; by itself, in a folder with that YAML:

python -m fedml_keylock main.py --cf fedml_config.yaml

It ends with the global model in `global.safetensors`: what a server has, without any lock; under
the sealed one, what silos open.
"""

import copy

import fedml
import torch
from fedml.ml.trainer.my_model_trainer_classification import ModelTrainerCLS
from points import transforms
from safetensors.torch import save_file
from splits import first_model, load_data


class Trainer(ModelTrainerCLS):
    """FedML's own, which gives the state and not the model's own tensors.

    The simulation keeps what it is given first as the global model of round 0, which each silo's
    training would change under the next one's feet: in that round silos would train in a chain.
    """

    def get_model_params(self):
        return copy.deepcopy(super().get_model_params())


class RivalTrainer(Trainer):
    """Changes the update before it is sent: `rival:` in the YAML.

    Of the state only parameters are changed; running statistics of normalisation are sent as
    they are. What pruning leaves out stays in the silo and is added to its next update.
    """

    def __init__(self, model, args):
        super().__init__(model, args)
        self.transforms = transforms(args.rival)
        self.keeps_rest = "keep" in args.rival
        self.rest = {}
        self.generator = torch.Generator().manual_seed(args.random_seed)

    def train(self, train_data, device, args):
        before = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        super().train(train_data, device, args)
        moved = {name: before[name] - value for name, value in self.model.named_parameters()}
        with torch.no_grad():
            sent = {name: value + self._left(name) for name, value in moved.items()}
            wanted = dict(sent)
            for transform in self.transforms:
                sent = transform.apply(sent, self.generator)
            if self.keeps_rest:
                self.rest[self.id] = {name: wanted[name] - sent[name] for name in sent}
            for name, value in self.model.named_parameters():
                value.copy_(before[name] - sent[name])

    def _left(self, name):
        return self.rest[self.id][name] if self.id in self.rest else 0.0


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    model = first_model(args.model, args.random_seed)
    runner = fedml.FedMLRunner(args, device, load_data(args), model)
    simulation = runner.runner.fl_trainer
    # the simulation makes a trainer of its own and takes none
    trainer = (RivalTrainer if args.rival else Trainer)(model, args)
    for part in (simulation, *simulation.client_list):
        part.model_trainer = trainer
    runner.run()
    state = trainer.get_model_params()
    save_file({name: value.contiguous() for name, value in state.items()}, "global.safetensors")
