"""A map-style dataset over all domains, indexed by a `MixBatchSampler`'s keys. Needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.ledger import Ledger

_OURS = ("position", "domain", "draw", "epoch", "sample")


class MixDataset:
    """Samples of all domains, each with the number of its domain.

    Example:
        >>> dataset = MixDataset(ledger, {"web": web, "code": code})
        >>> loader = DataLoader(dataset, batch_sampler=MixBatchSampler(ledger, 4), num_workers=2)
        >>> batch = next(iter(loader))
        >>> batch["tokens"].shape, batch["domain"].shape
        (torch.Size([4, 1025]), torch.Size([4]))

    A domain's dataset is anything with `__getitem__` and `__len__`. It is asked `dataset[sample]`,
    or, if it has a true attribute `takes_epoch`, `dataset[epoch, sample]`. If it answers with a
    mapping, its entries are kept; anything else becomes the entry "tokens".

    Args:
        ledger: Whose domains these are; their sizes must be the datasets' lengths.
        datasets: One a domain, by name or in the order of the ledger's domains. A dataset of an
            open-ended domain (size None) needs no length.

    Raises:
        ValueError, TypeError: Datasets are missing, unknown, or of another length.
    """

    def __init__(self, ledger: Ledger, datasets: Mapping[str, Any] | Sequence[Any]) -> None:
        if not isinstance(ledger, Ledger):
            raise ArgumentTypeError(f"ledger must be a mixcore.Ledger, got {ledger!r}")
        names = [d.name for d in ledger.domains]
        if isinstance(datasets, Mapping):
            unknown = [name for name in datasets if name not in names]
            missing = [name for name in names if name not in datasets]
            if unknown:
                raise ArgumentError(f"datasets has unknown domains {unknown}; known: {names}")
            if missing:
                raise ArgumentError(f"datasets must have every domain; missing: {missing}")
            ordered = [datasets[name] for name in names]
        elif isinstance(datasets, Sequence) and not isinstance(datasets, (str, bytes)):
            if len(datasets) != len(names):
                raise ArgumentError(
                    f"datasets must have one entry a domain ({len(names)}), got {len(datasets)}"
                )
            ordered = list(datasets)
        else:
            raise ArgumentTypeError(f"datasets must be a mapping or a sequence, got {datasets!r}")
        self._ledger: Ledger | None = ledger
        self._datasets: dict[int, tuple[str, Any]] = {}
        for number, (domain, dataset) in enumerate(zip(ledger.domains, ordered, strict=True)):
            self._datasets[number] = (domain.name, _checked(domain, dataset))

    def add(self, name: str, dataset: Any) -> None:
        """Add the dataset of a domain that `ledger.append(..., add=[...])` has brought.

        Workers that run already do not get it: a DataLoader with workers must be iterated anew
        (and built anew if they are persistent), after `MixBatchSampler.seek(consumed)`, before it
        fetches the first position at which the domain may be drawn.

        Raises:
            ValueError, TypeError: The ledger has no such domain, it has a dataset already, or the
                length is another.
        """
        if self._ledger is None:
            raise ArgumentError(f"name must be added where the ledger is, got {name!r} in a copy")
        for number, domain in enumerate(self._ledger.domains):
            if domain.name != name:
                continue
            if number in self._datasets:
                raise ArgumentError(f"name must be new, got {name!r}: it has a dataset already")
            self._datasets[number] = (name, _checked(domain, dataset))
            return
        known = [d.name for d in self._ledger.domains]
        raise ArgumentError(f"name must be a domain of the ledger, got {name!r}; known: {known}")

    def __getitem__(self, key: tuple[int, int, int, int, int]) -> dict[str, Any]:
        """One sample: its entries, and position, domain, draw, epoch and sample as ints."""
        if not isinstance(key, tuple) or len(key) != len(_OURS):
            raise ArgumentTypeError(
                f"key must be a mixcore.batches.Key, got {key!r}: use this dataset with "
                f"DataLoader(batch_sampler=MixBatchSampler(...))"
            )
        _, number, _, epoch, sample = key
        if number not in self._datasets:
            known = {n: name for n, (name, _) in self._datasets.items()}
            raise ArgumentError(
                f"key has domain {number}, which is not among this dataset's: {known}. Give it one "
                f"with MixDataset.add, then iterate the DataLoader anew (build it anew if its "
                f"workers are persistent): workers that run already keep the datasets they began "
                f"with"
            )
        name, dataset = self._datasets[number]
        try:
            if getattr(dataset, "takes_epoch", False):
                found = dataset[epoch, sample]
            else:
                found = dataset[sample]
        except Exception as e:
            e.add_note(f"while reading sample {sample} of domain {name!r} in epoch {epoch}")
            raise
        entries = dict(found) if isinstance(found, Mapping) else {"tokens": found}
        for field, value in zip(_OURS, key, strict=True):
            if field in entries:
                raise ArgumentError(f"samples of domain {name!r} must not have an entry {field!r}")
            entries[field] = value
        return entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ledger": None}  # workers need none, and it may be large


def _checked(domain: Domain, dataset: Any) -> Any:
    """The dataset, if it can be read and is as long as the ledger says."""
    if not hasattr(dataset, "__getitem__"):
        raise ArgumentTypeError(f"datasets[{domain.name!r}] cannot be indexed, got {dataset!r}")
    if domain.size is None:
        return dataset
    if not hasattr(dataset, "__len__"):
        raise ArgumentTypeError(f"datasets[{domain.name!r}] has no length, got {dataset!r}")
    if len(dataset) != domain.size:
        raise ArgumentError(
            f"datasets[{domain.name!r}] must have the {domain.size} samples that the ledger says, "
            f"got {len(dataset)}"
        )
    return dataset
