"""Libraries of the extra `fit`, imported where they are used; a missing one is one clear error."""

import importlib
from typing import Any

from mixcore.errors import DeviceError


def scipy(part: str) -> Any:
    """scipy.<part>."""
    return _library(f"scipy.{part}")


def sklearn(part: str) -> Any:
    """sklearn.<part>."""
    return _library(f"sklearn.{part}")


def lightgbm() -> Any:
    """LightGBM."""
    return _library("lightgbm")


def cvxpy() -> Any:
    """CVXPY, with the Clarabel solver that it brings."""
    return _library("cvxpy")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise DeviceError(
            f"this fit needs {name}, which cannot be imported ({e}): pip install mixcore[fit]"
        ) from None
