"""Hugging Face Trainer: the mixture behind `get_train_dataloader`, a callback and the checkpoints.

Transformers (5.23, src/transformers/trainer.py) draws a whole step's micro-batches before it
trains on them, through an Accelerate loader that reads one more ahead. Its own way to resume, to
skip the first batches of a loader, must be off: the loader begins where the checkpoint says.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixcore._files import flush_to_disk, new_file_beside
from mixcore.errors import ArgumentError, LedgerError
from mixcore.trainers.accelerate import check_accelerator
from mixcore.trainers.loader import OURS
from mixcore.trainers.losses import sample_losses
from mixcore.trainers.mixer import Mixer

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer import TRAINER_STATE_NAME
except ImportError as e:
    raise ImportError(
        "mixcore.trainers.huggingface needs transformers: pip install 'mixcore[huggingface]'"
    ) from e

STATE_FILE = "mixcore.json"

logger = logging.getLogger("mixcore.huggingface")


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint folder of a run, or None.

    Example:
        >>> trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    The mixture's state is the first file of a checkpoint, the Trainer's the last. A folder that
    lacks one of them is what a crash while saving leaves behind, and is passed over.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        whole = all((folder / name).is_file() for name in (STATE_FILE, TRAINER_STATE_NAME))
        if number.isdecimal() and whole:
            found.append((int(number), str(folder)))
    return max(found)[1] if found else None


class MixCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the mixer's steps with the Trainer's; `MixTrainerMixin` adds it by itself."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse a checkpoint whose two halves are of different steps."""
        if state.global_step != self.mixer.steps:
            raise LedgerError(
                f"the Trainer is at step {state.global_step}, the mixture at step "
                f"{self.mixer.steps} (position {self.mixer.position}): they are of different "
                f"checkpoints, or the Trainer was begun anew"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide, where an update is due."""
        self.mixer.step()
        # The loader has no length, and the Trainer counts from 0 after a resume.
        state.epoch = state.global_step / state.max_steps


class MixTrainerMixin:
    """Puts a mixer under any Trainer class: name it before that class.

    Example:
        >>> class MyTrainer(MixTrainerMixin, Trainer): ...
        >>> trainer = MyTrainer(model=model, args=args, mixer=mixer)
        >>> trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    The arguments must have `max_steps` and `ignore_data_skip=True`; batch size, accumulation,
    workers and ranks are read from them. The datasets' samples are what the model takes
    ("input_ids", "labels", ...); of one that is just an array both are made.

    Args:
        args, kwargs: The Trainer's own; without a train_dataset, which the mixer has.
        mixer: Not yet in use elsewhere.

    Raises:
        ValueError: A setting with which samples would be repeated, lost or counted wrongly, named
            with its value.
    """

    args: Any
    accelerator: Any

    def __init__(self, *args: Any, mixer: Mixer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, "train_dataset", None) is not None:
            raise ArgumentError("train_dataset must not be given: the mixer has the datasets")
        self.mixer = mixer
        self.add_callback(MixCallback(mixer))  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As the Trainer's; True stands for the newest whole checkpoint."""
        if kwargs.get("trial") is not None:
            raise ArgumentError("trial must be None: a search runs many trainings with one mixer")
        self._bind()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ArgumentError(
                    f"resume_from_checkpoint=True, but {self.args.output_dir} has no checkpoint "
                    f"with {STATE_FILE} and {TRAINER_STATE_NAME}"
                )
            logger.info("resuming from %s", resume_from_checkpoint)
        if resume_from_checkpoint:
            self.mixer.load_state_dict(_read(Path(resume_from_checkpoint)))
        return super().train(  # type: ignore[misc]
            resume_from_checkpoint=resume_from_checkpoint or None, **kwargs
        )

    def _bind(self) -> None:
        """Read the Trainer's settings, once."""
        if self.mixer.bound:
            return
        args = self.args
        _check(args, self.accelerator)
        self.mixer.bind(
            micro_batch_size=args.train_batch_size,
            micro_batches=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor or 2,
            max_steps=args.max_steps,
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Before the Trainer's own files, and not in on_save: by then it has removed the oldest
        # checkpoint, and a crash in between could leave none to go on from.
        saved = self.mixer.state_dict()  # on every rank: they meet here
        if self.args.should_save:
            step = self.state.global_step  # type: ignore[attr-defined]
            target = Path(self.args.output_dir) / f"checkpoint-{step}" / STATE_FILE
            target.parent.mkdir(parents=True, exist_ok=True)
            with new_file_beside(target) as f:
                f.write(json.dumps(saved).encode())
                flush_to_disk(f)
                os.replace(f.name, target)
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> Any:
        """The mixer's loader, prepared by the Trainer's Accelerator."""
        self._bind()
        args = self.args
        loader = self.mixer.loader(
            collate_fn=_Collate(self.data_collator),  # type: ignore[attr-defined]
            views=args.world_size,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """As the Trainer's; the mixer learns each sample's loss."""
        ours = {name: inputs[name] for name in OURS if name in inputs}
        if not ours:  # an evaluation's
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, **kwargs
            )
        own = {name: value for name, value in inputs.items() if name not in OURS}
        given = dict(own)  # the Trainer takes labels out of it
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, given, return_outputs=True, **kwargs
        )
        if self.mixer.controller is None:
            self.mixer.observe(ours)
        else:
            self.mixer.observe(ours, *self.sample_losses(own | ours, outputs))
        return (loss, outputs) if return_outputs else loss

    def sample_losses(self, inputs: Mapping[str, Any], outputs: Any) -> tuple[Any, Any]:
        """Each sample's sum of token losses and number of tokens; override for other models.

        Args:
            inputs: The batch, with the mixer's entries.
            outputs: The model's.

        Raises:
            ValueError: There are no logits or labels to make them from.
        """
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if logits is None or "labels" not in inputs:
            missing = "logits" if logits is None else "labels"
            raise ArgumentError(
                f"the losses of single samples need {missing}, which this model's batch or output "
                f"lacks (a fused loss keeps no logits): override sample_losses"
            )
        return sample_losses(logits, inputs["labels"])


class MixTrainer(MixTrainerMixin, Trainer):  # type: ignore[misc]
    """The Trainer over a mixer's mixture; see `MixTrainerMixin`."""


class _Collate:
    """The Trainer's collator; a sample that is just tokens becomes inputs and labels."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        if set(samples[0]) == {"tokens"}:
            import torch

            tokens = torch.stack([torch.as_tensor(s["tokens"]) for s in samples]).long()
            return {"input_ids": tokens, "labels": tokens.clone()}
        return self._inner(samples)


def _check(args: Any, accelerator: Any) -> None:
    """Refuse settings that cannot be exact."""
    if args.max_steps <= 0:
        raise ArgumentError(
            f"max_steps must be given, the mixture has no end, got {args.max_steps}"
        )
    if not args.ignore_data_skip:
        raise ArgumentError(
            "ignore_data_skip must be True, got False: the loader begins where the checkpoint "
            "says, and the Trainer would skip as many batches once more"
        )
    if args.auto_find_batch_size:
        raise ArgumentError("auto_find_batch_size must be False, got True: the ledger has the size")
    check_accelerator(accelerator)


def _read(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint folder."""
    try:
        content = (folder / STATE_FILE).read_bytes()
    except FileNotFoundError:
        raise ArgumentError(
            f"resume_from_checkpoint: {folder} has no {STATE_FILE}, so it was not saved with a "
            f"mixer or a crash came between: use mixcore.trainers.huggingface.last_checkpoint"
        ) from None
    try:
        state: dict[str, Any] = json.loads(content)
    except ValueError as e:
        raise ArgumentError(f"{folder / STATE_FILE} is damaged: {e}") from None
    return state
