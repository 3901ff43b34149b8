// Times on the device.

#ifndef GECKO_MLC_NATIVE_VULKAN_TIMESTAMPS_H_
#define GECKO_MLC_NATIVE_VULKAN_TIMESTAMPS_H_

#include <cstdint>
#include <vector>

#include "api.h"

namespace gecko_mlc::vulkan {

class Device;

// Where a device writes one time.
struct Query {
  VkQueryPool pool;
  uint32_t index;
};

// The queries of a device. Its owner locks.
class Queries {
 public:
  explicit Queries(Device& device) : device_(device) {}
  ~Queries();
  Queries(const Queries&) = delete;
  Queries& operator=(const Queries&) = delete;

  // One that is ready to be written.
  Query Take();
  // The device is done with it.
  void Return(Query query) { unused_.push_back(query); }

 private:
  Device& device_;
  std::vector<VkQueryPool> pools_;
  std::vector<Query> unused_;
};

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_TIMESTAMPS_H_
