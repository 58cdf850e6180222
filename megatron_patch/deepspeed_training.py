"""Where Megatron-DeepSpeed's training meets ours: flags, beginning, steps, losses, checkpoints."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from megatron_patch import state, training
from megatron_patch.blend import MixedDataset
from megatron_patch.deepspeed_data import prefixes_from, request_from
from megatron_patch.live import Live
from megatron_patch.request import Request
from megatron_patch.rows import arguments
from megatron_patch.trainer import Trainer
from mixcore.errors import ArgumentError, LedgerError
from mixcore.trainers.settings import add_arguments

CLIENT_STATE = "mixcore"  # our one key in DeepSpeed's client_state

PINNED = "the order of a domain's samples would not be the one that the ledger pins"
REFUSED = {
    "data_efficiency_curriculum_learning": (
        "samples are then drawn by DeepSpeed's own sampler, from a loader made in "
        "deepspeed.initialize"
    ),
    "curriculum_learning_legacy": "it cuts samples short, so the tokens of a domain are unknown",
    "train_data_exact_num_epochs": PINNED,
    "train_desc_path": PINNED,
    "train_doc_idx_path": PINNED,
    "train_sample_idx_path": PINNED,
    "train_shuffle_idx_path": PINNED,
    "retro_add_retriever": "its samples are not read from a blend",
    "ds_sequence_parallel_fpdt": "not tried",
    "mos": "not tried: it loads a second checkpoint",
    "kd": "not tried: it loads a second checkpoint",
}


def refuse(args: Any) -> None:
    """Refuse Megatron-DeepSpeed flags that contradict a live mixture.

    Raises:
        ArgumentError: Names the flag and the reason.
    """
    if not args.deepspeed:
        raise ArgumentError(
            "--mix flags need --deepspeed: the ledger travels in DeepSpeed's checkpoints"
        )
    if args.dataloader_type not in (None, "single"):
        raise ArgumentError(
            f"--dataloader-type {args.dataloader_type} cannot be used with --mix flags: it "
            f"shuffles all positions anew each epoch, so no mixture can be kept"
        )
    for name, why in REFUSED.items():
        value = getattr(args, name, None)
        if value is not None and value is not False:
            flag = "--" + name.replace("_", "-")
            if name == "curriculum_learning_legacy":
                flag = "the curriculum_learning section of --deepspeed_config"
            raise ArgumentError(f"{flag} cannot be used with --mix flags: {why}")


def batch_sizes(args: Any) -> list[tuple[int, int]] | None:
    """What `--rampup-batch-size` comes to; None: there is one size.

    microbatches.py asks for the size at the beginning of each step, so a step that begins inside
    one part of the ramp keeps its size to its end.

    Example:
        >>> batch_sizes(Namespace(rampup_batch_size=[4, 4, 24], global_batch_size=8))
        [(0, 4), (24, 8)]
    """
    if not args.rampup_batch_size:
        return None
    first, increment, samples = (int(n) for n in args.rampup_batch_size)
    parts = (args.global_batch_size - first) // increment
    if parts < 1:
        return None
    sizes: list[tuple[int, int]] = []
    at, size = 0, 0
    while size < args.global_batch_size:
        steps = int(at / (samples / parts)) if at <= samples else parts
        now = first + min(steps, parts) * increment
        if now != size:
            sizes.append((at, now))
            size = now
        at += size
    return sizes


class DeepSpeedTrainer(Trainer):
    """Megatron-DeepSpeed's answers."""

    def refuse(self, args: Any) -> None:
        """Refuse flags that contradict a live mixture."""
        refuse(args)
        if args.iteration and not args.consumed_train_samples:
            raise LedgerError(
                f"the checkpoint at iteration {args.iteration} does not say how many samples were "
                f"consumed, so nobody can tell what was trained on"
            )

    def request(self, args: Any, known: Mapping[str, str] | None) -> Request:
        """What the command line of this run asks for."""
        return request_from(args, batch_sizes(args), known=known)

    def prefixes(self, saved: Any) -> list[str]:
        """Of the train blend that is saved in a checkpoint."""
        return prefixes_from(saved)

    def request_of_checkpoint(self, saved: Any, moved: Mapping[str, str]) -> Request:
        """What the command line asked for that is saved in a checkpoint."""
        return request_from(saved, moved=moved)

    def observes(self) -> bool:
        """Ranks of one sequence-parallel group compute the same losses too."""
        from megatron.core import mpu

        return super().observes() and bool(mpu.get_sequence_parallel_rank() == 0)

    def micro_batches(self) -> int:
        """Of the next step."""
        from megatron import get_num_microbatches

        return int(get_num_microbatches())

    def writers(self) -> tuple[Any, Any]:
        """TensorBoard's and W&B's, None where this rank has none."""
        from megatron import get_tensorboard_writer, get_wandb_writer

        return get_tensorboard_writer(), get_wandb_writer()


TRAINER = DeepSpeedTrainer()


def wrap_parse_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `parse_args(extra_args_provider, ignore_unknown_args)`: our flags too."""

    @functools.wraps(original)
    def parse_args(*args: Any, **kwargs: Any) -> Any:
        call = arguments(original, args, kwargs)
        provider = call["extra_args_provider"]

        def ours(parser: Any) -> Any:
            return add_arguments(parser if provider is None else provider(parser))

        return original(**{**call, "extra_args_provider": ours})

    return parse_args


def wrap_validate_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `validate_args(args, defaults)`: refuse at once what cannot work."""

    @functools.wraps(original)
    def validate_args(args: Any, *more: Any, **named: Any) -> Any:
        result = original(args, *more, **named)
        if training.mixes(args):
            refuse(args)
        return result

    return validate_args


def wrap_data_loaders(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `build_train_valid_test_data_loaders`: all ranks pass here, after a checkpoint is loaded.

    Only the first rank of a tensor-parallel (or sequence-parallel) group builds loaders; the others
    have none, and take part in the decisions all the same.
    """

    @functools.wraps(original)
    def build_train_valid_test_data_loaders(*args: Any, **kwargs: Any) -> Any:
        from megatron import get_args

        given = get_args()
        if training.mixes(given) and state.current() is None and not given.skip_train:
            training.begin(given, TRAINER)
        loaders = original(*args, **kwargs)
        dataset = getattr(loaders[0], "dataset", None)
        inner = getattr(loaders[0], "loader", None)  # in DeepSpeed's RepeatingLoader
        if inner is not None:
            dataset = inner.dataset
        if state.current() is not None and not isinstance(dataset, (MixedDataset, type(None))):
            raise ArgumentError(
                f"--mix flags need a script whose datasets come from megatron.data.gpt_dataset, as "
                f"pretrain_gpt.py's do; this one trains on a {type(dataset).__name__}"
            )
        return loaders

    return build_train_valid_test_data_loaders


_step: Live | None = None  # of the train_step under way: losses outside of one are an evaluation's
_token_losses: list[Any] | None = None  # of the CrossEntropy under way


def wrap_train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `train_step`: the same step, observed, and ours after it.

    A step that the loss scaler skips has consumed its samples, and counts.
    """

    @functools.wraps(original)
    def train_step(*args: Any, **kwargs: Any) -> Any:
        global _step
        run = state.current()
        if run is None:
            return original(*args, **kwargs)
        from megatron import get_args

        given, live = get_args(), run.live
        live.before(given.consumed_train_samples, TRAINER.micro_batches())
        call = arguments(original, args, kwargs)
        call["forward_step_func"] = live.forward_step(call["forward_step_func"])
        _step = live
        try:
            result = original(**call)
        finally:
            _step = None
        live.after(given.curr_iteration + 1)
        return result

    return train_step


def wrap_pipeline_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `CrossEntropy(output, labels)`, the loss of a DeepSpeed pipeline's last stage.

    It is called once a micro-batch, in their order, and returns their mean; the losses of single
    tokens are taken on their way through `vocab_parallel_cross_entropy`.
    """

    @functools.wraps(original)
    def CrossEntropy(output: Any, labels: Any) -> Any:
        global _token_losses
        live = _step
        if live is None:
            return original(output, labels)
        _token_losses = []
        try:
            loss = original(output, labels)
            found = _token_losses
        finally:
            _token_losses = None
        if len(found) == 1 and found[0].ndim == 2:
            live.observe(found[0].transpose(0, 1), labels[1], original)
        else:
            live.observe(output, None, original)
        return loss

    return CrossEntropy


def wrap_token_losses(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `vocab_parallel_cross_entropy`, which returns [tokens, samples]."""

    @functools.wraps(original)
    def vocab_parallel_cross_entropy(*args: Any, **kwargs: Any) -> Any:
        losses = original(*args, **kwargs)
        if _token_losses is not None:
            _token_losses.append(losses.detach())
        return losses

    return vocab_parallel_cross_entropy


def wrap_engine_save(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `DeepSpeedEngine.save_checkpoint`: one more key in what it saves for its client."""

    @functools.wraps(original)
    def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
        run = state.current()
        if run is None:
            return original(*args, **kwargs)
        from megatron import get_args

        text = training.state_text(run, get_args().consumed_train_samples)
        call = arguments(original, args, kwargs)
        client_state = {**(call["client_state"] or {}), CLIENT_STATE: text}
        return original(**{**call, "client_state": client_state})

    return save_checkpoint


def wrap_engine_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `DeepSpeedEngine.load_checkpoint`: what it was saved with."""

    @functools.wraps(original)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        path, client_state = original(*args, **kwargs)
        saved = (client_state or {}).get("args")
        if saved is not None:
            text = client_state.get(CLIENT_STATE)
            if text is not None:
                setattr(saved, training.STATE, text)
            state.remember_checkpoint(saved)
        return path, client_state

    return load_checkpoint
