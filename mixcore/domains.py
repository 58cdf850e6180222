"""Domains: the sources that a mixture draws from."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from mixcore._checks import MAX_DOMAINS, MAX_POSITION, integer, text
from mixcore.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class Domain:
    """One source of samples.

    Example:
        >>> Domain("code", size=50_000, max_epochs=4).cap
        200000

    Attributes:
        name: Unique within a ledger. The domain's order of samples depends on it and on the
            seed, not on the domain's place in the list.
        size: Samples per epoch, 1 to 2^48; None for an open-ended source (epoch 0 for ever,
            sample = draw).
        max_epochs: Draw at most `floor(size * max_epochs)` samples in the whole run; None for no
            cap. Fractions are allowed, and mean what they show: 0.7 is 7/10, not the double below.
        cap: That many, at most 2^48; None for no cap.

    Raises:
        ValueError, TypeError: A bad value, named in the message.
    """

    name: str
    size: int | None
    max_epochs: float | None = None
    cap: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not text("name", self.name):
            raise ArgumentError(f"name must not be empty, got {self.name!r}")
        if self.size is not None:
            where = f"size of domain {self.name!r}"
            object.__setattr__(self, "size", integer(where, self.size, 1, MAX_POSITION))
        if self.max_epochs is None:
            return
        where = f"max_epochs of domain {self.name!r}"
        numbers = (int, float, np.integer, np.floating)
        if isinstance(self.max_epochs, bool) or not isinstance(self.max_epochs, numbers):
            raise ArgumentTypeError(f"{where} must be a number or None, got {self.max_epochs!r}")
        if isinstance(self.max_epochs, (np.integer, np.floating)):
            plain = int if isinstance(self.max_epochs, np.integer) else float
            object.__setattr__(self, "max_epochs", plain(self.max_epochs))
        if not 0 < self.max_epochs <= sys.float_info.max:
            raise ArgumentError(f"{where} must be finite and > 0, got {self.max_epochs}")
        if self.size is None:
            raise ArgumentError(f"{where} needs a size: an open-ended domain has no epochs")
        cap = min(int(Fraction(repr(float(self.max_epochs))) * self.size), MAX_POSITION)
        if cap == 0:
            raise ArgumentError(f"{where} leaves no sample to draw, got {self.max_epochs}")
        object.__setattr__(self, "cap", cap)

    def key(self, seed: int) -> int:
        """The 64-bit key of this domain's permutations under a seed."""
        return stream_key(seed, "domain", self.name)

    def to_json(self) -> dict[str, Any]:
        """The domain as plain JSON values."""
        return {"name": self.name, "size": self.size, "max_epochs": self.max_epochs}


def stream_key(seed: int, kind: str, name: str = "") -> int:
    """Hash (seed, kind, name) to the 64-bit key of one stream of random words.

    Randomness is named, never added to: `seed + 1` is another run, not another stream of this one.
    """
    message = b"\0".join([b"mixcore/1", str(seed).encode(), kind.encode(), name.encode()])
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def check_domains(
    domains: object, known: Sequence[Domain] = (), argument: str = "domains"
) -> tuple[Domain, ...]:
    """Return domains as a tuple; refuse what is no Domain, duplicates, and too many of them."""
    if not isinstance(domains, Sequence) or isinstance(domains, (str, bytes)):
        raise ArgumentTypeError(f"{argument} must be a sequence of Domain, got {domains!r}")
    names = {d.name for d in known}
    for d in domains:
        if not isinstance(d, Domain):
            raise ArgumentTypeError(f"{argument} must be a sequence of Domain, found {d!r}")
        if d.name in names:
            raise ArgumentError(f"{argument} has the name {d.name!r} twice")
        names.add(d.name)
    if not names:
        raise ArgumentError(f"{argument} must not be empty")
    if len(names) > MAX_DOMAINS:
        raise ArgumentError(f"domains must be at most {MAX_DOMAINS}, got {len(names)}")
    return tuple(domains)
