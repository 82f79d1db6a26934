"""A FedML cross-silo job with a trainer and an aggregator of its own. It knows of no defense."""

import fedml
from job import Aggregator, Trainer, load_data
from net import Net

if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset, model = load_data(args), Net()
    trainer, aggregator = Trainer(model, args), Aggregator(model, args)
    fedml.FedMLRunner(args, device, dataset, model, trainer, aggregator).run()
