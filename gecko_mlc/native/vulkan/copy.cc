#include "copy.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "capture.h"

namespace gecko_mlc::vulkan {

namespace {

// Up to here a copy's data travel inside the commands.
constexpr uint64_t kInline = 4096;
// A large copy goes in pieces, so that both sides work; no more than this waits in staging memory.
constexpr uint64_t kPiece = 4 << 20;
constexpr uint64_t kMaxStaging = 32 << 20;

Place PlaceOf(Device& device, uint64_t address, uint64_t size) {
  const Block* block = device.heap(MemoryUse::kTensors).Find(address, size);
  TVM_FFI_CHECK(block != nullptr, ValueError)
      << size << " bytes at address " << address << " are not in the memory of device "
      << device.Title();
  return block->At(address);
}

// Where ``pointer`` is in the device's staging memory, if it is.
std::optional<Place> StagingPlace(Device& device, const void* pointer, uint64_t size) {
  const Block* block = device.heap(MemoryUse::kStaging).FindHost(pointer, size);
  if (block == nullptr) return std::nullopt;
  return block->At(block->AddressOf(pointer, size));
}

void CheckNoCapture(const Device& device) {
  TVM_FFI_CHECK(Capture::Of(device) == nullptr, RuntimeError)
      << "a copy between host and device inside a graph: its data would be those of the recording";
}

// Staging memory for a piece, once there is not too much of it in use.
std::shared_ptr<Allocation> Staging(Device& device, uint64_t size) {
  Queue& queue = device.queue();
  while (device.heap(MemoryUse::kStaging).Size().used > kMaxStaging) {
    queue.Submit();
    uint64_t oldest = queue.Oldest();
    if (queue.Completed(oldest)) {
      // What remains belongs to tensors on the host.
      uint64_t before = device.heap(MemoryUse::kStaging).Size().used;
      queue.Collect();
      if (device.heap(MemoryUse::kStaging).Size().used == before) break;
    } else {
      queue.Wait(oldest);
      queue.Collect();
    }
  }
  return std::make_shared<Allocation>(device, MemoryUse::kStaging, size);
}

}  // namespace

void CopyOnDevice(Device& device, uint64_t source, uint64_t target, uint64_t size) {
  Command(device, [&](Recording& recording) {
    recording.Copy(PlaceOf(device, source, size), PlaceOf(device, target, size), size);
  });
}

void CopyFromHost(Device& device, const void* source, uint64_t target, uint64_t size) {
  CheckNoCapture(device);
  std::lock_guard lock(device.mutex());
  device.CheckAlive();
  Place to = PlaceOf(device, target, size);
  if (auto from = StagingPlace(device, source, size)) {
    Command(device, [&](Recording& recording) { recording.Copy(*from, to, size); });
    return;
  }
  if (size <= kInline && size % 4 == 0 && to.offset % 4 == 0) {
    Command(device, [&](Recording& recording) { recording.Update(to, source, size); });
    return;
  }
  for (uint64_t done = 0; done < size; done += kPiece) {
    uint64_t count = std::min(kPiece, size - done);
    std::shared_ptr<Allocation> staging = Staging(device, count);
    std::memcpy(staging->host(), static_cast<const char*>(source) + done, count);
    Recording& recording = device.queue().recording();
    recording.Copy(staging->place(), {to.buffer, to.offset + done}, count);
    recording.Keep(std::move(staging));
    device.queue().Recorded();
    if (count == kPiece) device.queue().Submit();
  }
}

void CopyToHost(Device& device, uint64_t source, void* target, uint64_t size) {
  CheckNoCapture(device);
  for (uint64_t done = 0; done < size; done += kPiece) {
    uint64_t count = std::min(kPiece, size - done), submission;
    std::shared_ptr<Allocation> staging;
    {
      std::lock_guard lock(device.mutex());
      device.CheckAlive();
      Place from = PlaceOf(device, source, size);
      if (auto to = StagingPlace(device, target, size)) {
        Command(device, [&](Recording& recording) {
          recording.Copy(from, *to, size);
          recording.ShowToHost();
        });
        return;
      }
      staging = Staging(device, count);
      Recording& recording = device.queue().recording();
      recording.Copy({from.buffer, from.offset + done}, staging->place(), count);
      recording.ShowToHost();
      submission = device.queue().Submit();
    }
    device.Finish(submission);
    std::memcpy(static_cast<char*>(target) + done, staging->host(), count);
  }
}

void CopyBetween(Device& from, uint64_t source, Device& to, uint64_t target, uint64_t size) {
  std::vector<char> host(size);
  CopyToHost(from, source, host.data(), size);
  CopyFromHost(to, host.data(), target, size);
}

}  // namespace gecko_mlc::vulkan
