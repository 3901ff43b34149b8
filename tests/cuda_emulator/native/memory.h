// Device memory: the CPU's, with guards around each allocation.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace emulator {

// Bytes of a page of the CPU's memory.
size_t page_size();
// The least multiple of `unit` from `bytes` on.
constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// What memory holds before it is written: bytes that are a NaN in every floating-point type.
constexpr int kPoison = 0xFF;

// Memory between two pages that cannot be touched, a whole number of pages; throws bad_alloc.
unsigned char* map_guarded(size_t bytes);
void unmap_guarded(unsigned char* memory, size_t bytes);

void* allocate(size_t bytes);
// False if it is none of ours.
bool release(void* pointer);

struct Memory {
  unsigned char* start;
  size_t bytes;
};
std::vector<Memory> all_memory();
// Makes all memory of the device read-only, or writable again.
void protect_memory(bool read_only);

// Where an address lies that a kernel may not use.
std::string describe_address(const void* address);
// An empty string, or which allocation was written past its end.
std::string check_memory();

}  // namespace emulator
