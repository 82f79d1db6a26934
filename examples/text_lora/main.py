"""A FedML cross-silo job over MPI that trains a small GPT-2. It knows nothing of any plugin.

fedml-keylock run -n 3 main.py --cf fedml_config.yaml
"""

import fedml
from data import load_data
from model import model_of
from trainer import TextAggregator, TextTrainer

if __name__ == "__main__":
    # without the check of a connection to FedML's cloud, which this job does not use
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset = load_data(args)
    model = model_of(args.adapters)
    trainer, aggregator = TextTrainer(model, args), TextAggregator(model, args)
    fedml.FedMLRunner(args, device, dataset, model, trainer, aggregator).run()
