"""Recovers texts in order, from the gradients of a transformer's first two attention layers."""
