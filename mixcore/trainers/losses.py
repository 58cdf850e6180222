"""Per-sample losses from what a language model returns."""

from typing import Any

from mixcore.errors import ArgumentError


def sample_losses(
    logits: Any, labels: Any, *, shift: bool = True, ignore_index: int = -100
) -> tuple[Any, Any]:
    """Sum of the token losses of each sample and the number of tokens it is over; no gradient.

    Example:
        >>> loss_sums, tokens = sample_losses(outputs.logits, batch["labels"])
        >>> mixer.observe(batch, loss_sums, tokens)

    One sample's logits at a time are held in float32, so that the peak of memory is small beside
    the model's own loss. The value of a sample does not depend on its neighbours in the batch.

    Args:
        logits: [samples, tokens, vocabulary], of any floating type, on any device.
        labels: [samples, tokens].
        shift: Labels are the inputs themselves, as Transformers' causal models take them: the
            logits at token t are for the label at t + 1. False: for the label at t.
        ignore_index: Labels that do not count.

    Returns:
        float32[samples] in nats, int64[samples], on the device of the logits.

    Raises:
        ValueError: The shapes do not fit.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if logits.ndim != 3 or tuple(logits.shape[:2]) != tuple(labels.shape):
        raise ArgumentError(
            f"logits must have the shape [samples, tokens, vocabulary] of labels "
            f"{tuple(labels.shape)}, got {tuple(logits.shape)}"
        )
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    with torch.no_grad():
        sums = [
            cross_entropy(one.detach().float(), its, reduction="sum", ignore_index=ignore_index)
            for one, its in zip(logits, labels, strict=True)
        ]
    return torch.stack(sums), (labels != ignore_index).sum(dim=1)
