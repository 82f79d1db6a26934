"""Attacks of a server that sends weights of its own choice: what it sends, and what came back."""
