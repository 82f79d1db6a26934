"""Attacks of a malicious server, which sends manipulated weights and reads the answers."""
