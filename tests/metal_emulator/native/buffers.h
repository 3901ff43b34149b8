// Buffers of the emulated Metal device.
#pragma once

namespace emulator {

// The memory of a buffer; nullptr unless `handle` is one. As on a Mac, a handle is no address: it
// cannot be read through, and nothing may be added to it.
unsigned char* contents(const void* handle);

}  // namespace emulator
