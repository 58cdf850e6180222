"""Lightning: a data module that reads the mixture and a callback that steers it.

Lightning (2.6, src/lightning/pytorch/loops/) reads one batch ahead of a loader without a length,
restores a data module and callbacks before it asks for the loader, and would replace the sampler of
a distributed run by its own unless use_distributed_sampler=False.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixcore.errors import ArgumentError, LedgerError
from mixcore.trainers.loader import Batches
from mixcore.trainers.mixer import Mixer


def _package() -> Any:
    """The one of Lightning's two packages that the program uses; their classes do not mix."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        names.reverse()
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is not None and e.name.partition(".")[0] != name.partition(".")[0]:
                raise
    raise ImportError(
        "mixcore.trainers.lightning needs lightning: pip install 'mixcore[lightning]'"
    )


if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = _package()


class MixDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """Gives a Trainer this rank's micro-batches; goes with a `MixCallback` of the same mixer.

    Example:
        >>> trainer = pl.Trainer(max_steps=1000, accumulate_grad_batches=2,
        ...                      use_distributed_sampler=False, callbacks=[MixCallback(mixer)])
        >>> trainer.fit(model, datamodule=MixDataModule(mixer, micro_batch_size=4))

    Ranks, accumulation and the end (`max_steps`) are read from the Trainer. For validation,
    override `val_dataloader` or give `trainer.fit` other loaders.

    Args:
        mixer: Not yet in use elsewhere.
        micro_batch_size: Samples of one rank at a time.
        num_workers: Of the loader.
        prefetch_factor: Of each of them.
        options: More of DataLoader's, such as collate_fn and pin_memory.
    """

    def __init__(
        self,
        mixer: Mixer,
        micro_batch_size: int,
        *,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self._settings: dict[str, Any] = {
            "micro_batch_size": micro_batch_size,
            "num_workers": num_workers,
            "prefetch_factor": prefetch_factor,
        }
        self._options = options

    def setup(self, stage: str) -> None:
        """Read the Trainer's settings.

        Raises:
            ValueError: A setting with which samples would be repeated, lost or counted wrongly,
                named with its value.
        """
        trainer = self.trainer
        if stage != "fit" or self.mixer.bound:
            return
        rank, world_size = _place(trainer)
        self.mixer.bind(
            **self._settings,
            micro_batches=trainer.accumulate_grad_batches,
            rank=rank,
            world_size=world_size,
            max_steps=None if trainer.max_steps < 0 else trainer.max_steps,
        )

    def train_dataloader(self) -> Any:
        """The mixer's loader, from where the run stands."""
        return self.mixer.loader(**self._options)


class MixCallback(pl.Callback):  # type: ignore[misc]
    """Hands what each micro-batch showed to the mixer, ends its steps, and keeps its state.

    The module's `training_step` returns a dict: "loss", and for the method "loss_sums" and
    "tokens", one entry a sample (`mixcore.trainers.losses.sample_losses` makes them from logits).
    The state is in the checkpoint's "callbacks". A checkpoint between the micro-batches of a step
    holds no gradients: a run that is resumed from it does that step again from its beginning.

    Args:
        mixer: The data module's.
    """

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer
        self._stepped = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a loader that is not the mixer's, and a checkpoint of another step."""
        sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
        if not isinstance(sampler, Batches) or not sampler.belongs_to(self.mixer):
            raise ArgumentError(
                f"the Trainer reads from {type(sampler).__name__}, not from this mixer: give it "
                f"datamodule=MixDataModule(mixer, ...) and use_distributed_sampler=False"
            )
        if trainer.global_step != self.mixer.steps:
            raise LedgerError(
                f"the Trainer is at step {trainer.global_step}, the mixture at step "
                f"{self.mixer.steps} (position {self.mixer.position}): they are of different "
                f"checkpoints, or the module steps more than one optimizer"
            )
        self._stepped = trainer.global_step

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let Lightning, too, begin a step with the first of its micro-batches.

        It steps where its count of batches is a multiple of accumulate_grad_batches. A resumed run
        may accumulate more or less than the saved one, or be resumed from within a step.
        """
        if trainer.accumulate_grad_batches != self.mixer.micro_batches:
            raise ArgumentError(
                f"accumulate_grad_batches must stay {self.mixer.micro_batches}, got "
                f"{trainer.accumulate_grad_batches}"
            )
        if not self.mixer.observed:
            count = trainer.fit_loop.epoch_loop.batch_progress.current
            beyond = (count.ready - 1) % self.mixer.micro_batches
            for name in ("ready", "started", "processed", "completed"):
                setattr(count, name, getattr(count, name) - beyond)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Observe; decide, where the optimizer has stepped and an update is due."""
        found = outputs if isinstance(outputs, Mapping) else {}
        if self.mixer.controller is not None and not {"loss_sums", "tokens"} <= found.keys():
            raise ArgumentError(
                f"training_step must return a dict with loss, loss_sums and tokens, got "
                f"{sorted(found) if found else type(outputs).__name__}"
            )
        self.mixer.observe(batch, found.get("loss_sums"), found.get("tokens"))
        if trainer.global_step != self._stepped:
            self._stepped = trainer.global_step
            self.mixer.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop where the run has no more samples; else Lightning begins empty epochs for ever."""
        if self.mixer.at_end:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The mixer's; all ranks call it together."""
        return self.mixer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand the mixer its state; Lightning does so before it asks for the loader."""
        self.mixer.load_state_dict(state_dict)


def _place(trainer: Any) -> tuple[int, int]:
    """This process's rank among those that share a batch, and how many they are."""
    world_size = trainer.world_size
    if world_size == 1:
        return 0, 1
    if getattr(trainer._accelerator_connector, "use_distributed_sampler", False):
        raise ArgumentError(
            "use_distributed_sampler must be False, got True: the mixer's loader shares the "
            "samples out among the ranks already"
        )
    said: Mapping[str, int] | None = trainer.distributed_sampler_kwargs
    if said is None or said["num_replicas"] != world_size:
        raise ArgumentError(
            f"the strategy must be data-parallel over all {world_size} ranks (DDP, FSDP, "
            f"DeepSpeed), got {type(trainer.strategy).__name__}"
        )
    return said["rank"], world_size
