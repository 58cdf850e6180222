"""Train a byte-level BPE on the gathered text and write each domain as Megatron's .bin/.idx.

    >>> encoded = tokenise(gathered, Path("demo-out/tokens"), vocab=2048)
    >>> encoded["python"]
    764193

Every document ends with <|endoftext|>. The tokenizer sees the same number of bytes of every domain,
so that the small ones get their merges too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from corpus import Gathered
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixcore.indexed_writer import IndexedWriter, token_dtype

END = "<|endoftext|>"
BYTES_PER_DOMAIN = 200_000  # what the tokenizer is trained on


def train_tokenizer(domains: list[Gathered], vocab: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab` entries on an equal part of every domain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(equal_parts(domains), trainer)
    return tokenizer


def equal_parts(domains: list[Gathered]) -> Iterator[str]:
    """Yield each domain's first documents, up to the same number of bytes."""
    for domain in domains:
        left = BYTES_PER_DOMAIN
        for text in domain.documents:
            if left <= 0:
                break
            left -= len(text.encode())
            yield text


def tokenise(
    domains: list[Gathered],
    folder: Path,
    vocab: int,
    on_done: Callable[[str, int], None] = lambda name, tokens: None,
) -> dict[str, int]:
    """Write `folder`/<domain>.bin and .idx for every domain; return tokens by domain."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(domains, vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    dtype = token_dtype(vocab)
    written = {}
    for domain in domains:
        encoded = tokenizer.encode_batch_fast(domain.documents)
        with IndexedWriter(folder / domain.name, dtype, overwrite=True) as writer:
            for document in encoded:
                writer.add_document(np.asarray([*document.ids, end], dtype))
        written[domain.name] = sum(len(document.ids) + 1 for document in encoded)
        on_done(domain.name, written[domain.name])
    return written
