"""What a Megatron command line asks for: which corpora, how much of each, in what batches.

The rules are Megatron's: blended_megatron_dataset_builder.py (sizes and splits), gpt_dataset.py
(samples and epochs), num_microbatches_calculator.py (batch sizes).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError, MixcoreError
from mixcore.indexed import IndexedReader

SURPLUS = 0.005  # Megatron's default of mid_level_dataset_surplus


@dataclass(frozen=True)
class Corpus:
    """The part of one `.bin/.idx` pair that training reads.

    Attributes:
        prefix: As on the command line.
        name: Of its domain: the last part of the prefix, or more of it where that is not unique.
        tokens: In the train split.
        samples: Of `seq_length` tokens, in one epoch of the train split.
    """

    prefix: str
    name: str
    tokens: int
    samples: int


@dataclass(frozen=True)
class Request:
    """The train split of a run as a command line (or a checkpoint's saved one) asks for it.

    Attributes:
        corpora: In their order.
        weights: As given, one a corpus; None: in proportion to the sizes.
        split: Where the train split begins and ends, as fractions of the sequences.
        seq_length: Tokens a sample.
        seed: Of Megatron's shuffles, and ours.
        train_samples: Length of the run.
        batch_sizes: (first position, samples a step), ascending; the first is at 0.
        surplus: `mid_level_dataset_surplus`.
    """

    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...] | None
    split: tuple[float, float]
    seq_length: int
    seed: int
    train_samples: int
    batch_sizes: tuple[tuple[int, int], ...]
    surplus: float = SURPLUS

    @property
    def names(self) -> list[str]:
        """Names of the domains."""
        return [c.name for c in self.corpora]

    @property
    def prefixes(self) -> list[str]:
        """Of the corpora, in their order."""
        return [c.prefix for c in self.corpora]

    def requested(self) -> list[int | None]:
        """`num_samples` of each corpus' dataset; None: one epoch.

        As stock Megatron computes it in `_get_size_per_split_per_dataset`.
        """
        if self.weights is None:
            alone = len(self.corpora) == 1  # a single prefix is no blend: built to size
            return [self.train_samples if alone else None] * len(self.corpora)
        weights = np.array(self.weights, dtype=np.float64)
        normal = (weights / np.sum(weights)).tolist()
        targets = [math.ceil(self.train_samples * w) for w in normal]
        return [math.ceil(t * (1 + self.surplus)) for t in targets]

    def blended(self) -> npt.NDArray[np.float64] | None:
        """The weights that the trainer's blend decides by; None: the ledger comes to the same."""
        return None


def request_from(
    args: Any,
    batch_sizes: Sequence[tuple[int, int]] | None = None,
    moved: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Request:
    """Read Megatron's parsed arguments; those of a checkpoint will do.

    Args:
        args: After Megatron's own validation.
        batch_sizes: Where it is not `args.global_batch_size` all through.
        moved: Where the files of a domain lie now, by name; those of others are where they were.
        known: As for `domain_names`.

    Raises:
        ArgumentError: There is no blend, or its files cannot be read as one.
    """
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )
    from megatron.training.utils import get_blend_and_blend_per_split

    blend, per_split = get_blend_and_blend_per_split(args)
    split = None
    if blend is not None:
        split = convert_split_vector_to_split_matrix(parse_and_normalize_split(args.split))[0]
    size = args.global_batch_size
    return request_for(
        blend,
        per_split,
        split,
        seq_length=args.seq_length,
        seed=args.seed,
        train_samples=args.train_samples or args.train_iters * size,
        batch_sizes=tuple(batch_sizes or ((0, size),)),
        surplus=getattr(args, "mid_level_dataset_surplus", None) or SURPLUS,
        moved=moved,
        known=known,
    )


def prefixes_from(args: Any) -> list[str]:
    """The prefixes of the train blend in Megatron's parsed arguments; nothing is opened."""
    from megatron.training.utils import get_blend_and_blend_per_split

    blend, per_split = get_blend_and_blend_per_split(args)
    found = blend or (per_split[0] if per_split else None)
    return [] if found is None else [str(p) for p in found[0]]


def request_for(
    blend: Any,
    per_split: Any,
    split: tuple[float, float] | None,
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    batch_sizes: tuple[tuple[int, int], ...],
    surplus: float,
    moved: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Request:
    """The request of a blend as Megatron's dataset configuration holds it.

    Args:
        blend: (prefixes, weights or None) of all splits, or None.
        per_split: The same for train, valid and test; looked at where there is no `blend`.
        split: Of the train split in `blend`.
        seq_length: As in Request, like the others.
        seed: Of the run.
        train_samples: Of the train split.
        batch_sizes: (first position, samples a step).
        surplus: Of the mid-level datasets.
        moved: As for `request_from`.
        known: Likewise.
    """
    if blend is None:
        blend = None if per_split is None else per_split[0]
        alone = blend is not None and len(blend[0]) == 1
        if alone:  # as Megatron: one corpus is no blend there, whatever its weight
            blend = (blend[0], None)
        split = (0.0, 1.0)
    if blend is None:
        raise ArgumentError("the mixture needs --data-path, --train-data-path or their files")
    if split is None:
        raise ArgumentError("--split must leave something to train on")
    prefixes, weights = blend
    names = domain_names(prefixes, known)
    moved = moved or {}
    prefixes = [moved.get(n, prefix) for n, prefix in zip(names, prefixes, strict=True)]
    return Request(
        corpora=tuple(read_corpora(prefixes, split, seq_length, names)),
        weights=None if weights is None else tuple(float(w) for w in weights),
        split=(float(split[0]), float(split[1])),
        seq_length=seq_length,
        seed=seed,
        train_samples=train_samples,
        batch_sizes=batch_sizes,
        surplus=surplus,
    )


def _range(split: tuple[float, float]) -> Callable[[int], tuple[int, int]]:
    def sequences(total: int) -> tuple[int, int]:
        begin, end = (round(edge * float(total)) for edge in split)
        return begin, end

    return sequences


def read_corpora(
    prefixes: Sequence[str],
    split: tuple[float, float] | Callable[[int], tuple[int, int]],
    seq_length: int,
    names: Sequence[str] | None = None,
) -> list[Corpus]:
    """Count tokens and samples of the train split, from the `.idx` files.

    Args:
        prefixes: Of the files.
        split: Where it begins and ends, as fractions of the sequences; or a function from their
            number to the first one and the end.
        seq_length: Tokens a sample.
        names: Of the domains; `domain_names` if not given.

    Raises:
        ArgumentError: A file is missing or damaged, or the split does not hold one sample.
    """
    return [
        _corpus(prefix, name, split if callable(split) else _range(split), seq_length)
        for prefix, name in zip(prefixes, names or domain_names(prefixes), strict=True)
    ]


def _corpus(
    prefix: str, name: str, sequences: Callable[[int], tuple[int, int]], seq_length: int
) -> Corpus:
    try:
        reader = IndexedReader(prefix, verify=False)
    except (MixcoreError, OSError) as e:
        raise ArgumentError(f"--data-path: {prefix}: {e}") from None
    begin, end = sequences(len(reader))
    tokens = reader.num_tokens
    if (begin, end) != (0, len(reader)):
        tokens = int(np.sum(reader.sequence_lengths[begin:end], dtype=np.int64))
    samples = (tokens - 1) // seq_length
    if samples < 1:
        raise ArgumentError(
            f"--data-path: {prefix}: the train split has {tokens} tokens ({end - begin} of "
            f"{len(reader)} sequences), not one sample of --seq-length {seq_length} + 1"
        )
    return Corpus(str(prefix), name, tokens, samples)


def domain_names(prefixes: Sequence[str], known: Mapping[str, str] | None = None) -> list[str]:
    """Unique names, short where they can be; a prefix that has a name already keeps it.

    Example:
        >>> domain_names(["data/web_text_document", "a/code", "b/code", "b/code"])
        ['web_text_document', 'a/code', 'b/code', 'b/code#2']
        >>> domain_names(["a/code", "b/code"], known={"code": "a/code"})
        ['code', 'b/code']

    Args:
        prefixes: Of the command line.
        known: Name -> prefix of the domains that the run has had so far. Without it a domain would
            become another one as soon as one of the same last part is added or left out.
    """
    words = [str(p) for p in prefixes]
    had: dict[str, list[str]] = {}
    for name, prefix in (known or {}).items():
        had.setdefault(prefix, []).append(name)
    names = [had[word].pop(0) if had.get(word) else None for word in words]
    last = [word.rstrip("/").rpartition("/")[2] for word in words]
    times = Counter(last)
    taken = {name for name in names if name is not None}
    for place, (word, short) in enumerate(zip(words, last, strict=True)):
        if names[place] is None:
            name = base = short if times[short] == 1 and short not in taken else word
            number = 1
            while name in taken:
                number += 1
                name = f"{base}#{number}"
            names[place] = name
            taken.add(name)
    return [name for name in names if name is not None]


@dataclass(frozen=True)
class Built:
    """How Megatron built a domain's order when the run began; the order depends on all of it.

    Attributes:
        requested: `num_samples` of its GPTDataset; None: one epoch.
        epochs: What that came to.
        samples: What that came to; the draws below this one follow Megatron's arrays.
    """

    requested: int | None
    epochs: int
    samples: int


ABSENT = Built(None, 0, 0)  # the domain came later: all its epochs are our own


def built_by_megatron(request: Request) -> list[Built]:
    """The sizes that the stock trainer builds for a blend."""
    return [
        _built(corpus, size, request.seq_length)
        for corpus, size in zip(request.corpora, request.requested(), strict=True)
    ]


def _built(corpus: Corpus, requested: int | None, seq_length: int) -> Built:
    epochs = 1
    if requested is not None:
        epochs = max(1, -(-(requested * seq_length + 1) // corpus.tokens))
    return Built(requested, epochs, (epochs * corpus.tokens - 1) // seq_length)
