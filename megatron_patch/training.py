"""Where Megatron's training meets ours: flags, the run's beginning, checkpoints."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch import control, plan, refusals, state
from megatron_patch.live import Live
from megatron_patch.request import Request, domain_names
from megatron_patch.state import NOTES, Run
from megatron_patch.trainer import MEGATRON, Trainer, refuse
from mixcore import Controller, Ledger, method
from mixcore.controller import OWN
from mixcore.decider import OBSERVED
from mixcore.distributed import torch_broadcast, torch_reduce
from mixcore.errors import ArgumentError, LedgerError
from mixcore.methods.base import Method
from mixcore.ranks import Ranks
from mixcore.trainers.ledger_file import attach
from mixcore.trainers.settings import FLAGS, Settings, add_arguments

logger = logging.getLogger("megatron_patch")

FORMAT = "megatron_patch/1"
FOLLOWING = ("external", "schedule")  # methods that may be told to give a domain no weight
STATE = "mixcore_state"  # an attribute of Megatron's arguments, which every checkpoint holds


def mixes(args: Any) -> bool:
    """Whether the arguments have a `--mix-*` flag."""
    names = ("mix_config", "mix_method_option", *FLAGS)
    return any(getattr(args, name, None) is not None for name in names)


def wrap_add_arguments(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `add_megatron_arguments(parser)`: ours too."""

    @functools.wraps(original)
    def add_megatron_arguments(parser: Any) -> Any:
        return add_arguments(original(parser))

    return add_megatron_arguments


def wrap_validate_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `validate_args(args, defaults)`: refuse at once what cannot work."""

    @functools.wraps(original)
    def validate_args(args: Any, *more: Any, **named: Any) -> Any:
        result = original(args, *more, **named)
        if mixes(args):
            refuse(args)
        return result

    return validate_args


def wrap_check_checkpoint_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `check_checkpoint_args(checkpoint_args)`: gets what a checkpoint was saved with."""

    @functools.wraps(original)
    def check_checkpoint_args(checkpoint_args: Any, *more: Any, **named: Any) -> Any:
        state.remember_checkpoint(checkpoint_args)
        return original(checkpoint_args, *more, **named)

    return check_checkpoint_args


def wrap_pretrain(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `pretrain`: a run begins with it, a second one in the same process too (restarts)."""

    @functools.wraps(original)
    def pretrain(*args: Any, **kwargs: Any) -> Any:
        state.end()
        return original(*args, **kwargs)

    return pretrain


def wrap_data_loaders(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `build_train_valid_test_data_loaders`: all ranks pass here, after a checkpoint is loaded.

    With a virtual pipeline it is called once a stage; the run begins at the first call.
    """

    @functools.wraps(original)
    def build_train_valid_test_data_loaders(*args: Any, **kwargs: Any) -> Any:
        from megatron.training import get_args

        given = get_args()
        if given.skip_train:
            return original(*args, **kwargs)
        if not mixes(given):
            refusals.without_flags(
                getattr(state.checkpoint(), STATE, None), given.consumed_train_samples
            )
            return original(*args, **kwargs)
        run = state.current() or begin(given)
        loaders = original(*args, **kwargs)
        run.live.ranks.exchange(0, run.ledger, refusals.foreign(loaders[0]), np.zeros(0, np.int64))
        return loaders

    return build_train_valid_test_data_loaders


def begin(args: Any, trainer: Trainer = MEGATRON) -> Run:
    """Plan the run on rank 0, hand it to all ranks, and make it this process's.

    Args:
        args: The trainer's parsed arguments.
        trainer: Whose run it is.

    Raises:
        ArgumentError, LedgerError: On all ranks, from rank 0: something does not fit.
    """
    import torch.distributed as dist

    trainer.refuse(args)
    rank, world = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world, torch_reduce(), torch_broadcast())
    box: list[Any] = [None]
    failure: Exception | None = None
    if rank == 0:
        try:
            box[0] = _planned(args, trainer)
        except Exception as e:  # raised below, once the others know: they wait for this rank
            failure = e
            box[0] = f"{type(e).__name__}: {e}"
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if isinstance(box[0], str):
        raise LedgerError(f"rank 0 could not plan the mixture: {box[0]}")
    request, settings, data, resumed = box[0]
    run = Run(request, settings, Ledger.from_bytes(data), resumed)
    try:
        run.live = _live(args, run, ranks, trainer)
        if rank == 0:
            _attach(args, run)
            _tell(run, args.consumed_train_samples)
    except Exception as e:  # raised by the exchange, once the others know: they wait for this rank
        failure = e
    ranks.exchange(0, run.ledger, failure, np.zeros(0, np.int64))
    state.begin(run)
    return run


def _planned(args: Any, trainer: Trainer) -> tuple[Request, Settings, bytes, dict[str, Any] | None]:
    """Rank 0's: request, settings, the ledger's bytes, the state that is gone on from."""
    consumed, saved = args.consumed_train_samples, state.checkpoint()
    resumed = _saved_state(saved, consumed) if saved is not None and consumed else None
    request = trainer.request(args, _known_names(trainer, saved, consumed, resumed))
    settings = plan.settings_for(args, request)
    if consumed and saved is None:
        raise LedgerError(
            f"the checkpoint at {consumed} samples holds no arguments, so nobody can tell what was "
            f"trained on"
        )
    if saved is None or not consumed:
        return request, settings, plan.new_ledger(request, settings).to_bytes(), None
    if resumed is None:
        refusals.adoption(saved)
        now = dict(zip(request.names, request.prefixes, strict=True))
        before = trainer.request_of_checkpoint(saved, now)
        ledger = plan.adopted_ledger(before, request, settings, consumed)
        logger.info("adopted a run of stock Megatron at %d samples", consumed)
        return request, settings, ledger.to_bytes(), None
    ledger = Ledger.from_bytes(resumed["ledger"].encode())
    plan.continue_with(ledger, request, settings, consumed, resumed["asked"])
    return request, settings, ledger.to_bytes(), resumed


def _known_names(
    trainer: Trainer, saved: Any, consumed: int, resumed: dict[str, Any] | None
) -> dict[str, str] | None:
    """Name -> prefix of the domains of a run that is gone on with."""
    if saved is None or not consumed:
        return None
    if resumed is None:
        prefixes = trainer.prefixes(saved)
        return dict(zip(domain_names(prefixes), prefixes, strict=True))
    found: dict[str, str] = Ledger.from_bytes(resumed["ledger"].encode()).notes[NOTES]["prefixes"]
    return found


def _saved_state(saved: Any, consumed: int) -> dict[str, Any] | None:
    """The state in a checkpoint's arguments; None: it is one of stock Megatron.

    Raises:
        LedgerError: It has one, but not of this moment, or lost it.
    """
    text = getattr(saved, STATE, None)
    if text is None:
        if mixes(saved):
            raise LedgerError(
                "the checkpoint was saved by a run with --mix flags, but not through megatron_patch"
                ": its ledger is missing, and what was trained on is unknown"
            )
        return None
    found: dict[str, Any] = json.loads(text)
    if found.get("format") != FORMAT:
        raise LedgerError(
            f"the checkpoint's mixture has the format {found.get('format')!r}; this version reads "
            f"{FORMAT!r}"
        )
    if found["position"] != consumed:
        raise LedgerError(
            f"the checkpoint's mixture is at position {found['position']}, but Megatron has "
            f"consumed {consumed} samples"
        )
    return found


def _live(args: Any, run: Run, ranks: Ranks, trainer: Trainer) -> Live:
    controller = None
    method = _dynamic_method(run)
    if method is not None:
        micro_batches = trainer.micro_batches()
        controller = Controller.from_config(
            run.settings.config,
            run.ledger,
            method=method,
            num_workers=args.num_workers,
            micro_batches=micro_batches,
            rank=ranks.rank,
            world_size=ranks.world_size,
            reduce=torch_reduce(),
            broadcast=torch_broadcast(),
            log=_decision_log(args),
            guards=control.only_present(run),
            **control.lag(run, args.num_workers, micro_batches),
        )
        control.go_on(run, controller)
    return Live(
        run.ledger,
        ranks,
        controller,
        observes=trainer.observes(),
        micro_batch_size=args.micro_batch_size,
        data_parallel=trainer.data_parallel(),
        log_interval=args.log_interval,
        log=functools.partial(_log, trainer),
    )


def _dynamic_method(run: Run) -> Method | None:
    """The method that decides while the run goes on, if the configuration has one.

    Raises:
        ArgumentError: It needs more than losses.
    """
    wanted = run.settings.config.method
    if wanted is None:
        return None
    made = method(wanted.name, domains=run.ledger.domains, **wanted.options)
    missing = [n for n in made.needs if n not in (*OBSERVED, *OWN)]
    if missing:
        raise ArgumentError(
            f"method {wanted.name!r} needs {', '.join(missing)}; under Megatron there are losses, "
            f"tokens and draws by domain, and nothing else: gradients by domain take micro-batches "
            f"of one domain (mixcore.gradients, in a training loop of one's own)"
        )
    if not made.dynamic:
        return None
    gone = [d.name for d in run.ledger.domains if d.name not in run.request.names]
    if gone and made.name not in FOLLOWING:
        raise ArgumentError(
            f"method {wanted.name!r} gives weights to all domains of the run, and the files of "
            f"{', '.join(gone)} are not on the command line: name them, or leave the method out"
        )
    return made


def _attach(args: Any, run: Run) -> None:
    """Rank 0 keeps the ledger in a file; one that is there and goes on otherwise is put aside."""
    path = run.settings.ledger_path
    if path is None:
        if not args.save:
            return
        path = Path(args.save) / "mixcore_ledger.json"
    attach(run.ledger, path)


def _decision_log(args: Any) -> Path | None:
    return Path(args.save) / "mixcore_decisions.jsonl" if args.save else None


def _tell(run: Run, consumed: int) -> None:
    ledger = run.ledger
    both = zip(ledger.domains, ledger.weights_at(consumed), strict=True)
    weights = ", ".join(f"{d.name} {w:.4g}" for d, w in both)
    text = weights if len(ledger.domains) <= 32 else f"{len(ledger.domains)} domains"
    lag = "" if run.live.controller is None else f", lag {run.live.controller.lag_steps} steps"
    logger.info("mixture from position %d on, order %s%s: %s", consumed, ledger.order, lag, text)


def _log(trainer: Trainer, scalars: dict[str, float], iteration: int) -> None:
    """To the trainer's own writers; the ranks that have none do nothing."""
    writer, wandb = trainer.writers()
    if writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, iteration)
    if wandb:
        wandb.log(scalars, iteration)


def wrap_save_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `save_checkpoint`: the ledger and the method's state go in with Megatron's arguments.

    So they are in every checkpoint, of any format, as whole or as absent as the rest of it.
    """

    @functools.wraps(original)
    def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
        run = state.current()
        if run is not None:
            from megatron.training import get_args

            given = get_args()
            setattr(given, STATE, state_text(run, given.consumed_train_samples))
        return original(*args, **kwargs)

    return save_checkpoint


def state_text(run: Run, consumed: int) -> str:
    """All that a resumed run needs, as JSON; every rank must call it."""
    return json.dumps(
        {
            "format": FORMAT,
            "position": consumed,
            "ledger": run.ledger.to_bytes().decode(),
            "digest": run.ledger.digest,
            "asked": plan.asked(run.request, run.settings),
            "controller": None if run.live is None else run.live.state_dict(),
        }
    )
