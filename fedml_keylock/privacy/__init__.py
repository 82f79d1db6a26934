"""Differential privacy of the average: what a job's noise guarantees, and what it has spent."""
