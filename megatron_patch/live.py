"""The run's step beside Megatron's: losses by domain, decisions, and what is logged of them."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from megatron_patch import state
from megatron_patch.rows import arguments
from mixcore import Controller, Ledger, Sampler
from mixcore.accumulate import Accumulator, Window
from mixcore.errors import ArgumentError, LedgerError
from mixcore.ranks import Ranks

logger = logging.getLogger("megatron_patch")

LOGGED = 1024  # domains: beyond, scalars by domain are not written to TensorBoard and W&B


class Live:
    """Observes each micro-batch on the last stage, and steps the controller on every rank.

    Args:
        ledger: This rank's.
        ranks: All ranks of the job: those without losses take part in the sums with zeros.
        controller: Of the run's method; None: weights follow a schedule or stay.
        observes: Whether this rank's losses count: one rank of each tensor-parallel group.
        micro_batch_size: Samples.
        data_parallel: (rank, size).
        log_interval: Steps.
        log: Writes scalars (name -> value) at an iteration; None where this rank has no writer.
    """

    def __init__(
        self,
        ledger: Ledger,
        ranks: Ranks,
        controller: Controller | None,
        *,
        observes: bool,
        micro_batch_size: int,
        data_parallel: tuple[int, int],
        log_interval: int,
        log: Callable[[dict[str, float], int], None] | None,
    ) -> None:
        self.ledger, self.ranks, self.controller = ledger, ranks, controller
        self._observes = observes
        self._micro_batch_size = micro_batch_size
        self._rank, self._world = data_parallel
        self._log_interval, self._log = log_interval, log
        self._sampler = Sampler(ledger)
        self._sums = Accumulator(len(ledger.domains))  # where there is no controller
        self._pending: list[tuple[Any, Any, Any]] = []
        self._consumed = 0
        self._domains: Any = None
        self._micro_batch = 0
        self._logged_at: int | None = None
        self._mute = False
        self._trained = False  # since the last update: not all iterations were skipped

    # Inside Megatron's step ----------------------------------------------------------------------

    def before(self, consumed: int, num_micro_batches: int) -> None:
        """Refuse a step that is not the ledger's.

        Raises:
            LedgerError: Megatron is about to train on more or fewer samples than the batch has.
        """
        first, size = self.ledger.batch_at(consumed)
        samples = num_micro_batches * self._micro_batch_size * self._world
        if first != consumed or size != samples:
            raise LedgerError(
                f"Megatron is about to train on {samples} samples from position {consumed}, but "
                f"the ledger has the batch [{first}, {first + size})"
            )
        if self._logged_at is None:
            self._logged_at = consumed
        self._consumed = consumed
        self._domains = None
        self._restart()

    def _restart(self) -> None:
        self._micro_batch = 0
        self._pending.clear()

    def forward_backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Megatron's schedule; it may run several times in one step, and the last run counts."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._restart()
            return function(*args, **kwargs)

        return counted

    def forward_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Megatron's `forward_step_func`: its loss function is called on the last stage alone."""

        @functools.wraps(function)
        def observed(*args: Any, **kwargs: Any) -> Any:
            output, loss_function = function(*args, **kwargs)
            if not self._observes or loss_function is None or self._mute:
                return output, loss_function

            @functools.wraps(loss_function)
            def loss(output_tensor: Any, *more: Any, **named: Any) -> Any:
                mask = _loss_mask(loss_function, output_tensor, self._micro_batch_size)
                self.observe(output_tensor, mask, loss_function)
                return loss_function(output_tensor, *more, **named)

            return output, loss

        return observed

    def observe(self, output: Any, mask: Any, loss_function: Any) -> None:
        """Sums by sample of the step's next micro-batch; nothing here waits for the device.

        Args:
            output: Losses, [samples, tokens], or something else where there is no mask.
            mask: Likewise; None: losses by sample cannot be told.
            loss_function: What they are from, for the message.
        """
        if not self._observes or self._mute:
            return
        number, size = self._micro_batch, self._micro_batch_size
        self._micro_batch += 1
        if mask is None:
            self._cannot_observe(loss_function, output)
            return
        if self._domains is None:
            self._domains = self._domains_of_step(output.device)
        losses = output.detach().double().reshape(size, -1)
        mask = mask.detach().reshape(size, -1)
        tokens = (mask != 0).sum(1)
        self._pending.append((self._domains[number], (losses * mask).sum(1), tokens))

    def _domains_of_step(self, device: Any) -> Any:
        """int64[micro-batches, micro_batch_size]: the domains of this rank's samples."""
        import torch

        size = self.ledger.batch_at(self._consumed)[1]
        domains = self._sampler.picks(self._consumed, size, fields=("domain",)).domain
        mine = domains.reshape(-1, self._world, self._micro_batch_size)[:, self._rank]
        return torch.from_numpy(np.ascontiguousarray(mine, dtype=np.int64)).to(
            device, non_blocking=True
        )

    def _cannot_observe(self, loss_function: Any, output: Any) -> None:
        told = (
            f"losses by domain need a loss function whose first bound argument is the loss mask "
            f"and an output of one loss a token, as pretrain_gpt.py has them; got {loss_function!r}"
            f" and an output of shape {tuple(getattr(output, 'shape', ()))}"
        )
        needs = () if self.controller is None else self.controller.method.needs
        if {"loss_sum", "tokens"} & set(needs):
            assert self.controller is not None
            raise ArgumentError(f"{told}; method {self.controller.method.name!r} needs them")
        logger.warning("%s; mix/loss is not logged", told)
        self._mute = True

    # After it ------------------------------------------------------------------------------------

    def after(self, iteration: int, skipped: bool = False) -> None:
        """The optimizer has stepped: observe, decide where that is due, log.

        Args:
            iteration: Of Megatron, for the log.
            skipped: Nothing was trained in it (`--iterations-to-skip`). Where that is so of all
                since the last update, the next one is left out: there are no losses to decide by.

        Raises:
            LedgerError: Ranks disagree, or a decision comes too late.
        """
        sums = self._sums if self.controller is None else self.controller
        for domains, losses, tokens in self._pending:
            sums.observe(domains, losses, tokens)
        self._pending.clear()
        position = self._consumed + self.ledger.batch_at(self._consumed)[1]
        due = iteration % self._log_interval == 0
        window = None
        if self.controller is not None:
            before = self.controller.window
            self._trained = self._trained or not skipped
            effective = None
            if self._trained:
                effective = self.controller.step(position)
            else:
                self.controller.skip(position)
            window = None if self.controller.window is before else self.controller.window
            if window is not None:
                self._trained = False
            if effective is not None and self.ranks.rank == 0:
                made = self.ledger.decisions[-1]
                logger.info("from position %d on, by %s: %s", effective, made.author, made.reason)
        elif due:
            table, _ = self.ranks.exchange(iteration, self.ledger, None, self._sums.table())
            self._sums.clear()
            window = Window(table)
        if self._log is not None and (due or window is not None):
            self._write(iteration, position, window)

    def _write(self, iteration: int, position: int, window: Window | None) -> None:
        """Weights in force, achieved shares since the last line, losses, epochs."""
        names = [d.name for d in self.ledger.domains]
        if self._log is None or len(names) > LOGGED:
            return
        since = self._logged_at or 0
        drawn, before = self._sampler.counts(position), self._sampler.counts(since)
        scalars: dict[str, float] = {}
        weights = self.ledger.weights_at(position - 1)
        for number, domain in enumerate(self.ledger.domains):
            scalars[f"mix/weight/{domain.name}"] = float(weights[number])
            share = (drawn[number] - before[number]) / (position - since)
            scalars[f"mix/share/{domain.name}"] = float(share)
            if domain.size is not None:
                scalars[f"mix/epoch/{domain.name}"] = float(drawn[number] / domain.size)
            if window is not None and window.tokens[number]:
                loss = window.loss_sum[number] / window.tokens[number]
                scalars[f"mix/loss/{domain.name}"] = float(loss)
        self._logged_at = position
        self._log(scalars, iteration)

    def state_dict(self) -> dict[str, Any] | None:
        """Of the controller; every rank must call it."""
        return None if self.controller is None else self.controller.state_dict()


def _loss_mask(loss_function: Any, output: Any, micro_batch_size: int) -> Any:
    """The loss mask that a `partial` holds, if it and the output are [micro_batch_size, tokens]."""
    import torch

    if not isinstance(output, torch.Tensor) or output.ndim < 1:
        return None
    if output.numel() % micro_batch_size or output.shape[0] != micro_batch_size:
        return None
    for value in _bound(loss_function):
        if isinstance(value, torch.Tensor) and value.numel() == output.numel():
            return value
    return None


def _bound(function: Any) -> Iterator[Any]:
    """What `functools.partial` has bound, by place or as `loss_mask`; partials of partials too."""
    if isinstance(function, functools.partial):
        yield from _bound(function.func)
        for value in (*function.args, function.keywords.get("loss_mask")):
            yield from _bound(value) if isinstance(value, functools.partial) else (value,)


def wrap_train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `train_step`: the same step, observed, and ours after it."""

    @functools.wraps(original)
    def train_step(*args: Any, **kwargs: Any) -> Any:
        live = _live()
        if live is None:
            return original(*args, **kwargs)
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.training import get_args

        given = get_args()
        live.before(given.consumed_train_samples, get_num_microbatches())
        bound = arguments(original, args, kwargs)
        bound["forward_step_func"] = live.forward_step(bound["forward_step_func"])
        bound["forward_backward_func"] = live.forward_backward(bound["forward_backward_func"])
        result = original(**bound)
        if not result[SHOULD_EXIT]:  # else the step did not happen: the optimizer has not stepped
            live.after(given.curr_iteration + 1)
        return result

    return train_step


SHOULD_EXIT = 3  # among what train_step returns


def wrap_dummy_train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `dummy_train_step`, by which `--iterations-to-skip` passes over a batch."""

    @functools.wraps(original)
    def dummy_train_step(*args: Any, **kwargs: Any) -> Any:
        live = _live()
        if live is None:
            return original(*args, **kwargs)
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.training import get_args

        given = get_args()
        live.before(given.consumed_train_samples, get_num_microbatches())
        result = original(*args, **kwargs)
        iteration = live.ledger.step_of_position(given.consumed_train_samples) + 1
        live.after(iteration, skipped=True)
        return result

    return dummy_train_step


def _live() -> Live | None:
    run = state.current()
    live: Live | None = None if run is None else run.live
    return live
