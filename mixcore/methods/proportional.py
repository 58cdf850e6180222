"""Proportional sampling: every domain as often as its size says."""

from collections.abc import Sequence

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods.base import Method, normalise, sizes


@register
class Proportional(Method):
    """p_i = n_i / sum_j n_j.

    n_i is the size of domain i in samples (all samples have the same number of tokens, so in tokens
    too): in one epoch of the whole, every sample comes once.

    Raises:
        ArgumentError: A domain is open-ended.
    """

    name = "proportional"
    family = "static rule"
    paper = "common practice; the baseline of most papers"

    def __init__(self, domains: Sequence[Domain]) -> None:
        super().__init__(domains)
        self._weights = normalise(sizes(self.domains, "method 'proportional'"))
