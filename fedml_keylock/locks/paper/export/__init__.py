"""Folds the lock into a plain model: ``arithmetic.py`` computes, ``feeds.py`` finds shared use."""
