"""Per-domain gradients: inner products, norms and variances from single-domain micro-batches.

The gradient methods (dga, doge, grape, pike, rb, ac_odm) never see a gradient, only the few numbers
that this helper makes of it. It needs torch; nothing else in mixcore imports it.

With g_j the gradient of the mean loss of micro-batch j of one domain, s_j its samples, M their
number and S = sum s_j:

    mean      g = sum_j s_j g_j / S                        (one vector a domain, on its device)
    products  G_ab = <g_a, g_b>,   T_an = <g_a, target_n>
    variance  sigma^2 = sum_j s_j |g_j - g|^2 / (M - 1)    (of one sample's gradient; unbiased)
    norm^2    |grad L|^2 = max(0, |g|^2 - sigma^2 / S)     (the bias of |g|^2 removed)

The means run by Welford's update, so a small variance beside a large mean survives float32; all
products are summed in float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mixcore._checks import MAX_DOMAINS, MAX_POSITION, integer
from mixcore._gradient_parts import (
    CHUNK,
    Selection,
    local,
    local_gradient,
    norm2,
    positive,
    select,
    world_size,
)
from mixcore.domains import stream_key
from mixcore.errors import ArgumentError

Reduce = Callable[[torch.Tensor], object]
Floats = npt.NDArray[np.float64]


class GradientProbe:
    """Collects single-domain gradients over some parameters and reduces them to a few numbers.

    Example:
        >>> probe = GradientProbe(model, num_domains=3, parameters="last layer")
        >>> for domain, batch in enumerate(single_domain_batches):
        ...     with probe.capture(domain, samples=len(batch)):
        ...         loss_of(model, batch).backward()
        >>> signals = Signals(step=step, **probe.signals())     # or Controller(supply=...)

    Which way to observe, and what to reduce:

    | the trainer | observe with | give |
    |---|---|---|
    | one process | `capture` around backward | nothing |
    | DDP; domains may differ between ranks | `capture` | `reduce_data` |
    | DDP, gradients averaged already, one domain on all ranks | `observe` | nothing |
    | FSDP2, ZeRO, distributed optimizer: reduced shards | `observe` | `reduce_shards` |
    | tensor parallel x data parallel | `capture` | both, each over its own group |

    `capture` takes what this very backward computes, before it is added to `.grad`, so gradient
    accumulation and `zero_grad` do not touch it. `observe` reads the buffers; with accumulation it
    subtracts what was there at the last observation (`first=False`).

    With `reduce_shards` every observation is collective (one number is summed), and with either
    reduction `signals` is: all ranks call it, in the same order.

    Nothing is clipped unless `clip_norm` is given; a trainer that clips `.grad` in place must do so
    after `observe`. A gradient with inf or NaN in it (a loss scaler's overflow) is left out,
    counted in `overflows`, and `observe` returns False.

    Memory: one vector of the chosen parameters for every domain and target seen (float32, or
    `sketch` numbers), one more for `observe`. Time: one pass over the vector an observation,
    D^2 * P multiplications a `signals`. Call it at the steps that `due` names only.

    Args:
        model: The module; a wrapped one (DDP, FSDP) works, names are then the wrapper's.
        num_domains: D.
        parameters: "last layer" (the last registered module that owns a matrix), "all", a
            sequence of exact names, or a predicate of (name, parameter).
        num_targets: N, gradients of target sets beside the domains' (dga, grape, doge).
        scale: What the loss was multiplied by before backward: a number, or a callable asked at
            each observation, such as a GradScaler's `get_scale`; with a loss divided by k
            accumulation steps it is `get_scale() / k`. Gradients are divided by it.
        clip_norm: Clip every observed micro-batch gradient (unscaled, over the chosen parameters
            only) to this norm first; None: never.
        reduce_data: Sums a tensor in place over the ranks that saw other samples.
        reduce_shards: Sums a tensor in place over the ranks that own other parts of the vector.
        gradient: How to read a parameter's gradient in `observe`; default: Megatron's `main_grad`
            where there is one, else `.grad`, and of a DTensor the local part.
        sketch: Keep a random projection (count sketch) of this many numbers instead of the vector:
            inner products stay unbiased, with variance at most 2 |a|^2 |b|^2 / sketch.
        seed: Of the sketch.
        update_every: Steps between two updates of the method, for `due`.
        steps: At how many steps before each update gradients are taken, for `due`.

    Raises:
        ValueError, TypeError: A bad argument, named; a selection that chooses no parameter.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        num_domains: int,
        *,
        parameters: Selection = "last layer",
        num_targets: int = 0,
        scale: float | Callable[[], float] = 1.0,
        clip_norm: float | None = None,
        reduce_data: Reduce | None = None,
        reduce_shards: Reduce | None = None,
        gradient: Callable[[torch.nn.Parameter], torch.Tensor | None] | None = None,
        sketch: int | None = None,
        seed: int = 0,
        update_every: int = 1,
        steps: int = 1,
    ) -> None:
        self.num_domains = integer("num_domains", num_domains, 1, MAX_DOMAINS)
        self.num_targets = integer("num_targets", num_targets, 0, MAX_DOMAINS)
        self.update_every = integer("update_every", update_every, 1, MAX_POSITION)
        self.steps = integer("steps", steps, 1, self.update_every)
        self.sketch = None if sketch is None else integer("sketch", sketch, 1, 1 << 31)
        self.seed = integer("seed", seed, 0, (1 << 64) - 1)
        self.clip_norm = None if clip_norm is None else positive("clip_norm", clip_norm)
        self._scale = scale if callable(scale) else positive("scale", scale)
        self._reduce_data = reduce_data
        self._reduce_shards = reduce_shards
        self._gradient = gradient or local_gradient
        self._parameters = select(model, parameters)
        self._buckets: tuple[torch.Tensor, torch.Tensor] | None = None
        self.overflows = 0
        self._before: torch.Tensor | None = None
        self.reset()

    @property
    def names(self) -> list[str]:
        """Names of the chosen parameters, in the order of the vector."""
        return list(self._parameters)

    def due(self, step: int) -> bool:
        """Whether gradients are wanted at this 0-based step: the last `steps` before an update."""
        return step % self.update_every >= self.update_every - self.steps

    def reset(self) -> None:
        """Forget every observation (the count of overflows stays)."""
        rows = self.num_domains + self.num_targets
        self._mean: list[torch.Tensor | None] = [None] * rows
        self._samples = np.zeros(rows)
        self._count = np.zeros(rows)
        self._spread = np.zeros(rows)  # sum_j s_j |g_j - g|^2, this rank's share of it

    @contextmanager
    def capture(self, domain: int, samples: int) -> Iterator[None]:
        """Take the gradient that the backward inside computes, whatever `.grad` holds.

        Args:
            domain: Number of the domain (or D + n for target n) that all samples come from.
            samples: Samples on this rank; the loss is their mean.

        Raises:
            ValueError: Under several ranks without a reduction, or on sharded parameters (use
                `observe`), or where no backward reached the chosen parameters.
        """
        row, count = self._row(domain), integer("samples", samples, 1, MAX_POSITION)
        if any(hasattr(p, "to_local") for p in self._parameters.values()):
            raise ArgumentError("capture cannot see sharded parameters (DTensor); use observe")
        if world_size() > 1 and self._reduce_data is None and self._reduce_shards is None:
            raise ArgumentError(
                f"reduce_data must be given: capture takes this rank's gradient, and there are "
                f"{world_size()} ranks; torch.distributed.all_reduce does"
            )
        got: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[torch.Tensor], None]:
            def hook(grad: torch.Tensor) -> None:
                # a re-entrant checkpoint runs several backwards: their parts add up
                got[name] = got[name] + grad.detach() if name in got else grad.detach().clone()

            return hook

        # torch leaves register_hook without types
        handles: list[Any] = [
            p.register_hook(keep(name))  # type: ignore[no-untyped-call]
            for name, p in self._parameters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._take(row, count, self._flat(got))

    def observe(self, domain: int, samples: int, *, first: bool = True) -> bool:
        """Take the gradient from the parameters' buffers, after backward (and its reduction).

        Args:
            domain: Number of the domain (or D + n for target n) that all samples come from, on all
                ranks that the buffers were reduced over.
            samples: Samples over all those ranks; the loss is their mean.
            first: The buffers were empty before this backward. False: they went on from the last
                observation, which is subtracted.

        Returns:
            Whether the gradient was finite and was taken.
        """
        row, count = self._row(domain), integer("samples", samples, 1, MAX_POSITION)
        if not first and self._before is None:
            raise ArgumentError("first=False needs an observation before it, there is none")
        got = {name: self._gradient(p) for name, p in self._parameters.items()}
        now = self._flat({name: g.detach() for name, g in got.items() if g is not None})
        part = now if first or self._before is None else now - self._before
        self._before = now
        return self._take(row, count, part)

    def observe_gradients(
        self, domain: int, samples: int, gradients: Sequence[torch.Tensor | None]
    ) -> bool:
        """Take gradients that were computed elsewhere, one a chosen parameter in `names`' order.

        For example those of `torch.autograd.grad(loss, parameters, allow_unused=True)`.
        """
        row, count = self._row(domain), integer("samples", samples, 1, MAX_POSITION)
        if len(gradients) != len(self._parameters):
            raise ArgumentError(
                f"gradients must have one entry a chosen parameter ({len(self._parameters)}), "
                f"got {len(gradients)}"
            )
        got = {
            name: g.detach()
            for name, g in zip(self._parameters, gradients, strict=True)
            if g is not None
        }
        return self._take(row, count, self._flat(got))

    def signals(self, *, reset: bool = True) -> dict[str, Any]:
        """The numbers, as keyword arguments of `mixcore.Signals`; collective where ranks reduce.

        Args:
            reset: Start a new window.

        Returns:
            `grad_dot` float64[D, D]; `grad_target` float64[D, N] with targets; `grad_norm2` and
            `grad_var` float64[D]; `samples` int64[D]; `extra` with `gradients` = "mean" (they are
            products of means, not of sums) and, with targets, `target_dot` float64[N, N]. NaN where
            nothing was seen, and in `grad_var` where only one micro-batch was: `grad_norm2` is then
            |g|^2, which is too large by sigma^2 / S.
        """
        means, samples, count, spread = self._pooled()
        seen = [row for row, mean in enumerate(means) if mean is not None]
        gram = torch.zeros(len(seen), len(seen), dtype=torch.float64)
        vectors = [mean for mean in means if mean is not None]
        for start in range(0, vectors[0].numel() if vectors else 0, CHUNK):
            block = torch.stack([v[start : start + CHUNK].double() for v in vectors])
            gram += (block @ block.T).cpu()
        products = self._sum_shards(gram.numpy())
        spread = self._sum_shards(spread)

        d = self.num_domains
        full = np.full((len(means), len(means)), np.nan)
        full[np.ix_(seen, seen)] = products
        size2 = np.diagonal(full).copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(count > 1, spread / (count - 1), np.nan)
            size2 = np.where(count > 1, np.maximum(size2 - variance / samples, 0.0), size2)
        extra: dict[str, Any] = {"gradients": "mean"}
        out: dict[str, Any] = {
            "grad_dot": full[:d, :d].copy(),
            "grad_norm2": size2[:d],
            "grad_var": variance[:d],
            "samples": samples[:d].astype(np.int64),
            "extra": extra,
        }
        if self.num_targets:
            out["grad_target"] = full[:d, d:].copy()
            extra["target_dot"] = full[d:, d:].copy()
        if reset:
            self.reset()
        return out

    def supply(
        self, extra: Callable[[], Mapping[str, Any]] | None = None
    ) -> dict[str, Callable[[], Any]]:
        """What a `mixcore.Controller` takes as `supply`: every signal by its name.

        Args:
            extra: More for `Signals.extra`, asked at each update: `{"lr": ..}`, target losses.
        """
        made: dict[str, Any] = {}

        def take(name: str) -> Any:
            if name not in made:  # the first name of an update: measure once for all of them
                made.clear()
                made.update(self.signals())
                made["extra"] |= {} if extra is None else dict(extra())
            return made.pop(name)

        names = ["grad_dot", "grad_norm2", "grad_var", "samples", "extra"]
        names += ["grad_target"] if self.num_targets else []
        return {name: partial(take, name) for name in names}

    def _row(self, domain: int) -> int:
        return integer("domain", domain, 0, self.num_domains + self.num_targets - 1)

    def _flat(self, got: dict[str, torch.Tensor]) -> torch.Tensor:
        """One vector of the chosen parameters' gradients; a parameter without one counts as 0."""
        if not got:
            raise ArgumentError(
                f"no chosen parameter has a gradient (chosen: {self.names[:3]}...); "
                "observe after backward, and choose parameters that the loss depends on"
            )
        parts = []
        for name, p in self._parameters.items():
            g = got.get(name)
            flat = torch.zeros_like(local(p.detach())).flatten() if g is None else g.flatten()
            parts.append(flat.to(torch.promote_types(flat.dtype, torch.float32)))
        return torch.cat(parts)

    def _take(self, row: int, samples: int, vector: torch.Tensor) -> bool:
        scale = positive("scale", self._scale() if callable(self._scale) else self._scale)
        vector = vector / scale
        size2 = float(self._sum_shards(np.array([norm2(vector)]))[0])
        if not math.isfinite(size2):
            self.overflows += 1
            return False
        if self.clip_norm is not None and size2 > self.clip_norm**2:
            vector = vector * (self.clip_norm / math.sqrt(size2))
        if self.sketch is not None:
            vector = self._project(vector, self.sketch)
        mean = self._mean[row]
        self._samples[row] += samples
        self._count[row] += 1
        if mean is None:
            self._mean[row] = vector
            return True
        delta = vector - mean
        share = samples / self._samples[row]
        mean.add_(delta, alpha=share)
        self._spread[row] += samples * (1.0 - share) * norm2(delta)
        return True

    def _project(self, vector: torch.Tensor, size: int) -> torch.Tensor:
        if self._buckets is None:
            key = stream_key(self.seed, "sketch", "\0".join(self.names)) >> 1
            generator = torch.Generator().manual_seed(key)
            n = vector.numel()
            bucket = torch.randint(size, (n,), generator=generator)
            sign = torch.randint(2, (n,), generator=generator, dtype=torch.int8)
            self._buckets = bucket.to(vector.device), (2 * sign - 1).to(vector.device)
        bucket, sign = self._buckets
        return vector.new_zeros(size).index_add_(0, bucket, vector * sign)

    def _pooled(self) -> tuple[list[torch.Tensor | None], Floats, Floats, Floats]:
        """Means, samples, micro-batches and spread over all ranks that saw other samples."""
        if self._reduce_data is None:
            return list(self._mean), self._samples.copy(), self._count.copy(), self._spread.copy()
        samples, count = self._sum_data(self._samples), self._sum_data(self._count)
        width = self._width()
        means: list[torch.Tensor | None] = []
        moved = np.zeros_like(samples)
        for row, own in enumerate(self._mean):
            if samples[row] == 0:
                means.append(None)
                continue
            # every rank takes part in the sum, also one that saw nothing of this domain
            total = width.clone() if own is None else own * float(self._samples[row])
            self._reduce_data(total)
            mean = total / float(samples[row])
            if own is not None:
                moved[row] = self._samples[row] * norm2(own - mean)
            means.append(mean)
        return means, samples, count, self._sum_data(self._spread + moved)

    def _width(self) -> torch.Tensor:
        """Zeros shaped like a mean vector."""
        own = [local(p.detach()) for p in self._parameters.values()]
        parts = [p.flatten()[:0] for p in own]
        like = torch.cat([p.to(torch.promote_types(p.dtype, torch.float32)) for p in parts])
        size = sum(p.numel() for p in own)
        return like.new_zeros(self.sketch if self.sketch is not None else size)

    def _sum_data(self, values: Floats) -> Floats:
        return self._sum(self._reduce_data, values)

    def _sum_shards(self, values: Floats) -> Floats:
        return self._sum(self._reduce_shards, values)

    def _sum(self, reduce: Reduce | None, values: Floats) -> Floats:
        if reduce is None:
            return values
        # on the parameters' device: that is where the process group communicates
        device = next(iter(self._parameters.values())).device
        tensor = torch.from_numpy(values.copy()).to(device)
        reduce(tensor)
        return tensor.cpu().numpy()
