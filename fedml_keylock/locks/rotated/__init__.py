"""Rotation at the wire: what silos send is rotated by a map that only they know.

The model and everything in the silo stay as they are. What leaves it is ``Q_r w``, where ``Q_r`` is
a random orthogonal matrix, another one each round, drawn from a secret that all silos have and the
server has not. FedAvg is linear, so that the average of rotated states is the rotated average.
"""
