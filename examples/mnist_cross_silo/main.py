"""A FedML cross-silo job over MPI, on real images. It knows nothing of any plugin.

mpiexec -n 4 python -m fedml_keylock main.py --cf fedml_config.yaml

By itself, `python main.py`, it is plain FedML, which does not know the YAML's defense_type.
"""

import fedml
from data import load_data
from model import MODELS

if __name__ == "__main__":
    # without the check of a connection to FedML's cloud, which this job does not use
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset = load_data(args)
    model = MODELS[args.model](classes=dataset[-1])
    fedml.FedMLRunner(args, device, dataset, model).run()
