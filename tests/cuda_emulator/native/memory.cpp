#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace emulator {
namespace {

constexpr size_t kAlignment = 64;

struct Allocation {
  size_t bytes;
  unsigned char* mapping;
  size_t mapped;
  unsigned char* end;  // of the usable pages
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

// The end of an allocation lies at the end of a page, the next of which cannot be used.
void* allocate(size_t bytes) {
  const size_t taken = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  const size_t pages = (taken + kPage - 1) / kPage * kPage;
  void* mapping =
      mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  auto* first = static_cast<unsigned char*>(mapping) + kPage;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, pages + 2 * kPage);
    return nullptr;
  }
  std::memset(first, kPoison, pages);
  unsigned char* start = first + pages - taken;
  const std::lock_guard<std::mutex> lock(mutex);
  allocations()[start] = {bytes, static_cast<unsigned char*>(mapping), pages + 2 * kPage,
                          first + pages};
  return start;
}

bool release(void* pointer) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = allocations().find(static_cast<unsigned char*>(pointer));
  if (found == allocations().end()) return false;
  munmap(found->second.mapping, found->second.mapped);
  allocations().erase(found);
  return true;
}

std::string describe_address(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  for (const auto& [start, allocation] : allocations()) {
    if (at < allocation.mapping || at >= allocation.mapping + allocation.mapped) continue;
    const ptrdiff_t offset = at - start;
    return "byte " + std::to_string(offset) + " of " + name(start, allocation);
  }
  char text[64];
  snprintf(text, sizeof text, "%p is not device memory", address);
  return text;
}

std::string check_memory() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [start, allocation] : allocations()) {
    const unsigned char* end = start + allocation.bytes;
    if (std::any_of(end, static_cast<const unsigned char*>(allocation.end),
                    [](unsigned char byte) { return byte != kPoison; })) {
      return "a kernel wrote past the end of " + name(start, allocation);
    }
  }
  return "";
}

}  // namespace emulator
