"""Parts of `mixcore.gradients`: choosing parameters, reading and measuring their gradients."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed

from mixcore.errors import ArgumentError, ArgumentTypeError

Selection = str | Sequence[str] | Callable[[str, torch.nn.Parameter], bool]
CHUNK = 1 << 20  # numbers that are held in float64 at a time


def positive(name: str, value: object) -> float:
    """Return value as a float if it is finite and > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be finite and > 0, got {value}")
    return float(value)


def norm2(vector: torch.Tensor) -> float:
    """Sum of squares in float64, without a float64 copy of the whole vector."""
    total = torch.zeros((), dtype=torch.float64, device=vector.device)
    for start in range(0, vector.numel(), CHUNK):
        part = vector[start : start + CHUNK].double()
        total += part @ part
    return float(total)


def local_gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """Megatron's main_grad where there is one, else .grad; of a DTensor this rank's part."""
    grad: torch.Tensor | None = getattr(parameter, "main_grad", None)
    grad = parameter.grad if grad is None else grad
    return None if grad is None else local(grad)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that this rank has; any other tensor as it is."""
    to_local: Callable[[], torch.Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def world_size() -> int:
    """Ranks of the default process group; 1 without one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def select(model: torch.nn.Module, parameters: Selection) -> dict[str, torch.nn.Parameter]:
    """The chosen trainable parameters by name; see `mixcore.gradients.GradientProbe`."""
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    known = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if isinstance(parameters, str):
        if parameters == "all":
            chosen = known
        elif parameters == "last layer":
            owned = [
                {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
                for module in model.modules()
            ]
            # the last one with a matrix: a norm registered after the head is not a layer
            layers = [own for own in owned if any(p.ndim >= 2 for p in own.values())]
            ids = {id(p) for p in layers[-1].values()} if layers else set()
            # names as the model gives them: a tied head goes by its embedding's name
            chosen = {n: p for n, p in known.items() if id(p) in ids}
        else:
            raise ArgumentError(
                f"parameters must be 'last layer', 'all', a sequence of names or a predicate, "
                f"got {parameters!r}"
            )
    elif callable(parameters):
        chosen = {n: p for n, p in known.items() if parameters(n, p)}
    else:
        unknown = [n for n in parameters if n not in known]
        if unknown:
            raise ArgumentError(f"parameters names {unknown}; trainable: {list(known)}")
        chosen = {n: known[n] for n in parameters}
    if not chosen:
        raise ArgumentError(f"parameters chose none of the trainable parameters {list(known)}")
    return chosen
