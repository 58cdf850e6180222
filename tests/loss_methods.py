"""The methods that look at losses, ready to be built, and signals that any of them can read."""

import numpy as np

import mixcore
from mixcore.methods.odm import VARIANTS

# Small numbers, so that a few updates reach every part of a method.
ADO_FAST = {
    "start_step": 4,
    "ignore_steps": 0,
    "update_interval": 4,
    "subsample": 1,
    "min_points": 4,
    "smooth_window": 3,
    "smooth_order": 1,
    "starts": 1,
    "maxiter": 20,
    "grid": ((-1.0, 3.0), (0.5, 1.0), (0.1, 0.5)),
}
AIOLI_FAST = {"lp_steps": 1, "update_steps": 10**6, "one_hot_factor": 0.7}

DYNAMIC = [
    *[("odm", {"variant": v}) for v in VARIANTS],
    ("odm", {"variant": "code", "initial_reward": "first"}),
    ("odm", {"variant": "exp3", "initial_reward": "first"}),
    ("ado", ADO_FAST),
    ("ado", ADO_FAST | {"variant": "paper", "use_same_step_size": False}),
    ("ado", ADO_FAST | {"fit_lag": 3}),
    ("aioli", AIOLI_FAST | {"update_steps": 4}),
    ("aioli", AIOLI_FAST | {"ema": 0.3, "lp_rounds": 2, "normalize_A": False, "update_steps": 7}),
    ("aioli", AIOLI_FAST | {"diagonal": True, "update_steps": 4}),
    ("skillit", {}),
    ("skillit", {"dynamic_lambda": True, "normalize_loss": True, "eta_schedule": True}),
    ("toremi", {}),
    ("toremi", {"variant": "code", "stage_step": 5}),
    ("loss_proportional", {"smoothing": 0.5}),
    ("doremi", {}),
    ("doremi", {"clip": "mean", "output": "average", "variant": "code"}),
    ("sheared", {}),
    ("sheared", {"variant": "code"}),
    ("sheared", {"update_type": "bandit"}),
    ("velocitune", {}),
]
IDS = ["-".join([n, *(str(v) for v in o.values() if isinstance(v, str))]) for n, o in DYNAMIC]


def domains(num):
    return [mixcore.Domain(f"d{i}", 1000 // (i + 1) + 10) for i in range(num)]


def build(name, options, num=3):
    """The method; Aioli's rounds are made long enough for its domains."""
    options = dict(options)
    if name == "aioli":
        least = options["lp_steps"] * options.get("lp_rounds", 1) * num + 1
        options["update_steps"] = max(options["update_steps"], least)
        if num == 1:
            options["one_hot_factor"] = 1.0
    return mixcore.method(name, domains=domains(num), **options)


def signals(step, loss, **more):
    """Every loss there is, from one; NaN: absent."""
    loss = np.array(loss, dtype=np.float64)
    tokens = np.where(np.isnan(loss), 0, 10)
    fields = {
        "loss_sum": np.nan_to_num(np.clip(loss, -1e299, 1e299)) * tokens,
        "tokens": tokens,
        "draws": tokens,
        "val_loss": loss,
        "reference_loss": np.linspace(1.5, 2.5, len(loss)),
        "target_loss": np.linspace(1.0, 2.0, len(loss)),
        "excess_loss": np.maximum(loss - 2.0, 0.01),
    }
    return mixcore.Signals(step=step, **(fields | more))


def stream(num, count, *, absent=0.2, seed=0):
    """Falling, noisy losses, some domains absent from some windows."""
    rng = np.random.default_rng(seed)
    for step in range(1, count + 1):
        loss = rng.uniform(2, 3, num) + 2 / step
        loss[rng.random(num) < absent] = np.nan
        yield signals(step, loss)
