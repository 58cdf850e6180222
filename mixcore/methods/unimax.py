"""UniMax: as uniform as possible with no domain repeated more than N times."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods.base import Floats, Method, Weights, choice, normalise, number
from mixcore.methods.temperature import given_or_own


@register
class UniMax(Method):
    """As uniform as possible with no domain repeated more than N times.

    Domains in ascending order of size c; B = budget; for k = 0 .. D-1:

    U_k = min(B / (D - k), N c_k);  B <- B - U_k;  at the end p_i = U_i / sum_j U_j.

    Exact water-filling: every domain gets the same amount, except those whose N epochs are less
    than that, which get N epochs. O(D log D).

    Args:
        budget: Samples of the whole run, in the unit of sizes (the paper counts characters).
        max_epochs: N, the most epochs of any domain.
        sizes: c_i, one a domain; None: the domains' sizes in samples.
        shortfall: "error": refuse a budget above N sum(c), which cannot be spent; "cap": take
            N sum(c) for the budget, so that every domain is repeated N times (proportional).

    Raises:
        ArgumentError: The budget cannot be spent.
    """

    name = "unimax"
    family = "static rule"
    paper = "Chung, Constant, Garcia, Roberts, Tay, Narang, Firat 2023, 2304.09151"

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        budget: float,
        max_epochs: float = 1.0,
        sizes: Weights | None = None,
        shortfall: str = "error",
    ) -> None:
        super().__init__(domains)
        self.budget = number("budget", budget, 0, above=True)
        self.max_epochs = number("max_epochs", max_epochs, 0, above=True)
        choice("shortfall", shortfall, ("error", "cap"))
        most = self.max_epochs * given_or_own(sizes, self.domains, self.name)
        room = float(most.sum())
        if self.budget > room and shortfall == "error":
            raise ArgumentError(
                f"budget must be at most max_epochs x the sum of the sizes = {room:g}, got "
                f"{self.budget:g}: {self.budget - room:g} cannot be spent (raise max_epochs, or "
                "shortfall='cap' to go on with what there is)"
            )
        self._weights = normalise(water_fill(most, min(self.budget, room)))


def water_fill(most: Floats, budget: float) -> Floats:
    """Amounts that sum to the budget, all equal except where `most` is less."""
    amounts = np.zeros(len(most))
    for place, k in enumerate(np.argsort(most, kind="stable")):
        amounts[k] = min(budget / (len(most) - place), most[k])
        budget -= amounts[k]
    return amounts
