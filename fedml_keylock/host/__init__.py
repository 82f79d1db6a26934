"""The seams into FedML. `host.fedml` is the only module that imports fedml or names its parts."""
