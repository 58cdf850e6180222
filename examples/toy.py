"""What the trainer examples share: three made-up domains and a model of a few thousand numbers."""

import argparse

import numpy as np
from torch import Tensor, nn

import mixcore

LENGTH, VOCABULARY, BATCH = 32, 128, 32
# name -> samples, words it uses: the fewer, the easier to learn
DOMAINS = {"web": (4000, 8), "code": (800, 32), "math": (200, 128)}


def arguments() -> argparse.Namespace:
    """The options of every example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=60, help="where to end; more: goes on")
    parser.add_argument("--workers", type=int, default=2, help="of the loader; may change")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches; may change")
    return parser.parse_args()


def new_ledger() -> mixcore.Ledger:
    """The start of the run; a resumed one gets its decisions from the checkpoint."""
    domains = [mixcore.Domain(name, size) for name, (size, _) in DOMAINS.items()]
    return mixcore.Ledger(domains, [0.7, 0.2, 0.1], batch_size=BATCH, seed=1234)


def corpora() -> dict[str, np.ndarray]:
    """Arrays [samples, tokens]: a map-style dataset is all it takes."""
    return {
        name: np.random.default_rng(words).integers(0, words, (size, LENGTH))
        for name, (size, words) in DOMAINS.items()
    }


class Model(nn.Module):
    """Next-token logits from the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        """[samples, tokens] -> [samples, tokens, vocabulary]."""
        return self.layers(tokens)


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over all tokens of a micro-batch."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def report(ledger: mixcore.Ledger, position: int) -> None:
    """One line on what has happened, the same for every framework."""
    counts = mixcore.Sampler(ledger).counts(position)
    weights = ledger.weights_at(position - 1)
    mix = ", ".join(
        f"{d.name} {n} samples, weight {w:.3f}"
        for d, n, w in zip(ledger.domains, counts, weights, strict=True)
    )
    print(f"position {position}, {ledger.num_decisions} decisions, {ledger.digest[:8]}: {mix}")
