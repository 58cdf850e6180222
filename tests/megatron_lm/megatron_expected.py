"""What the patched runs must have fetched, worked out from their ledger and the corpus alone."""

import json
from pathlib import Path

import numpy as np

from mixcore import Ledger, Sampler
from mixcore.gpt_dataset import GPTDataset


def ledger_of(folder: Path) -> Ledger:
    """The ledger that rank 0 kept beside the checkpoints."""
    return Ledger.load(folder / "mixcore_ledger.json")


def check_nothing_lost(ledger: Ledger, samples: int) -> None:
    """At a batch boundary the draws of each domain are 0, 1, ..., n - 1."""
    picks = Sampler(ledger).picks(0, samples)
    for number in range(len(ledger.domains)):
        draws = picks.draw[picks.domain == number]
        assert sorted(draws.tolist()) == list(range(len(draws)))


def expected_balanced(ledger: Ledger, corpus, samples: int, sequence: int) -> np.ndarray:
    """[samples, sequence]: the tokens of each position, read without Megatron."""
    datasets = [
        GPTDataset(prefix, sequence, name=d.name, seed=ledger.seed, sample_shuffle=False)
        for d, prefix in zip(ledger.domains, corpus.prefixes, strict=True)
    ]
    picks = Sampler(ledger).picks(0, samples)
    rows = zip(picks.domain.tolist(), picks.sample.tolist(), strict=True)
    return np.stack([datasets[d][0, sample][:-1] for d, sample in rows])


class StockOrder:
    """A domain's samples in the order of stock Megatron, from its cache of index arrays."""

    def __init__(self, cache: Path, prefix: str, num_samples: int | None, sequence: int) -> None:
        for path in cache.glob("*-GPTDataset-train-description.txt"):
            description = json.loads(path.read_text())
            wanted = (description["dataset_path"], description["num_samples"])
            if wanted == (prefix, num_samples):
                break
        else:
            raise AssertionError(f"no arrays of {prefix} for {num_samples} samples in {cache}")
        name = str(path).removesuffix("description.txt")
        self.documents, self.starts, self.shuffle = (
            np.load(f"{name}{kind}_index.npy") for kind in ("document", "sample", "shuffle")
        )
        self.corpus = GPTDataset(prefix, sequence).corpus
        self.sequence = sequence

    def __len__(self) -> int:
        return len(self.shuffle)

    def __getitem__(self, draw: int) -> np.ndarray:
        cut = int(self.shuffle[draw])
        document, offset = self.starts[cut].tolist()
        tokens: list[int] = []
        while len(tokens) < self.sequence:
            tokens += self.corpus[int(self.documents[document])][offset:].tolist()
            document, offset = document + 1, 0
        return np.array(tokens[: self.sequence])
