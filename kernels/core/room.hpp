// Memory of a kernel's own: what std::vector would do, as a template of this namespace. Instances of the standard library's templates
// that were compiled for one instruction set are weak symbols, of which the linker keeps one for all (tests/native/test_binary.py).
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "portable.hpp"

namespace TF_NS {

// Plain values, not initialised. It only grows, and may be used again; throws std::bad_alloc.
template <class T>
class Room {
 public:
  Room() = default;
  ~Room() { std::free(data_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  // At least n values, the old ones lost.
  T* take(int64_t n) {
    if (n > capacity_) {
      std::free(data_);
      data_ = nullptr;
      capacity_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes(n)));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = n;
    }
    size_ = n;
    return data_;
  }
  // At least n values, all bits 0.
  T* zeros(int64_t n) {
    take(n);
    if (n > 0) std::memset(static_cast<void*>(data_), 0, static_cast<size_t>(n) * sizeof(T));
    return data_;
  }
  void clear() { size_ = 0; }
  void push(const T& value) {
    if (size_ == capacity_) grow();
    data_[size_++] = value;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return size_; }
  void resize_down(int64_t n) { size_ = n; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  static size_t bytes(int64_t n) { return (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64; }
  void grow() {
    const int64_t wanted = capacity_ < 64 ? 64 : 2 * capacity_;
    T* const more = static_cast<T*>(std::aligned_alloc(64, bytes(wanted)));
    if (more == nullptr) throw std::bad_alloc();
    if (size_ > 0) std::memcpy(static_cast<void*>(more), data_, static_cast<size_t>(size_) * sizeof(T));
    std::free(data_);
    data_ = more;
    capacity_ = wanted;
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

// Memory under a name of this namespace, so that vectors of it are this namespace's too.
template <class T>
struct Memory {
  using value_type = T;
  Memory() = default;
  template <class U>
  Memory(const Memory<U>&) {}
  T* allocate(size_t n) {
    void* const found = std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64);  // registers of AVX-512 too
    if (found == nullptr) throw std::bad_alloc();
    return static_cast<T*>(found);
  }
  void deallocate(T* p, size_t) { std::free(p); }
  template <class U>
  bool operator==(const Memory<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Memory<U>&) const {
    return false;
  }
};
template <class T>
using Vector = std::vector<T, Memory<T>>;

}  // namespace TF_NS
