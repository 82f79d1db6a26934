"""Scores a reconstruction against the truth, and says what leaked."""
