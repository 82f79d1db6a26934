"""The search for candidates: observation, objective, optimisation loop and checkpoint."""
