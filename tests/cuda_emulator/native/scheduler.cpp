#include "scheduler.h"

#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "context_switch.h"
#include "deferred.h"
#include "dependent_launch.h"
#include "memory.h"

namespace emulator {

thread_local Thread* current = nullptr;

namespace {

constexpr size_t kStackSize = 64 << 10;
constexpr unsigned kBarriers = 16;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;

// A named barrier of a block: `waiting` has a bit for each lane of each warp.
struct Barrier {
  unsigned arrived, wanted;
  int sum, result;
  uint32_t waiting[kMaxWarps];
};

struct BlockState : Block {
  unsigned live;  // threads that have not ended
  unsigned warps;
  Warp* first_warp;
  Barrier barriers[kBarriers];
};

}  // namespace

struct Warp {
  uint32_t live;   // lanes that have not ended
  uint32_t ready;  // lanes that can run
  uint32_t met;    // lanes that wait in a warp-wide operation
  uint32_t masks[kWarpSize];
  Operation operations[kWarpSize];
  void* operands[kWarpSize];
  Thread* lanes;
  BlockState* block;
  unsigned number;  // in its block
  Deferred products;
};

namespace {

// Who goes on.
struct Picker {
  Order order;
  uint32_t state = 2463534242;  // of the random numbers

  uint32_t random() {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
  }

  // A lane of `ready`, the next one after lane `after`.
  unsigned lane(uint32_t ready, unsigned after) {
    if (order == Order::kForward) {
      const uint32_t above = ready & ~((uint64_t{2} << after) - 1);
      return __builtin_ctz(above != 0 ? above : ready);
    }
    if (order == Order::kReverse) {
      const uint32_t below = ready & ((1u << after) - 1);
      return 31 - __builtin_clz(below != 0 ? below : ready);
    }
    for (unsigned skip = random() % __builtin_popcount(ready); skip > 0; --skip) ready &= ready - 1;
    return __builtin_ctz(ready);
  }
};

// What a block's threads have besides what kernels see of them.
struct ThreadState {
  Deferred copies;
  uint64_t cluster_turn;  // of the cluster's barrier, when the thread arrived there
};

// A CPU thread's part of a launch: one cluster of blocks at a time.
class Worker {
 public:
  // Runs clusters until none is left; false, with `failure` set, if one goes wrong.
  bool run(const Launch& launch, Order order, std::atomic<uint64_t>& next_cluster,
           const std::atomic<bool>& stop);
  // Goes on with another fiber; returns when this one's turn comes.
  void next();
  void end_thread();
  [[noreturn]] void fail(const std::string& message);
  // A fiber got further.
  void progress() { polls_ = 0; }
  // Whether asynchronous work is done as late as may be.
  bool late() const { return picker_.order == Order::kReverse; }
  Deferred& deferred(Async kind) {
    return kind == Async::kProducts ? current->warp->products : state().copies;
  }
  void transfer(std::function<void()> work) { transfers_.push_back(std::move(work)); }
  void yield();
  void sleep_on(const void* what);
  void wake(const void* what);
  void cluster_arrive();
  void cluster_wait();
  void grid_dependency_wait();

  std::string failure;

 private:
  void start(const Launch& launch, uint64_t cluster);
  void start_block(const Launch& launch, BlockState& block);
  ThreadState& state() { return states_[current - threads_.data()]; }
  Thread* pick();
  bool transfer_next();
  bool end_dependency();
  void check_cluster_barrier();
  std::string why_stuck() const;
  void* stack_top(size_t thread);

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<BlockState> blocks_;
  std::vector<ThreadState> states_;
  std::vector<unsigned char*> stacks_, arenas_;
  size_t live_ = 0;  // threads that have not ended
  std::deque<std::function<void()>> transfers_;
  std::vector<std::pair<const void*, Thread*>> sleepers_;
  size_t cluster_arrived_ = 0;
  uint64_t cluster_turn_ = 0;
  bool started_early_ = false;  // and has not waited for the kernels before this one
  size_t polls_ = 0;  // since a fiber last got further
  Picker picker_{Order::kForward};
  void* main_context_ = nullptr;
  sigjmp_buf escape_;
  alignas(16) unsigned char signal_stack_[32 << 10];
};

thread_local Worker* worker = nullptr;

void thread_main() {
  current->launch->kernel->invoke(current->launch->arguments);
  worker->end_thread();
}

// Tops are staggered so that the fibers' innermost frames fall into different cache sets.
void* Worker::stack_top(size_t thread) {
  while (stacks_.size() <= thread) stacks_.push_back(map_guarded(kStackSize));
  return stacks_[thread] + kStackSize - (thread % 16) * 256;
}

bool Worker::run(const Launch& launch, Order order, std::atomic<uint64_t>& next_cluster,
                 const std::atomic<bool>& stop) {
  const uint64_t clusters = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z /
                            launch.cluster.count();
  stack_t alternate{}, before{};
  alternate.ss_sp = signal_stack_;
  alternate.ss_size = sizeof signal_stack_;
  sigaltstack(&alternate, &before);
  worker = this;
  failure.clear();
  picker_ = Picker{order};
  if (sigsetjmp(escape_, 1) == 0) {
    while (!stop) {
      const uint64_t turn = next_cluster++;
      if (turn >= clusters) break;
      start(launch, order == Order::kReverse ? clusters - 1 - turn : turn);
      current = &threads_[order == Order::kReverse ? threads_.size() - 1 : 0];
      emulator_switch(&main_context_, current->stack_pointer);
    }
  }
  reveal_writes();
  worker = nullptr;
  current = nullptr;
  sigaltstack(&before, nullptr);
  return failure.empty();
}

Index unflatten(uint64_t number, Index extent) {
  return {static_cast<unsigned>(number % extent.x),
          static_cast<unsigned>(number / extent.x % extent.y),
          static_cast<unsigned>(number / extent.x / extent.y)};
}

void Worker::start(const Launch& launch, uint64_t cluster) {
  const Index extent = launch.cluster;
  const unsigned blocks = extent.count(), threads = launch.block.count();
  const unsigned warps = (threads + kWarpSize - 1) / kWarpSize;
  const Index clusters{launch.grid.x / extent.x, launch.grid.y / extent.y,
                       launch.grid.z / extent.z};
  const Index origin = unflatten(cluster, clusters);
  threads_.resize(blocks * threads);
  states_.resize(blocks * threads);
  warps_.resize(blocks * warps);
  blocks_.resize(blocks);
  live_ = threads_.size();
  for (ThreadState& state : states_) state.copies.clear();
  transfers_.clear();
  sleepers_.clear();
  cluster_arrived_ = 0;
  polls_ = 0;
  started_early_ = launch.dependent;
  while (arenas_.size() < blocks) {
    arenas_.push_back(map_guarded(round_up(kMaxShared, page_size())));
  }
  for (unsigned rank = 0; rank < blocks; ++rank) {
    const Index within = unflatten(rank, extent);
    BlockState& block = blocks_[rank];
    block = BlockState{};
    block.index = {origin.x * extent.x + within.x, origin.y * extent.y + within.y,
                   origin.z * extent.z + within.z};
    block.index_in_cluster = within;
    block.rank_in_cluster = rank;
    block.shared = arenas_[rank];
    block.cluster_shared = arenas_.data();
    block.live = threads;
    block.warps = warps;
    block.first_warp = &warps_[rank * warps];
    start_block(launch, block);
  }
  if (launch.dependent) hide_writes();
}

void Worker::start_block(const Launch& launch, BlockState& block) {
  std::memset(block.shared, kPoison, launch.kernel->static_shared + launch.dynamic_shared);
  const unsigned first = block.rank_in_cluster * block.live;
  for (unsigned number = 0; number < block.warps; ++number) {
    Warp& warp = block.first_warp[number];
    const unsigned lanes = std::min(kWarpSize, block.live - number * kWarpSize);
    warp.live = warp.ready = ~0u >> (kWarpSize - lanes);
    warp.met = 0;
    warp.lanes = &threads_[first + number * kWarpSize];
    warp.block = &block;
    warp.number = number;
    warp.products.clear();
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const unsigned rank = number * kWarpSize + lane;
      void* const context = new_context(stack_top(first + rank), thread_main);
      warp.lanes[lane] = {unflatten(rank, launch.block), lane, &warp, &block, &launch, context};
    }
  }
}

// The fiber that goes on after the current one, in its own warp if one can; none if all wait.
Thread* Worker::pick() {
  Warp& own = *current->warp;
  const bool shuffled = picker_.order == Order::kShuffled;
  if (own.ready != 0 && !shuffled) return &own.lanes[picker_.lane(own.ready, current->lane)];
  const bool reverse = picker_.order == Order::kReverse;
  const size_t count = warps_.size();
  const size_t start = shuffled ? picker_.random() % count : &own - warps_.data();
  for (size_t step = 0; step < count; ++step) {
    Warp& warp = warps_[(reverse ? start + count - step : start + step) % count];
    if (warp.ready != 0) return &warp.lanes[picker_.lane(warp.ready, reverse ? 0 : 31)];
  }
  return nullptr;
}

void Worker::next() {
  Thread* const self = current;
  Thread* other = pick();
  while (other == nullptr && (transfer_next() || end_dependency())) other = pick();
  if (other == self) return;
  if (other != nullptr) {
    current = other;
    emulator_switch(&self->stack_pointer, other->stack_pointer);
  } else if (live_ == 0) {
    emulator_switch(&self->stack_pointer, main_context_);
  } else {
    fail(why_stuck());
  }
}

// Does the oldest transfer that is under way; false if there is none.
bool Worker::transfer_next() {
  if (transfers_.empty()) return false;
  const std::function<void()> work = std::move(transfers_.front());
  transfers_.pop_front();
  work();
  return true;
}

// The kernels before this one end when no fiber can go on without it; false if they have.
bool Worker::end_dependency() {
  if (!started_early_) return false;
  started_early_ = false;
  reveal_writes();
  wake(&started_early_);
  return true;
}

void Worker::grid_dependency_wait() {
  while (started_early_) sleep_on(&started_early_);
}

void Worker::yield() {
  constexpr size_t kPatience = 10'000'000;
  if (++polls_ > kPatience) fail("threads poll for ever");
  if (pick() == current && !transfer_next()) end_dependency();
  next();
}

void Worker::sleep_on(const void* what) {
  sleepers_.emplace_back(what, current);
  current->warp->ready &= ~(1u << current->lane);
  next();
}

void Worker::wake(const void* what) {
  progress();
  const auto asleep = std::partition(sleepers_.begin(), sleepers_.end(),
                                     [=](const auto& sleeper) { return sleeper.first != what; });
  for (auto sleeper = asleep; sleeper != sleepers_.end(); ++sleeper) {
    sleeper->second->warp->ready |= 1u << sleeper->second->lane;
  }
  sleepers_.erase(asleep, sleepers_.end());
}

void Worker::cluster_arrive() {
  state().cluster_turn = cluster_turn_;
  ++cluster_arrived_;
  check_cluster_barrier();
}

void Worker::cluster_wait() {
  while (state().cluster_turn == cluster_turn_) sleep_on(&cluster_turn_);
}

void Worker::check_cluster_barrier() {
  if (cluster_arrived_ == 0 || cluster_arrived_ < live_) return;
  cluster_arrived_ = 0;
  ++cluster_turn_;
  wake(&cluster_turn_);
}

std::string Worker::why_stuck() const {
  size_t meeting = 0, at_barrier = 0;
  for (const Warp& warp : warps_) meeting += __builtin_popcount(warp.met);
  for (const BlockState& block : blocks_) {
    for (const Barrier& barrier : block.barriers) {
      for (uint32_t waiting : barrier.waiting) at_barrier += __builtin_popcount(waiting);
    }
  }
  return "deadlock: of " + std::to_string(threads_.size()) + " threads " +
         std::to_string(threads_.size() - live_) + " have ended, " + std::to_string(at_barrier) +
         " wait at a barrier, " + std::to_string(meeting) + " in a warp-wide operation, " +
         std::to_string(live_ - at_barrier - meeting) + " at an mbarrier or the cluster's barrier";
}

std::string text(Index index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

void Worker::fail(const std::string& message) {
  failure = message + ", in block " + text(current->block->index) + ", thread " +
            text(current->index);
  siglongjmp(escape_, 1);
}

// Does the operation that the lanes of `mask` meet in, once all of them are there.
bool meet(Warp& warp, uint32_t mask) {
  const uint32_t group = mask & warp.live;
  if ((warp.met & group) != group) return false;
  const unsigned first = __builtin_ctz(group);
  for (uint32_t rest = group; rest != 0; rest &= rest - 1) {
    const unsigned lane = __builtin_ctz(rest);
    if (warp.operations[lane] != warp.operations[first] || warp.masks[lane] != mask) {
      fail("lanes of a warp meet in different operations, or with different masks");
    }
  }
  warp.operations[first](warp.operands, group);
  warp.met &= ~group;
  warp.ready |= group;
  worker->progress();
  return true;
}

void release(BlockState& block, Barrier& barrier) {
  worker->progress();
  for (unsigned warp = 0; warp < block.warps; ++warp) {
    block.first_warp[warp].ready |= barrier.waiting[warp];
    barrier.waiting[warp] = 0;
  }
  barrier.result = barrier.sum;
  barrier.sum = 0;
  barrier.arrived = 0;
}

void Worker::end_thread() {
  Warp& warp = *current->warp;
  BlockState& block = *warp.block;
  const uint32_t bit = 1u << current->lane;
  warp.live &= ~bit;
  warp.ready &= ~bit;
  --block.live;
  --live_;
  for (uint32_t rest = warp.met; rest != 0; rest &= rest - 1) {
    const unsigned lane = __builtin_ctz(rest);
    if ((warp.met >> lane & 1) != 0) meet(warp, warp.masks[lane]);
  }
  for (Barrier& barrier : block.barriers) {
    if (barrier.arrived != 0 && barrier.wanted == 0 && barrier.arrived == block.live) {
      release(block, barrier);
    }
  }
  check_cluster_barrier();
  next();
}

void on_fault(int signal, siginfo_t* info, void*);

// While a kernel runs, its faults end the launch and not the process.
class FaultHandlers {
 public:
  FaultHandlers() {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &action, &before_[i]);
  }
  ~FaultHandlers() { restore(); }
  static void restore() {
    for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
  static inline struct sigaction before_[std::size(kFaults)];
};

void on_fault(int signal, siginfo_t* info, void*) {
  if (worker == nullptr || current == nullptr) {
    // Not a kernel's fault: it happens again, and is then dealt with as without this handler.
    FaultHandlers::restore();
    return;
  }
  if (signal == SIGFPE) worker->fail("integer division by zero");
  if (signal == SIGILL || signal == SIGTRAP) worker->fail("array index out of bounds, or a misaligned address");
  worker->fail("illegal address: " + describe_address(info->si_addr));
}

// Workers keep their stacks from launch to launch. One launch at a time.
std::vector<std::unique_ptr<Worker>>& workers() {
  static auto* all = new std::vector<std::unique_ptr<Worker>>();
  return *all;
}

}  // namespace

void collective(uint32_t mask, Operation operation, void* operand) {
  Warp& warp = *current->warp;
  const unsigned lane = current->lane;
  const uint32_t bit = 1u << lane;
  if ((mask & bit) == 0) fail("a lane calls a warp-wide operation that leaves it out");
  warp.masks[lane] = mask;
  warp.operations[lane] = operation;
  warp.operands[lane] = operand;
  warp.met |= bit;
  if (meet(warp, mask)) return;
  warp.ready &= ~bit;
  worker->next();
}

int barrier(unsigned id, unsigned threads, bool wait, int value) {
  if (id >= kBarriers) fail("a block has 16 barriers");
  Warp& warp = *current->warp;
  BlockState& block = *warp.block;
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived != 0 && barrier.wanted != threads) {
    fail("threads arrive at a barrier with different counts");
  }
  barrier.wanted = threads;
  barrier.sum += value;
  ++barrier.arrived;
  if (wait) barrier.waiting[warp.number] |= 1u << current->lane;
  if (barrier.arrived == (threads != 0 ? threads : block.live)) {
    release(block, barrier);
  } else if (wait) {
    warp.ready &= ~(1u << current->lane);
    worker->next();
  }
  return barrier.result;
}

void start(Async kind, std::function<void()> work) {
  if (worker->late()) {
    worker->deferred(kind).add(std::move(work));
  } else {
    work();
  }
}

void commit(Async kind) { worker->deferred(kind).commit(); }
void wait(Async kind, unsigned groups) { worker->deferred(kind).wait(groups); }

void transfer(std::function<void()> work) {
  if (worker->late()) {
    worker->transfer(std::move(work));
  } else {
    work();
  }
}

void yield() { worker->yield(); }
void sleep_on(const void* what) { worker->sleep_on(what); }
void wake(const void* what) { worker->wake(what); }
void cluster_arrive() { worker->cluster_arrive(); }
void cluster_wait() { worker->cluster_wait(); }
void grid_dependency_wait() { worker->grid_dependency_wait(); }
void fail(const char* message) { worker->fail(message); }

std::string run(const Launch& launch, Order order) {
  const uint64_t threads = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z *
                           launch.block.count();
  // A thread of the CPU for every so many of the grid; their stacks take address space.
  constexpr uint64_t kThreadsEach = 1 << 13, kMaxWorkers = 4;
  const uint64_t cores = std::clamp<uint64_t>(std::thread::hardware_concurrency(), 1, kMaxWorkers);
  // Memory is hidden from one block at a time.
  const size_t wanted =
      launch.dependent ? 1 : std::clamp<uint64_t>(threads / kThreadsEach, 1, cores);
  while (workers().size() < wanted) workers().push_back(std::make_unique<Worker>());

  FaultHandlers handlers;
  std::atomic<uint64_t> next_cluster{0};
  std::atomic<bool> stop{false};
  auto work = [&](size_t number) {
    if (!workers()[number]->run(launch, order, next_cluster, stop)) stop = true;
  };
  std::vector<std::thread> others;
  for (size_t number = 1; number < wanted; ++number) others.emplace_back(work, number);
  work(0);
  for (std::thread& other : others) other.join();
  for (size_t number = 0; number < wanted; ++number) {
    if (!workers()[number]->failure.empty()) return workers()[number]->failure;
  }
  return check_memory();
}

}  // namespace emulator
