// Switching between stacks: what the operating system's calls do, without their system calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Saves the registers that a call must keep and the stack pointer (in *save), and returns where
// the stack pointer `load` was saved.
extern "C" void emulator_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kFrameWords = 8, kReturnWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kFrameWords = 20, kReturnWord = 11;
#else
#error "no context switch for this processor"
#endif

// A stack pointer that emulator_switch can load: `entry` then runs on the stack that ends at `top`
// (a multiple of 16).
inline void* new_context(void* top, void (*entry)()) {
  auto* frame = static_cast<uintptr_t*>(top) - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof *frame);
  frame[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
  return frame;
}
