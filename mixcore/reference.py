"""The slow twin: every order again in plain Python integers, obviously right and slow.

This file is the specification. The native core is tested against it, value for value; read it to
know what a position means. Nothing here is used by the library itself.

Order "megatron" is the greedy blend of Megatron-Core (`build_blending_indices` in its dataset
helpers); Philox is Salmon et al. 2011; the weight tree is Huffman 1952; the permutation is a
Feistel network with cycle walking (Black and Rogaway 2002).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from math import frexp, isqrt, ldexp

TOTAL = 1 << 62  # shares in force sum to this
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
EPOCH, BATCH, DRAW = 1, 2, 3  # purposes of a random word


# Randomness -------------------------------------------------------------------------------------


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random words of a counter and a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def words(key: int, ordinal: int, purpose: int) -> tuple[int, int, int, int]:
    """The words of (key, ordinal) for one purpose."""
    return philox((ordinal & M32, ordinal >> 32, 0, purpose), (key & M32, key >> 32))


def permute(n: int, w: tuple[int, int, int, int], x: int) -> int:
    """The image of x under the permutation of range(n) that the four words choose."""
    a = isqrt(n - 1) + 1 if n > 1 else 1  # ceil(sqrt(n))
    b = -(-n // a)
    rounds = 24 if n < 64 else 8 if n < 1000 else 6
    while True:
        hi, lo = divmod(x, a)
        even, odd = w[0], w[1]
        for _ in range(rounds // 2):
            lo = (lo + _round_hash(hi, even, a)) % a
            hi = (hi + _round_hash(lo, odd, b)) % b
            even, odd = (even + (w[2] | 1)) & M32, (odd + (w[3] | 1)) & M32
        x = hi * a + lo
        if x < n:
            return x


def _round_hash(half: int, key: int, m: int) -> int:
    z = (half + key) & M32
    z ^= z >> 16
    z = z * 0x7FEB352D & M32
    z ^= z >> 15
    z = z * 0x846CA68B & M32
    return z * m >> 32


# Shares -----------------------------------------------------------------------------------------


def round_shares(exact: Sequence[Fraction]) -> list[int]:
    """Round numbers that sum to 2^62 to integers that do: largest remainder, ties to the first."""
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda d: (shares[d] - exact[d], d))
    for d in by_remainder[: TOTAL - sum(shares)]:
        shares[d] += 1
    largest = shares.index(max(shares))
    for d, x in enumerate(exact):
        if x > 0 and shares[d] == 0:  # a positive weight never becomes a pause
            shares[d] = 1
            shares[largest] -= 1
    return shares


def shares_of_masses(masses: Sequence[int]) -> list[int]:
    """Shares in proportion to integers."""
    total = sum(masses)
    return round_shares([Fraction(m * TOTAL, total) for m in masses])


def shares_of_weights(weights: Sequence[float]) -> list[int]:
    """Shares in proportion to floats, cut to 62 bits below the largest one's power of two."""
    exponent = frexp(max(weights))[1]
    masses = [int(ldexp(w, 62 - exponent)) for w in weights]
    return shares_of_masses(
        [max(m, 1) if w > 0 else 0 for m, w in zip(masses, weights, strict=True)]
    )


def shares_between(
    x: Sequence[int], y: Sequence[int], numerator: int, denominator: int
) -> list[int]:
    """The shares at a point of the straight line from x to y."""
    return round_shares(
        [p + Fraction((q - p) * numerator, denominator) for p, q in zip(x, y, strict=True)]
    )


def apportion(shares: Sequence[int], amount: int) -> list[int]:
    """Split an amount in proportion to shares; what rounding leaves goes to the largest share."""
    whole, part = divmod(amount, TOTAL)
    split = [whole * s + (part * s >> 62) for s in shares]
    split[list(shares).index(max(shares))] += amount - sum(split)
    return split


# The tree ---------------------------------------------------------------------------------------


@dataclass
class Node:
    """A subtree: a leaf has a domain; a node sends floor((n * p + phi) / 2^64) of n left."""

    mass: int
    debt: int
    leaves: int = 1
    domain: int = -1
    left: "Node | None" = None
    right: "Node | None" = None
    p: int = 0
    phi: int = 0

    def lefts(self, n: int) -> int:
        """How many of the first n samples go left."""
        return (n * self.p + self.phi) >> 64


def build_tree(shares: Sequence[int], debts: Sequence[int]) -> Node:
    """A tree over the positive shares whose offsets carry the debt of earlier segments."""
    leaves = [Node(s, debts[d], domain=d) for d, s in enumerate(shares) if s > 0]
    leaves.sort(key=lambda leaf: (leaf.mass, leaf.domain))
    huffman = _huffman(leaves)
    if path_sum(huffman) <= 5 << 30:  # 2.5: a leaf strays by at most half of it
        return huffman
    other = _shannon_fano(leaves)
    return other if path_sum(other) < path_sum(huffman) else huffman


def _huffman(leaves: Sequence[Node]) -> Node:
    """Merge the two smallest again and again; ties: leaves first, then the older subtree."""
    queue = [(leaf.mass, serial, leaf) for serial, leaf in enumerate(leaves)]
    for serial in range(len(leaves), 2 * len(leaves) - 1):
        queue.sort(key=lambda entry: entry[:2])
        node = _join(queue[0][2], queue[1][2])
        queue = [*queue[2:], (node.mass, serial, node)]
    return queue[0][2]


def _shannon_fano(leaves: Sequence[Node]) -> Node:
    """Split the sorted leaves: on the left as many as have at most half of the mass, or one."""
    if len(leaves) == 1:
        return leaves[0]
    before = list(accumulate(leaf.mass for leaf in leaves))
    split = max(1, sum(2 * mass <= before[-1] for mass in before))
    return _join(_shannon_fano(leaves[:split]), _shannon_fano(leaves[split:]))


def _join(left: Node, right: Node) -> Node:
    mass, debt, leaves = left.mass + right.mass, left.debt + right.debt, left.leaves + right.leaves
    p = ((left.mass << 64) + mass // 2) // mass
    core = max(-TOTAL, min(TOTAL, debt))
    target = (p * core >> 64) + (debt - core) * left.leaves // leaves
    phi = max(0, min(M64, (1 << 63) + 4 * (left.debt - target)))
    return Node(mass, debt, leaves, -1, left, right, p, phi)


def path_sum(node: Node, above: tuple[int, ...] = (), root: bool = True) -> int:
    """The largest sum of w_leaf / w_v over a leaf's path without the root, units of 2^-31."""
    if node.left is None or node.right is None:
        total = 1 << 31
        for mass in above:
            shift = max(0, mass.bit_length() - 32)
            total += ((node.mass >> shift) << 31) // (mass >> shift)
        return total
    above = above if root else (*above, node.mass)
    return max(path_sum(node.left, above, False), path_sum(node.right, above, False))


def tree_counts(node: Node, n: int, counts: list[int]) -> None:
    """Add what n arrivals give each leaf."""
    if node.left is None or node.right is None:
        counts[node.domain] += n
        return
    left = node.lefts(n)
    tree_counts(node.left, left, counts)
    tree_counts(node.right, n - left, counts)


def settle(shares: Sequence[int], debts: Sequence[int], batch: int) -> list[int]:
    """Deal out a batch: each sample to the domain that is owed most at the batch's end."""
    take = [0] * len(shares)
    owed = [r + s * batch for r, s in zip(debts, shares, strict=True)]
    for _ in range(batch):
        d = max((d for d, s in enumerate(shares) if s > 0), key=lambda d: (owed[d], -d))
        take[d] += 1
        owed[d] -= TOTAL
    return take


def slots(node: Node, a: int, b: int) -> list[tuple[int, int]]:
    """(domain, arrival) of the samples [a, b) that have entered a node, in the order of leaves."""
    if node.left is None or node.right is None:
        return [(node.domain, i) for i in range(a, b)]
    la, lb = node.lefts(a), node.lefts(b)
    return slots(node.left, la, lb) + slots(node.right, a - la, b - lb)


# Orders -----------------------------------------------------------------------------------------


@dataclass
class DomainSpec:
    """What an order knows of a domain; size 0 is open-ended, cap None is no cap."""

    key: int
    size: int
    cap: int | None = None


@dataclass
class PieceSpec:
    """From start on: this batch size, these shares (order megatron: these floats)."""

    start: int
    batch: int
    shares: list[int]
    weights: list[float] = field(default_factory=list)


class EndOfRun(Exception):
    """Caps leave nothing to draw from a position on: args are (position, domain or -1)."""


@dataclass
class Run:
    """The picks of a run from position 0 on, made batch by batch.

    Attributes:
        order: "balanced", "megatron" or "random".
        key: The order's stream key.
        domains: In the order of their numbers; a piece may know only the first few.
        pieces: Ascending starts, each on a batch boundary of the one before.
        on_cap: "redistribute", "stop" or "error" (the last two end the run alike).
    """

    order: str
    key: int
    domains: list[DomainSpec]
    pieces: list[PieceSpec]
    on_cap: str = "redistribute"

    def picks(self, count: int) -> list[tuple[int, int, int, int]]:
        """(domain, draw, epoch, sample) of the first positions; EndOfRun if there are fewer."""
        made = {"balanced": self._balanced, "megatron": self._megatron, "random": self._random}
        return [(d, x, *self.sample(d, x)) for d, x in made[self.order](count)[:count]]

    def sample(self, domain: int, draw: int) -> tuple[int, int]:
        """The epoch of a draw, and the shuffled place inside it."""
        spec = self.domains[domain]
        if spec.size == 0:
            return 0, draw
        epoch, place = divmod(draw, spec.size)
        return epoch, permute(spec.size, words(spec.key, epoch, EPOCH), place)

    def _left(self, counts: Sequence[int], d: int) -> int:
        cap = self.domains[d].cap
        return TOTAL if cap is None else cap - counts[d]

    def _balanced(self, count: int) -> list[tuple[int, int]]:
        n = len(self.domains)
        made: list[tuple[int, int]] = []
        counts, ideals = [0] * n, [0] * n  # draws so far; exact shares so far, units of 2^-62
        pieces = self.pieces[:1]
        for p in self.pieces[1:]:  # a change that changes nothing is none
            if (p.batch, p.shares) != (pieces[-1].batch, pieces[-1].shares):
                pieces.append(p)
        for i, piece in enumerate(pieces):
            stop = pieces[i + 1].start if i + 1 < len(pieces) else count
            wanted = piece.shares + [0] * (n - len(piece.shares))
            while len(made) < min(stop, count):  # one segment a turn
                spent = [d for d in range(n) if wanted[d] > 0 and self._left(counts, d) <= 0]
                if spent and self.on_cap != "redistribute":
                    raise EndOfRun(len(made), spent[0])
                shares = self._redistribute(wanted, spent, counts, ideals, len(made))
                debts = [t - (c << 62) for t, c in zip(ideals, counts, strict=True)]
                if len(made) == piece.start and any(
                    abs(r) > TOTAL for r, s in zip(debts, shares, strict=True) if s > 0
                ):
                    take = settle(shares, debts, piece.batch)
                    if all(x <= max(0, self._left(counts, d)) for d, x in enumerate(take)):
                        self._exact_batch(made, piece.batch, take, counts)
                        counts = [c + x for c, x in zip(counts, take, strict=True)]
                        ideals = [t + s * piece.batch for t, s in zip(ideals, shares, strict=True)]
                        continue
                tree = build_tree(shares, debts)
                start, base, ideal = len(made), counts, ideals
                while len(made) < min(stop, count):
                    done = len(made) - start
                    after = list(base)
                    tree_counts(tree, done + piece.batch, after)
                    over = [
                        d
                        for d in range(n)
                        if shares[d] > 0 and after[d] - base[d] > self._left(base, d)
                    ]
                    if over:
                        break
                    self._shuffle(made, piece.batch, slots(tree, done, done + piece.batch), base)
                    counts = after
                    ideals = [
                        t + s * (done + piece.batch) for t, s in zip(ideal, shares, strict=True)
                    ]
                else:
                    continue
                if self.on_cap != "redistribute":
                    raise EndOfRun(len(made), over[0])
                if any(self._left(counts, d) > 0 for d in over):
                    counts, ideals = self._last_batch(
                        made, piece.batch, wanted, over, counts, ideals
                    )
        return made

    def _redistribute(
        self, wanted: list[int], spent: list[int], counts: list[int], ideals: list[int], at: int
    ) -> list[int]:
        """Shares without the used-up domains, whose debt goes to the others (ideals change)."""
        masses = [0 if d in spent else s for d, s in enumerate(wanted)]
        if not any(masses):
            raise EndOfRun(at, -1)
        if not spent:
            return masses
        shares = shares_of_masses(masses)
        forgiven = sum(ideals[d] - (counts[d] << 62) for d in spent)
        for d, x in enumerate(apportion(shares, forgiven)):
            ideals[d] += x
        for d in spent:
            ideals[d] = counts[d] << 62
        return shares

    def _last_batch(
        self,
        made: list[tuple[int, int]],
        batch: int,
        wanted: list[int],
        over: list[int],
        counts: list[int],
        ideals: list[int],
    ) -> tuple[list[int], list[int]]:
        """The batch that draws exactly what is left of `over` and fills up from the others."""
        n = len(wanted)
        while True:
            gone = [
                d for d in range(n) if wanted[d] > 0 and (d in over or self._left(counts, d) <= 0)
            ]
            take = [self._left(counts, d) if d in gone else 0 for d in range(n)]
            rest = batch - sum(take)
            ideal = list(ideals)
            if rest > 0 or any(wanted[d] for d in range(n) if d not in gone):
                shares = self._redistribute(wanted, gone, counts, ideal, len(made))
                debts = [t - (c << 62) for t, c in zip(ideal, counts, strict=True)]
                ideal = [t + s * rest for t, s in zip(ideal, shares, strict=True)]
                if rest > 0:
                    tree_counts(build_tree(shares, debts), rest, take)
            for d in gone:
                ideal[d] = (counts[d] + take[d]) << 62
            more = [d for d in range(n) if d not in gone and take[d] > self._left(counts, d)]
            if not more:
                break
            over = over + more
        self._exact_batch(made, batch, take, counts)
        return [c + t for c, t in zip(counts, take, strict=True)], ideal

    def _exact_batch(
        self, made: list[tuple[int, int]], batch: int, take: list[int], counts: list[int]
    ) -> None:
        """A batch of a given composition, through a tree over the counts themselves."""
        tree = build_tree(take, [0] * len(take))
        self._exact(tree)
        self._shuffle(made, batch, slots(tree, 0, batch), counts)

    def _exact(self, node: Node) -> None:
        if node.left is not None and node.right is not None:
            node.p = node.phi = (node.left.mass << 64) // node.mass
            self._exact(node.left)
            self._exact(node.right)

    def _shuffle(
        self, made: list[tuple[int, int]], batch: int, order: list[tuple[int, int]], base: list[int]
    ) -> None:
        keys = words(self.key, len(made), BATCH)
        places = [permute(batch, keys, r) for r in range(batch)]
        made += [(order[s][0], base[order[s][0]] + order[s][1]) for s in places]

    def _megatron(self, count: int) -> list[tuple[int, int]]:
        n = len(self.domains)
        made: list[tuple[int, int]] = []
        counts, debts = [0] * n, [0.0] * n
        pieces = self.pieces[:1]
        for p in self.pieces[1:]:  # another batch size alone changes nothing
            if p.weights != pieces[-1].weights:
                pieces.append(p)
        for i, piece in enumerate(pieces):
            stop = pieces[i + 1].start if i + 1 < len(pieces) else count
            base = list(counts)
            active = [d for d, w in enumerate(piece.weights) if w > 0]
            for t in range(min(stop, count) - piece.start):
                errors = [
                    piece.weights[d] * float(max(t, 1)) - float(counts[d] - base[d]) for d in active
                ]
                if i > 0:
                    errors = [e + debts[d] for e, d in zip(errors, active, strict=True)]
                d = active[errors.index(max(errors))]
                made.append((d, counts[d]))
                counts[d] += 1
            length = float(stop - piece.start)
            for d, w in enumerate(piece.weights):
                debts[d] += w * length - float(counts[d] - base[d])
        return made

    def _random(self, count: int) -> list[tuple[int, int]]:
        n = len(self.domains)
        made: list[tuple[int, int]] = []
        counts = [0] * n
        piece = self.pieces[0]
        horizon = count + max(p.batch for p in self.pieces)  # the end is known at a batch's end
        for t in range(horizon):
            piece = [p for p in self.pieces if p.start <= t][-1]
            first = t - (t - piece.start) % piece.batch
            if first >= count:
                break
            masses = list(piece.shares)
            if self.on_cap == "redistribute":
                masses = [m if self._left(counts, d) > 0 else 0 for d, m in enumerate(masses)]
                if not any(masses):
                    raise EndOfRun(first, -1)
                masses = masses if masses == piece.shares else shares_of_masses(masses)
            w = words(self.key, t, DRAW)
            u = (w[1] << 32 | w[0]) >> 2
            d = next(d for d, upper in enumerate(accumulate(masses)) if u < upper)
            if self._left(counts, d) <= 0:
                raise EndOfRun(first, d)
            made.append((d, counts[d]))
            counts[d] += 1
        return made
