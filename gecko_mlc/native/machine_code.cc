// Modules that hold machine code made elsewhere, for a library that is exported.
//
// TVM without a GPU's runtime library leaves CUDA source in a module and has the machine that loads
// it compile it. The module made here takes that module's place before a library is exported: the
// same kind and the same table of kernels, so that the runtime loads it as its own, with the machine
// code instead of the source.

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstring>
#include <string>
#include <utility>

namespace gecko_mlc {

namespace ffi = tvm::ffi;

class MachineCodeModule : public ffi::ModuleObj {
 public:
  MachineCodeModule(ffi::String kind, ffi::Bytes bytes)
      : kind_(std::move(kind)), bytes_(std::move(bytes)) {}

  const char* kind() const final { return kind_.c_str(); }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final { return std::nullopt; }

 private:
  ffi::String kind_;
  ffi::Bytes bytes_;
};

// A string as TVM's modules write it: a 64-bit length, then the bytes.
std::string Serialised(const char* data, size_t size) {
  uint64_t length = size;
  std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
  return out.append(data, size);
}

// A module of source is saved as its format, the table of kernels and the source; the same is made
// of ``format``, that table and ``code``.
ffi::Module WithMachineCode(const ffi::Module& module, const ffi::String& source_format,
                            const ffi::String& format, const ffi::Bytes& code) {
  ffi::Bytes saved = module->SaveToBytes();
  ffi::String source = module->InspectSource(source_format);
  std::string head = Serialised(source_format.data(), source_format.size());
  std::string tail = Serialised(source.data(), source.size());
  TVM_FFI_CHECK(saved.size() >= head.size() + tail.size() &&
                    std::memcmp(saved.data(), head.data(), head.size()) == 0 &&
                    std::memcmp(saved.data() + saved.size() - tail.size(), tail.data(),
                                tail.size()) == 0,
                ValueError)
      << "module of kind " << module->kind() << " is not saved as " << source_format
      << " source: this TVM release writes modules in another form";
  std::string bytes = Serialised(format.data(), format.size());
  bytes.append(saved.data() + head.size(), saved.size() - head.size() - tail.size());
  bytes += Serialised(code.data(), code.size());
  return ffi::Module(
      ffi::make_object<MachineCodeModule>(ffi::String(module->kind()), ffi::Bytes(bytes)));
}

// What a code generator written in Python returns: a module that is saved as ``kind`` and ``bytes``,
// and runs once `ffi.Module.load_from_bytes.<kind>` has read them.
ffi::Module BinaryModule(const ffi::String& kind, const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<MachineCodeModule>(kind, bytes));
}

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("gecko_mlc.with_machine_code", WithMachineCode)
      .def("gecko_mlc.binary_module", BinaryModule);
}

}  // namespace gecko_mlc
