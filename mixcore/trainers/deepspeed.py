"""DeepSpeed: the mixture of a run under an engine, with flags or a section of its configuration.

    parser = mixcore.trainers.deepspeed.add_arguments(deepspeed.add_config_arguments(parser))
    args = parser.parse_args()
    mixcore.trainers.deepspeed.check(args, None, datasets)        # before the engine is made
    engine, *_ = deepspeed.initialize(args=args, model=model, model_parameters=parameters)
    loader, mixer = mixcore.trainers.deepspeed.initialize(args, engine, datasets)
    mixer.load_checkpoint(folder)                                 # nothing there: begins anew
    for batch in loader:
        loss_sums, tokens = ...                                   # one entry a sample
        engine.backward(loss_sums.sum() / tokens.sum())
        mixer.observe(batch, loss_sums, tokens)
        engine.step()
        mixer.step()

Read against DeepSpeed 0.19.6 and 0.19.8: runtime/engine.py, runtime/pipe/engine.py.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixcore.controller import default_lag
from mixcore.dataset import MixDataset
from mixcore.errors import ArgumentError, LedgerError
from mixcore.groups import method_of
from mixcore.guards import guards_from
from mixcore.ledger import Ledger
from mixcore.sampler import Sampler
from mixcore.trainers._deepspeed_check import SECTION
from mixcore.trainers._deepspeed_check import check as check
from mixcore.trainers._deepspeed_engine import (
    Piped,
    check_engine,
    config_of,
    domains_of,
    facts_of,
    resize,
)
from mixcore.trainers.ledger_file import attach
from mixcore.trainers.loader import Collate
from mixcore.trainers.mixer import Mixer
from mixcore.trainers.settings import Settings, load_settings
from mixcore.trainers.settings import add_arguments as add_arguments

logger = logging.getLogger("mixcore")

KEY = "mixcore"  # of a checkpoint's client_state
LOGGED = 1024  # domains: beyond, the monitors get nothing by domain


def initialize(
    args: Any,
    engine: Any,
    datasets: Mapping[str, Any] | MixDataset,
    *,
    ledger: Ledger | None = None,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    collate_fn: Callable[[Any], Any] | None = None,
    pipe: Callable[[Any], Any] | None = None,
    engine_io: bool = False,
    **loader_options: Any,
) -> tuple[Any, "DeepSpeedMixer"]:
    """A loader of this rank's micro-batches, and the mixer that steps with the engine.

    Args:
        args: Parsed arguments with the flags of `add_arguments`, or None.
        engine: From `deepspeed.initialize`, made without training_data. Flags win over the section
            `data_mixing` of its configuration, that over the file `--mix-config`.
        datasets: Name of a domain -> map-style dataset; or a MixDataset, with its ledger.
        ledger: With a MixDataset, or to begin from one of one's own.
        num_workers: Of the loader; so are prefetch_factor and collate_fn.
        prefetch_factor: Micro-batches each worker is ahead.
        collate_fn: As `Mixer.loader`.
        pipe: Makes of a batch what a PipelineModule takes, `(inputs, labels)`; needed there alone.
        engine_io: Make the loader by `engine.deepspeed_io` instead (its prefetch_factor is 2).
        loader_options: Further options of torch's DataLoader, or of `deepspeed_io`.

    Returns:
        The loader, to be iterated after a checkpoint has been loaded, and the mixer. Under a
        PipelineEngine: `engine.train_batch(data_iter=iter(loader))`, then `mixer.step()`, on every
        stage.

    Raises:
        ArgumentError: Everything wrong with the settings in one message; DeepSpeed features that
            choose samples by themselves.
    """
    check_engine(engine)
    facts = facts_of(engine)
    names = domains_of(datasets, ledger)
    settings = load_settings(
        args,
        section=config_of(engine).get(SECTION),
        section_name=f"{SECTION} in the DeepSpeed configuration",
        given={"batch_size": facts.batch_size},
        domains=names,
    )
    if ledger is None:
        ledger = settings.config.ledger()
    mixer = DeepSpeedMixer(engine, ledger, datasets, settings, num_workers, prefetch_factor)
    if engine_io:
        from mixcore.trainers._deepspeed_io import EngineDataset, Samples

        if prefetch_factor != 2:
            raise ArgumentError(f"prefetch_factor must be 2 with engine_io, got {prefetch_factor}")
        loader = engine.deepspeed_io(
            EngineDataset(mixer.dataset),
            data_sampler=Samples(mixer, settings.config.train_samples),
            collate_fn=Collate(collate_fn),
            num_local_io_workers=num_workers,
            **loader_options,
        )
    else:
        loader = mixer.loader(collate_fn=collate_fn, **loader_options)
    if facts.pipeline:
        if pipe is None:
            raise ArgumentError("pipe must be given under a PipelineEngine, got None")
        return Piped(loader, pipe), mixer
    return loader, mixer


class DeepSpeedMixer(Mixer):
    """A `Mixer` that steps with a DeepSpeed engine, and goes into its checkpoints.

    Its own `step` is called after every `engine.step()` (or `train_batch`), on every rank; it does
    something where an optimizer step has ended: where `engine.global_steps` has moved on, which
    holds with managed and unmanaged accumulation and in a pipeline.

    A batch size that changes in the middle (a schedule's, or `set_train_batch_size`) is the
    ledger's: the engine is told at the step from which it is in force.
    """

    def __init__(
        self,
        engine: Any,
        ledger: Ledger,
        datasets: Any,
        settings: Settings,
        num_workers: int,
        prefetch_factor: int,
    ) -> None:
        wanted = settings.config.method
        method, options = None, dict[str, Any]()
        if wanted is not None:
            made = method_of(settings.config, ledger.domains)
            if made.dynamic:
                method = made
                options = {
                    "update_every": wanted.update_every,
                    "lag_steps": settings.lag_steps,
                    "guards": guards_from(settings.config.guards),
                    "train_samples": settings.config.train_samples,
                }
        super().__init__(ledger, datasets, method, **options)
        self.engine = engine
        self.resizes = True
        self._file = settings.ledger_path
        self._train_samples = settings.config.train_samples
        self._steps_seen = engine.global_steps
        self._counts = Sampler(ledger)
        self._logged_at = 0
        facts = facts_of(engine)
        self._facts = facts
        self.bind(
            micro_batch_size=facts.micro_batch_size,
            micro_batches=facts.micro_batches,
            rank=facts.data[0],
            world_size=facts.data[1],
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            is_due=self._stepped,
            job=facts.job,
            observes=facts.observes,
        )
        self._match_batch_size()
        if facts.job[0] == 0:
            self._tell(num_workers, prefetch_factor)

    def _tell(self, num_workers: int, prefetch_factor: int) -> None:
        if self.controller is None:
            logger.info("mixcore: no method; weights follow the ledger")
            return
        needed = default_lag(num_workers, prefetch_factor, self.micro_batches)
        logger.info(
            "mixcore: method %s, update every %d steps, in force %d steps later (%d workers x %d "
            "micro-batches ahead, %d micro-batches a step, need %d)",
            self.controller.method.name,
            self.controller.update_every,
            self.controller.lag_steps,
            num_workers,
            prefetch_factor,
            self.micro_batches,
            needed,
        )

    def _stepped(self) -> bool:
        """Whether the engine has taken an optimizer step since the last time."""
        steps = self.engine.global_steps
        if steps == self._steps_seen:
            return False
        if steps != self._steps_seen + 1:
            raise LedgerError(
                f"step must be called after every optimizer step: the engine is at step {steps}, "
                f"the last one seen is {self._steps_seen}"
            )
        self._steps_seen = steps
        return True

    def end(self) -> int | None:
        """First position after the run."""
        return self._train_samples

    # A step ---------------------------------------------------------------------------------------

    def observe_losses(self, loss_sums: Any, tokens: Any) -> None:
        """Add the losses of the next micro-batch, for a loss function that sees no batch.

        Called in the loss function of a PipelineModule, on the last stage, once a micro-batch, in
        their order; the domains follow from the ledger. Does nothing while the model evaluates.

        Args:
            loss_sums: Sum of the token losses of each sample, nats.
            tokens: Number of tokens each of these sums is over.
        """
        if not self.engine.module.training:
            return
        if self.observed >= self.micro_batches:
            raise LedgerError(f"a step has {self.micro_batches} micro-batches, got another one")
        size = self._facts.micro_batch_size
        rank, world = self._facts.data
        start = self.position + (self.observed * world + rank) * size
        picks = self._counts.picks(start, size, fields=("domain",))
        self.hold(picks.domain.astype(np.int64), loss_sums, tokens)

    def step(self) -> int | None:
        """Called after `engine.step()` or `engine.train_batch()`, on every rank.

        Returns:
            The position from which a new decision is in force, or None.

        Raises:
            LedgerError: The engine trained on other samples than the ledger's batch has; as
                `Mixer.step`.
        """
        self._attach()
        before = self.position
        window = None if self.controller is None else self.controller.window
        decided = super().step()
        if self.position == before:
            return decided
        samples = int(self.engine.global_samples)
        if samples != self.position:
            raise LedgerError(
                f"the engine has trained on {samples} samples (global_samples), the ledger is at "
                f"position {self.position}: change the batch size with mixer.set_train_batch_size"
            )
        self._match_batch_size()
        if self.controller is not None and self.controller.window is not window:
            self._write()
        return decided

    def set_train_batch_size(self, train_batch_size: int) -> int:
        """Decide another batch size, from the first step that no rank has prefetched on.

        On all ranks alike, at a step's end. The engine's own `set_train_batch_size` is called when
        it is in force: samples that are prefetched already keep their batches. A schedule goes on.

        Returns:
            The position from which it is in force.

        Raises:
            ValueError: It is no multiple of micro-batch times data-parallel ranks.
        """
        unit = self._facts.micro_batch_size * self._facts.data[1]
        if not isinstance(train_batch_size, int) or train_batch_size < 1 or train_batch_size % unit:
            raise ArgumentError(
                f"train_batch_size must be a multiple of {unit} (micro-batch size "
                f"{self._facts.micro_batch_size} * {self._facts.data[1]} data-parallel ranks), "
                f"got {train_batch_size!r}"
            )
        position = self.position
        lag = default_lag(self._num_workers, self._prefetch_factor, self.micro_batches)
        if self.controller is not None:
            lag = max(lag, self.controller.lag_steps)
        for _ in range(lag + 1):
            position += self.ledger.batch_at(position)[1]
        return resize(self.ledger, position, train_batch_size)

    def _attach(self) -> None:
        """Begin to keep the ledger in its file: once it is known from where the run goes on."""
        if self._file is not None and self._facts.job[0] == 0:
            attach(self.ledger, self._file)
        self._file = None

    def _match_batch_size(self) -> None:
        """Give the engine the batch size that is in force at the next step."""
        size = self.ledger.batch_at(self.position)[1]
        if int(self.engine.train_batch_size()) != size:
            self.engine.set_train_batch_size(size)
            if self._facts.pipeline:
                self.engine.micro_batches = self.engine.gradient_accumulation_steps()
        self.micro_batches = int(self.engine.gradient_accumulation_steps())

    def _write(self) -> None:
        """Weights, achieved shares, losses and epochs, to the engine's monitors."""
        controller, engine = self.controller, self.engine
        assert controller is not None
        window = controller.window
        domains = self.ledger.domains
        if self._facts.job[0] or window is None or len(domains) > LOGGED:
            return
        position, since = self.position, self._logged_at
        drawn, before = self._counts.counts(position), self._counts.counts(since)
        weights = self.ledger.weights_at(position - 1)
        events = []
        for number, domain in enumerate(domains):
            values = {
                "weight": weights[number] if number < len(weights) else 0.0,
                "share": (drawn[number] - before[number]) / (position - since),
            }
            if domain.size is not None:
                values["epoch"] = drawn[number] / domain.size
            if window.tokens[number]:
                values["loss"] = window.loss_sum[number] / window.tokens[number]
            for kind, value in values.items():
                events.append((f"mix/{kind}/{domain.name}", float(value), position))
        self._logged_at = position
        engine.monitor.write_events(events)

    # Checkpoints ----------------------------------------------------------------------------------

    def save_checkpoint(
        self, save_dir: str, tag: str | None = None, client_state: Any = None, **options: Any
    ) -> Any:
        """`engine.save_checkpoint` with our state in its client_state, on every rank."""
        state = {**(client_state or {}), KEY: self.state_dict()}
        return self.engine.save_checkpoint(save_dir, tag=tag, client_state=state, **options)

    def load_checkpoint(self, load_dir: str, tag: str | None = None, **options: Any) -> Any:
        """`engine.load_checkpoint`, and our state from its client_state, on every rank.

        Before the loader is iterated. A universal checkpoint will do, and another number of ranks
        with it.

        Returns:
            As the engine: (path, client_state without ours); (None, ...) if nothing was there.

        Raises:
            LedgerError: The checkpoint has no state of ours, or one of another moment.
        """
        path, client_state = self.engine.load_checkpoint(load_dir, tag=tag, **options)
        return path, client_state if path is None else self.take(path, client_state)

    def take(self, path: str, client_state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take our state out of what a checkpoint's client_state holds; returns the rest."""
        state = dict(client_state or {})
        if KEY not in state:
            raise LedgerError(
                f"the checkpoint {path} has no {KEY!r} in its client_state: it was saved without "
                f"mixer.save_checkpoint, and what was trained on is unknown"
            )
        self.load_state_dict(state.pop(KEY))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Mixer.load_state_dict`; the engine must have loaded its own part.

        Raises:
            LedgerError: The engine has trained on another number of samples.
        """
        if isinstance(state, Mapping) and state.get("position") != self.engine.global_samples:
            raise LedgerError(
                f"the checkpoint's mixture is at position {state.get('position')}, but the engine "
                f"has trained on {self.engine.global_samples} samples (global_samples)"
            )
        super().load_state_dict(state)
        self._attach()
        self._steps_seen = self.engine.global_steps
        self._logged_at = self.position
        self._match_batch_size()


if __name__ == "__main__":
    import sys

    from mixcore.trainers._deepspeed_launch import main

    main(sys.argv[1:])
