#include "dependent_launch.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"

namespace emulator {
namespace {

struct Span {
  unsigned char* start;
  size_t bytes;
  std::vector<unsigned char> content;  // while it is hidden
};

// What was written since the last plain launch, that launch's writes included.
std::vector<Span> written;
bool in_use = false;
bool hidden = false;

std::vector<std::vector<unsigned char>> copy_of(const std::vector<Memory>& memory) {
  std::vector<std::vector<unsigned char>> copies;
  for (const Memory& part : memory) copies.emplace_back(part.start, part.start + part.bytes);
  return copies;
}

// Adds the words that differ from `before`.
void add_writes(const Memory& memory, const std::vector<unsigned char>& before) {
  constexpr size_t kWord = 4;
  if (std::memcmp(memory.start, before.data(), memory.bytes) == 0) return;
  size_t start = memory.bytes;
  for (size_t at = 0; at < memory.bytes; at += kWord) {
    const size_t size = std::min(kWord, memory.bytes - at);
    const bool same = std::memcmp(memory.start + at, before.data() + at, size) == 0;
    if (!same && start == memory.bytes) start = at;
    if (same && start != memory.bytes) {
      written.push_back({memory.start + start, at - start, {}});
      start = memory.bytes;
    }
  }
  if (start != memory.bytes) written.push_back({memory.start + start, memory.bytes - start, {}});
}

bool within(const Span& span, const std::vector<Memory>& memory) {
  return std::any_of(memory.begin(), memory.end(), [&](const Memory& part) {
    return span.start >= part.start && span.start + span.bytes <= part.start + part.bytes;
  });
}

}  // namespace

std::string run_accounted(const Launch& launch, const std::function<std::string()>& run) {
  in_use = in_use || launch.dependent;
  if (!in_use) return run();
  if (!launch.dependent) written.clear();
  const std::vector<Memory> memory = all_memory();
  written.erase(std::remove_if(written.begin(), written.end(),
                               [&](const Span& span) { return !within(span, memory); }),
                written.end());
  const auto before = copy_of(memory);
  const std::string failure = run();
  for (size_t i = 0; i < memory.size(); ++i) add_writes(memory[i], before[i]);
  return failure;
}

void forget_writes() { written.clear(); }

void hide_writes() {
  if (hidden) return;
  hidden = true;
  for (Span& span : written) {
    span.content.assign(span.start, span.start + span.bytes);
    std::memset(span.start, kPoison, span.bytes);
  }
  protect_memory(true);
}

// The other way round: spans may overlap.
void reveal_writes() {
  if (!hidden) return;
  hidden = false;
  protect_memory(false);
  for (auto span = written.rbegin(); span != written.rend(); ++span) {
    std::memcpy(span->start, span->content.data(), span->bytes);
  }
}

}  // namespace emulator
