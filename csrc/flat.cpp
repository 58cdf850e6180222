// Lays a segment out: nodes level by level, places in the order of leaves.
#include "flat.h"

#include <cstring>
#include <numeric>

namespace mixcore {
namespace {

std::size_t Index(i32 i) { return static_cast<std::size_t>(i); }

// Puts an array behind the others, on a multiple of 16 bytes; returns where.
template <typename T>
i64 Lay(const std::vector<T>& values, std::vector<char>* bytes) {
  const std::size_t at = (bytes->size() + 15) / 16 * 16;
  bytes->resize(at + values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes->data() + at, values.data(), values.size() * sizeof(T));
  return static_cast<i64>(at);
}

}  // namespace

std::vector<char> Flatten(const Tree& tree, const std::vector<i64>& base, i64 start, i64 batch) {
  const i32 count = static_cast<i32>(tree.nodes.size());
  std::vector<i32> leaves(tree.nodes.size()), first(tree.nodes.size()), level(tree.nodes.size());
  const auto leaves_of = [&](i32 child) { return child < 0 ? 1 : leaves[Index(child)]; };
  for (i32 i = count; i-- > 0;) {  // parents come first
    const Node& v = tree.nodes[Index(i)];
    leaves[Index(i)] = leaves_of(v.left) + leaves_of(v.right);
  }
  std::vector<i32> leaf_domain(count == 0 ? 1 : Index(leaves[0]), count == 0 ? ~tree.root : 0);
  const auto settle = [&](i32 child, i32 place, i32 depth) {
    if (child < 0) {
      leaf_domain[Index(place)] = ~child;
    } else {
      first[Index(child)] = place;
      level[Index(child)] = depth;
    }
  };
  std::vector<i32> levels(Index(tree.depth) + 2);  // counts, one place further; then starts
  for (i32 i = 0; i < count; ++i) {
    const Node& v = tree.nodes[Index(i)];
    settle(v.left, first[Index(i)], level[Index(i)] + 1);
    settle(v.right, first[Index(i)] + leaves_of(v.left), level[Index(i)] + 1);
    ++levels[Index(level[Index(i)]) + 1];
  }
  std::partial_sum(levels.begin(), levels.end(), levels.begin());
  levels.pop_back();
  std::vector<i32> number(tree.nodes.size()), next = levels;
  for (i32 i = 0; i < count; ++i) number[Index(i)] = next[Index(level[Index(i)])]++;
  const auto numbered = [&](i32 child) { return child < 0 ? child : number[Index(child)]; };
  std::vector<Node> nodes(tree.nodes.size());
  std::vector<Split> splits(tree.nodes.size());
  for (i32 i = 0; i < count; ++i) {
    const Node& v = tree.nodes[Index(i)];
    const std::size_t at = Index(number[Index(i)]);
    nodes[at] = {v.p, v.phi, numbered(v.left), numbered(v.right)};
    splits[at] = {v.p, v.phi, first[Index(i)], first[Index(i)] + leaves_of(v.left)};
  }
  std::vector<char> bytes(sizeof(FlatSegment));
  FlatSegment head{};
  head.start = start;
  head.batch = batch;
  head.by_batch = Divider::Of(static_cast<u64>(batch));
  head.radix = Radix::Of(static_cast<u64>(batch));
  head.nodes_at = Lay(nodes, &bytes);
  head.splits_at = Lay(splits, &bytes);
  head.base_at = Lay(base, &bytes);
  head.leaf_domain_at = Lay(leaf_domain, &bytes);
  head.levels_at = Lay(levels, &bytes);
  head.bytes = static_cast<i64>(bytes.size());
  head.root = tree.root;
  head.nodes = count;
  head.leaves = static_cast<i32>(leaf_domain.size());
  head.depth = tree.depth;
  head.domains = static_cast<i32>(base.size());
  std::memcpy(bytes.data(), &head, sizeof(head));
  return bytes;
}

}  // namespace mixcore
