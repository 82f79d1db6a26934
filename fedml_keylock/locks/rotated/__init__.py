"""Rotation at the wire: silos send a rotated state, and only they know the rotation.

The model and everything in the silo stay as they are. The silo sends ``Q_r w``, where ``Q_r`` is a
random orthogonal matrix, a new one each round. It is drawn from a secret that all silos share and
the server lacks. FedAvg is linear, so the average of rotated states is the rotated average.
"""
