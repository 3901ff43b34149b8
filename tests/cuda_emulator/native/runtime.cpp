// The functions of libcudart.so.13 that TVM's CUDA runtime uses.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dependent_launch.h"
#include "errors.h"
#include "memory.h"
#include "scheduler.h"
#include "stream.h"

using namespace emulator;

namespace {

constexpr size_t kDeviceMemory = size_t{8} << 30;
constexpr size_t kHostAlignment = 256;

thread_local int last_error = kSuccess;

int report(int error) {
  if (error != kSuccess) last_error = error;
  return error;
}

// Calls that would wait for, or act beside, the work that is being recorded.
int unless_captured() { return captures == 0 ? kSuccess : kCaptureUnsupported; }

using Clock = std::chrono::steady_clock;

}  // namespace

struct Event {
  Clock::time_point time;
};

extern "C" {

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}

int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}

int cudaSetDevice(int device) { return report(device == 0 ? kSuccess : kInvalidValue); }

int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1: *value = kMaxThreads; break;             // threads of a block
    case 2: case 3: *value = kMaxThreads; break;     // extents of a block
    case 4: *value = 64; break;
    case 8: *value = 48 << 10; break;                // shared memory of a block
    case 10: *value = kWarpSize; break;
    case 12: *value = 65536; break;                  // registers of a block
    case 13: *value = 1000000; break;                // clock in kHz
    case 16: *value = 16; break;                     // multiprocessors
    case 38: *value = 1 << 20; break;                // bytes of L2
    case 75: *value = compute_capability / 10; break;
    case 76: *value = compute_capability % 10; break;
    case 97: *value = kMaxShared; break;             // shared memory of a block, if asked for
    default: return report(kInvalidValue);
  }
  return kSuccess;
}

// TVM reads the total memory only.
int cudaGetDeviceProperties(void* properties, int) {
  constexpr size_t kTotalMemoryAt = 288;
  char* const total_memory = static_cast<char*>(properties) + kTotalMemoryAt;
  std::memcpy(total_memory, &kDeviceMemory, sizeof kDeviceMemory);
  return kSuccess;
}

const char* cudaGetErrorName(int error) { return error_text(error); }
const char* cudaGetErrorString(int error) { return error_text(error); }

int cudaPeekAtLastError() { return last_error; }

int cudaGetLastError() {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}

int cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = kDeviceMemory;
  return kSuccess;
}

int cudaMalloc(void** pointer, size_t bytes) {
  if (unless_captured() != kSuccess) return report(kCaptureUnsupported);
  try {
    *pointer = allocate(bytes);
  } catch (const std::bad_alloc&) {
    return report(kOutOfMemory);
  }
  return kSuccess;
}

int cudaFree(void* pointer) {
  return report(pointer == nullptr || release(pointer) ? kSuccess : kInvalidValue);
}

int cudaMallocHost(void** pointer, size_t bytes) {
  *pointer = std::aligned_alloc(kHostAlignment, round_up(bytes + 1, kHostAlignment));
  return report(*pointer != nullptr ? kSuccess : kOutOfMemory);
}

int cudaFreeHost(void* pointer) {
  std::free(pointer);
  return kSuccess;
}

int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, Stream* stream) {
  return report(submit(stream, [=]() -> int {
    forget_writes();
    std::memmove(to, from, bytes);
    return kSuccess;
  }));
}

int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, Stream* stream) {
  return cudaMemcpyAsync(to, from, bytes, 0, stream);
}

int cudaStreamCreate(Stream** stream) {
  *stream = new Stream();
  return kSuccess;
}

int cudaStreamCreateWithFlags(Stream** stream, unsigned) { return cudaStreamCreate(stream); }

int cudaStreamDestroy(Stream* stream) {
  delete stream;
  return kSuccess;
}

int cudaStreamSynchronize(Stream*) { return report(unless_captured()); }

int cudaStreamWaitEvent(Stream*, Event*, unsigned) { return kSuccess; }

int cudaStreamBeginCapture(Stream* stream, int) {
  if (stream == nullptr || stream->capture != nullptr) return report(kCaptureUnsupported);
  stream->capture = new Graph();
  ++captures;
  return kSuccess;
}

int cudaStreamEndCapture(Stream* stream, Graph** graph) {
  if (stream == nullptr || stream->capture == nullptr) return report(kInvalidValue);
  *graph = stream->capture;
  stream->capture = nullptr;
  --captures;
  return kSuccess;
}

int cudaGraphInstantiate(Graph** instance, Graph* graph, uint64_t) {
  *instance = new Graph(*graph);
  return kSuccess;
}

int cudaGraphDestroy(Graph* graph) {
  delete graph;
  return kSuccess;
}

int cudaGraphExecDestroy(Graph* instance) {
  delete instance;
  return kSuccess;
}

int cudaGraphLaunch(Graph* instance, Stream* stream) {
  for (const Work& node : instance->nodes) {
    if (const int error = submit(stream, node); error != kSuccess) return report(error);
  }
  return kSuccess;
}

int cudaEventCreate(Event** event) {
  *event = new Event();
  return kSuccess;
}

int cudaEventDestroy(Event* event) {
  delete event;
  return kSuccess;
}

int cudaEventRecord(Event* event, Stream*) {
  event->time = Clock::now();
  return kSuccess;
}

int cudaEventSynchronize(Event*) { return report(unless_captured()); }

int cudaEventElapsedTime(float* milliseconds, Event* start, Event* stop) {
  *milliseconds = std::chrono::duration<float, std::milli>(stop->time - start->time).count();
  return kSuccess;
}

}  // extern "C"
