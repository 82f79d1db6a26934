"""Decodes updates to images, by a network trained on updates simulated from public images."""
