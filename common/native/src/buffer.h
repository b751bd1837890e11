// Working memory that begins at a cache line.
//
// Vectors and tiles' rows are as wide as a line: from memory that begins anywhere else, as the system's does, each of them
// is read and written in two lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

template <typename T>
struct LineAllocator {
  typedef T value_type;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const {
    return true;
  }
  template <typename U>
  bool operator!=(const LineAllocator<U>&) const {
    return false;
  }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

// Room for so many numbers, which stays for the next time, as does what is there.
template <typename T>
static inline T* grow(Buffer<T>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}
