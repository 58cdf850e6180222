"""Signals: what a method may look at, measured since its last update."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_POSITION, integer
from mixcore.errors import ArgumentError, ArgumentTypeError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COUNTS = ("tokens", "draws", "total_draws", "samples")
VECTORS = ("loss_sum", "val_loss", "reference_loss", "target_loss", "excess_loss")
NON_NEGATIVE = ("grad_norm2", "grad_var", "weights")

# What to do about a signal that a method needs and nobody supplies; for messages.
HOW = {
    "loss_sum": "call controller.observe(domain_ids, loss_sums, tokens) every step",
    "tokens": "call controller.observe(domain_ids, loss_sums, tokens) every step",
    "draws": "the controller knows it from the ledger; without one pass samples since the last "
    "update, one count a domain",
    "total_draws": "the controller knows it from the ledger; without one pass samples since the "
    "start of the run, one count a domain",
    "weights": "the controller knows it from the ledger; without one pass the weights in force",
    "val_loss": "pass mean losses per token on held-out data, NaN where not measured",
    "reference_loss": "pass the losses of a reference model, one a domain (where they are "
    "constant, as the method's option reference_loss)",
    "target_loss": "pass the losses to be reached, one a domain (where they are constant, as the "
    "method's option target_loss)",
    "excess_loss": "pass the mean per token of max(loss - reference loss, 0), one a domain",
    "grad_dot": "pass inner products <g_i, g_j> of the domains' gradients, D x D",
    "grad_target": "pass inner products <g_i, g_target> of the domains' gradients with those of "
    "the targets, D or D x N",
    "grad_norm2": "pass the squared norms of the domains' gradients",
    "grad_var": "pass the per-sample variances of the domains' gradients",
    "samples": "pass the number of samples that each domain's gradient was taken over",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
    """What was measured since the last update; D is the number of domains.

    Example:
        >>> s = Signals(step=100, loss_sum=[20.0, 0.0], tokens=[10, 0])
        >>> s.loss
        array([ 2., nan])

    Every field but `step` may be None: not measured. Sequences become arrays; the arrays are the
    signal's own and read-only. NaN in a loss or a gradient means "absent from this window".

    Attributes:
        step: Optimizer steps done when this was measured.
        loss_sum: float64[D], sum of token losses (nats).
        tokens: int64[D], tokens that loss_sum is over.
        draws: int64[D], samples since the last update.
        total_draws: int64[D], samples since the start of the run.
        val_loss: float64[D], mean loss per token on held-out data, NaN where not measured.
        reference_loss: float64[D], of a reference model or a per-domain scaling law.
        target_loss: float64[D], to be reached.
        excess_loss: float64[D], mean per token of max(loss - reference loss, 0), as in DoReMi.
        grad_dot: float64[D, D], inner products of the domains' gradients.
        grad_target: float64[D] or float64[D, N], inner products with the targets' gradients.
        grad_norm2: float64[D], squared norms of the domains' gradients.
        grad_var: float64[D], per-sample variances of the domains' gradients.
        samples: int64[D], samples that the gradients were taken over.
        weights: float64[D], in force while this was measured.
        embeddings: By name, anything.
        extra: By name, anything that has no field of its own.

    Raises:
        ValueError, TypeError: A field has the wrong type, shape or values; the message names it.
    """

    step: int
    loss_sum: Any = None
    tokens: Any = None
    draws: Any = None
    total_draws: Any = None
    val_loss: Any = None
    reference_loss: Any = None
    target_loss: Any = None
    excess_loss: Any = None
    grad_dot: Any = None
    grad_target: Any = None
    grad_norm2: Any = None
    grad_var: Any = None
    samples: Any = None
    weights: Any = None
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        integer("step", self.step, 0, MAX_POSITION)
        size: tuple[str, int] | None = None
        for name in ARRAYS:
            value = getattr(self, name)
            if value is None:
                continue
            array = _counts(name, value) if name in COUNTS else _floats(name, value)
            axes = {"grad_dot": (2,), "grad_target": (1, 2)}.get(name, (1,))
            if array.ndim not in axes:
                raise ArgumentError(f"{name} must have {axes[-1]} axes, got {array.ndim}")
            size = size or (name, array.shape[0])
            if array.shape[0] != size[1] or (name == "grad_dot" and array.shape[1] != size[1]):
                raise ArgumentError(
                    f"{name} must have one entry a domain: its shape is {array.shape}, that of "
                    f"{size[0]} is for {size[1]} domains"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        for name in ("embeddings", "extra"):
            if not isinstance(getattr(self, name), Mapping):
                raise ArgumentTypeError(f"{name} must be a mapping, got {getattr(self, name)!r}")

    @property
    def loss(self) -> Floats:
        """Mean loss per token since the last update: float64[D], NaN where a domain was absent."""
        if self.loss_sum is None or self.tokens is None:
            missing = "loss_sum" if self.loss_sum is None else "tokens"
            raise ArgumentError(f"signals.loss needs {missing}: {HOW[missing]}")
        loss = np.full(len(self.tokens), np.nan)
        np.divide(self.loss_sum, self.tokens, out=loss, where=self.tokens > 0)
        return loss

    @property
    def num_domains(self) -> int | None:
        """D, or None if no array is there to tell."""
        present = (getattr(self, name) for name in ARRAYS)
        return next((len(array) for array in present if array is not None), None)


ARRAYS = tuple(f.name for f in fields(Signals) if f.name not in ("step", "embeddings", "extra"))


def _floats(name: str, value: object) -> Floats:
    array = _array(name, value)
    if np.isinf(array).any():
        raise ArgumentError(f"{name} must not be infinite, got {array.tolist()}")
    if name in NON_NEGATIVE and (array < 0).any():
        raise ArgumentError(f"{name} must be >= 0, got {array.tolist()}")
    return array


def _counts(name: str, value: object) -> Ints:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        floats = _array(name, value)
        if not (np.isfinite(floats) & (floats == np.floor(floats))).all():
            raise ArgumentError(f"{name} must be whole numbers, got {floats.tolist()}")
        array = floats
    counts = array.astype(np.int64)
    if (counts < 0).any():
        raise ArgumentError(f"{name} must be >= 0, got {counts.tolist()}")
    return counts


def _array(name: str, value: object) -> Floats:
    try:
        array = np.array(value, dtype=np.float64)  # a copy: the signal keeps what was measured
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"{name} must be numbers, one a domain, got {value!r} ({type(value).__name__})"
        ) from None
    return array
