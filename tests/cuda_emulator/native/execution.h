// What compiled kernels share with the emulated driver.
//
// Every thread of a block is a fiber. It runs until it has to wait for others (a barrier, a
// warp-wide operation, an mbarrier) or ends; then another goes on, on the same CPU thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
  unsigned count() const { return x * y * z; }
};

// A kernel as its module describes it.
struct Kernel {
  void (*invoke)(void** arguments);
  const size_t* argument_sizes;
  size_t arguments;
  size_t static_shared;  // bytes
};

struct Launch {
  const Kernel* kernel;
  void** arguments;
  Index grid, block, cluster;
  size_t dynamic_shared;  // bytes
  bool dependent;         // it may start before the kernels before it have ended
};

struct Block {
  Index index;
  Index index_in_cluster;
  unsigned rank_in_cluster;
  unsigned char* shared;  // the static arrays, then the dynamic arena
  unsigned char* const* cluster_shared;  // those of the cluster's blocks
};

struct Warp;

struct Thread {
  Index index;
  unsigned lane;
  Warp* warp;
  Block* block;
  const Launch* launch;
  void* stack_pointer;
};

// The fiber that runs on this CPU thread.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

constexpr unsigned kWarpSize = 32;
// Shared memory starts here when addresses are 32-bit numbers, so that 0 is none.
constexpr uint32_t kSharedWindow = 1024;

// A warp-wide operation, done once for the lanes of `mask`: operands[lane] is what each gave.
using Operation = void (*)(void* const* operands, uint32_t mask);

// Waits for the lanes of `mask` that have not ended, has the operation done, and returns.
void collective(uint32_t mask, Operation operation, void* operand);
// Arrives at a named barrier of `threads` threads (0: all of the block that have not ended) and,
// with `wait`, waits for it. Returns the sum of `value` over these threads.
int barrier(unsigned id, unsigned threads, bool wait, int value);
// Asynchronous work comes in groups: copies of a thread, matrix products of a warp (started,
// committed and waited for within warp-wide operations). It is done at once, or not before it is
// waited for.
enum class Async { kCopies, kProducts };
void start(Async kind, std::function<void()> work);
void commit(Async kind);
// Waits for all groups but the last `groups`.
void wait(Async kind, unsigned groups);
// Work that nobody waits for but through an mbarrier; at once, or when no thread can go on.
void transfer(std::function<void()> work);

// Sleeps until what the address stands for changes.
void sleep_on(const void* what);
void wake(const void* what);
void cluster_arrive();
void cluster_wait();
// Waits for the kernels before this one.
void grid_dependency_wait();
// Lets other fibers run.
void yield();
// Ends the launch with a message.
[[noreturn]] void fail(const char* message);

// A block's own shared memory is at kSharedWindow, that of block r of its cluster also at
// (r + 1) << kRankShift | kSharedWindow.
constexpr unsigned kRankShift = 24;

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) -
                               current->block->shared) +
         kSharedWindow;
}

// The address in whichever block it is.
inline uint32_t own_address(uint32_t address) { return address & ((1u << kRankShift) - 1); }

inline uint32_t address_in_block(uint32_t address, uint32_t rank) {
  return own_address(address) | (rank + 1) << kRankShift;
}

inline unsigned char* shared_pointer(uint32_t address) {
  const Block& block = *current->block;
  const uint32_t rank = address >> kRankShift;
  unsigned char* const shared = rank == 0 ? block.shared : block.cluster_shared[rank - 1];
  return shared + (own_address(address) - kSharedWindow);
}

}  // namespace emulator
