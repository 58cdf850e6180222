"""The gradient helper: against full gradients, under accumulation, scaling, clipping and ranks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gradient_model import (  # noqa: E402
    D,
    batches,
    full_gradient,
    loss_of,
    model,
    products,
)
from torch import nn  # noqa: E402

import mixcore  # noqa: E402
from mixcore import Domain, Signals, method  # noqa: E402
from mixcore.gradients import GradientProbe  # noqa: E402
from mixcore.methods.pike import estimate  # noqa: E402


def test_products_norms_and_variances_are_those_of_full_gradients():
    net, data = model(), batches(micro=3)
    probe = GradientProbe(net, D, parameters="all")
    for i, parts in enumerate(data):
        for batch in parts:
            with probe.capture(i, samples=4):
                loss_of(net, batch).backward()
    out = probe.signals()
    np.testing.assert_allclose(out["grad_dot"], products(net, data), rtol=1e-12)
    for i, parts in enumerate(data):
        norm2, var = estimate([full_gradient(net, b) for b in parts], samples=4)
        assert out["grad_var"][i] == pytest.approx(var, rel=1e-10)
        assert out["grad_norm2"][i] == pytest.approx(max(norm2, 0.0), rel=1e-9)
    np.testing.assert_array_equal(out["samples"], [12, 12, 12])
    Signals(step=0, **out)  # what it gives is what Signals takes


def test_last_layer_names_and_predicate():
    net, data = model(), batches(micro=1)
    last = ["2.weight", "2.bias"]
    for choice in ("last layer", last, lambda name, p: name.startswith("2.")):
        probe = GradientProbe(net, D, parameters=choice)
        assert probe.names == last  # not the norm behind it, which owns no matrix
        for i, (batch,) in enumerate(data):
            with probe.capture(i, samples=4):
                loss_of(net, batch).backward()
        np.testing.assert_allclose(
            probe.signals()["grad_dot"], products(net, data, last), rtol=1e-12
        )


def test_a_tied_head_is_found_by_its_embedding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(self.embed(x)))

    net = Tied()
    probe = GradientProbe(net, 1)
    assert probe.names == ["embed.weight"]
    x = torch.tensor([1, 2, 3])
    with probe.capture(0, samples=1):
        loss = nn.functional.cross_entropy(net(x), x)
        loss.backward()
    both = net.embed.weight.grad  # of its two uses together
    assert probe.signals()["grad_dot"][0, 0] == pytest.approx(float((both**2).sum()), rel=1e-6)


@pytest.mark.parametrize("how", ["capture", "observe"])
def test_gradient_accumulation(how):
    net, data = model(), batches(micro=2)
    probe = GradientProbe(net, D, parameters="all")
    steps = [(i, b) for i, parts in enumerate(data) for b in parts]
    for k, (i, batch) in enumerate(steps):  # one optimizer step: .grad is never emptied
        if how == "capture":
            with probe.capture(i, samples=4):
                loss_of(net, batch).backward()
        else:
            loss_of(net, batch).backward()
            assert probe.observe(i, samples=4, first=k == 0)
    np.testing.assert_allclose(probe.signals()["grad_dot"], products(net, data), rtol=1e-9)
    # and what the optimizer sees is untouched
    total = sum(full_gradient(net, b) for _, b in steps)
    seen = torch.cat([p.grad.flatten() for p in net.parameters()]).numpy()
    np.testing.assert_allclose(seen, total, rtol=1e-12)


def test_uneven_micro_batches_weigh_by_their_samples():
    net = model()
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(10, n, generator=g, dtype=torch.float64) for n in (5, 2))
    probe = GradientProbe(net, 1, parameters="all")
    for part in (slice(0, 7), slice(7, 9), slice(9, 10)):
        with probe.capture(0, samples=part.stop - part.start):
            loss_of(net, (x[part], y[part])).backward()
    whole = full_gradient(net, (x, y))
    assert probe.signals()["grad_dot"][0, 0] == pytest.approx(float(whole @ whole), rel=1e-12)


def test_loss_scaling_is_undone():
    net, data = model(), batches(micro=1)
    scale = [1024.0]
    probe = GradientProbe(net, D, parameters="all", scale=lambda: scale[0] / 2)
    for i, (batch,) in enumerate(data):
        scale[0] *= 2  # a scaler that grows between micro-batches
        with probe.capture(i, samples=4):
            (loss_of(net, batch) * (scale[0] / 2)).backward()  # 2 accumulation steps
    np.testing.assert_allclose(probe.signals()["grad_dot"], products(net, data), rtol=1e-12)


def test_an_overflow_is_left_out_and_counted():
    net, data = model(torch.float16), batches(micro=2)
    probe = GradientProbe(net.float(), D, parameters="all")
    for i, parts in enumerate(data):
        for k, batch in enumerate(parts):
            net.zero_grad()
            loss_of(net, batch).backward()
            if (i, k) in ((0, 1), (2, 0), (2, 1)):
                net[0].weight.grad[0, 0] = torch.inf if k else torch.nan
            assert probe.observe(i, samples=4) == ((i, k) not in ((0, 1), (2, 0), (2, 1)))
    out = probe.signals()
    assert probe.overflows == 3
    np.testing.assert_array_equal(out["samples"], [4, 8, 0])
    assert np.isnan(out["grad_dot"][2]).all()  # absent, not zero
    assert np.isnan(out["grad_var"][[0, 2]]).all()
    assert np.isfinite(out["grad_dot"][:2, :2]).all()


def test_clipping_is_of_each_micro_batch_and_only_when_asked_for():
    net, data = model(), batches(micro=2)
    grads = [[full_gradient(net, b) for b in parts] for parts in data]
    norms = [float(np.linalg.norm(g)) for parts in grads for g in parts]
    limit = float(np.median(norms))
    assert min(norms) < limit < max(norms)
    probe = GradientProbe(net, D, parameters="all", clip_norm=limit)
    for i, parts in enumerate(data):
        for batch in parts:
            with probe.capture(i, samples=4):
                loss_of(net, batch).backward()
    clipped = [
        np.mean([g * min(1.0, limit / np.linalg.norm(g)) for g in parts], axis=0) for parts in grads
    ]
    want = np.array(clipped) @ np.array(clipped).T
    np.testing.assert_allclose(probe.signals()["grad_dot"], want, rtol=1e-12)


def test_targets_and_windows():
    net, data = model(), batches(micro=1)
    probe = GradientProbe(net, 2, parameters="all", num_targets=1)
    for i, (batch,) in enumerate(data):  # the third is the target
        with probe.capture(i, samples=4):
            loss_of(net, batch).backward()
    want = products(net, data)
    out = probe.signals(reset=False)
    np.testing.assert_allclose(out["grad_dot"], want[:2, :2], rtol=1e-12)
    np.testing.assert_allclose(out["grad_target"], want[:2, 2:], rtol=1e-12)
    np.testing.assert_allclose(out["extra"]["target_dot"], want[2:, 2:], rtol=1e-12)
    np.testing.assert_array_equal(probe.signals()["grad_dot"], out["grad_dot"])
    assert np.isnan(probe.signals()["grad_dot"]).all()  # a new window


def test_gradients_from_elsewhere_and_unused_parameters():
    net, data = model(), batches(micro=1)
    unused = nn.ModuleDict({"net": net, "spare": nn.Linear(2, 2).double()})
    probe = GradientProbe(unused, D, parameters="all")
    for i, (batch,) in enumerate(data):
        grads = torch.autograd.grad(
            loss_of(net, batch), list(unused.parameters()), allow_unused=True
        )
        assert probe.observe_gradients(i, 4, grads)
    assert all(p.grad is None for p in unused.parameters())
    np.testing.assert_allclose(probe.signals()["grad_dot"], products(net, data), rtol=1e-12)


def test_main_grad_is_read_where_there_is_one():
    net, (parts, *_) = model(), batches(micro=1)
    probe = GradientProbe(net, 1, parameters="all")
    loss_of(net, parts[0]).backward()
    for p in net.parameters():
        p.main_grad, p.grad = p.grad.clone(), None
    probe.observe(0, samples=4)
    g = full_gradient(net, parts[0])
    assert probe.signals()["grad_dot"][0, 0] == pytest.approx(float(g @ g), rel=1e-12)


def test_small_variance_beside_a_large_mean_survives_float32():
    p = nn.Parameter(torch.zeros(1000))
    probe = GradientProbe(nn.ParameterDict({"p": p}), 1, parameters="all")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-3, (20, 1000)).astype(np.float32)
    for row in noise:
        assert probe.observe_gradients(0, 1, [torch.from_numpy(row + np.float32(1.0))])
    exact = (np.float32(1.0) + noise).astype(np.float64)
    want = ((exact - exact.mean(axis=0)) ** 2).sum() / 19
    assert probe.signals()["grad_var"][0] == pytest.approx(want, rel=1e-3)


def test_sketch_keeps_products_on_average():
    net, data = model(), batches(micro=1)
    want = products(net, data)
    got = []
    for seed in range(150):
        probe = GradientProbe(net, D, parameters="all", sketch=16, seed=seed)
        for i, (batch,) in enumerate(data):
            probe.observe_gradients(
                i, 4, torch.autograd.grad(loss_of(net, batch), list(net.parameters()))
            )
        got.append(probe.signals()["grad_dot"])
    got = np.array(got)
    error = got.std(axis=0) / np.sqrt(len(got))
    assert (np.abs(got.mean(axis=0) - want) < 4.5 * error).all()
    norm = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    assert (got.var(axis=0) <= 2.4 * norm**2 / 16).all()  # the stated bound, with room for chance


def test_due_names_the_steps_before_an_update():
    probe = GradientProbe(model(), D, update_every=10, steps=3)
    assert [s for s in range(20) if probe.due(s)] == [7, 8, 9, 17, 18, 19]


def test_a_method_takes_what_the_helper_gives():
    net, data = model(), batches(micro=2)
    probe = GradientProbe(net, D, parameters="all", num_targets=1)
    for i, parts in enumerate(data):
        for batch in parts:
            with probe.capture(i, samples=4):
                loss_of(net, batch).backward()
    with probe.capture(D, samples=4):
        loss_of(net, data[1][0]).backward()
    signals = Signals(step=1, **probe.signals())
    domains = [Domain(str(i), 10) for i in range(D)]
    for name, options in (("dga", {}), ("doge", {}), ("pike", {"batch_size": 8}), ("rb", {})):
        assert method(name, domains=domains, **options).update(signals).sum() == pytest.approx(1)
    toward = method("dga", domains=domains, beta=0.0).update(signals)
    assert toward.argmax() == np.asarray(signals.grad_target)[:, 0].argmax()


def test_a_controller_is_supplied_by_the_helper():
    net, data = model(), batches(micro=1)
    domains = [mixcore.Domain(f"d{i}", 1000) for i in range(D)]
    ledger = mixcore.Ledger(domains, weights=[1, 1, 1], batch_size=8)
    m = method("grape", domains=domains, mu_alpha=1e-4)
    probe = GradientProbe(net, D, parameters="all", num_targets=1, update_every=2)
    rates = []
    supply = probe.supply(lambda: {"lr": rates[-1], "target_losses": [2.0]})
    controller = mixcore.Controller(ledger, m, 2, lag_steps=0, supply=supply)
    twin = method("grape", domains=domains, mu_alpha=1e-4)
    for step in range(4):
        rates.append(1e-4 * (step + 1))
        if probe.due(step):
            for i in range(D + 1):  # the target is like the second domain
                with probe.capture(i, samples=4):
                    loss_of(net, data[i if i < D else 1][0]).backward()
            twin.update(
                Signals(
                    step=step + 1,
                    grad_target=probe.signals(reset=False)["grad_target"],
                    extra={"lr": rates[-1], "target_losses": [2.0]},
                )
            )
        controller.step(8 * (step + 1))
    np.testing.assert_array_equal(m.weights(), twin.weights())
    assert m.weights()[1] > 1 / 3
    np.testing.assert_allclose(ledger.weights_at(32), m.weights(), atol=1e-9)


def test_bad_input():
    net = model()
    with pytest.raises(TypeError, match="model"):
        GradientProbe("gpt", 2)
    for options, named in (
        ({"parameters": "first layer"}, "parameters"),
        ({"parameters": ["2.weigth"]}, "2.weigth"),
        ({"parameters": lambda name, p: False}, "chose none"),
        ({"scale": 0.0}, "scale"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"sketch": 0}, "sketch"),
        ({"update_every": 2, "steps": 3}, "steps"),
        ({"num_targets": -1}, "num_targets"),
    ):
        with pytest.raises(ValueError, match=named):
            GradientProbe(net, 2, **options)
    with pytest.raises(TypeError, match="scale"):
        GradientProbe(net, 2, scale="1")
    probe = GradientProbe(net, 2)
    with pytest.raises(ValueError, match="domain"):
        probe.observe(2, 1)
    with pytest.raises(ValueError, match="samples"), probe.capture(0, 0):
        pass
    with pytest.raises(ValueError, match="no chosen parameter has a gradient"):
        probe.observe(0, 1)
    with pytest.raises(ValueError, match="no chosen parameter has a gradient"), probe.capture(0, 1):
        pass
    with pytest.raises(ValueError, match="first"):
        probe.observe(0, 1, first=False)
    with pytest.raises(ValueError, match="gradients"):
        probe.observe_gradients(0, 1, [None])


def test_an_error_inside_capture_leaves_nothing_behind():
    net, data = model(), batches(micro=1)
    probe = GradientProbe(net, D, parameters="all")
    with pytest.raises(RuntimeError, match="shapes"), probe.capture(0, 4):
        loss_of(net, (data[0][0][0][:, :1], data[0][0][1])).backward()
    assert np.isnan(probe.signals()["grad_dot"]).all()
    assert all(not p._backward_hooks for p in net.parameters())
