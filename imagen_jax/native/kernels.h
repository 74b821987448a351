// What the kernels share: vectors, products of matrices, threads and memory. Compiled by
// compiling.py.

#ifndef IMAGEN_JAX_NATIVE_KERNELS_H_
#define IMAGEN_JAX_NATIVE_KERNELS_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

#define INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace ffi = xla::ffi;

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

// ---- Vectors

// Numbers of a vector register, and rows of a product that fit registers beside their operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 4;
#else
constexpr int kLanes = 4, kRows = 8;
#endif
constexpr int kVectors = 2, kColumns = kVectors * kLanes;  // of a product, a panel

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
inline const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }

#if defined(__AVX__) && !defined(__AVX512F__)
// A mask of the first `count` lanes.
INLINE __m256i first_lanes(int64_t count) {
  static constexpr int32_t kMask[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + kLanes - count));
}
#endif

// The first `count` numbers at p, with 0 behind them; and those of x, written there. The numbers
// behind them are not touched.
INLINE Vector load(const float* p, int64_t count) {
  if (count >= kLanes) return at(p);
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((1u << count) - 1, p);
#elif defined(__AVX__)
  return (Vector)_mm256_maskload_ps(p, first_lanes(count));
#else
  Vector x = {};
  for (int64_t lane = 0; lane < count; ++lane) x[lane] = p[lane];
  return x;
#endif
}
INLINE void store(const Vector& x, float* p, int64_t count) {
  if (count >= kLanes) {
    at(p) = x;
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)x);
#elif defined(__AVX__)
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)x);
#else
  for (int64_t lane = 0; lane < count; ++lane) p[lane] = x[lane];
#endif
}

inline int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }
inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// ---- Products

// to [kRows, columns] = a [kRows, depth] times the panel b [depth, kColumns], added to what is there
// if kAdd; of the columns, the first `of` vectors are computed. Rows of `to` are `stride` apart,
// rows and columns of `a` are `row` and `column` apart.
template <bool kAdd, int of>
INLINE void some_columns(const float* a, int64_t row, int64_t column, const float* b, float* to,
                         int64_t stride, int64_t depth) {
  Vector sum[kRows][of];
  UNROLL for (int i = 0; i < kRows; ++i) {
    UNROLL for (int j = 0; j < of; ++j) sum[i][j] = Vector{};
  }
  for (int64_t k = 0; k < depth; ++k, a += column, b += kColumns) {
    UNROLL for (int i = 0; i < kRows; ++i) {
      UNROLL for (int j = 0; j < of; ++j) sum[i][j] += a[i * row] * at(b + j * kLanes);
    }
  }
  UNROLL for (int i = 0; i < kRows; ++i) {
    UNROLL for (int j = 0; j < of; ++j) {
      Vector& there = at(to + i * stride + j * kLanes);
      there = kAdd ? there + sum[i][j] : sum[i][j];
    }
  }
}

// The same with as many vectors as hold `columns` numbers, at most all.
template <bool kAdd>
INLINE void product(const float* a, int64_t row, int64_t column, const float* b, float* to,
                    int64_t stride, int64_t depth, int64_t columns = kColumns) {
  static_assert(kVectors == 2);
  if (columns > kLanes) {
    some_columns<kAdd, 2>(a, row, column, b, to, stride, depth);
  } else {
    some_columns<kAdd, 1>(a, row, column, b, to, stride, depth);
  }
}

// ---- Threads

// Calls task(i) for each i below count.
struct Serial {
  template <typename Task>
  void operator()(int64_t count, const Task& task) const {
    for (int64_t i = 0; i < count; ++i) task(i);
  }
};

// The same on this thread and on those of XLA's pool that are free.
class Parallel {
 public:
  explicit Parallel(ffi::ThreadPool& pool) : pool_(&pool) {}

  int64_t threads() const { return std::max<int64_t>(1, pool_->num_threads()); }

  template <typename Task>
  void operator()(int64_t count, const Task& task) const {
    struct Job {
      Job(const Task& task, int64_t count) : task(task), count(count) {}
      Task task;
      int64_t count;
      std::atomic<int64_t> next{0}, ended{0};
    };
    // Shared, since a thread of the pool may come to it when all is done.
    auto job = std::make_shared<Job>(task, count);
    std::function<void()> work = [job] {
      for (int64_t i; (i = job->next++) < job->count; ++job->ended) job->task(i);
    };
    for (int64_t i = 1; i < std::min(count, threads()); ++i) {
      pool_->Schedule(std::function<void()>(work));
    }
    work();
    while (job->ended < count) std::this_thread::yield();
  }

 private:
  ffi::ThreadPool* pool_;
};

// ---- Memory

// Memory that calls hand on to later ones: touching fresh pages can take longer than the arithmetic.
// Not XLA's, so that a plan of a program does not count it: some tens of megabytes.
class Scratch {
 public:
  explicit Scratch(size_t floats) {
    {
      std::lock_guard<std::mutex> lock(mutex());
      auto found = free().lower_bound(floats);  // the smallest that is large enough
      if (found == free().end() && !free().empty()) --found;
      if (found != free().end()) memory_ = std::move(free().extract(found).mapped());
    }
    if (memory_.size() < floats) memory_ = std::vector<float>(floats);
  }
  ~Scratch() {
    const size_t size = memory_.size();
    std::lock_guard<std::mutex> lock(mutex());
    free().emplace(size, std::move(memory_));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() { return memory_.data(); }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static std::multimap<size_t, std::vector<float>>& free() {
    static auto* free = new std::multimap<size_t, std::vector<float>>;  // outlives all threads
    return *free;
  }
  std::vector<float> memory_;
};

#endif  // IMAGEN_JAX_NATIVE_KERNELS_H_
