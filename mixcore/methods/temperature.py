"""Temperature sampling: between proportional and uniform."""

from collections.abc import Sequence

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    log,
    number,
    per_domain,
    sizes,
    softmax,
)


@register
class Temperature(Method):
    """Between proportional (tau = 1) and uniform (tau -> infinity).

    q_i = n_i^(1/tau) / sum_j n_j^(1/tau)

    Papers that write an exponent s (0.7, 0.5, 0.3) mean s = 1/tau. A high tau on a long tail
    repeats small domains dozens of times: look at the epochs that `mixcore plan` shows.

    Args:
        tau: > 0. In use: mBERT 1.43 (exponent 0.7), XLM 2 (0.5), XLM-R and mT5 3.33 (0.3).
        sizes: n_i, one a domain, in any one unit (samples, tokens, documents: the answers differ);
            None: the domains' sizes in samples.
    """

    name = "temperature"
    family = "static rule"
    paper = "Devlin et al. 2018 (1810.04805, mBERT); Conneau et al. 2019 (1911.02116, XLM-R)"

    def __init__(
        self, domains: Sequence[Domain], *, tau: float = 3.33, sizes: Weights | None = None
    ) -> None:
        super().__init__(domains)
        self.tau = number("tau", tau, 0, above=True)
        self._weights = softmax(log(given_or_own(sizes, self.domains, self.name)) / self.tau)


def given_or_own(given: Weights | None, domains: Sequence[Domain], name: str) -> Floats:
    """The option sizes, checked, or the domains' own."""
    if given is None:
        return sizes(domains, f"method {name!r} without the option sizes")
    return per_domain("sizes", given, domains)
