"""Differential privacy of the average: what a job's noise is worth, and what it has spent."""
