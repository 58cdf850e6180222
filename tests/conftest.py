"""Settings and helpers that every test file shares."""

import os

import numpy as np
import pytest
from hypothesis import settings

import mixcore
from mixcore import _core, gpu

# `make sanitize` must not pass by testing the ordinary build.
assert _core.sanitized == (os.environ.get("MIXCORE_SANITIZE") == "1")

# Other machines are slower and noisier: time is bounded by the number of examples alone.
settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("long", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def make_ledger(num=3, weights=None, *, batch_size=64, size=1_000, **options):
    """A ledger of `num` domains named d0, d1, ..."""
    domains = [mixcore.Domain(f"d{i}", size) for i in range(num)]
    weights = np.arange(1.0, num + 1) if weights is None else weights
    return mixcore.Ledger(domains, weights, batch_size=batch_size, **options)


def pytest_collection_modifyitems(items):
    """GPU tests skip with their reason where there is no GPU, unless one is promised."""
    if os.environ.get("MIXCORE_REQUIRE_GPU") == "1":
        return
    found = gpu.trouble()
    if found is None:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=f"no GPU to test on: {found}"))
