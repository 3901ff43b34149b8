#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace emulator {
namespace {

constexpr size_t kAlignment = 64;

struct Allocation {
  size_t bytes;
  unsigned char* pages;
  size_t mapped;

  unsigned char* end() const { return pages + mapped; }
};

std::mutex mutex;

std::map<const unsigned char*, Allocation>& allocations() {
  static auto* all = new std::map<const unsigned char*, Allocation>();
  return *all;
}

std::string name(const unsigned char* start, const Allocation& allocation) {
  char text[64];
  snprintf(text, sizeof text, "the %zu bytes at %p", allocation.bytes,
           static_cast<const void*>(start));
  return text;
}

}  // namespace

size_t page_size() {
  static const size_t size = sysconf(_SC_PAGESIZE);
  return size;
}

unsigned char* map_guarded(size_t bytes) {
  const size_t page = page_size();
  void* mapping = mmap(nullptr, bytes + 2 * page, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  unsigned char* memory = static_cast<unsigned char*>(mapping) + page;
  if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, bytes + 2 * page);
    throw std::bad_alloc();
  }
  return memory;
}

void unmap_guarded(unsigned char* memory, size_t bytes) {
  munmap(memory - page_size(), bytes + 2 * page_size());
}

// The end of an allocation lies at the end of its pages.
void* allocate(size_t bytes) {
  const size_t taken = round_up(std::max<size_t>(bytes, 1), kAlignment);
  const size_t mapped = round_up(taken, page_size());
  unsigned char* pages = map_guarded(mapped);
  std::memset(pages, kPoison, mapped);
  unsigned char* start = pages + mapped - taken;
  const std::lock_guard<std::mutex> lock(mutex);
  allocations()[start] = {bytes, pages, mapped};
  return start;
}

bool release(void* pointer) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = allocations().find(static_cast<unsigned char*>(pointer));
  if (found == allocations().end()) return false;
  unmap_guarded(found->second.pages, found->second.mapped);
  allocations().erase(found);
  return true;
}

std::vector<Memory> all_memory() {
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<Memory> memory;
  for (const auto& [start, allocation] : allocations()) {
    memory.push_back({const_cast<unsigned char*>(start), allocation.bytes});
  }
  return memory;
}

void protect_memory(bool read_only) {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [start, allocation] : allocations()) {
    mprotect(allocation.pages, allocation.mapped, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
  }
}

std::string describe_address(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  for (const auto& [start, allocation] : allocations()) {
    if (at < allocation.pages - page_size() || at >= allocation.end() + page_size()) continue;
    const ptrdiff_t offset = at - start;
    const bool inside = offset >= 0 && offset < static_cast<ptrdiff_t>(allocation.bytes);
    return "byte " + std::to_string(offset) + " of " + name(start, allocation) +
           (inside ? " is written before griddepcontrol.wait" : "");
  }
  char text[64];
  snprintf(text, sizeof text, "%p is not device memory", address);
  return text;
}

std::string check_memory() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [start, allocation] : allocations()) {
    const unsigned char* end = start + allocation.bytes;
    if (std::any_of(end, static_cast<const unsigned char*>(allocation.end()),
                    [](unsigned char byte) { return byte != kPoison; })) {
      return "a kernel wrote past the end of " + name(start, allocation);
    }
  }
  return "";
}

}  // namespace emulator
