"""The DataLoader of a `Mixer`, for frameworks that make or prepare loaders themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixcore._checks import MAX_BATCH, integer
from mixcore.batches import Key
from mixcore.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from mixcore.trainers.mixer import Mixer

OURS = Key._fields  # the entries of a batch that come from the sampler, not from the datasets
_SAID = ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class Batches:
    """A batch sampler that begins where its mixer's run stands, each time anew.

    Args:
        mixer: Bound.
        micro_batch_size, rank: Of the mixer's trainer.
        views: How many ranks' micro-batches to hand out in turn, to a framework that picks every
            `views`-th by itself; the others' are stand-ins that hold no sample.

    Attributes:
        batch_size: Of a micro-batch.
        drop_last: True: there are no others.
    """

    drop_last = True

    def __init__(self, mixer: "Mixer", micro_batch_size: int, rank: int, views: int) -> None:
        self._mixer, self._views = mixer, integer("views", views, 1, MAX_BATCH)
        self._own = rank % views
        self.batch_size = micro_batch_size

    def belongs_to(self, mixer: "Mixer") -> bool:
        """Whether it hands out this mixer's samples."""
        return self._mixer is mixer

    def __iter__(self) -> Iterator[list[Any]]:
        others = ["a sample of another rank"] * self.batch_size
        for keys in self._mixer.micro_batches_left():
            for view in range(self._views):
                yield keys if view == self._own else others


class Collate:
    """Collates what the datasets gave as `inner` does, and what the sampler gave as tensors.

    Args:
        inner: For a list of the datasets' samples, one mapping each; None: torch's default.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of samples.

        Raises:
            TypeError: `inner` made something else than a mapping.
        """
        import torch
        from torch.utils.data import default_collate

        made = (self.inner or default_collate)(
            [{k: v for k, v in s.items() if k not in OURS} for s in samples]
        )
        if not isinstance(made, Mapping):
            raise ArgumentTypeError(f"collate_fn must return a mapping, got {made!r}")
        return {**made, **{name: torch.tensor([s[name] for s in samples]) for name in OURS}}


def make_loader(dataset: Any, batches: Batches, collate_fn: Any, options: dict[str, Any]) -> Any:
    """A DataLoader over a batch sampler of ours; see `Mixer.loader`."""
    from torch import Generator
    from torch.utils.data import DataLoader

    for name in _SAID:
        if name in options:
            raise ArgumentError(f"{name} must not be given, the mixer says what is read")
    if options.get("in_order", True) is not True:
        raise ArgumentError(f"in_order must be True, got {options['in_order']!r}")
    # A generator of its own: else every new iterator would take a number from the one that decides
    # dropout, and a resumed run would not equal an uninterrupted one.
    options.setdefault("generator", Generator())
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=Collate(collate_fn),
        **options,
    )
