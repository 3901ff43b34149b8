#include "timestamps.h"

#include <tvm/ffi/object.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/timer.h>

#include <cmath>
#include <memory>
#include <mutex>

#include "capture.h"
#include "runtime.h"

namespace gecko_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

constexpr uint32_t kPoolSize = 256;

// The time when the device has done all that was recorded before this object was made.
class Timestamp {
 public:
  explicit Timestamp(std::shared_ptr<Device> device) : device_(std::move(device)) {
    if (device_->physical().timestamp_bits == 0) {
      TVM_FFI_THROW(RuntimeError) << "device " << device_->Title() << " has no timestamps";
    }
    TVM_FFI_CHECK(Capture::Of(*device_) == nullptr, RuntimeError)
        << "a time inside a graph: it would be written each time the graph runs";
    std::lock_guard lock(device_->mutex());
    query_ = device_->queries().Take();
    Command(*device_,
            [&](Recording& recording) { recording.Timestamp(query_.pool, query_.index); });
  }

  ~Timestamp() {
    // Once it is written, another may have the query.
    auto give_back = [device = device_.get(), query = query_](const void*) {
      device->queries().Return(query);
    };
    std::lock_guard lock(device_->mutex());
    device_->queue().Retire(std::shared_ptr<const void>(device_.get(), give_back));
  }
  Timestamp(const Timestamp&) = delete;
  Timestamp& operator=(const Timestamp&) = delete;

  // In the device's own ticks. Waits for it.
  uint64_t Ticks() {
    device_->Finish();
    uint64_t ticks = 0;
    device_->Check(device_->vk().GetQueryPoolResults(device_->handle(), query_.pool, query_.index,
                                                     1, sizeof(ticks), &ticks, sizeof(ticks),
                                                     VK_QUERY_RESULT_64_BIT),
                   "vkGetQueryPoolResults");
    return ticks;
  }

  // From this to ``later``. The count may have passed its end in between.
  int64_t NanosecondsTo(Timestamp& later) {
    const PhysicalDevice& physical = device_->physical();
    uint64_t mask = physical.timestamp_bits >= 64 ? ~uint64_t{0}
                                                  : (uint64_t{1} << physical.timestamp_bits) - 1;
    uint64_t ticks = (later.Ticks() - Ticks()) & mask;
    return std::llround(static_cast<double>(ticks) * physical.limits().timestampPeriod);
  }

 private:
  std::shared_ptr<Device> device_;
  Query query_;
};

class VulkanTimerNode final : public tvm::runtime::TimerNode {
 public:
  explicit VulkanTimerNode(int index) : device_(Runtime::Global().shared_device(index)) {}

  void Start() final { start_ = std::make_unique<Timestamp>(device_); }
  void Stop() final { stop_ = std::make_unique<Timestamp>(device_); }
  int64_t SyncAndGetElapsedNanos() final { return start_->NanosecondsTo(*stop_); }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("gecko_mlc.vulkan.Timer", VulkanTimerNode,
                                    tvm::runtime::TimerNode);

 private:
  std::shared_ptr<Device> device_;
  std::unique_ptr<Timestamp> start_, stop_;
};

class TimestampObj final : public ffi::Object {
 public:
  explicit TimestampObj(int index) : timestamp(Runtime::Global().shared_device(index)) {}

  Timestamp timestamp;

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("gecko_mlc.vulkan.Timestamp", TimestampObj, ffi::Object);
};

class TimestampRef : public ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(TimestampRef, ffi::ObjectRef, TimestampObj);
};

}  // namespace

Queries::~Queries() {
  for (VkQueryPool pool : pools_) device_.vk().DestroyQueryPool(device_.handle(), pool, nullptr);
}

Query Queries::Take() {
  if (unused_.empty()) {
    VkQueryPoolCreateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO;
    info.queryType = VK_QUERY_TYPE_TIMESTAMP;
    info.queryCount = kPoolSize;
    VkQueryPool pool;
    device_.Check(device_.vk().CreateQueryPool(device_.handle(), &info, nullptr, &pool),
                  "vkCreateQueryPool");
    pools_.push_back(pool);
    for (uint32_t i = 0; i < kPoolSize; ++i) unused_.push_back({pool, i});
  }
  Query query = unused_.back();
  unused_.pop_back();
  device_.vk().ResetQueryPool(device_.handle(), query.pool, query.index, 1);
  return query;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("runtime.timer.vulkan",
           [](DLDevice device) {
             return tvm::runtime::Timer(ffi::make_object<VulkanTimerNode>(device.device_id));
           })
      .def("gecko_mlc.vulkan.timestamp",
           [](int index) { return TimestampRef(ffi::make_object<TimestampObj>(index)); })
      .def("gecko_mlc.vulkan.nanoseconds", [](TimestampRef start, TimestampRef stop) {
        return start->timestamp.NanosecondsTo(stop->timestamp);
      });
}

}  // namespace gecko_mlc::vulkan
