"""Exact secure aggregation: the server adds up updates that it cannot read; silos verify the sum.

docs/protocol.md has the messages, the keys and the argument for security.
"""
