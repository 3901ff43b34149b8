// Bulk copies from global to shared memory (TMA), counted in bytes at an mbarrier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

void bulk_load(unsigned char* to, const unsigned char* from, uint32_t bytes,
               unsigned char* mbarrier);
// The box of a tensor map at `coordinates` (innermost first).
void bulk_tensor_load(unsigned char* to, const void* map, const int32_t* coordinates, size_t rank,
                      unsigned char* mbarrier);

}  // namespace emulator
