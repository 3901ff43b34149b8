// Bulk copies from global to shared memory (TMA), counted in bytes at an mbarrier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// Shared memory is given by its addresses, which may be another block's of the cluster.
void bulk_load(uint32_t to, const unsigned char* from, uint32_t bytes, uint32_t mbarrier);
// The box of a tensor map at `coordinates` (innermost first).
void bulk_tensor_load(uint32_t to, const void* map, const int32_t* coordinates, size_t rank,
                      uint32_t mbarrier);

}  // namespace emulator
