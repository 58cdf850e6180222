"""Inner products from ZeRO's partitions against plain gradients, and stage against stage."""

import json
import sys

import numpy as np
import pytest
import torch
from deepspeed_runs import HERE, launch


def plain(monkeypatch):
    """The same in one process with autograd: products at the start, where no step has been made."""
    sys.modules.pop("gradient_job", None)
    from gradient_job import SAMPLES, batches, model

    net, rows = model(), []
    for ranks in batches()[0]:
        x = torch.cat([r[0] for r in ranks])
        y = torch.cat([r[1] for r in ranks])
        assert len(x) == 2 * SAMPLES
        grads = torch.autograd.grad(((net(x) - y) ** 2).mean(), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double().numpy())
    g = np.stack(rows)
    return g @ g.T


def test_all_stages_agree_with_full_gradients(tmp_path, monkeypatch):
    launch(tmp_path / "run", script=HERE / "gradient_job.py")
    found = json.loads((tmp_path / "run" / "gradients.json").read_text())
    expected = plain(monkeypatch)
    for stage in range(4):
        assert np.array(found[f"{stage}.0"]["grad_dot"]) == pytest.approx(expected, rel=1e-5)
    for stage in (1, 2, 3):  # after a step of training in between, too
        for number in (0, 1):
            mine, first = found[f"{stage}.{number}"], found[f"0.{number}"]
            assert mine.keys() == first.keys()
            for name, value in mine.items():
                assert np.array(value) == pytest.approx(
                    np.array(first[name]), rel=1e-4, abs=1e-9, nan_ok=True
                )
    assert not np.allclose(found["0.0"]["grad_dot"], found["0.1"]["grad_dot"])
