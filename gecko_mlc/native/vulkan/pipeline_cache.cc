#include "pipeline_cache.h"

#include <tvm/ffi/error.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "result.h"

namespace gecko_mlc::vulkan {

namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'G', 'K', 'V', 'K', 'P', 'C', '0', '1'};

// What precedes the driver's data in the file. A driver looks at the data's own header and trusts
// the rest: the sum tells a file that was cut off or changed.
struct Head {
  char magic[8];
  uint64_t size;
  uint64_t sum;
};

// FNV-1a, 64 bits.
uint64_t Sum(const char* data, size_t size) {
  uint64_t sum = 0xcbf29ce484222325;
  for (size_t i = 0; i < size; ++i) {
    sum = (sum ^ static_cast<unsigned char>(data[i])) * 0x100000001b3;
  }
  return sum;
}

fs::path CacheFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return fs::path(cache) / "gecko-mlc";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home != '\0') return fs::path(home) / ".cache/gecko-mlc";
  return {};
}

std::string Hex(const uint8_t* bytes, size_t count) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

fs::path CachePath(const PhysicalDevice& physical) {
  fs::path folder = CacheFolder();
  if (folder.empty()) return {};
  const VkPhysicalDeviceProperties& properties = physical.properties.properties;
  return folder / ("vulkan-" + Hex(physical.vulkan11.deviceUUID, VK_UUID_SIZE) + "-" +
                   Hex(properties.pipelineCacheUUID, VK_UUID_SIZE) + "-" +
                   std::to_string(properties.driverVersion) + ".cache");
}

std::vector<char> Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  Head head;
  if (!file.read(reinterpret_cast<char*>(&head), sizeof(head))) return {};
  std::vector<char> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  bool whole = std::memcmp(head.magic, kMagic, sizeof(kMagic)) == 0 && head.size == data.size() &&
               head.sum == Sum(data.data(), data.size());
  return whole ? data : std::vector<char>();
}

// Beside the file, then renamed: whoever reads finds the old one or the new one, whole.
void Write(const fs::path& path, const std::vector<char>& data) {
  Head head{{}, data.size(), Sum(data.data(), data.size())};
  std::memcpy(head.magic, kMagic, sizeof(kMagic));
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  fs::path beside = path;
  beside += "." + std::to_string(getpid());
  {
    std::ofstream file(beside, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&head), sizeof(head));
    file.write(data.data(), static_cast<std::streamsize>(data.size()));
    if (!file.flush()) {
      fs::remove(beside, ignored);
      return;
    }
  }
  fs::rename(beside, path, ignored);
}

}  // namespace

PipelineCache::PipelineCache(const DeviceFunctions& vk, VkDevice device,
                             const PhysicalDevice& physical)
    : vk_(vk), device_(device), path_(CachePath(physical)) {
  std::vector<char> kept = Read(path_);
  VkPipelineCacheCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO;
  info.initialDataSize = kept.size();
  info.pInitialData = kept.data();
  Check(vk_.CreatePipelineCache(device_, &info, nullptr, &handle_), "vkCreatePipelineCache");
}

PipelineCache::~PipelineCache() {
  Save();
  vk_.DestroyPipelineCache(device_, handle_, nullptr);
}

void PipelineCache::Grown() {
  grown_ = true;
  last_growth_ = std::chrono::steady_clock::now();
}

void PipelineCache::SaveWhenQuiet() {
  if (grown_ && std::chrono::steady_clock::now() - last_growth_ > std::chrono::seconds(1)) Save();
}

void PipelineCache::Save() {
  if (!grown_ || path_.empty()) return;
  grown_ = false;
  size_t size = 0;
  if (vk_.GetPipelineCacheData(device_, handle_, &size, nullptr) != VK_SUCCESS) return;
  std::vector<char> data(size);
  if (vk_.GetPipelineCacheData(device_, handle_, &size, data.data()) != VK_SUCCESS) return;
  data.resize(size);
  Write(path_, data);
}

}  // namespace gecko_mlc::vulkan
