"""The published key-lock module (arXiv 2305.04095): gamma and beta of a private key, on layers.

It changes what a silo computes: behind a normalisation, each channel is scaled and shifted by
numbers that only the silo has, and that are trained there. What is sent is the rest of the model.
"""
