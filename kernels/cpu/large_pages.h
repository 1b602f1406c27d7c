// Memory of what every token reads, packed weights and the KV cache: side by side in large pages.
//
// Most matrices of a model are smaller than a large page, and a token reads nearly all of them
// once: in pages of 4 KiB, looking up where they lie took a tenth of it, and a third of attention
// (docs/PERFORMANCE.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ultraspeed::kernels {

// `num_bytes` > 0 of zeros that begin at a cache line; the system hands out a large page on its
// first use. They share a mapping with those that were asked for before and after; it lives until
// all of them are gone. Thread-safe; std::bad_alloc if the system has no memory.
std::shared_ptr<uint8_t[]> AllocateZeros(size_t num_bytes);

}  // namespace ultraspeed::kernels
