// Where a thread's commands go: to the queue, or into a graph that is being recorded.

#ifndef GECKO_MLC_NATIVE_VULKAN_CAPTURE_H_
#define GECKO_MLC_NATIVE_VULKAN_CAPTURE_H_

#include <mutex>

#include "device.h"
#include "recording.h"

namespace gecko_mlc::vulkan {

// While it lives, this thread's commands for ``device`` go to ``recording`` and do not run.
class Capture {
 public:
  Capture(Device& device, Recording& recording);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // The recording of this thread's capture for ``device``, or null.
  static Recording* Of(const Device& device);

 private:
  Device& device_;
  Recording& recording_;
};

// Record one command where this thread's commands for the device go: ``record`` takes the
// Recording.
template <typename Record>
void Command(Device& device, Record&& record) {
  std::lock_guard lock(device.mutex());
  device.CheckAlive();
  if (Recording* captured = Capture::Of(device)) {
    record(*captured);
  } else {
    record(device.queue().recording());
    device.queue().Recorded();
  }
}

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_CAPTURE_H_
