"""Method: what every way of choosing weights has in common.

How to write one (`mixcore/methods/<name>.py`, one class, one paper):

1. `@register`, class attributes (see `Method`), a row in `mixcore/methods/__init__.py`.
2. `__init__(self, domains, *, initial=None, eta: float = 1.0, ...)`: call `super().__init__`, check
   each option with `number`, `whole`, `flag`, `choice`, `per_domain`.
3. `_update(self, signals)`: return the new weights. `update` has checked the signals and will
   check, normalise and keep what is returned. Static methods have none and set `_weights`.
4. `state_fields`: names of the attributes that change, `"_weights"` excepted, which is kept anyway.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mixcore import _checks
from mixcore._checks import choice as choice
from mixcore.domains import Domain, check_domains
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.signals import HOW, Signals

Floats = npt.NDArray[np.float64]
Weights = Mapping[str, float] | Sequence[float] | Floats

FAMILIES = (
    "static rule",
    "static learned",
    "dynamic adaptive",
    "dynamic externally guided",
)
FORMAT = "mixcore.method/1"


class Method:
    """A published way to choose weights.

    Attributes:
        name: Short name, the one that `mixcore.method` takes.
        family: One of FAMILIES, the classes of the survey by Chen et al. (2026, arXiv 2604.16380).
        needs: Fields of Signals that `update` needs; an instance may set its own in `__init__`,
            where it depends on options.
        update_every: Steps between two updates in the paper; None where it has none or is static.
        cost: What an update costs beside training, in words.
        paper: Authors, year, arXiv id.
        version: Of the state's layout; a state of another version is refused.
        state_fields: Attributes that make up the state (numbers, str, None, arrays, lists, dicts).
        domains: What the weights are for, in order.
        silent: Set by `_update` where it has nothing to say (`external` without a new request):
            a controller then decides nothing, whatever the weights are.

    Args:
        domains: One or more; names unique.
        initial: Weights before the first update, normalised; None: uniform.

    Raises:
        ValueError, TypeError: A bad option, named with its value.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    needs: tuple[str, ...] = ()
    update_every: ClassVar[int | None] = None
    cost: ClassVar[str] = "none"
    paper: ClassVar[str]
    version: ClassVar[int] = 1
    state_fields: ClassVar[tuple[str, ...]] = ()
    silent: bool = False

    def __init__(self, domains: Sequence[Domain], *, initial: Weights | None = None) -> None:
        self.domains = check_domains(domains)
        self._weights = (
            np.full(len(self.domains), 1 / len(self.domains))
            if initial is None
            else normalise(per_domain("initial", initial, self.domains))
        )

    @property
    def dynamic(self) -> bool:
        """Whether `update` changes anything."""
        return type(self)._update is not Method._update

    def weights(self) -> Floats:
        """What the method says now: float64[D], sum 1."""
        return self._weights.copy()

    def update(self, signals: Signals) -> Floats:
        """Take in what was measured since the last update; return the new weights, float64[D].

        A static method returns what it always says.

        Raises:
            ValueError, TypeError: A signal that is needed is missing or does not fit; the method
            is as it was.
        """
        if not isinstance(signals, Signals):
            raise ArgumentTypeError(f"signals must be mixcore.Signals, got {signals!r}")
        if signals.num_domains not in (None, len(self.domains)):
            raise ArgumentError(
                f"signals must be of the method's {len(self.domains)} domains, got "
                f"{signals.num_domains}"
            )
        for need in self.needs:
            if getattr(signals, need) is None:
                raise ArgumentError(
                    f"method {self.name!r} needs the signal {need}, got None: {HOW[need]}"
                )
        weights = np.asarray(self._update(signals), dtype=np.float64)
        if weights.shape != self._weights.shape or not np.isfinite(weights).all():
            raise ArgumentError(f"method {self.name!r} gave no weights: {weights.tolist()}")
        self._weights = normalise(weights)
        return self.weights()

    def _update(self, signals: Signals) -> Floats:
        """The new weights (any positive sum); what the method remembers is changed here."""
        return self._weights

    def why(self) -> tuple[str, str]:
        """Author and reason of what the last update said, where they are not the method itself."""
        return "", ""

    def state_dict(self) -> dict[str, Any]:
        """All that `update` has changed, as plain Python values, exact."""
        fields = ("_weights", *self.state_fields)
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "domains": [d.name for d in self.domains],
            "state": {f: to_plain(getattr(self, f)) for f in fields},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next update gives, bit for bit, what it would have given there.

        Options are not part of it: they are the constructor's.

        Raises:
            ValueError, TypeError: It is no such state, or of another method, version or other
                domains; the method is as it was.
        """
        mine = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "domains": [d.name for d in self.domains],
        }
        if not isinstance(state, Mapping):
            raise ArgumentTypeError(f"state must be a mapping, got {state!r}")
        for key, value in mine.items():
            if state.get(key) != value:
                raise ArgumentError(f"state[{key!r}] must be {value!r}, got {state.get(key)!r}")
        fields = {"_weights", *self.state_fields}
        values = state.get("state")
        if not isinstance(values, Mapping) or set(values) != fields:
            got = sorted(values) if isinstance(values, Mapping) else values
            raise ArgumentError(f"state['state'] must have {sorted(fields)}, got {got}")
        restored = {f: from_plain(f, values[f]) for f in fields}
        for f, value in restored.items():
            setattr(self, f, value)


# States ---------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Arrays as `{"dtype", "shape", "values"}`, numpy scalars as Python's; the rest as it is."""
    if isinstance(value, np.ndarray):
        return {
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "values": value.ravel().tolist(),
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state holds plain values and arrays, found {value!r}")


def from_plain(name: str, value: Any) -> Any:
    """What `to_plain` was given (tuples have become lists)."""
    if isinstance(value, Mapping):
        if set(value) == {"dtype", "shape", "values"}:
            try:
                return np.array(value["values"], dtype=value["dtype"]).reshape(value["shape"])
            except (TypeError, ValueError) as e:
                raise ArgumentError(f"state[{name!r}] is no array: {e}") from None
        return {k: from_plain(name, v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_plain(name, v) for v in value]
    return value


# Options --------------------------------------------------------------------------------------


def number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """Return value as a finite float in [low, high], or in (low, high] with above=True."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}")
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(result) or not low <= result <= high or (above and result == low):
        bracket = "(" if above else "["
        raise ArgumentError(f"{name} must be in {bracket}{low:g}, {high:g}], got {result:g}")
    return result


def whole(name: str, value: object, low: int = 0, high: int = 1 << 48) -> int:
    """Return value as an int in [low, high]."""
    return _checks.integer(name, value, low, high)


def flag(name: str, value: object) -> bool:
    """Return value if it is a bool."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be True or False, got {value!r}")
    return value


def per_domain(
    name: str, value: Weights, domains: Sequence[Domain], *, negative: bool = False
) -> Floats:
    """Return one finite float64 a domain, from a mapping by name or a sequence in their order.

    Values are >= 0 and not all zero (weights, losses, sizes), or any with negative=True.
    """
    names = [d.name for d in domains]
    if not negative:
        return _checks.weights(name, value, names)
    return _checks.weights(name, value, names, positive_sum=False, signed=True)


def matrix(name: str, value: object, rows: int, columns: int) -> Floats:
    """Return value as a finite float64 matrix of that shape."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} must be a matrix of numbers, got {value!r}") from None
    if array.shape != (rows, columns) or not np.isfinite(array).all():
        raise ArgumentError(
            f"{name} must be finite, of shape ({rows}, {columns}), got shape {array.shape}"
            + ("" if np.isfinite(array).all() else " with entries that are not finite")
        )
    return array


def sizes(domains: Sequence[Domain], why: str) -> Floats:
    """The domains' sizes in samples, float64[D]; open-ended ones are refused."""
    for d in domains:
        if d.size is None:
            raise ArgumentError(f"{why} needs a size of every domain, but {d.name!r} has none")
    return np.array([d.size for d in domains], dtype=np.float64)


# Numerics shared by the rules -----------------------------------------------------------------


def normalise(weights: Floats) -> Floats:
    """Divide by the sum."""
    if (weights < 0).any() or not np.isfinite(weights).all() or not weights.any():
        raise ArgumentError(
            f"weights must be finite, >= 0 and not all zero, got {weights.tolist()}"
        )
    if weights.max() > 1e300:  # the sum might overflow
        weights = weights / weights.max()
    result: Floats = weights / weights.sum()
    return result


def log(weights: Floats) -> Floats:
    """Natural logarithm; -inf for a weight of 0, which `softmax` turns into 0 again."""
    with np.errstate(divide="ignore"):
        return np.log(weights)


def softmax(logits: Floats) -> Floats:
    """exp(logits - max), normalised: float64; any finite logits, and -inf for some."""
    shifted: Floats = np.exp(logits - logits.max())
    shifted /= shifted.sum()
    return shifted


def carried(new: Floats, last: Floats) -> Floats:
    """`new` where it was measured, `last` where it is NaN: an absent domain has no loss of 0."""
    return np.where(np.isnan(new), last, new)
