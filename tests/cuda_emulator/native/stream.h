// Streams and graphs. A stream's work is done at once, or recorded while the stream is captured.
#pragma once

#include <functional>
#include <vector>

namespace emulator {

// A CUDA error code, 0 for success.
using Work = std::function<int()>;

struct Graph {
  std::vector<Work> nodes;
};

struct Stream {
  Graph* capture = nullptr;
};

// How many streams are being captured.
extern int captures;

// Does the work, or records it.
int submit(Stream* stream, Work work);

}  // namespace emulator
