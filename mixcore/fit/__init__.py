"""Mixtures found offline: fits over finished runs, and what they are read from."""
