"""Gradients by domain under ZeRO, from the partitions: none is gathered, only scalars are summed.

Read against DeepSpeed 0.19.6 and 0.19.8: utils/tensor_fragment.py (where a rank's fragment of a
parameter's reduced gradient lies, stages 1 and 2), runtime/zero/stage3.py
(`get_local_fp32_grad_for_param`), runtime/engine.py (boundaries).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from mixcore.errors import ArgumentError
from mixcore.gradients import GradientProbe


def zero_probe(engine: Any, num_domains: int, **options: Any) -> GradientProbe:
    """A `GradientProbe` over what each rank holds of the engine's reduced gradients.

    Example:
        >>> probe = zero_probe(engine, num_domains=3, parameters="all")
        >>> for domain, batch in enumerate(one_batch_a_domain):   # the same domain on all ranks
        ...     with apart(engine):
        ...         engine.backward(loss_of(engine, batch), scale_wrt_gas=False)
        ...         probe.observe(domain, samples=len(batch) * dist.get_world_size())
        >>> signals = probe.signals()

    Stages 0 to 3, without offload: with `offload_optimizer` the fragments are moved to the host
    while a step runs, and are not read here.

    Args:
        engine: From `deepspeed.initialize`.
        num_domains: As for GradientProbe.
        options: Likewise; `gradient` and `reduce_shards` are chosen here.

    Raises:
        ArgumentError: The engine offloads its optimizer, or is a pipeline.
    """
    for name in ("gradient", "reduce_shards"):
        if name in options:
            raise ArgumentError(f"{name} must not be given, the engine's stage decides it")
    if getattr(engine, "grid", None) is not None:
        raise ArgumentError("gradients by domain are not supported under a PipelineEngine")
    stage = int(engine.zero_optimization_stage())
    if stage and engine.zero_use_cpu_optimizer():
        raise ArgumentError(
            "gradients by domain are not supported with zero_optimization.offload_optimizer"
        )
    reduce: Callable[[torch.Tensor], object] | None = None
    if stage:
        group = engine.data_parallel_group

        def reduce(values: torch.Tensor) -> object:
            return dist.all_reduce(values, group=group)

    return GradientProbe(
        engine.module, num_domains, gradient=_owned(stage), reduce_shards=reduce, **options
    )


def _owned(stage: int) -> Callable[[torch.nn.Parameter], torch.Tensor | None]:
    """Reads this rank's part of a parameter's gradient."""

    def whole(parameter: Any) -> torch.Tensor | None:
        gradient: torch.Tensor | None = parameter.grad
        return gradient

    def fragment(parameter: Any) -> torch.Tensor | None:
        mapping = parameter._hp_mapping
        if mapping is None:  # other ranks own all of it
            return torch.zeros(0)
        found: torch.Tensor = mapping.get_lp_grad_fragment(parameter._index_in_param_group)
        address = mapping.lp_fragment_address
        if found.numel() == parameter.numel() != address.numel:  # some versions keep all of it
            found = found.flatten().narrow(0, address.start, address.numel)
        return found.flatten()

    def partition(parameter: Any) -> torch.Tensor | None:
        found: torch.Tensor = parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter)
        left = parameter.ds_numel - dist.get_rank() * found.numel()  # the last one is padded
        return found.flatten()[: max(0, min(found.numel(), left))]

    return whole if stage == 0 else partition if stage == 3 else fragment


@contextmanager
def apart(engine: Any) -> Iterator[None]:
    """A backward inside is a step of its own that never happens: reduced, then forgotten.

    Between two optimizer steps, on all ranks; gradients accumulated so far would be lost, so that
    is refused.

    Raises:
        ArgumentError: Inside a step, or with `managed_gradient_accumulation: false`.
    """
    if not getattr(engine, "managed_gradient_accumulation", lambda: True)():
        raise ArgumentError("gradients by domain need managed_gradient_accumulation: true")
    if engine.micro_steps % engine.gradient_accumulation_steps():
        raise ArgumentError(
            f"gradients by domain are taken between two optimizer steps, but micro-step "
            f"{engine.micro_steps} is inside one"
        )
    before = engine._is_gradient_accumulation_boundary
    engine.set_gradient_accumulation_boundary(True)
    try:
        yield
    finally:
        held = getattr(engine.optimizer, "averaged_gradients", None)
        if held is not None:
            for group in list(held):
                held[group] = None
        engine.zero_grad()
        if hasattr(engine.optimizer, "zero_grad"):
            engine.optimizer.zero_grad()
        engine.set_gradient_accumulation_boundary(before)
