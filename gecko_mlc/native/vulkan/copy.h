// Copies between the host's memory and devices'.

#ifndef GECKO_MLC_NATIVE_VULKAN_COPY_H_
#define GECKO_MLC_NATIVE_VULKAN_COPY_H_

#include <cstdint>

#include "device.h"

namespace gecko_mlc::vulkan {

// From the host: ``source`` may be changed once this returns, unless it is staging memory of the
// device, from which the device reads when the copy's turn comes.
void CopyFromHost(Device& device, const void* source, uint64_t target, uint64_t size);

// To the host: waits for the copy, unless ``target`` is staging memory of the device.
void CopyToHost(Device& device, uint64_t source, void* target, uint64_t size);

void CopyOnDevice(Device& device, uint64_t source, uint64_t target, uint64_t size);

void CopyBetween(Device& from, uint64_t source, Device& to, uint64_t target, uint64_t size);

}  // namespace gecko_mlc::vulkan

#endif  // GECKO_MLC_NATIVE_VULKAN_COPY_H_
