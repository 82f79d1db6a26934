"""A FedML cross-silo job over MPI whose silo 0 colludes: it keeps what it is given and what it had.

run.py starts it.
"""

from pathlib import Path

import fedml
from data import load_data
from fedml.ml.trainer.my_model_trainer_classification import ModelTrainerCLS
from net import MODELS
from safetensors.torch import save_file

COLLUDING = 1
"""Its rank."""


class Colluding(ModelTrainerCLS):
    """FedML's own trainer, which keeps both sides of each of its rounds."""

    given = sent = 0

    def set_model_params(self, model_parameters):
        super().set_model_params(model_parameters)
        self.given = self._keep("given", self.given, model_parameters)

    def get_model_params(self):
        state = super().get_model_params()
        self.sent = self._keep("sent", self.sent, state)
        return state

    def _keep(self, what, index, state):
        Path("silo-0").mkdir(exist_ok=True)
        state = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
        save_file(state, f"silo-0/{what}-{index}.safetensors")
        return index + 1


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset = load_data(args)
    model = MODELS[args.model](classes=dataset[-1])
    trainer = (Colluding if args.rank == COLLUDING else ModelTrainerCLS)(model, args)
    fedml.FedMLRunner(args, device, dataset, model, trainer).run()
