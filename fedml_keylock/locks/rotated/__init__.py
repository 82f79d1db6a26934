"""A lock on a model's whole state: what silos send is turned by a map that only they know.

The layer locks of the paper change what a silo computes. This one changes only what it sends: in
the silo the model is the job's own and trains as without any lock; its `state_dict()` gives, and
its `load_state_dict()` takes, ``Q_r w``, where ``Q_r`` is a random orthogonal matrix, another one
each round, drawn from a secret that all silos have and the server has not. FedAvg is linear, so
that the average of turned states is the turned average.
"""
