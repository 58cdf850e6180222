from pathlib import Path

import pytest

from mixcore import _core, reference

GOLDEN = Path(__file__).parent / "golden" / "philox.csv"
ROWS = [
    tuple(int(x, 16) for x in line.split(","))
    for line in GOLDEN.read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("row", ROWS)
def test_known_answers(row):
    assert _core.philox(*row[:6]) == row[6:]
    assert reference.philox(row[:4], row[4:6]) == row[6:]
