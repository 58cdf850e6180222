"""What `engine.deepspeed_io` takes: a torch Dataset, and a sampler of single samples."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from mixcore._checks import MAX_POSITION
from mixcore.dataset import MixDataset
from mixcore.trainers.mixer import Mixer


class EngineDataset(Dataset[dict[str, Any]]):
    """A MixDataset that DeepSpeed recognises as map-style."""

    def __init__(self, dataset: MixDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return MAX_POSITION  # it is indexed by keys, not by numbers; asked for, but of no use

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self._dataset[key]


class Samples:
    """This rank's samples one by one, for a loader that cuts micro-batches itself."""

    def __init__(self, mixer: Mixer, train_samples: int | None) -> None:
        self._mixer, self._end = mixer, train_samples

    def __len__(self) -> int:
        return MAX_POSITION if self._end is None else self._end // self._mixer.num_readers

    def __iter__(self) -> Iterator[Any]:
        for keys in self._mixer.micro_batches_left():
            yield from keys
