// The tree of one segment: Huffman or Shannon-Fano over the positive shares, with the debt of all
// earlier segments folded into each node's rounding offset. Host only; the walk is in blend.h.
//
// A leaf's deviation from its exact share is at most half the sum of w_leaf / w_v over the non-root
// nodes v on its path. Huffman (1952: merge the two smallest masses again and again) keeps the
// expected walk short, but that bound comes to 1.68 for Fibonacci-like weights beside a tiny one.
// Where it exceeds 1.25, a Shannon-Fano tree (split the sorted weights in halves) is tried as well,
// and the smaller bound wins. Both bounds are integers: no float has a say.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "blend.h"
#include "portable.h"

namespace mixcore {

struct Tree {
  std::vector<Node> nodes;  // parents before children: the top of the tree shares cache lines
  i32 root = -1;
  i32 depth = 0;  // nodes on the longest path
};

namespace tree_detail {

// A tree over leaves sorted by mass: children before parents; a child >= 0 is a node by order of
// creation, a child < 0 is leaf ~k.
struct Shape {
  struct Pair {
    i32 left, right;
    u64 mass;
  };
  std::vector<Pair> nodes;
};

inline u64 MassOf(const Shape& shape, const std::vector<u64>& leaves, i32 child) {
  return child < 0 ? leaves[static_cast<std::size_t>(~child)]
                   : shape.nodes[static_cast<std::size_t>(child)].mass;
}

inline void Join(const std::vector<u64>& leaves, i32 left, i32 right, Shape* shape) {
  const u64 mass = MassOf(*shape, leaves, left) + MassOf(*shape, leaves, right);
  shape->nodes.push_back({left, right, mass});
}

// Ties by serial number: leaves first, then subtrees in order of creation.
inline Shape Huffman(const std::vector<u64>& leaves) {
  Shape shape;
  shape.nodes.reserve(leaves.size());
  std::size_t leaf = 0, node = 0;
  const auto smallest = [&]() -> i32 {
    const bool take_leaf = node == shape.nodes.size() ||
                           (leaf < leaves.size() && leaves[leaf] <= shape.nodes[node].mass);
    return take_leaf ? ~static_cast<i32>(leaf++) : static_cast<i32>(node++);
  };
  for (std::size_t i = 1; i < leaves.size(); ++i) {
    const i32 left = smallest(), right = smallest();
    Join(leaves, left, right, &shape);
  }
  return shape;
}

// Splits leaves [first, last): on the left as many as have at most half of the mass, at least one.
inline i32 Fano(const std::vector<u64>& leaves, const std::vector<u64>& before, std::size_t first,
                std::size_t last, Shape* shape) {
  if (last - first == 1) return ~static_cast<i32>(first);
  const u64 half = before[first] + (before[last] - before[first]) / 2;
  const auto begin = before.begin() + static_cast<std::ptrdiff_t>(first);
  const auto end = before.begin() + static_cast<std::ptrdiff_t>(last);
  const auto above = std::upper_bound(begin, end, half) - before.begin();
  const std::size_t low = std::max(first + 1, static_cast<std::size_t>(above) - 1);
  const i32 left = Fano(leaves, before, first, low, shape);
  const i32 right = Fano(leaves, before, low, last, shape);
  Join(leaves, left, right, shape);
  return static_cast<i32>(shape->nodes.size()) - 1;
}

inline Shape ShannonFano(const std::vector<u64>& leaves) {
  std::vector<u64> before{0};
  for (const u64 mass : leaves) before.push_back(before.back() + mass);
  Shape shape;
  shape.nodes.reserve(leaves.size());
  Fano(leaves, before, 0, leaves.size(), &shape);
  return shape;
}

// The largest sum of w_leaf / w_v over a leaf's path, root left out, in units of 2^-31. Masses are
// cut to 32 bits a node, so that 64-bit divisions do.
inline u64 PathSum(const Shape& shape, const std::vector<u64>& leaves) {
  const std::size_t n = shape.nodes.size();
  std::vector<i32> parent(n, -1), above(leaves.size(), -1);
  for (std::size_t i = 0; i < n; ++i) {
    for (const i32 child : {shape.nodes[i].left, shape.nodes[i].right}) {
      (child < 0 ? above[static_cast<std::size_t>(~child)]
                 : parent[static_cast<std::size_t>(child)]) = static_cast<i32>(i);
    }
  }
  u64 worst = 0;
  for (std::size_t k = 0; k < leaves.size(); ++k) {
    u64 sum = u64{1} << 31;
    for (i32 v = above[k]; v >= 0 && parent[static_cast<std::size_t>(v)] >= 0;
         v = parent[static_cast<std::size_t>(v)]) {
      const u64 mass = shape.nodes[static_cast<std::size_t>(v)].mass;
      const int shift = std::max(0, 32 - __builtin_clzll(mass));  // mass >= 1
      sum += ((leaves[k] >> shift) << 31) / (mass >> shift);
    }
    worst = std::max(worst, sum);
  }
  return worst;
}

inline Shape BestShape(const std::vector<u64>& leaves) {
  Shape huffman = Huffman(leaves);
  const u64 sum = PathSum(huffman, leaves);
  if (sum <= u64{5} << 30) return huffman;  // half of 2.5
  Shape other = ShannonFano(leaves);
  return PathSum(other, leaves) < sum ? other : huffman;
}

// How much of the node's debt R its left child should keep. Up to one sample of it is split in
// proportion to the masses, which is where a node in motion settles by itself. What exceeds that
// comes from domains that were paused while they were ahead or behind; it is spread evenly over
// the leaves, because in proportion it would all pile up on the largest.
inline i128 LeftDebt(u64 p, i128 debt, i32 left_leaves, i32 leaves) {
  const i128 one = i128{1} << kShareBits;
  const i128 core = std::clamp(debt, -one, one);
  const i128 excess = debt - core;
  const i128 scaled = excess * left_leaves;
  i128 even = scaled / leaves;
  if (even * leaves > scaled) --even;  // floor, also below zero
  return ((static_cast<i128>(p) * core) >> 64) + even;
}

inline u64 Offset(i128 left_debt, i128 target) {
  const i128 half = i128{1} << 63, top = (i128{1} << 64) - 1;
  const i128 shift = std::clamp(left_debt - target, -half, half);  // the product must not overflow
  return static_cast<u64>(std::clamp(half + shift * 4, i128{0}, top));
}

}  // namespace tree_detail

// shares: one per domain, at least one positive. debts: one per domain, or nullptr for none.
inline Tree BuildTree(const std::vector<u64>& shares, const i128* debts) {
  std::vector<std::pair<u64, i32>> sorted;  // ties in the order of domains
  for (std::size_t d = 0; d < shares.size(); ++d) {
    if (shares[d] > 0) sorted.push_back({shares[d], static_cast<i32>(d)});
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<u64> masses;
  for (const auto& leaf : sorted) masses.push_back(leaf.first);
  const tree_detail::Shape shape = tree_detail::BestShape(masses);
  const std::size_t count = shape.nodes.size();
  struct Sums {
    i128 debt;
    i32 leaves, height;
  };
  std::vector<Sums> sums(count);
  const auto sums_of = [&](i32 child) -> Sums {
    if (child >= 0) return sums[static_cast<std::size_t>(child)];
    return {debts ? debts[sorted[static_cast<std::size_t>(~child)].second] : i128{0}, 1, 0};
  };
  const auto place = [&](i32 child) {  // order of creation -> parents first; leaf -> domain
    return child < 0 ? ~sorted[static_cast<std::size_t>(~child)].second
                     : static_cast<i32>(count) - 1 - child;
  };
  Tree tree;
  tree.nodes.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto& node = shape.nodes[i];
    const Sums left = sums_of(node.left), right = sums_of(node.right);
    const u64 mass = tree_detail::MassOf(shape, masses, node.left);
    const u64 p = static_cast<u64>(((u128{mass} << 64) + node.mass / 2) / node.mass);
    const i128 debt = left.debt + right.debt;
    const i32 number = left.leaves + right.leaves;
    const i128 target = tree_detail::LeftDebt(p, debt, left.leaves, number);
    const u64 phi = debts ? tree_detail::Offset(left.debt, target) : u64{1} << 63;
    tree.nodes[count - 1 - i] = {p, phi, place(node.left), place(node.right)};
    sums[i] = {debt, number, std::max(left.height, right.height) + 1};
  }
  tree.root = count == 0 ? ~sorted[0].second : 0;
  tree.depth = count == 0 ? 0 : sums[count - 1].height;
  return tree;
}

// A tree for one single batch of a given composition: a node that gets `left + right` samples in
// all sends exactly `left` of them left. counts: one per domain, at least one positive.
inline Tree BuildExactTree(const std::vector<i64>& counts) {
  std::vector<u64> mass(counts.begin(), counts.end());
  Tree tree = BuildTree(mass, nullptr);
  // p = floor(left * 2^64 / (left + right)), so with phi = p: Left(0) = 0, and Left(n) = left as
  // (n + 1) p lies in [left, left + 1) * 2^64 for every 0 < left < n < 2^31.
  std::vector<i64> total(tree.nodes.size());
  for (std::size_t i = tree.nodes.size(); i-- > 0;) {
    Node& v = tree.nodes[i];
    const auto of = [&](i32 child) {
      return child < 0 ? counts[static_cast<std::size_t>(~child)]
                       : total[static_cast<std::size_t>(child)];
    };
    const i64 left = of(v.left);
    total[i] = left + of(v.right);
    v.p = static_cast<u64>((u128{static_cast<u64>(left)} << 64) / static_cast<u64>(total[i]));
    v.phi = v.p;
  }
  return tree;
}

// Draws that `samples` arrivals since the segment's start give each leaf, added to out[domain].
inline void AddCounts(const Tree& tree, i64 samples, i64* out) {
  if (tree.root < 0) {
    out[~tree.root] += samples;
    return;
  }
  std::vector<i64> arrived(tree.nodes.size());
  arrived[0] = samples;
  for (std::size_t i = 0; i < tree.nodes.size(); ++i) {  // parents come first
    const Node& v = tree.nodes[i];
    const i64 left = Left(v, arrived[i]), right = arrived[i] - left;
    (v.left < 0 ? out[~v.left] : arrived[static_cast<std::size_t>(v.left)]) += left;
    (v.right < 0 ? out[~v.right] : arrived[static_cast<std::size_t>(v.right)]) += right;
  }
}

// The bound on a leaf's deviation, in samples: max over leaves of half the sum of w_leaf / w_v.
// A figure for people; nothing is decided by it.
inline double DeviationBound(const Tree& tree, const std::vector<u64>& shares) {
  if (tree.root < 0) return 0.0;
  std::vector<double> mass(tree.nodes.size());
  const auto of = [&](i32 child) {
    return child < 0 ? static_cast<double>(shares[static_cast<std::size_t>(~child)])
                     : mass[static_cast<std::size_t>(child)];
  };
  for (std::size_t i = tree.nodes.size(); i-- > 0;) {
    mass[i] = of(tree.nodes[i].left) + of(tree.nodes[i].right);
  }
  std::vector<double> path(tree.nodes.size(), 0.0);  // sum of 1 / w_v above, root left out
  double bound = 0.0;
  for (std::size_t i = 0; i < tree.nodes.size(); ++i) {
    for (const i32 child : {tree.nodes[i].left, tree.nodes[i].right}) {
      const double sum = path[i] + 1.0 / of(child);
      if (child < 0)
        bound = std::max(bound, 0.5 * sum * of(child));
      else
        path[static_cast<std::size_t>(child)] = sum;
    }
  }
  return bound;
}

}  // namespace mixcore
