"""Accelerate: one call that makes the prepared loader and registers the mixture's state.

Accelerate (1.15, src/accelerate/data_loader.py) gives rank r every num_processes-th batch of a
batch sampler, and reads one batch ahead to know which is the last. So the sampler that it gets
hands out all ranks' micro-batches in turn, and the default lag covers the one read ahead.
"""

from collections.abc import Mapping
from typing import Any

from mixcore.errors import ArgumentError
from mixcore.trainers.mixer import Mixer


def prepare_loader(
    accelerator: Any,
    mixer: Mixer,
    micro_batch_size: int,
    *,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    max_steps: int | None = None,
    **options: Any,
) -> Any:
    """The loader of a mixer, prepared by an Accelerator; do not prepare it again.

    Example:
        >>> accelerator = Accelerator(gradient_accumulation_steps=2)
        >>> loader = prepare_loader(accelerator, mixer, micro_batch_size=4, num_workers=2)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> accelerator.load_state(folder)              # where a run is resumed
        >>> for batch in loader:
        ...     with accelerator.accumulate(model):
        ...         loss, loss_sums, tokens = forward(batch)
        ...         accelerator.backward(loss); optimizer.step(); optimizer.zero_grad()
        ...     mixer.observe(batch, loss_sums, tokens)
        ...     mixer.step()                            # decides at an optimizer step only
        ...     if due: accelerator.save_state(folder)  # all ranks, at an optimizer step

    Ranks and gradient accumulation are read from the accelerator; the mixer's state is saved and
    loaded with `save_state` and `load_state`. Do not use `skip_first_batches`: the loader begins
    where the state says.

    Args:
        accelerator: An `accelerate.Accelerator`.
        mixer: Not yet in use elsewhere.
        micro_batch_size: Samples of one rank at a time.
        num_workers: Of the loader.
        prefetch_factor: Of each of them.
        max_steps: Optimizer steps of the whole run, after which the loader ends; None: the loop
            ends by itself.
        options: More of DataLoader's, such as collate_fn and pin_memory.

    Raises:
        ValueError: A setting of the accelerator with which samples would be repeated, lost or
            counted wrongly, named with its value.
    """
    check_accelerator(accelerator)
    world_size = accelerator.num_processes
    mixer.bind(
        micro_batch_size=micro_batch_size,
        micro_batches=accelerator.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=world_size,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        max_steps=max_steps,
        is_due=lambda: bool(accelerator.sync_gradients),
    )
    accelerator.register_for_checkpointing(_State(mixer, accelerator))
    return accelerator.prepare(mixer.loader(views=world_size, **options))


def check_accelerator(accelerator: Any) -> None:
    """Refuse settings with which a loader could not be exact.

    Raises:
        ValueError: A setting, named with its value.
    """
    for name, why in (
        ("dispatch_batches", "one process would read for all, without the samples of the others"),
        ("split_batches", "every micro-batch would be cut up among the ranks once more"),
        ("use_stateful_dataloader", "the mixer's own state says where to go on"),
    ):
        value = getattr(accelerator, name, None)
        if value:
            raise ArgumentError(f"the accelerator must have {name}=False, got {value}: {why}")
    config = getattr(accelerator, "parallelism_config", None)
    for name in ("tp_size", "cp_size", "sp_size"):
        size = getattr(config, name, 1) or 1
        if size != 1:
            raise ArgumentError(
                f"parallelism_config must have {name}=1, got {size}: only data parallelism (DDP, "
                f"FSDP, ZeRO) is supported here"
            )


class _State:
    """What Accelerate saves and loads."""

    def __init__(self, mixer: Mixer, accelerator: Any) -> None:
        self._mixer, self._accelerator = mixer, accelerator

    def state_dict(self) -> dict[str, Any]:
        return self._mixer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mixer.load_state_dict(state)
        # It counts micro-batches to know when to step; the state is of the end of an optimizer
        # step, and there may be more or fewer micro-batches in one now.
        self._accelerator.step = 0
