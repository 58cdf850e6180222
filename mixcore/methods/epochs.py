"""A table of epochs by hand, as in The Pile, GPT-3 and LLaMA."""

from collections.abc import Sequence

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods.base import Method, Weights, normalise, per_domain
from mixcore.methods.temperature import given_or_own


@register
class Epochs(Method):
    """Epochs of each domain from a table.

    p_i = e_i n_i / sum_j e_j n_j

    In a run of sum_j e_j n_j samples domain i is seen e_i times; in a longer or shorter one the
    ratios between the epochs stay.

    Args:
        epochs: e_i >= 0, one a domain.
        sizes: n_i, one a domain, in any one unit; None: the domains' sizes in samples.
    """

    name = "epochs"
    family = "static rule"
    paper = "Gao et al. 2020, 2101.00027 (The Pile); Touvron et al. 2023, 2302.13971 (LLaMA)"

    def __init__(
        self, domains: Sequence[Domain], *, epochs: Weights, sizes: Weights | None = None
    ) -> None:
        super().__init__(domains)
        table = per_domain("epochs", epochs, self.domains)
        self._weights = normalise(table * given_or_own(sizes, self.domains, self.name))
