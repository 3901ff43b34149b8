// TVM's wheel has headers that include this one, and not this one. They name its classes in
// functions that are not used here.

#ifndef TVM_SUPPORT_IO_H_
#define TVM_SUPPORT_IO_H_

#include <cstddef>

namespace tvm::support {

template <typename T, typename = void>
struct Serializer;

class Stream {
 public:
  template <typename... Arguments>
  size_t Read(Arguments&&... arguments);
  template <typename... Arguments>
  size_t Write(Arguments&&... arguments);
  template <typename... Arguments>
  bool ReadArray(Arguments&&... arguments);
  template <typename... Arguments>
  void WriteArray(Arguments&&... arguments);
};

}  // namespace tvm::support

#endif  // TVM_SUPPORT_IO_H_
