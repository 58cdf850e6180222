"""Uniform sampling: every domain as often as every other."""

from collections.abc import Sequence

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods.base import Method


@register
class Uniform(Method):
    """Every domain as often as every other: p_i = 1 / D.

    Also called stratified or balanced; the baseline that few learned methods beat everywhere
    (Aioli, arXiv 2411.05735).
    """

    name = "uniform"
    family = "static rule"
    paper = "common practice; the baseline of most papers"

    def __init__(self, domains: Sequence[Domain]) -> None:
        super().__init__(domains)
