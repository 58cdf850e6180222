"""Pytest plugin for Megatron's own unit tests: `pytest -p mixcore_upstream`, under the CPU shim.

With `MIXCORE_PATCH=1` the patch is applied before any test is collected. Writes what became of each
test to `$MIXCORE_OUTCOMES`. Megatron's conftest would download test data that the tests of the data
side do not read: that is left out.
"""

import json
import os
import sys
import types

DOWNLOADER = "tests.test_utils.python_scripts.download_unit_tests_dataset"
sys.modules[DOWNLOADER] = types.ModuleType(DOWNLOADER)  # before any conftest is read
sys.modules[DOWNLOADER].download_and_extract_asset = lambda **_: None

outcomes = {}


def pytest_configure(config):
    if os.environ.get("MIXCORE_PATCH") == "1":
        import megatron_patch

        megatron_patch.apply()
        megatron_patch.status()


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session):
    with open(os.environ["MIXCORE_OUTCOMES"], "w") as file:
        json.dump(outcomes, file)
