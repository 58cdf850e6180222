// The tree of one segment: Huffman over the positive shares, with the debt of all earlier
// segments folded into each node's rounding offset. Host only; the walk is in blend.h.
//
// Huffman (Huffman 1952: merge the two smallest masses again and again) keeps the expected walk
// short, and bounds a leaf's deviation from its exact share by half the sum of w_leaf / w_v over
// the non-root nodes v on its path: below 1.68 for any weights.
#pragma once

#include <algorithm>
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

struct Part {  // a leaf or a subtree while the tree is put together
  u64 mass;
  i32 child;  // Node's convention: >= 0 node (by order of creation), < 0 leaf ~domain
  i32 leaves;
  i32 height;
  i128 debt;  // sum over its leaves of exact ideal - draws, in units of 2^-62
};

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
  using tree_detail::Part;
  std::vector<Part> leaves, inner;
  for (std::size_t d = 0; d < shares.size(); ++d) {
    if (shares[d] == 0) continue;
    leaves.push_back({shares[d], ~static_cast<i32>(d), 1, 0, debts ? debts[d] : i128{0}});
  }
  // Ties by serial number: leaves in order of domain, then subtrees in order of creation.
  std::stable_sort(leaves.begin(), leaves.end(),
                   [](const Part& x, const Part& y) { return x.mass < y.mass; });
  const std::size_t count = leaves.size() - 1;
  Tree tree;
  tree.nodes.resize(count);
  inner.reserve(count);
  std::size_t next_leaf = 0, next_inner = 0;
  const auto smallest = [&]() -> const Part& {
    const bool leaf =
        next_inner == inner.size() ||
        (next_leaf < leaves.size() && leaves[next_leaf].mass <= inner[next_inner].mass);
    return leaf ? leaves[next_leaf++] : inner[next_inner++];
  };
  const auto place = [&](i32 child) {  // order of creation -> parents first
    return child < 0 ? child : static_cast<i32>(count) - 1 - child;
  };
  for (std::size_t i = 0; i < count; ++i) {
    const Part left = smallest(), right = smallest();
    const u64 mass = left.mass + right.mass;
    const u64 p = static_cast<u64>(((u128{left.mass} << 64) + mass / 2) / mass);
    const i128 debt = left.debt + right.debt;
    const i32 number = left.leaves + right.leaves;
    const i128 target = tree_detail::LeftDebt(p, debt, left.leaves, number);
    const u64 phi = debts ? tree_detail::Offset(left.debt, target) : u64{1} << 63;
    tree.nodes[count - 1 - i] = {p, phi, place(left.child), place(right.child)};
    tree.depth = std::max(left.height, right.height) + 1;
    inner.push_back({mass, static_cast<i32>(i), number, tree.depth, debt});
  }
  tree.root = count == 0 ? leaves[0].child : 0;
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
