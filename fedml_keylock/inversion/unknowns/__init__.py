"""Parametrisations: the variables that are optimised in place of images, and images from them."""
