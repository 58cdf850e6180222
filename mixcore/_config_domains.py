"""The entries of `domains` in a configuration, checked one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixcore import _checks
from mixcore._checks import MAX_POSITION
from mixcore._problems import Problems, closest, shown, whole_number
from mixcore.domains import Domain
from mixcore.errors import ArgumentError, MixcoreError

KEYS = ("name", "path", "size", "weight", "max_epochs")


@dataclass(frozen=True)
class KnownDomain:
    """A domain that the trainer has already.

    Attributes:
        name: Unique.
        size: Samples per epoch; None for an open-ended one.
        weight: The trainer's own, if it has one; a configuration's weight wins.
    """

    name: str
    size: int | None
    weight: float | None = None


@dataclass(frozen=True)
class Entry:
    """A domain of the run.

    Attributes:
        path: Of its entry (`domains[2]`), for messages.
        domain: None if something is wrong with it.
        prefix: Of its files, or None.
        weight: As given, or None.
        chosen: The weight was given in the configuration, not by the trainer.
    """

    path: str
    domain: Domain | None
    prefix: Path | None
    weight: float | None
    chosen: bool


class Domains:
    """Collects domains from their entries.

    Args:
        check: Gets the problems.
        folder: What paths are relative to.
        tokens: Tokens a sample, or None.
        order: Of the ledger.
        known: Those of the trainer: entries refer to them by name, and the result has all of them,
            in this order. None: the entries are all there is.
    """

    def __init__(
        self,
        check: Problems,
        folder: Path,
        tokens: int | None,
        order: str | None,
        known: Sequence[KnownDomain] | None = None,
    ) -> None:
        self.check, self.folder, self.tokens, self.order = check, folder, tokens, order
        self._entries: list[Entry] = []
        self._named: dict[str, Entry] = {}
        self._first: dict[str, str] = {}  # name -> path of the entry that has it
        self._known = None if known is None else {d.name: d for d in known}

    @property
    def names(self) -> list[str] | None:
        """All names, or None if one is wrong."""
        if self._known is not None:
            return list(self._known)
        names = list(self._first)
        return names if names and len(names) == len(self._entries) else None

    def entries(self) -> list[Entry]:
        """All of the run's domains, in order."""
        if self._known is None:
            return self._entries
        return [self._named.get(name) or self._unsaid(name) for name in self._known]

    def add(self, path: str, entry: object) -> None:
        """Check one entry."""
        body = self.check.mapping(path, entry, KEYS)
        if body is None:
            self._entries.append(Entry(path, None, None, None, False))
            return
        name = self._name(path, body)
        prefix = size = None
        if body.get("path") is not None:
            prefix, size = self._files(f"{path}.path", body["path"])
            if size is not None and body.get("size") not in (None, size):
                self.check.add(
                    f"{path}.size",
                    f"{path}.size contradicts {path}.path: {prefix} has {size} samples of "
                    f"{self.tokens} tokens, got {shown(body['size'])}",
                )
        elif "size" not in body and self._known is None:
            self.check.add(path, f"{path} needs a size or a path (size: null is open-ended)")
        elif body.get("size") is not None:
            size = self.check.call(f"{path}.size", whole_number, body["size"], 1, MAX_POSITION)
        epochs, weight = body.get("max_epochs"), body.get("weight")
        if epochs is not None and self.order == "megatron":
            self.check.add(
                f"{path}.max_epochs",
                f"{path}.max_epochs is {epochs}, but order 'megatron' has no caps",
            )
        chosen = weight is not None
        if chosen:
            weight = self.check.call(f"{path}.weight", _checks._number, weight)
            weight = 0.0 if weight is None else weight  # reported; not missing
        known = self._known.get(name) if self._known is not None and name is not None else None
        if known is not None:
            self._agree(path, body, size, known)
            size = known.size
            weight = weight if chosen else known.weight
        elif size is None and (body.get("path") is not None or body.get("size") is not None):
            size = MAX_POSITION  # reported; what is left can still be checked
        domain = self.check.call(f"{path}.max_epochs", _domain, name or "?", size, epochs)
        made = Entry(path, domain, prefix, weight, chosen)
        self._entries.append(made)
        if name is not None:
            self._named[name] = made

    def _agree(self, path: str, body: dict[str, Any], size: int | None, known: KnownDomain) -> None:
        """Report a size that is not the trainer's."""
        key = "path" if body.get("path") is not None else "size"
        wrong = key in body and body[key] is not None and size is None  # reported already
        if key in body and not wrong and size != known.size:
            self.check.add(
                f"{path}.{key}",
                f"{path}.{key} gives domain {known.name!r} {size} samples an epoch, the trainer "
                f"has {known.size}",
            )

    def _unsaid(self, name: str) -> Entry:
        """A domain of the trainer that no entry speaks of."""
        assert self._known is not None
        known = self._known[name]
        domain = self.check.call("domains", _domain, name, known.size, None)
        return Entry(f"domains[{name!r}]", domain, None, known.weight, False)

    def _name(self, path: str, body: dict[str, Any]) -> str | None:
        if "name" not in body:
            self.check.add(path, f"{path}.name is missing")
            return None
        name = self.check.call(f"{path}.name", _checks.text, body["name"])
        if name == "":
            self.check.add(f"{path}.name", f"{path}.name must not be empty, got ''")
        elif name is not None and name in self._first:
            self.check.add(
                f"{path}.name", f"{path}.name is {name!r}, as is that of {self._first[name]}"
            )
        elif name is not None and self._known is not None and name not in self._known:
            self.check.add(
                f"{path}.name",
                f"{path}.name is {name!r}, a domain that the trainer does not have"
                f"{closest(name, list(self._known))}; it has: {', '.join(self._known)}",
            )
        elif name is not None:
            self._first[name] = path
            return name
        return None

    def _files(self, path: str, value: object) -> tuple[Path | None, int | None]:
        """The prefix and the number of samples of the files there."""
        if not isinstance(value, str) or not value:
            self.check.add(path, f"{path} must be the prefix of two files, got {shown(value)}")
            return None, None
        prefix = self.folder / value
        if self.tokens is None:
            self.check.add(path, f"{path} needs tokens_per_sample, the length of a sample")
            return prefix, None
        from mixcore.views import num_samples  # configurations without files need none of it

        return prefix, self.check.call(path, num_samples, prefix, self.tokens)


def _domain(path: str, name: str, size: int | None, max_epochs: Any) -> Domain:
    """A Domain; what it says of its max_epochs is said of the path."""
    try:
        return Domain(name, size, max_epochs)
    except MixcoreError as e:
        raise ArgumentError(str(e).replace(f"max_epochs of domain {name!r}", path)) from None
