"""Measures the data side of a Megatron run's start-up; prints rows, appends them to results.csv.

    python bench/megatron_startup.py [--only blend] [--repeats 3] [--no-write]

Stock Megatron (0.19.2) and the patched one take turns in one process. A blend of 2,048 domains and
10^7 samples, its parts apart:

`blend`: which domain and which of its samples comes when. Stock: `BlendedDataset._build_indices`,
with an empty cache and with a full one. Patched, in order balanced: settings, ledger, its copy for
another rank, sampler, dataset, and the first global batch.
`domains`: the datasets of the domains. Stock: with an empty cache and with a full one. Patched,
which has none: the reading of the sizes, then one epoch of each.
`whole`: all of `BlendedMegatronDatasetBuilder.build`.

`documents`: one domain of 10^7 documents, its document, sample and shuffle index. Stock: Megatron's
three functions, without what it writes into its cache; and its full cache. Patched:
`megatron_patch.orders.one_epoch_arrays`.

Documents have log-normal lengths; the `.bin` files are sparse. Three repeats take about three
minutes and 1 GB of disk.
"""

import argparse
import logging
import os
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "megatron_lm"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "megatron_lm" / "site"))

from megatron_runs import ENVIRONMENT, core

sys.path.insert(0, str(core("0.19.2")))

import cpu_shim

# Before Megatron is imported.
os.environ.update(ENVIRONMENT)
cpu_shim.install()
warnings.filterwarnings("ignore", module="megatron")

from megatron.core.datasets import blended_megatron_dataset_builder as builders  # noqa: E402
from megatron.core.datasets import gpt_dataset, helpers  # noqa: E402
from megatron.core.datasets.blended_dataset import BlendedDataset  # noqa: E402
from megatron.core.datasets.utils import Split  # noqa: E402
from run import compare, context, show, write  # noqa: E402

import megatron_patch  # noqa: E402
from megatron_patch import blend as patched_blend  # noqa: E402
from megatron_patch import datasets as patched_datasets  # noqa: E402
from megatron_patch import orders, plan, state  # noqa: E402
from mixcore import Ledger  # noqa: E402
from mixcore.cli.bench import weights_of  # noqa: E402

DOMAINS, SAMPLES, BATCH, SEED = 2048, 10_000_000, 512, 1234
MANY, SEQUENCE = 10_000_000, 4096  # documents of the one large domain, and its tokens a sample
NO_FLAGS = argparse.Namespace()


class Tokenizer:
    """What the configuration asks of one."""

    vocab_size, eod, eos, pad = 2**16 - 2, 2**16 - 3, 2**16 - 3, -1
    unique_identifiers = {"class": "Tokenizer"}  # noqa: RUF012 (of a class of the bench alone)
    special_tokens_dict: dict[str, int] = {}  # noqa: RUF012


def write_sparse(prefix: Path, documents: int, random: np.random.Generator) -> None:
    """A corpus of documents of log-normal length, 1,340 tokens in the mean; all tokens are 0."""
    lengths = np.maximum(random.lognormal(6.7, 1.0, documents), 1).astype(np.int32)
    ends = np.cumsum(lengths, dtype=np.int64) * 2  # uint16: code 8
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, documents, documents + 1))
        for part in (lengths, ends - 2 * lengths, np.arange(documents + 1)):
            index.write(part.tobytes())
    with open(f"{prefix}.bin", "wb") as tokens:
        tokens.truncate(int(ends[-1]))


def config_of(prefixes: list[str], weights: list[float] | None, length: int, cache: Path) -> Any:
    """Megatron's dataset configuration."""
    return gpt_dataset.GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=length,
        path_to_cache=str(cache),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        blend=(prefixes, weights),
        split="100,0,0",
    )


class Blend:
    """2,048 domains of 200 documents, read in samples of 64 tokens."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.cache = folder / "cache"
        prefixes = [folder / f"domain{d:04}" for d in range(DOMAINS)]
        for prefix in prefixes:
            write_sparse(prefix, 200, random)
        weights = [float(w) for w in weights_of(DOMAINS)]
        self.config = config_of([str(p) for p in prefixes], weights, 64, self.cache)
        self.builder = builders.BlendedMegatronDatasetBuilder(
            gpt_dataset.GPTDataset, [SAMPLES, 0, 0], lambda: True, self.config
        )
        self.request = patched_datasets._request(self.builder, BATCH)
        self.run = self.planned()

    def empty(self, kind: str = "Dataset") -> None:
        """Empty the cache, or the part of one kind of dataset."""
        for path in self.cache.glob(f"*{kind}*"):
            path.unlink()

    # Stock ---------------------------------------------------------------------------------------

    def stock(self) -> Any:
        """The whole of it."""
        state.end()
        return self.builder.build()

    def stock_domains(self) -> Any:
        """The domains' datasets."""
        state.end()
        targets = [[built.requested, 0, 0] for built in plan.built_by_megatron(self.request)]
        split = self.config.split_matrix
        return self.builder._build_megatron_datasets_parallel(
            self.request.prefixes, split, targets
        )[0]

    # Patched -------------------------------------------------------------------------------------

    def planned(self) -> state.Run:
        """Settings and ledger, which is handed to the other ranks as bytes."""
        settings = plan.settings_for(NO_FLAGS, self.request)
        data = plan.new_ledger(self.request, settings).to_bytes()
        return state.Run(self.request, settings, Ledger.from_bytes(data))

    def patched_blend(self) -> Any:
        """All but the domains' datasets, to the first global batch."""
        run = self.planned()
        readers = [orders.OneEpoch(corpus, object) for corpus in self.request.corpora]
        mixed = patched_blend.MixedDataset(run.ledger, readers, SAMPLES, Split.train, self.config)
        return mixed._sampler.picks(0, BATCH)

    def patched_domains(self) -> Any:
        """Sizes from the `.idx` files, then one epoch of each domain."""
        patched_datasets._request(self.builder, BATCH)
        return patched_blend._domains(self.builder, self.run, None)

    def patched(self) -> Any:
        """The whole of it."""
        megatron_patch.use(batch_size=BATCH)
        return self.builder.build()


def against(
    measure: str,
    domains: int | str,
    ours: Callable[[], Any],
    stock: Callable[[], Any],
    empty: Callable[[], None],
    repeats: int,
    must: float,
    aim: float,
) -> Iterator[dict[str, object]]:
    """One row against stock with an empty cache, one against a full one."""

    def cold() -> Any:
        empty()
        return stock()

    for baseline, function in (("stock, empty cache", cold), ("stock, full cache", stock)):
        yield compare(
            measure,
            domains,
            {"patched": ours, baseline: function},
            {"patched": 1, baseline: 1},
            repeats,
            must=must if function is cold else 0,
            aim=aim if function is cold else 0,
            unit="ms",
        )


def blend(repeats: int, made: Blend) -> Iterator[dict[str, object]]:
    """What the blend costs."""
    functions = {"patched": made.patched_blend}
    yield compare(
        "Megatron: blend", DOMAINS, functions, {"patched": 1}, repeats, must=50, aim=25, unit="ms"
    )
    datasets = made.stock_domains()
    stock = BlendedDataset(datasets, list(made.request.weights or ()), SAMPLES, made.config)
    yield from against(
        "Megatron: blend",
        DOMAINS,
        made.patched_blend,
        stock._build_indices,
        lambda: made.empty("BlendedDataset"),
        repeats,
        must=100,
        aim=1000,
    )


def domains(repeats: int, made: Blend) -> Iterator[dict[str, object]]:
    """What the domains' datasets cost."""
    yield from against(
        "Megatron: datasets of the domains",
        DOMAINS,
        made.patched_domains,
        made.stock_domains,
        lambda: made.empty("GPTDataset"),
        repeats,
        must=1,
        aim=3,
    )


def whole(repeats: int, made: Blend) -> Iterator[dict[str, object]]:
    """What a run waits for."""
    yield from against(
        "Megatron: all of build()",
        DOMAINS,
        made.patched,
        made.stock,
        made.empty,
        repeats,
        must=5,
        aim=10,
    )


def documents(repeats: int, folder: Path) -> Iterator[dict[str, object]]:
    """One domain of 10^7 documents."""
    prefix = folder / "documents"
    write_sparse(prefix, MANY, np.random.default_rng(0))
    config = config_of([str(prefix)], None, SEQUENCE, folder / "cache")
    dataset = gpt_dataset.GPTDataset(
        gpt_dataset.GPTDataset.build_low_level_dataset(str(prefix), config),
        str(prefix),
        np.arange(MANY, dtype=np.int32),
        None,
        Split.train,
        config,
    )

    def stock() -> Any:
        random = np.random.RandomState(SEED)
        tokens = dataset._get_num_tokens_per_epoch()
        order = gpt_dataset._build_document_index(dataset.indices, 1, random, False)
        lengths = dataset.dataset.sequence_lengths.copy()
        cuts = helpers.build_sample_idx(lengths, order, SEQUENCE, 1, tokens, True, 1)
        shuffled = gpt_dataset._build_shuffle_index(len(cuts) - 1, len(cuts) - 1, random)
        return order, cuts, shuffled

    for baseline, function, must in (
        ("stock, built", stock, 3),
        ("stock, full cache", dataset._build_document_sample_shuffle_indices, 0),
    ):
        yield compare(
            "Megatron: 10^7 documents",
            1,
            {
                "patched": lambda: orders.one_epoch_arrays(dataset, "documents", SEED),
                baseline: function,
            },
            {"patched": 1, baseline: 1},
            repeats,
            must=must,
            aim=must,
            unit="ms",
        )


OF_BLEND = {f.__name__: f for f in (blend, domains, whole)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = [*OF_BLEND, "documents"]
    parser.add_argument("--only", choices=parts, action="append", help="may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    about = context()
    about["versions"] = f"{about['versions']}, megatron-core 0.19.2"
    if float(str(about["load"])) > 0.7:
        print(f"warning: the machine is busy (load {about['load']})", file=sys.stderr)
    logging.disable(logging.WARNING)
    megatron_patch.apply(["dataset"])
    chosen = options.only or parts
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "documents" in chosen:
            for row in documents(options.repeats, folder):
                rows.append(about | row)
                show(row)
        made = Blend(folder) if set(chosen) & set(OF_BLEND) else None
        for part in (p for p in OF_BLEND if p in chosen):
            assert made is not None
            for row in OF_BLEND[part](options.repeats, made):
                rows.append(about | row)
                show(row)
    if not options.no_write:
        write(rows)


if __name__ == "__main__":
    main()
