"""Folding the lock into a plain model: ``arithmetic.py``, and ``feeds.py`` for what feeds what."""
