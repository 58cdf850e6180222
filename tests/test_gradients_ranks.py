"""The gradient helper on two gloo ranks: DDP, FSDP2, uneven work, an overflow on one of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from gradient_model import (
    batches,
    full_gradient,
    model,
    products,
    whole_batch,
)

from mixcore.methods.pike import estimate


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    path = str(folder / "store")
    script = Path(__file__).with_name("gradient_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(r), path],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    try:
        logs = [r.communicate(timeout=120)[0] for r in ranks]
    finally:
        for r in ranks:
            r.kill()
    assert all(r.returncode == 0 for r in ranks), "\n".join(logs)
    return [dict(np.load(path + f".{r}.npz")) for r in range(2)]


@pytest.mark.parametrize("how", ["local", "synced", "replicated", "sharded"])
def test_two_ranks_agree_with_full_gradients(two_ranks, how):
    net, data = model(), batches(micro=4)
    want = products(net, data)
    for rank in two_ranks:
        np.testing.assert_allclose(rank[f"{how}.grad_dot"], want, rtol=1e-9)
        np.testing.assert_array_equal(rank[f"{how}.samples"], [16] * 3)
        for i, parts in enumerate(data):
            if how in ("local", "synced"):  # 4 micro-batches of 4; else 2 of 8
                one = [full_gradient(net, b) for b in parts]
                norm2, var = estimate(one, samples=4)
            else:
                one = [full_gradient(net, whole_batch(parts[k : k + 2])) for k in (0, 2)]
                norm2, var = estimate(one, samples=8)
            assert rank[f"{how}.grad_var"][i] == pytest.approx(var, rel=1e-8)
            assert rank[f"{how}.grad_norm2"][i] == pytest.approx(max(norm2, 0), rel=1e-7)
    for key in ("grad_dot", "grad_norm2", "grad_var"):  # to the last bit
        np.testing.assert_array_equal(two_ranks[0][f"{how}.{key}"], two_ranks[1][f"{how}.{key}"])


def test_two_ranks_of_which_one_saw_nothing(two_ranks):
    net, data = model(), batches(micro=4)
    g = full_gradient(net, data[0][0])
    for rank in two_ranks:
        assert rank["alone.grad_dot"][0, 0] == pytest.approx(float(g @ g), rel=1e-10)
        assert np.isnan(rank["alone.grad_dot"][1:]).all()
        np.testing.assert_array_equal(rank["alone.samples"], [4, 0, 0])


def test_two_ranks_refuse_what_would_be_wrong(two_ranks):
    for rank in two_ranks:
        assert bool(rank["refused"])  # capture on sharded parameters
        assert bool(rank["unreduced"])
        assert not bool(rank["taken"])  # one rank's overflow
