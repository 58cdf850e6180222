"""CRISP: sample the clusters as a target sample set does."""

from collections.abc import Sequence

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods._losses import uniformly_mixed
from mixcore.methods.base import Method, Weights, normalise, number, per_domain


@register
class Importance(Method):
    """Sample the clusters as a target task's samples do (CRISP).

    p_i = (1 - epsilon) m_i / sum_j m_j + epsilon / D

    m_i counts the target task's samples that fall into domain (cluster) i, each in the cluster with
    the nearest centre. Few target samples give a spiky p that overfits small clusters; epsilon > 0
    damps that. Also the baseline of DGA and GRAPE.

    Args:
        counts: m_i >= 0, one a domain (counts or shares).
        epsilon: In [0, 1]; the paper's rule is 0.
    """

    name = "importance"
    family = "static rule"
    cost = "once: embed and assign the target samples"
    paper = "Grangier, Fan, Seto, Ablin 2024, 2410.03735 (CRISP)"

    def __init__(self, domains: Sequence[Domain], *, counts: Weights, epsilon: float = 0.0) -> None:
        super().__init__(domains)
        self.epsilon = number("epsilon", epsilon, 0, 1)
        shares = normalise(per_domain("counts", counts, self.domains))
        self._weights = uniformly_mixed(shares, self.epsilon)
