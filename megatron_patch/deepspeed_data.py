"""The train split of a Megatron-DeepSpeed run, in the place of its BlendableDataset."""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_patch import blend, orders, state
from megatron_patch.blend import MixedDataset
from megatron_patch.request import ABSENT, Corpus, Request, domain_names, read_corpora
from megatron_patch.rows import arguments
from mixcore.errors import ArgumentError

_building = threading.local()


@dataclass(frozen=True)
class DeepSpeedRequest(Request):
    """A request by the rules of Megatron-DeepSpeed: dataset_utils.py, blendable_dataset.py."""

    def requested(self) -> list[int | None]:
        """`num_samples` of each corpus' dataset, as `get_datasets_weights_and_num_samples` has it.

        Without weights there is one corpus, and it is built to size.
        """
        if self.weights is None:
            return [self.train_samples]
        return [math.ceil(self.train_samples * w * (1 + self.surplus)) for w in self._normal()]

    def blended(self) -> npt.NDArray[np.float64] | None:
        """Divided by their sum twice: from left to right first, then as BlendableDataset does."""
        if self.weights is None:
            return None
        weights = np.array(self._normal(), dtype=np.float64)
        weights /= np.sum(weights)
        return weights

    def _normal(self) -> list[float]:
        weights = [float(w) for w in self.weights or ()]
        total = list(itertools.accumulate(weights))[-1]  # sum() rounds otherwise from Python 3.12
        return [w / total for w in weights]


def request_from(
    args: Any,
    batch_sizes: Sequence[tuple[int, int]] | None = None,
    moved: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Request:
    """Read Megatron-DeepSpeed's parsed arguments; those of a checkpoint will do.

    Args:
        args: After its own validation.
        batch_sizes: Where it is not `args.global_batch_size` all through.
        moved: Name of a domain -> prefix where its files are now.
        known: As for `domain_names`.

    Raises:
        ArgumentError: There is no blend, or its files cannot be read as one.
    """
    words, whole = args.data_path, False
    if not words:
        words, whole = args.train_data_path, True
    if not words:
        raise ArgumentError("the mixture needs --data-path or --train-data-path")
    prefixes, weights = blend_of(words)
    names = domain_names(prefixes, known)
    prefixes = [(moved or {}).get(n, p) for n, p in zip(names, prefixes, strict=True)]
    split = _sequences(None if whole else args.split)
    size = args.global_batch_size
    return DeepSpeedRequest(
        corpora=tuple(read_corpora(prefixes, split, args.seq_length, names)),
        weights=weights,
        split=(0.0, 1.0 if whole else _fractions(args.split)[0]),
        seq_length=args.seq_length,
        seed=args.seed,
        train_samples=args.train_samples or args.train_iters * size,
        batch_sizes=tuple(batch_sizes or ((0, size),)),
    )


def prefixes_from(args: Any) -> list[str]:
    """The prefixes of the train blend in Megatron-DeepSpeed's parsed arguments."""
    words = args.data_path or args.train_data_path
    return blend_of(words)[0] if words else []


def blend_of(words: Sequence[str]) -> tuple[list[str], tuple[float, ...] | None]:
    """Prefixes and weights of `--data-path`: one prefix, or weight and prefix in turn.

    Example:
        >>> blend_of(["0.7", "web", "0.3", "code"])
        (['web', 'code'], (0.7, 0.3))

    Raises:
        ArgumentError: It is neither.
    """
    if len(words) == 1:
        return [str(words[0])], None
    try:
        weights = tuple(float(w) for w in words[::2])
    except ValueError:
        weights = ()
    prefixes = [str(p).strip() for p in words[1::2]]
    if len(words) % 2 or not weights:
        raise ArgumentError(
            f"--data-path must be one prefix or weight and prefix in turn, got {list(words)}"
        )
    return prefixes, weights


def _fractions(split: str) -> list[float]:
    separator = "," if "," in split else "/"
    parts = [float(s) for s in split.split(separator)]
    parts = [*parts, 0.0, 0.0][:3]
    total = sum(parts)
    if total <= 0:
        raise ArgumentError(f"--split must have a positive sum, got {split!r}")
    return [p / total for p in parts]


def _sequences(split: str | None) -> Callable[[int], tuple[int, int]]:
    """The train split's sequences of so many: `get_train_valid_test_split_`; None: all."""
    if split is None:
        return lambda total: (0, total)
    fractions = _fractions(split)

    def sequences(total: int) -> tuple[int, int]:
        sizes = [round(f * float(total)) for f in fractions]
        return 0, sizes[0] - (sum(sizes) - total)  # it takes the rounding off every edge

    return sequences


def wrap_build_datasets(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `build_train_valid_test_datasets`: ours for the train split, its own for the rest."""

    @functools.wraps(original)
    def build_train_valid_test_datasets(*args: Any, **kwargs: Any) -> Any:
        run = state.current()
        if run is None:
            return original(*args, **kwargs)
        train = train_split(arguments(original, args, kwargs), run)
        with _without_train():
            _, valid, test = original(*args, **kwargs)
        return train, valid, test

    return build_train_valid_test_datasets


@contextmanager
def _without_train() -> Iterator[None]:
    """Train splits that this thread builds meanwhile are empty, and cost nothing."""
    _building.empty = True
    try:
        yield
    finally:
        _building.empty = False


def train_split(given: Mapping[str, Any], run: "state.Run") -> MixedDataset:
    """The train split that a call of `build_train_valid_test_datasets` asks for.

    Args:
        given: Its arguments by name.
        run: The run.

    Raises:
        ArgumentError: It is not the one that was planned.
    """
    from megatron.data import gpt_dataset

    whole = not given["data_prefix"]
    here, _ = blend_of(given["train_data_prefix"] if whole else given["data_prefix"])
    if here != run.request.prefixes:
        raise ArgumentError(
            f"the train blend to build is {here}, but the mixture was planned for "
            f"{run.request.prefixes}: one run has one train blend"
        )
    for name in ("seq_length", "seed"):
        if given[name] != getattr(run.request, name):
            raise ArgumentError(
                f"the dataset's {name} is {given[name]}, the mixture was planned for "
                f"{getattr(run.request, name)}"
            )
    sequences = _sequences(None if whole else given["splits_string"])

    def build(corpus: Corpus, samples: int | None = None) -> Any:
        indexed = gpt_dataset.get_indexed_dataset_(
            corpus.prefix, given["data_impl"], given["skip_warmup"]
        )
        return gpt_dataset.GPTDataset(
            "train",
            corpus.prefix,
            np.arange(*sequences(indexed.sizes.shape[0]), dtype=np.int32),
            indexed,
            given["splits_string"],
            samples,
            given["seq_length"],
            given["seed"],
            given["return_doc_ids"],
            data_cache_path=given["data_cache_path"],
        )

    pinned = None
    if run.ledger.order == "megatron":  # in their order on every rank: each has two all_reduces
        known = [(c, run.built(c.name)) for c in run.request.corpora]
        pinned = {c.name: build(c, built.requested) for c, built in known if built != ABSENT}
    domains = blend.readers(run, pinned, build, threads=1)
    size = run.request.train_samples
    return MixedDataset(run.ledger, domains, size, id_key="dataset_idx", id_type=np.uint8)


def wrap_index_mappings(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `_build_index_mappings`, from which a GPTDataset has its arrays."""

    @functools.wraps(original)
    def _build_index_mappings(*args: Any, **kwargs: Any) -> Any:
        given = arguments(original, args, kwargs)
        domain = orders.under_construction()
        if domain is not None:
            lengths, seq_length = given["sizes"], given["seq_length"]
            arrays = orders.epoch_arrays(given["documents"], lengths, seq_length, 1, *domain)
            return *arrays, f"one epoch of {domain[0]}", ""
        if given["name"] == "train" and getattr(_building, "empty", False):
            return None, np.zeros((1, 2), np.int32), None, "", ""
        return original(*args, **kwargs)

    return _build_index_mappings
