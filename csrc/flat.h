// One segment of order balanced as a single run of bytes, for processors that do not share the
// host's memory: a FlatSegment, and behind it the arrays that it says where to find. Position and
// draw are the same functions of it as of the plan it was made from; only the numbering of the
// nodes differs (level by level, so that the first ones are the top of the tree).
#pragma once

#include <vector>

#include "blend.h"
#include "portable.h"
#include "tree.h"

namespace mixcore {

// A node as the edge tables see it. A subtree's leaves are neighbours in the order of leaves, and
// its numbers are kept at its first leaf: so its left child's are where its own were.
struct Split {
  u64 p;
  u64 phi;
  i32 left_at;   // place of the node itself and of its left child
  i32 right_at;  // place of its right child
};

struct FlatSegment {
  i64 start;
  i64 batch;
  Divider by_batch;
  Radix radix;
  i64 bytes;           // of this and all arrays
  i64 nodes_at;        // Node[nodes]
  i64 splits_at;       // Split[nodes], in the order of the nodes
  i64 base_at;         // i64[domains]
  i64 leaf_domain_at;  // i32[leaves]
  i64 levels_at;       // i32[depth + 1]: the first node of each level, then their number
  i32 root;
  i32 nodes;
  i32 leaves;
  i32 depth;
  i32 domains;
  i32 unused;

  template <typename T>
  MIXCORE_HD static const T* Array(const char* data, i64 at) {
    return reinterpret_cast<const T*>(data + at);
  }
  // data: where the bytes lie for whoever asks.
  MIXCORE_HD const Node* Nodes(const char* data) const { return Array<Node>(data, nodes_at); }
  MIXCORE_HD const Split* Splits(const char* data) const { return Array<Split>(data, splits_at); }
  MIXCORE_HD const i64* Base(const char* data) const { return Array<i64>(data, base_at); }
  MIXCORE_HD const i32* LeafDomain(const char* data) const {
    return Array<i32>(data, leaf_domain_at);
  }
  MIXCORE_HD const i32* Levels(const char* data) const { return Array<i32>(data, levels_at); }
  MIXCORE_HD SegmentView View(const char* data) const {
    return {start, batch, by_batch, radix, Nodes(data), root, Base(data)};
  }
};

std::vector<char> Flatten(const Tree& tree, const std::vector<i64>& base, i64 start, i64 batch);

}  // namespace mixcore
