"""Exact secure aggregation at the wire: a server adds what it cannot read, silos verify the sum.

docs/protocol.md has the messages, the keys and the argument.
"""
