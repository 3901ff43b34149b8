// Device memory: the CPU's, with guards around each allocation.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

constexpr size_t kPage = 4096;
// What memory holds before it is written: bytes that are a NaN in every floating-point type.
constexpr int kPoison = 0xFF;

void* allocate(size_t bytes);
// False if it is none of ours.
bool release(void* pointer);

// Where an address lies that a kernel may not use.
std::string describe_address(const void* address);
// An empty string, or which allocation was written past its end.
std::string check_memory();

}  // namespace emulator
