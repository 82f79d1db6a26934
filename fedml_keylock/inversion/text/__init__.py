"""Texts in order, from the gradients of a transformer's first two self-attention layers."""
