"""A small policy from recorded runs: history of a run in, weights out.

Trained offline by conservative Q-learning, after Data Mixing Agent (Yang et al. 2025, arXiv
2507.15640; no code published): supervised warm start on the recorded mixtures, then an actor and a
critic, the critic held down on mixtures that nobody tried. Training needs torch; acting does not.

Not for: learning during the run (see the method `ac_odm`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError, ArgumentTypeError, DataError
from mixcore.methods.base import number, whole

Floats = npt.NDArray[np.float64]
Entry = Mapping[str, Any]
FORMAT = "mixcore.policy/1"


class Policy:
    """Weights from the last few entries of a history, by a network of numpy matrices.

    Example:
        >>> policy = train_policy(trajectories)
        >>> policy.save("policy.json")
        >>> method("agent", domains=domains, policy="policy.json")

    An entry is a mapping with `weights` (float[D], in force for a while) and `feedback` (float[F],
    scores measured after it; larger is better). A state is the last `window` entries, each as
    (weights, standardised feedback, 1), zeros where there are fewer, and entries / horizon.

    Attributes:
        num_domains: D.
        num_feedback: F.
        window: Entries in a state.
        horizon: Entries of the longest recorded run.
    """

    def __init__(
        self,
        *,
        num_domains: int,
        num_feedback: int,
        window: int,
        horizon: int,
        mean: Floats,
        std: Floats,
        layers: Sequence[tuple[Floats, Floats]] = (),
    ) -> None:
        self.num_domains, self.num_feedback = num_domains, num_feedback
        self.window, self.horizon = window, horizon
        self._mean, self._std = mean, std
        self._layers = list(layers)

    def act(self, history: Sequence[Entry]) -> Floats:
        """Weights for what comes next: float64[D], sum 1.

        Raises:
            ValueError: The history is empty or its entries do not fit the policy.
        """
        if not history:
            raise ArgumentError("history must have an entry or more, got none")
        weights, feedback = _arrays("history", history[-self.window :])
        self._check("history", weights, feedback)
        x = self._state(weights, feedback, len(history))
        for i, (matrix, bias) in enumerate(self._layers):
            x = matrix @ x + bias
            if i + 1 < len(self._layers):
                x = np.maximum(x, 0.0)
        e = np.exp(x - x.max())
        result: Floats = e / e.sum()
        return result

    def states(self, trajectory: Sequence[Entry]) -> Floats:
        """The state after each entry: float64[T, S]."""
        weights, feedback = _arrays("trajectory", trajectory)
        self._check("trajectory", weights, feedback)
        return np.stack(
            [
                self._state(weights[: t + 1], feedback[: t + 1], t + 1)
                for t in range(len(trajectory))
            ]
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        body = {
            "format": FORMAT,
            "num_domains": self.num_domains,
            "num_feedback": self.num_feedback,
            "window": self.window,
            "horizon": self.horizon,
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
            "layers": [[m.tolist(), b.tolist()] for m, b in self._layers],
        }
        Path(path).write_text(json.dumps(body))

    @staticmethod
    def load(path: str | Path) -> "Policy":
        """Read what `save` wrote.

        Raises:
            DataError: There is no such file, or it is none of `save`.
        """
        try:
            body = json.loads(Path(path).read_text())
        except (OSError, ValueError) as e:
            raise DataError(f"policy {str(path)!r} cannot be read: {e}") from e
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise DataError(f"policy {str(path)!r} is no file of the format {FORMAT}")
        try:
            layers = [
                (np.array(m, dtype=float), np.array(b, dtype=float)) for m, b in body["layers"]
            ]
            policy = Policy(
                **{k: int(body[k]) for k in ("num_domains", "num_feedback", "window", "horizon")},
                mean=np.array(body["mean"], dtype=float),
                std=np.array(body["std"], dtype=float),
                layers=layers,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"policy {str(path)!r} is damaged: {e!r}") from e
        sizes = [policy.state_size, *(len(b) for _, b in layers)]
        shapes = [m.shape for m, _ in layers]
        wanted = list(zip(sizes[1:], sizes[:-1], strict=True))
        finite = all(np.isfinite(m).all() and np.isfinite(b).all() for m, b in layers)
        if not layers or shapes != wanted or sizes[-1] != policy.num_domains or not finite:
            raise DataError(f"policy {str(path)!r} is damaged: its layers do not fit, {shapes}")
        return policy

    @property
    def state_size(self) -> int:
        """S, numbers in a state."""
        return self.window * (self.num_domains + self.num_feedback + 1) + 1

    def _check(self, what: str, weights: Floats, feedback: Floats) -> None:
        got = weights.shape[1], feedback.shape[1]
        if got != (self.num_domains, self.num_feedback):
            raise ArgumentError(
                f"{what} must have {self.num_domains} weights and {self.num_feedback} feedbacks an "
                f"entry, as the policy has; got {got[0]} and {got[1]}"
            )

    def _state(self, weights: Floats, feedback: Floats, entries: int) -> Floats:
        """From all entries so far, or the last `window` of them."""
        w, f = weights[-self.window :], feedback[-self.window :]
        rows = np.zeros((self.window, self.num_domains + self.num_feedback + 1))
        # clipped: a score far from all recorded ones must not leave the network's range
        scores = np.clip((f - self._mean) / self._std, -5.0, 5.0)
        rows[-len(w) :] = np.hstack([w, scores, np.ones((len(w), 1))])
        return np.append(rows.ravel(), min(entries / self.horizon, 1.0))


def train_policy(
    trajectories: Sequence[Sequence[Entry]],
    *,
    feedback_weights: Sequence[float] | None = None,
    window: int = 4,
    gamma: float = 0.9,
    alpha: float = 0.5,
    imitation: float = 0.1,
    samples: int = 16,
    hidden: int = 64,
    warm_steps: int = 500,
    steps: int = 3000,
    batch_size: int = 128,
    lr: float = 1e-3,
    tau: float = 0.01,
    seed: int = 0,
) -> Policy:
    """Train a policy on recorded runs, by conservative Q-learning. Needs torch.

    From entry t, with state s_t, the action is the weights of entry t + 1, the reward the gain
    sum_f c_f (feedback_t+1,f - feedback_t,f), in units of its standard deviation:

        warm start   min  -sum_i a_i log pi(s)_i
        critic       min  (Q(s, a) - r - gamma Q'(s', pi(s')))^2
                          + alpha (log mean exp Q(s, a~) - Q(s, a))
        actor        max  Q(s, pi(s)) + imitation sum_i a_i log pi(s)_i

    a~: `samples` mixtures drawn uniformly from the simplex, and pi(s). Where alpha is 0 this is
    plain off-policy learning, which believes whatever its critic says of mixtures never tried
    (Kumar et al. 2020, arXiv 2006.04779).

    Args:
        trajectories: Runs, each a sequence of two entries or more (see `Policy`), such as the
            `history` of the method `agent`.
        feedback_weights: c, float[F]; None: 1 / F each.
        window: Entries in a state.
        gamma: Discount.
        alpha: Weight of the conservative term.
        imitation: Weight of the recorded mixtures beside Q. Without it a policy can be stuck in
            a corner of the simplex, where its gradient vanishes.
        samples: Random mixtures a state in it.
        hidden: Width of the two hidden layers of both networks.
        warm_steps: Of the warm start.
        steps: Of actor and critic.
        batch_size: Transitions a step.
        lr: Adam's.
        tau: Of the critic's slow copy.
        seed: The same one, the same policy (on the same machine).

    Raises:
        ValueError, TypeError: No run, runs that do not fit each other, or a bad number.
    """
    try:
        from mixcore._cql import train
    except ImportError as e:
        raise ArgumentError("train_policy needs torch: pip install 'mixcore[train]'") from e
    if isinstance(trajectories, Mapping) or not isinstance(trajectories, Sequence):
        raise ArgumentTypeError(f"trajectories must be a sequence of runs, got {trajectories!r}")
    runs = [_arrays(f"trajectories[{i}]", t) for i, t in enumerate(trajectories)]
    if not runs or any(len(w) < 2 for w, _ in runs):
        raise ArgumentError("trajectories must be one or more, of two entries or more each")
    d, f = runs[0][0].shape[1], runs[0][1].shape[1]
    scores = np.concatenate([fb for _, fb in runs if fb.shape[1] == f])
    std = scores.std(axis=0)
    policy = Policy(
        num_domains=d,
        num_feedback=f,
        window=_whole("window", window),
        horizon=max(len(w) for w, _ in runs),
        mean=scores.mean(axis=0),
        std=np.where(std > 0, std, 1.0),
    )
    c = np.full(f, 1 / f) if feedback_weights is None else np.array(feedback_weights, dtype=float)
    if c.shape != (f,) or not np.isfinite(c).all():
        raise ArgumentError(f"feedback_weights must be {f} finite numbers, got {c.tolist()}")
    states = [policy.states(t) for t in trajectories]
    rewards = np.concatenate([np.diff(fb, axis=0) @ c for _, fb in runs])
    unit = float(rewards.std())
    policy._layers = train(
        states=np.concatenate([s[:-1] for s in states]),
        actions=np.concatenate([w[1:] for w, _ in runs]),
        rewards=rewards / (unit if unit > 0 else 1.0),
        later=np.concatenate([s[1:] for s in states]),
        last=np.concatenate([np.arange(1, len(s)) == len(s) - 1 for s in states]),
        gamma=_number("gamma", gamma, 1.0),
        alpha=_number("alpha", alpha),
        imitation=_number("imitation", imitation),
        samples=_whole("samples", samples),
        hidden=_whole("hidden", hidden),
        warm_steps=_whole("warm_steps", warm_steps, 0),
        steps=_whole("steps", steps, 0),
        batch_size=_whole("batch_size", batch_size),
        lr=_number("lr", lr),
        tau=_number("tau", tau, 1.0),
        seed=_whole("seed", seed, 0),
    )
    return policy


def _arrays(what: str, entries: Sequence[Entry]) -> tuple[Floats, Floats]:
    """Weights float64[T, D], normalised, and feedback float64[T, F] of some entries."""
    both = []
    for key in ("weights", "feedback"):
        try:
            array = np.array([e[key] for e in entries], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise ArgumentError(
                f"{what} must be entries with 'weights' and 'feedback', the same number of each"
            ) from None
        if array.ndim != 2 or array.shape[1] == 0 or not np.isfinite(array).all():
            raise ArgumentError(f"{what} must have finite {key}, got {array.tolist()}")
        both.append(array)
    weights, feedback = both
    total = weights.sum(axis=1, keepdims=True)
    if (weights < 0).any() or not (total > 0).all():
        raise ArgumentError(f"{what} must have weights >= 0, not all 0, got {weights.tolist()}")
    return weights / total, feedback


def _whole(name: str, value: object, low: int = 1) -> int:
    return whole(name, value, low, 1 << 31)


def _number(name: str, value: object, high: float = math.inf) -> float:
    return number(name, value, 0.0, high)
