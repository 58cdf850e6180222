"""What every trainer's adapter shares: a ledger, its samples and a controller, as one object.

The adapters (`mixcore.trainers.huggingface`, `accelerate`, `lightning`) read from their trainer how
a step is cut into micro-batches, and tell the mixer so; users only make the mixer. Its state is a
position and what was decided: no cursor of any loader is in it, so a prefetched sample is never
counted as consumed, and the next run may have another number of ranks and workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixcore._checks import MAX_BATCH, MAX_POSITION, integer, text
from mixcore.batches import Key, MixBatchSampler
from mixcore.controller import Controller
from mixcore.dataset import MixDataset
from mixcore.decider import OBSERVED
from mixcore.errors import ArgumentError, ArgumentTypeError, LedgerError
from mixcore.ledger import Ledger
from mixcore.methods import method as build
from mixcore.methods.base import Method
from mixcore.resume import catch_up
from mixcore.trainers.loader import Batches, make_loader

FORMAT = "mixcore.mixer/1"
UNCHECKED = 64  # positions on a GPU that are looked at together, so as not to wait for it each time


class Mixer:
    """A run's mixture, for a trainer that says how it runs.

    Example:
        >>> mixer = Mixer(ledger, {"web": web, "code": code}, "odm", update_every=100)
        >>> MixTrainer(model=model, args=args, mixer=mixer).train()          # HF Trainer

        In a loop of one's own (`prepare_loader` is mixcore.trainers.accelerate's):

        >>> for batch in prepare_loader(accelerator, mixer, micro_batch_size=4):
        ...     with accelerator.accumulate(model):
        ...         loss, loss_sums, tokens = forward(batch)
        ...         ...                                        # backward, optimizer.step()
        ...     mixer.observe(batch, loss_sums, tokens)
        ...     mixer.step()

    Args:
        ledger: The run's, the same on every rank. Where a run is resumed: as at its start, or as
            it was loaded from its file, on all ranks alike.
        datasets: As `MixDataset` takes them, or a MixDataset.
        method: Name of a dynamic method, or one that is built; None: nothing is decided by itself,
            the ledger's schedule and what is appended to it by hand (on all ranks) hold.
        update_every: Steps between two decisions; None: the method's own period.
        controller_options: lag_steps, guards, train_samples, supply, log, author: as those of
            `Controller`; the rest of its arguments comes from the trainer.

    Attributes:
        ledger, dataset: As given.
        position: Samples trained so far, over all ranks.
        controller: None before the trainer has begun, or without a method.

    Raises:
        ValueError, TypeError: A bad argument, named with its value.
    """

    def __init__(
        self,
        ledger: Ledger,
        datasets: MixDataset | Mapping[str, Any] | Sequence[Any],
        method: str | Method | None = None,
        update_every: int | None = None,
        **controller_options: Any,
    ) -> None:
        if not isinstance(ledger, Ledger):
            raise ArgumentTypeError(f"ledger must be a mixcore.Ledger, got {ledger!r}")
        known = {"lag_steps", "guards", "train_samples", "supply", "log", "author"}
        unknown = sorted(controller_options.keys() - known)
        if unknown:
            raise ArgumentTypeError(
                f"controller_options must be among {', '.join(sorted(known))}, got {unknown}: the "
                f"trainer's own settings say the rest"
            )
        if method is None and (update_every is not None or controller_options):
            raise ArgumentError("method must be given with update_every or controller_options")
        self.ledger = ledger
        if not isinstance(datasets, MixDataset):
            datasets = MixDataset(ledger, datasets)
        self.dataset = datasets
        self.method = build(method, domains=ledger.domains) if isinstance(method, str) else method
        self.controller: Controller | None = None
        self.position = 0
        self._options = {"update_every": update_every, **controller_options}
        self.resizes = False  # whether the trainer follows the ledger's batch sizes
        self.bound = False  # whether a trainer has said how it runs
        # Micro-batches since the last step; they count from the next one on, so that a state taken
        # between them is that of the last step.
        self._held: list[tuple[Any, Any, Any]] = []
        self._unchecked: list[tuple[Any, int]] = []
        self._is_due: Callable[[], bool] = lambda: True

    # What the adapters call -----------------------------------------------------------------------

    def bind(
        self,
        *,
        micro_batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        max_steps: int | None = None,
        is_due: Callable[[], bool] | None = None,
        job: tuple[int, int] | None = None,
        observes: bool = True,
    ) -> None:
        """Say how the trainer runs; adapters call it once, before the state is loaded.

        Args:
            micro_batch_size: Samples of this rank at a time.
            micro_batches: Of this rank in one optimizer step (gradient accumulation steps).
            rank: Among the ranks that share a batch (data-parallel rank).
            world_size: How many they are.
            num_workers: Of the loader.
            prefetch_factor: Of each of them; the default lag covers what they fetch, and one
                micro-batch that the trainer reads ahead.
            max_steps: Optimizer steps of the whole run; what comes after them is not fetched.
            is_due: Whether a call of `step` ends an optimizer step; None: each does.
            job: Rank and number of ranks of all of torch.distributed's, which decide together;
                None: they are those that share a batch.
            observes: Whether this rank sees losses at all (not: a pipeline stage before the last).

        Raises:
            ValueError, TypeError: A bad argument, named with its value.
            LedgerError: It was bound before.
        """
        if self.bound:
            raise LedgerError("this mixer drives a trainer already: make a new one for another")
        self._micro_batch_size = integer("micro_batch_size", micro_batch_size, 1, MAX_BATCH)
        self.micro_batches = integer("micro_batches", micro_batches, 1, MAX_BATCH)
        self._world_size = integer("world_size", world_size, 1, MAX_BATCH)
        self._rank = integer("rank", rank, 0, world_size - 1)
        self._observes = observes
        job_rank, job_size = (rank, world_size) if job is None else job
        if max_steps is not None:
            integer("max_steps", max_steps, 0, MAX_POSITION)
        self._max_steps = max_steps
        self._num_workers = integer("num_workers", num_workers, 0, MAX_BATCH)
        self._prefetch_factor = integer("prefetch_factor", prefetch_factor, 1, MAX_BATCH)
        self._is_due = is_due or self._is_due
        if self.method is not None:
            talk: dict[str, Any] = {}
            if job_size > 1:
                from mixcore.distributed import torch_broadcast, torch_reduce

                talk = {"reduce": torch_reduce(), "broadcast": torch_broadcast()}
            self.controller = Controller(
                self.ledger,
                self.method,
                num_workers=num_workers,
                prefetch_factor=prefetch_factor,
                micro_batches=micro_batches,
                rank=job_rank,
                world_size=job_size,
                **talk,
                **self._options,
            )
        self.bound = True

    def loader(self, *, collate_fn: Any = None, views: int = 1, **options: Any) -> Any:
        """A DataLoader of this rank's micro-batches, from where the run stands at each iteration.

        A batch is what `collate_fn` makes of the datasets' entries, and besides "position",
        "domain", "draw", "epoch" and "sample", int64 tensors.

        Args:
            collate_fn: For a list of the datasets' samples, one mapping each; must return a
                mapping; None: torch's default.
            views: How many ranks' micro-batches to hand out in turn, to a framework that picks
                every `world_size`-th by itself (the others' are stand-ins that hold no sample).
            options: As DataLoader's; what to read and how many workers is said already.

        Raises:
            ValueError: An option that would change what is read.
        """
        self._check_bound()
        options["num_workers"] = self._num_workers
        if self._num_workers:
            options["prefetch_factor"] = self._prefetch_factor
        sampler = Batches(self, self._micro_batch_size, self._rank, views)
        return make_loader(self.dataset, sampler, collate_fn, options)

    def _check_bound(self) -> None:
        if not self.bound:
            raise LedgerError(
                "this mixer has no trainer yet: hand it to MixTrainer, prepare_loader or "
                "MixDataModule first"
            )

    def end(self) -> int | None:
        """First position after the run, by the batch sizes that the ledger has now."""
        return None if self._max_steps is None else self.ledger.position_of_step(self._max_steps)

    def micro_batches_left(self) -> Iterator[list[Key]]:
        """This rank's micro-batches, from what has been trained on; for the loader.

        Raises:
            ValueError: The trainer's step is not the ledger's.
            LedgerError: The trainer is inside a step.
        """
        if self._held:
            raise LedgerError(
                f"the loader must be iterated anew at the end of an optimizer step, but "
                f"{self.observed} of {self.micro_batches} micro-batches have been observed"
            )
        micro, world_size = self._micro_batch_size, self._world_size
        wanted = micro * world_size * self.micro_batches
        batches = MixBatchSampler(
            self.ledger,
            micro,
            rank=self._rank,
            world_size=world_size,
            position=self.position,
            end=self.end(),
        )
        for keys in batches:
            first, size = self.ledger.batch_at(keys[0].position)
            if size != wanted and not self.resizes:
                raise ArgumentError(
                    f"the ledger's batch_size is {size} at position {first}, but a step of the "
                    f"trainer has {wanted} samples: micro_batch_size {micro} * {world_size} ranks "
                    f"* {self.micro_batches} micro-batches"
                )
            yield keys

    # What a training loop calls -------------------------------------------------------------------

    def observe(self, batch: Mapping[str, Any], loss_sums: Any = None, tokens: Any = None) -> None:
        """Add what one micro-batch showed; does not wait for a GPU.

        Args:
            batch: As the loader gave it; "position" and "domain" are read. Positions that are not
                the next ones due are refused: the framework has skipped, repeated or sharded.
            loss_sums: Sum of the token losses of each sample, nats (`sample_losses` makes them);
                not needed without a method.
            tokens: Number of tokens each of these sums is over.

        Raises:
            ValueError, TypeError: As `Controller.observe`; the losses are missing.
            LedgerError: These are not the samples that are due.
        """
        self._check_bound()
        if not isinstance(batch, Mapping) or "position" not in batch or "domain" not in batch:
            found = sorted(batch) if isinstance(batch, Mapping) else batch
            raise ArgumentTypeError(f"batch must have position and domain, got {found!r}")
        if self.observed >= self.micro_batches:
            raise LedgerError(
                f"step must be called after {self.micro_batches} micro-batches, got another one"
            )
        micro = self.observed * self._world_size + self._rank
        self._check_due(batch["position"], self.position + micro * self._micro_batch_size)
        if self._needs_losses and (loss_sums is None or tokens is None):
            assert self.controller is not None
            raise ArgumentError(
                f"loss_sums and tokens must be given to method {self.controller.method.name!r}"
            )
        self.hold(batch["domain"], loss_sums, tokens)

    def hold(self, domains: Any, loss_sums: Any, tokens: Any) -> None:
        """Keep what a micro-batch showed until the step ends; for adapters."""
        if loss_sums is None or tokens is None:
            self._held.append((domains, None, None))
        else:
            self._held.append((domains, _copied(loss_sums), _copied(tokens)))

    @property
    def _needs_losses(self) -> bool:
        return self.controller is not None and bool({*self.controller.method.needs} & {*OBSERVED})

    def _check_due(self, positions: Any, due: int) -> None:
        micro = self._micro_batch_size
        if len(positions) != micro:
            raise LedgerError(f"a micro-batch must have {micro} samples, got {len(positions)}")
        if getattr(positions, "device", None) is not None and positions.device.type != "cpu":
            self._unchecked.append((positions, due))
            if len(self._unchecked) >= UNCHECKED:
                self._look()
            return
        found = [int(p) for p in positions]
        if found != list(range(due, due + micro)):
            raise LedgerError(
                f"these are not the samples that are due: positions {due} to {due + micro - 1} "
                f"are, got {found[0]} to {found[-1]}; something between the loader and observe "
                f"skips, repeats, shuffles or shards"
            )

    def _look(self) -> None:
        """Check the positions that were on a GPU."""
        waiting, self._unchecked = self._unchecked, []
        if waiting:
            import torch

            for positions, (_, due) in zip(
                torch.stack([p for p, _ in waiting]).cpu(), waiting, strict=True
            ):
                self._check_due(positions, due)

    def step(self) -> int | None:
        """Called on every rank after each optimizer step, with all its micro-batches observed.

        Returns:
            The position from which a new decision is in force, or None: none was made.

        Raises:
            LedgerError: Micro-batches are missing; as `Controller.step`.
        """
        self._check_bound()
        if not self._is_due():
            return None
        held = self._held
        if self._observes and len(held) != self.micro_batches:
            raise LedgerError(
                f"an optimizer step has {self.micro_batches} micro-batches, but {len(held)} have "
                f"been observed since the last one"
            )
        first, size = self.ledger.batch_at(self.position)
        decided = None
        if self.controller is not None:
            for domains, loss_sums, tokens in held:
                if loss_sums is not None:
                    self.controller.observe(domains, loss_sums, tokens)
            decided = self.controller.step(first + size)
        self.position, self._held = first + size, []
        return decided

    @property
    def at_end(self) -> bool:
        """Whether there is no further step: the last one is done, or the domains are used up."""
        first, size = self.ledger.batch_at(self.position)
        capped = self.ledger.end(first + size)
        ends = self.end(), None if capped is None else capped[0]
        return any(end is not None and end < first + size for end in ends)

    # Saving ---------------------------------------------------------------------------------------

    @property
    def observed(self) -> int:
        """Micro-batches observed since the last optimizer step."""
        return len(self._held)

    @property
    def num_readers(self) -> int:
        """Ranks that share a batch."""
        return self._world_size

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.ledger.step_of_position(self.position)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: plain Python values, the same on every rank.

        The ledger is in it, changes that are not yet in force included. Every rank must call this
        (ranks add up what they have observed). Between the micro-batches of a step it is the state
        after the last step, as the model's and the optimizer's are.
        """
        self._check_bound()
        self._look()
        return {
            "format": FORMAT,
            "position": self.position,
            "ledger": self.ledger.to_bytes().decode(),
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ranks, workers and micro-batch may be others than in the saved run.

        The ledger gets the decisions that it lacks; what it decided after the state was taken (its
        file went on until a crash) is dropped on the record. On all ranks alike, before the loader
        is iterated.

        Raises:
            ValueError, TypeError: It is no such state, or of a run with other settings.
            LedgerError: The ledger is of another run.
        """
        self._check_bound()
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, Mapping) else state
            raise ArgumentError(f"state must have the format {FORMAT!r}, got {found!r}")
        missing = {"position", "ledger", "controller"} - state.keys()
        if missing:
            raise ArgumentError(f"state lacks {sorted(missing)}")
        position = integer("state['position']", state["position"], 0, MAX_POSITION - 1)
        if (state["controller"] is None) != (self.controller is None):
            saved, mine = (
                "no method" if c is None else "a method"
                for c in (state["controller"], self.controller)
            )
            raise ArgumentError(f"state is of a run with {saved}, this mixer has {mine}")
        catch_up(self.ledger, Ledger.from_bytes(text("state['ledger']", state["ledger"]).encode()))
        if self.ledger.batch_at(position)[0] != position:
            raise ArgumentError(f"state['position'] must be the end of a batch, got {position}")
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        self.position, self._held = position, []
        self._unchecked.clear()


def _copied(values: Any) -> Any:
    """The trainer may use the memory of its losses again."""
    return values.detach().clone() if hasattr(values, "detach") else np.array(values)
