"""A federated cell: a FedML cross-silo job over MPI. It knows nothing of any plugin.

mpiexec -n 4 python -m fedml_keylock main.py --cf fedml_config.yaml

`run.py` writes the YAML.
"""

import fedml
from data import load_data
from nets import build
from safetensors.torch import load_file
from trainer import Aggregator, Trainer

if __name__ == "__main__":
    # without the check of a connection to FedML's cloud, which this job does not use
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset, channels = load_data(args, device)
    model = build(
        args.model,
        channels=channels,
        classes=dataset[-1],
        extra_convolution=args.extra_convolution,
        seed=args.random_seed,
    )
    if args.start_model:
        model.load_state_dict(load_file(args.start_model))
    trainer, aggregator = Trainer(model, args), Aggregator(model, args)
    fedml.FedMLRunner(args, device, dataset, model, trainer, aggregator).run()
