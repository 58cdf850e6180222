"""What a trainer answers in its own way, for the run that `training` begins; here Megatron-LM."""

from collections.abc import Mapping
from typing import Any

from megatron_patch.request import Request, prefixes_from, request_from
from mixcore.errors import ArgumentError

REFUSED = (
    (
        "phase_transition_iterations",
        "it restarts every domain at each transition, so samples repeat; a schedule in mix.yaml "
        "does the same change without",
    ),
    ("hybrid_context_parallel", "its sampler takes whole global batches"),
    ("perform_rl_step", "its samples are not read from a blend"),
    ("mock_data", "it has no domains"),
    ("sft", "its dataset packs samples by itself"),
    ("decrease_batch_size_if_needed", "batches must have the size that the ledger says"),
)


def refuse(args: Any) -> None:
    """Refuse Megatron flags that contradict a live mixture.

    Raises:
        ArgumentError: Names the flag and the reason.
    """
    loader = getattr(args, "dataloader_type", None) or "single"
    reasons = {
        "cyclic": "it shuffles all positions anew each epoch, so no mixture can be kept",
        "external": "its batches come from elsewhere",
    }
    if loader != "single":
        why = reasons.get(loader, "only 'single' is known")
        raise ArgumentError(f"--dataloader-type {loader} cannot be used with --mix flags: {why}")
    for name, why in REFUSED:
        if getattr(args, name, None):
            flag = "--" + name.replace("_", "-")
            raise ArgumentError(f"{flag} cannot be used with --mix flags: {why}")
    if (getattr(args, "gtp_weight_remat_size", None) or 1) > 1:
        raise ArgumentError("--gtp-weight-remat-size cannot be used with --mix flags: not tried")


def _batch_sizes() -> list[tuple[int, int]] | None:
    """Megatron's step batch sizes, in samples, from its own calculator; None: there is one size."""
    from megatron.core import num_microbatches_calculator as calculator

    made = calculator._GLOBAL_NUM_MICROBATCHES_CALCULATOR
    schedule = getattr(made, "schedule", None)
    return None if schedule is None else [(int(at), int(size)) for at, size in schedule]


class Trainer:
    """What the trainers answer each in their own way; here Megatron-LM."""

    def refuse(self, args: Any) -> None:
        """Refuse flags that contradict a live mixture."""
        refuse(args)

    def request(self, args: Any, known: Mapping[str, str] | None) -> Request:
        """What the command line of this run asks for.

        Args:
            args: Parsed.
            known: Name -> prefix of the domains that the run has had so far.
        """
        return request_from(args, _batch_sizes(), known=known)

    def prefixes(self, saved: Any) -> list[str]:
        """Of the train blend that is saved in a checkpoint; nothing is opened."""
        return prefixes_from(saved)

    def request_of_checkpoint(self, saved: Any, moved: Mapping[str, str]) -> Request:
        """What the command line asked for that is saved in a checkpoint.

        Args:
            saved: The arguments in it.
            moved: Name of a domain -> prefix where its files are now.
        """
        return request_from(saved, moved=moved)

    def data_parallel(self) -> tuple[int, int]:
        """Rank and size."""
        from megatron.core import mpu

        return mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()

    def observes(self) -> bool:
        """Whether this rank's losses count: one of all ranks that compute the same ones."""
        from megatron.core import mpu

        return bool(mpu.get_tensor_model_parallel_rank() == 0)

    def micro_batches(self) -> int:
        """Of the next step."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        return int(get_num_microbatches())

    def writers(self) -> tuple[Any, Any]:
        """TensorBoard's and W&B's, None where this rank has none."""
        from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

        return get_tensorboard_writer(), get_wandb_writer()


MEGATRON = Trainer()
