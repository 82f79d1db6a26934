"""A decoder from updates to images, trained on updates of public images under simulated locks."""
