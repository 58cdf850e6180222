"""Mixture of data experts: one model a domain; their averaged probabilities predict the loss."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.fit import register
from mixcore.fit._libraries import scipy, sklearn
from mixcore.fit.base import Fit, RunsFitter
from mixcore.fit.law import Law
from mixcore.fit.likelihoods import mixture_loss
from mixcore.fit.propose import Optimum, affordable, all_within, best_of, dirichlet
from mixcore.fit.regmix import fit_trees, predicted_objective
from mixcore.fit.runs import LOSS, METRIC, Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, whole

CHUNK = 1 << 24  # doubles of one product of mixtures and tokens


@dataclass(frozen=True)
class Experts:
    """Log-probabilities that each domain's expert gives the tokens of each validation set.

    Attributes:
        sets: Name -> float64[tokens, D], in nats.
    """

    sets: dict[str, Floats]

    def loss(self, name: str, weights: Floats) -> Floats:
        """-mean over tokens of log sum_i p_i P_i(token): float64[R]."""
        log_p = self.sets[name]
        top = log_p.max(axis=1)
        scaled = np.exp(log_p - top[:, None])
        step = max(CHUNK // len(log_p), 1)
        parts = [
            -(np.log(np.maximum(weights[i : i + step] @ scaled.T, 1e-300)) + top).mean(axis=1)
            for i in range(0, len(weights), step)
        ]
        return np.concatenate(parts)

    def value_and_gradient(self, name: str, weights: Floats) -> tuple[float, Floats]:
        """The same at one mixture, with its derivatives."""
        log_p = self.sets[name]
        return mixture_loss(log_p, np.full(len(log_p), 1 / len(log_p)), weights)


class ExpertsLaw(Law):
    """offset + slopes . p + sum_v k_v MDE_v(p), or trees or a Gaussian process over (p, MDE)."""

    def __init__(
        self,
        experts: Experts,
        features: tuple[str, ...],
        *,
        linear: tuple[float, Floats, Floats] | None = None,
        model: Any = None,
    ) -> None:
        self.experts, self.features, self.linear, self.model = experts, features, linear, model
        self.smooth = linear is not None
        if linear is not None:
            k = linear[2]
            self.curvature = "convex" if (k >= 0).all() else "concave" if (k <= 0).all() else ""

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        losses = np.column_stack([self.experts.loss(f, weights) for f in self.features])
        if self.linear is not None:
            offset, slopes, k = self.linear
            return np.asarray(offset + weights @ slopes + losses @ k)
        return np.asarray(self.model(np.hstack([weights, losses])))

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The linear form and its derivatives."""
        assert self.linear is not None, "only the linear form is smooth"
        offset, slopes, k = self.linear
        value, gradient = offset + float(slopes @ weights), slopes.copy()
        for name, factor in zip(self.features, k.tolist(), strict=True):
            v, g = self.experts.value_and_gradient(name, weights)
            value, gradient = value + factor * v, gradient + factor * g
        return value, gradient

    def parameters(self) -> dict[str, Any]:
        """The linear form's."""
        made: dict[str, Any] = {"features": list(self.features)}
        if self.linear is not None:
            offset, slopes, k = self.linear
            made |= {"offset": offset, "slopes": slopes.tolist(), "factors": k.tolist()}
        return made


@register
class MDE(RunsFitter):
    """Regress outcomes on the mixture and on the loss of the experts' averaged probabilities.

    MDE_v(p) = -mean over the tokens of set v of log sum_i p_i P_i(token | prefix), P_i = the model
    trained on domain i alone; the average is per token (MixMin's is per text). It costs no training
    per mixture, and with it as a feature about 25 true runs are enough.

    `experts` is a `.npz` with one array a validation set, float[tokens, D]: the log-probability (in
    nats) of each token under each domain's expert, columns in the order of the runs' domains.
    Features of `loss/<v>` are MDE_v if there is such an array ("own"), or all arrays ("all").

    "linear": ridge on (p, MDE), the slopes of MDE kept >= 0 for losses, so the search is convex and
    exact. "lightgbm" and "gp" (Gaussian process, RBF + noise): mean of the best simulated mixtures.
    "none": MDE alone, without regression; it needs no runs' outcomes but uses them to be judged.

    Args:
        experts: The `.npz` file, or an Experts.
        model: "linear", "lightgbm", "gp" or "none".
        features: "own" or "all".
        alpha: Of the ridge, on standardised features.
        samples, top: Of the simulated search.
    """

    name = "mde"
    paper = "Belenki et al. 2025, 2502.15950"
    reads = "runs"
    tractable = "averaged probabilities of per-domain experts stand in for a trained model"

    def __init__(
        self,
        *,
        experts: str | os.PathLike[str] | Experts,
        model: str = "linear",
        features: str = "own",
        alpha: float = 1e-3,
        samples: int = 4096,
        top: int = 16,
    ) -> None:
        super().__init__()
        self.model = choice("model", model, ("linear", "lightgbm", "gp", "none"))
        self.features = choice("features", features, ("own", "all"))
        self.alpha = number("alpha", alpha, 0, above=True)
        self.samples = whole("samples", samples, 1, 1_000_000)
        self.top = whole("top", top, 1, self.samples)
        self.experts = experts if isinstance(experts, Experts) else read_experts(experts)

    def least_runs(self, num_domains: int) -> int:
        """A ridge is determined by any; MDE alone needs none."""
        return 1 if self.model == "none" else 5

    def fit(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """As every law is fitted, once the experts are those of the domains."""
        for name, log_p in self.experts.sets.items():
            if log_p.shape[1] != len(data.domains):
                raise ArgumentError(
                    f"experts[{name!r}] must have one column a domain ({len(data.domains)}), got "
                    f"{log_p.shape[1]}"
                )
        return super().fit(data, task, judges)

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Fit one outcome."""
        name = column.removeprefix(LOSS).removeprefix(METRIC)
        own = name in self.experts.sets and self.features == "own"
        features = (name,) if own else tuple(self.experts.sets)
        weights, y = runs.weights, runs.outcome(column)
        num = weights.shape[1]
        if self.model == "none":
            if not own:
                raise ArgumentError(f"model='none' needs an array {name!r} in experts")
            sign = 1.0 if column.startswith(LOSS) else -1.0
            return ExpertsLaw(self.experts, features, linear=(0.0, np.zeros(num), np.array([sign])))
        losses = np.column_stack([self.experts.loss(f, weights) for f in features])
        table = np.hstack([weights, losses])
        if self.model == "linear":
            linear = ridge(table, y, num, self.alpha, 1.0 if column.startswith(LOSS) else -1.0)
            return ExpertsLaw(self.experts, features, linear=linear)
        if self.model == "gp":
            return ExpertsLaw(self.experts, features, model=gaussian_process(table, y, task.seed))
        trees = fit_trees(
            table,
            y,
            {"learning_rate": 0.05, "min_data_in_leaf": 3},
            rounds=300,
            early_stop=None,
            groups=runs.groups(),
            seed=task.seed,
        )
        return ExpertsLaw(self.experts, features, model=trees.predict)

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """Exact for the linear form, simulated for the others."""
        if all(law.smooth for law in laws.values()):
            return super().propose(laws, task, runs)
        drawn = dirichlet(task.prior, affordable(self.samples, len(task.domains)), task.seed)
        mixtures = all_within(drawn, task.most)
        best = best_of(mixtures, predicted_objective(laws, task, mixtures), self.top)
        value = float(predicted_objective(laws, task, best[None])[0])
        return Optimum(best, value, float("nan"))


def ridge(
    table: Floats, y: Floats, num: int, alpha: float, sign: float
) -> tuple[float, Floats, Floats]:
    """Offset, slopes of the weights, factors of the MDE losses: standardised ridge.

    The factors have the sign given: more loss of the experts never means less loss.
    """
    mean, spread = table.mean(axis=0), table.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    z = (table - mean) / spread
    width = table.shape[1]
    stacked = np.vstack([z, np.sqrt(alpha * len(y)) * np.eye(width)])
    target = np.concatenate([y - y.mean(), np.zeros(width)])
    low, high = np.full(width, -np.inf), np.full(width, np.inf)
    if sign > 0:
        low[num:] = 0.0
    else:
        high[num:] = 0.0
    found = scipy("optimize").lsq_linear(stacked, target, (low, high), tol=1e-14)
    slopes = found.x / spread
    return float(y.mean() - mean @ slopes), slopes[:num], slopes[num:]


def gaussian_process(table: Floats, y: Floats, seed: int) -> Any:
    """A predictor: RBF on standardised features, with noise."""
    process, kernels = sklearn("gaussian_process"), sklearn("gaussian_process.kernels")
    mean, spread = table.mean(axis=0), table.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    kernel = kernels.ConstantKernel(1.0, (1e-3, 1e3)) * kernels.RBF(
        np.sqrt(table.shape[1]), (1e-1, 1e3)
    ) + kernels.WhiteKernel(1e-2, (1e-8, 1e1))
    made = process.GaussianProcessRegressor(
        kernel=kernel, normalize_y=True, n_restarts_optimizer=2, random_state=seed
    )
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scaling factors at their bounds; held-out runs judge
        made.fit((table - mean) / spread, y)
    return lambda rows: made.predict((rows - mean) / spread)


def read_experts(path: object) -> Experts:
    """Read the `.npz`.

    Raises:
        ArgumentError: It is none, or an array is not float[tokens, D] of finite values <= 0.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"experts must be the path of an .npz file, got {path!r}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sets = {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays.files}
    except (ValueError, AttributeError, EOFError) as e:
        raise ArgumentError(f"experts={str(path)!r} is no .npz file of numbers: {e}") from None
    if not sets:
        raise ArgumentError(f"experts={str(path)!r} has no arrays")
    for name, log_p in sets.items():
        if log_p.ndim != 2 or not len(log_p) or not np.isfinite(log_p).all() or log_p.max() > 0:
            raise ArgumentError(
                f"experts[{name!r}] must be float[tokens, domains] of finite log-probabilities "
                f"<= 0, got shape {log_p.shape}"
            )
    return Experts(sets)
