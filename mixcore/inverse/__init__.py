"""Inverse mixing: from a model's samples, or from wanted losses, back to a mixture."""

from mixcore.inverse.goal import Goal, reach
from mixcore.inverse.samples import Estimate, SampleClassifier, estimate, windows
from mixcore.inverse.shift import em, least_squares

__all__ = [
    "Estimate",
    "Goal",
    "SampleClassifier",
    "em",
    "estimate",
    "least_squares",
    "reach",
    "windows",
]
