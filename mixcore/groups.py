"""Nested mixtures: ratios fixed inside a group, weights chosen between groups.

In a `mix.yaml` an entry of `domains` may hold `domains` of its own, to any depth:

    domains:
      - name: web
        weight: 0.7                       # between the groups: this is what a method changes
        domains:                          # inside: 3 to 1, for ever
          - {name: wiki, path: web.wiki, weight: 3}
          - {name: crawl, path: web.crawl, weight: 1}
      - {name: code, path: code, weight: 0.3}

The ledger knows the leaves alone (`web/wiki`, `web/crawl`, `code`); a schedule and a method speak
of the outermost entries (`web`, `code`). Members without a weight are in proportion to their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixcore import _checks
from mixcore._config_domains import Entry
from mixcore._problems import Problems, shown
from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import method as build
from mixcore.methods.base import Method, Weights, per_domain
from mixcore.signals import Signals

if TYPE_CHECKING:
    from mixcore.config import Config

Floats = npt.NDArray[np.float64]

GROUP_KEYS = ("name", "weight", "domains")
MEANS = ("val_loss", "reference_loss", "target_loss", "excess_loss")
SUMS = ("loss_sum", "tokens", "draws", "total_draws", "samples", "weights")


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each domain is in, and its ratio there.

    Example:
        >>> members = [Domain("web/wiki", 60), Domain("web/crawl", 30), Domain("code", 10)]
        >>> groups = Groups(members, ["web", "code"], [0, 0, 1], [0.75, 0.25, 1])
        >>> groups.expand([0.6, 0.4])
        array([0.45, 0.15, 0.4 ])

    Attributes:
        members: The domains of the ledger, D of them.
        names: Of the groups; a domain that is in no group is one of its own.
        of: int64[D], group of each domain.
        ratio: float64[D], sums to 1 over the members of each group.
        domains: The groups as a method sees them: as large as their members together (None where
            one is open-ended), without a cap, for it is the members that have caps.

    Raises:
        ArgumentError: The arrays do not fit, or a group's ratios do not sum to 1.
    """

    members: Sequence[Domain]
    names: Sequence[str]
    of: Any
    ratio: Any
    domains: tuple[Domain, ...] = field(init=False)

    def __post_init__(self) -> None:
        of, ratio = np.asarray(self.of, np.int64), np.asarray(self.ratio, np.float64)
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "ratio", ratio)
        num = len(self.names)
        if not of.shape == ratio.shape == (len(self.members),):
            raise ArgumentError(
                f"of and ratio must have one entry a domain ({len(self.members)}), got shapes "
                f"{of.shape} and {ratio.shape}"
            )
        if len(of) and (of.min() < 0 or of.max() >= num):
            raise ArgumentError(f"of must be in [0, {num}), got {of.min()} to {of.max()}")
        sums = np.bincount(of, ratio, num)
        if not np.isfinite(ratio).all() or (ratio < 0).any() or (abs(sums - 1) > 1e-9).any():
            raise ArgumentError(f"ratio must sum to 1 in every group, got {sums.tolist()}")
        sizes: list[int | None] = [0] * num
        for d, group in zip(self.members, of.tolist(), strict=True):
            size = sizes[group]
            sizes[group] = None if size is None or d.size is None else size + d.size
        made = tuple(Domain(name, size) for name, size in zip(self.names, sizes, strict=True))
        object.__setattr__(self, "domains", made)

    def expand(self, weights: Weights) -> Floats:
        """Weights of the groups, by name or in order -> weights of the domains, float64[D]."""
        result: Floats = per_domain("weights", weights, self.domains)[self.of] * self.ratio
        return result

    def sums(self, values: Sequence[float]) -> Floats:
        """Values of the domains, added up in each group: float64[groups]."""
        return self._sum(np.asarray(values, np.float64))

    def method(self, name: str, **options: Any) -> "GroupedMethod":
        """A method that chooses between the groups; options are per group where they are lists."""
        return GroupedMethod(build(name, domains=self.domains, **options), self)

    def signals(self, signals: Signals, names: Sequence[str]) -> Signals:
        """What was measured of the domains, as if each group were one domain.

        Counts and sums of losses add up. Mean losses are averaged by the fixed ratios, over the
        members that were measured. The gradient of a group is the average of its members' by the
        same ratios, so products follow from products: R' G R.

        Args:
            signals: Of the domains.
            names: The signals wanted; others may be left out of what is returned.

        Raises:
            ArgumentError: A norm or variance of gradients is wanted, and there is no grad_dot.
        """
        made: dict[str, Any] = {}
        for name in SUMS:
            value = getattr(signals, name)
            if value is not None:
                made[name] = self._sum(np.asarray(value, np.float64))
        for name in MEANS:
            value = getattr(signals, name)
            if value is not None:
                weight = np.where(np.isnan(value), 0.0, self.ratio)
                with np.errstate(invalid="ignore", divide="ignore"):
                    made[name] = self._sum(np.nan_to_num(value) * weight) / self._sum(weight)
        if signals.grad_target is not None:
            made["grad_target"] = self._averaged(signals.grad_target)
        if signals.grad_dot is not None:
            made["grad_dot"] = self._averaged(self._averaged(signals.grad_dot).T).T
        norms = [n for n in ("grad_norm2", "grad_var") if n in names]
        if norms:
            if signals.grad_dot is None:
                raise ArgumentError(
                    f"{norms[0]} of a group needs the signal grad_dot of its domains, got None"
                )
            made["grad_norm2"] = np.maximum(np.diag(made["grad_dot"]), 0.0)
        if "grad_var" in norms:  # within the members, and between them (law of total variance)
            own = self._averaged(signals.grad_var + np.diag(signals.grad_dot))
            made["grad_var"] = np.maximum(own - made["grad_norm2"], 0.0)
        return Signals(
            step=signals.step, embeddings=signals.embeddings, extra=signals.extra, **made
        )

    def _sum(self, values: Floats) -> Floats:
        sums: Floats = np.bincount(self.of, values, len(self.domains)).astype(np.float64)
        return sums

    def _averaged(self, values: Floats) -> Floats:
        """Rows averaged by the ratios over the members present (a NaN in a row: absent)."""
        rows = values.reshape(len(values), -1)
        # Absent domains have NaN in their own row and, in a square matrix, in everybody's column.
        columns = ~np.isnan(rows).all(axis=0)
        absent = np.full(len(rows), not columns.any()) | np.isnan(rows[:, columns]).any(axis=1)
        weight = np.where(absent, 0.0, self.ratio)
        sums = np.zeros((len(self.domains), rows.shape[1]))
        np.add.at(sums, self.of, np.where(absent[:, None], 0.0, rows) * weight[:, None])
        with np.errstate(invalid="ignore", divide="ignore"):
            averaged = sums / self._sum(weight)[:, None]
        return averaged.reshape(len(self.domains), *values.shape[1:])


class GroupedMethod(Method):
    """A method over groups that looks like one over the domains, so that a controller takes it.

    Example:
        >>> method = config.groups.method("odm")  # config: a mix.yaml with groups
        >>> controller = Controller(ledger, method, update_every=100)

    Guards of the controller act on the domains: a repetition cap that binds for one member lets go
    of the ratios in its group.

    Args:
        inner: Built for `groups.domains`.
        groups: The groups.
    """

    def __init__(self, inner: Method, groups: Groups) -> None:
        self.inner, self.groups = inner, groups
        for key in ("name", "family", "update_every", "cost", "paper", "version"):
            setattr(self, key, getattr(inner, key))
        needs = dict.fromkeys(inner.needs)
        if needs.keys() & {"grad_norm2", "grad_var"}:
            needs["grad_dot"] = None
        self.needs = tuple(needs)
        self.domains = tuple(groups.members)
        self._weights = groups.expand(inner.weights())

    @property
    def dynamic(self) -> bool:
        """Whether `update` changes anything."""
        return self.inner.dynamic

    def _update(self, signals: Signals) -> Floats:
        weights = self.inner.update(self.groups.signals(signals, self.inner.needs))
        self.silent = self.inner.silent
        return self.groups.expand(weights)

    def why(self) -> tuple[str, str]:
        """As the inner method's."""
        return self.inner.why()

    def state_dict(self) -> dict[str, Any]:
        """The inner method's state; the groups are the configuration's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the inner method's state; as `Method.load_state_dict`."""
        self.inner.load_state_dict(state)
        self._weights = self.groups.expand(self.inner.weights())


class Tree:
    """The entries of `domains` in a `mix.yaml`, groups among them, flattened.

    Args:
        check: Where problems go.
        entries: As they stand in the file.

    Attributes:
        leaves: (path in the file, entry) of each domain; names are full ones, `web/wiki`.
        nested: Whether there is any group.
        names: Of the outermost entries.
    """

    def __init__(self, check: Problems, entries: Sequence[object]) -> None:
        self.check = check
        self.leaves: list[tuple[str, object]] = []
        self.nested = False
        self._weights: dict[str, object] = {}  # path of each group -> its weight, as it stands
        self._above: list[tuple[str, ...]] = []  # of each leaf: groups it is in, outermost first
        self._tops: list[tuple[str, str]] = []  # path and name of the outermost entries
        self._groups: Groups | None = None
        for i, entry in enumerate(entries):
            path = f"domains[{i}]"
            self._tops.append((path, str(entry.get("name")) if isinstance(entry, dict) else "?"))
            self._flatten(path, entry, "", ())

    def _flatten(self, path: str, entry: object, prefix: str, above: tuple[str, ...]) -> None:
        name = entry.get("name") if isinstance(entry, dict) else None
        full = f"{prefix}{name}" if isinstance(name, str) and name else name
        if not isinstance(entry, dict) or "domains" not in entry:
            renamed = {**entry, "name": full} if isinstance(entry, dict) and prefix else entry
            self.leaves.append((path, renamed))
            self._above.append(above)
            return
        self.nested = True
        body = self.check.mapping(path, entry, GROUP_KEYS) or {}
        if full is None or self.check.call(f"{path}.name", _checks.text, full) == "":
            self.check.add(path, f"{path}.name is missing or empty: a group needs one")
        self._weights[path] = body.get("weight")
        for i, member in enumerate(self.check.sequence(f"{path}.domains", body["domains"])):
            self._flatten(f"{path}.domains[{i}]", member, f"{full}/", (*above, path))

    @property
    def names(self) -> list[str]:
        """Of the outermost entries."""
        return [name for _, name in self._tops]

    def tops(self, entries: Sequence[Entry]) -> list[Entry]:
        """The outermost entries with their weights, from those of all domains."""
        if not self.nested:
            return list(entries)
        leaves = {e.path: e for e in entries}
        weights = {e.path: e.weight for e in entries}
        made = []
        for path, name in self._tops:
            if path in leaves:
                made.append(leaves[path])
            elif path in self._weights:
                weight = self._weight(path, weights)
                made.append(Entry(path, Domain(name, None), None, weight, weight is not None))
        return made

    def _weight(self, path: str, leaves: Mapping[str, float | None]) -> float | None:
        if path not in self._weights:
            return leaves.get(path)
        value = self._weights[path]
        if value is None:
            return None
        number = self.check.call(f"{path}.weight", _checks._number, value)
        return 0.0 if number is None else number  # reported; not missing

    def groups(self, entries: Sequence[Entry], brought: bool = False) -> Groups | None:
        """The groups; None if there are none, or something in them is wrong (and reported).

        Args:
            entries: The domains, one a leaf.
            brought: The trainer brings domains of its own.
        """
        if self.nested and brought:
            rule = "groups need domains that are all in this file, but the trainer brings its own"
            self.check.add("domains", f"domains: {rule}")
        if self.nested and len(set(self.names)) < len(self._tops):
            twice = next(n for n in self.names if self.names.count(n) > 1)
            self.check.add("domains", f"domains: two of the outermost entries are named {twice!r}")
        members = [e.domain for e in entries if e.domain is not None]
        if not self.nested or self.check.found or len(members) != len(self.leaves):
            return None
        leaves = {e.path: e.weight for e in entries}
        below: dict[str, dict[str, int]] = {}  # group -> its members and their sizes, 0: no size
        for (leaf, _), d, above in zip(self.leaves, members, self._above, strict=True):
            for group, member in pairwise((*above, leaf)):
                sizes = below.setdefault(group, {})
                known = d.size or 0
                sizes[member] = sizes.get(member, 0) + known if known else 0
        inside = {group: self._ratios(group, sizes, leaves) for group, sizes in below.items()}
        if self.check.found:
            return None
        ratio, of = [], []
        tops = {path: i for i, (path, _) in enumerate(self._tops)}
        for (leaf, _), above in zip(self.leaves, self._above, strict=True):
            steps = pairwise((*above, leaf))
            ratio.append(math.prod(inside[group][member] for group, member in steps))
            of.append(tops[above[0] if above else leaf])
        self._groups = Groups(tuple(members), tuple(self.names), of, ratio)
        return self._groups

    def _ratios(
        self, group: str, sizes: Mapping[str, int], leaves: Mapping[str, float | None]
    ) -> dict[str, float]:
        """Member -> its fixed part of the group."""
        given = {m: self._weight(m, leaves) for m in sizes}
        missing = [m for m, w in given.items() if w is None]
        if missing and len(missing) < len(given):
            self.check.add(
                missing[0],
                f"{missing[0]}.weight is missing: give every member of a group one, or none",
            )
            return {}
        if missing:
            given = {m: float(n) for m, n in sizes.items()}
        total = math.fsum(w or 0.0 for w in given.values())
        if not 0 < total < math.inf or (missing and not all(given.values())):
            rule = (
                "every member needs a weight or a size" if missing else "must have a positive sum"
            )
            self.check.add(group, f"{group}: {rule}, got {shown(list(given.values()))}")
            return {}
        return {m: (w or 0.0) / total for m, w in given.items()}

    def expand(self, weights: Weights) -> Weights:
        """Weights of the outermost entries -> those of the domains; checked before."""
        return weights if self._groups is None else self._groups.expand(weights)


def method_of(config: "Config", domains: Sequence[Domain]) -> Method:
    """The method that a `mix.yaml` names: over its groups, or over these domains."""
    assert config.method is not None
    name, options = config.method.name, config.method.options
    if config.groups is not None:
        return config.groups.method(name, **options)
    return build(name, domains=domains, **options)
