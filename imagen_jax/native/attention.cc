// Softmax attention of float32 heads, and its gradients.
//
// Logits are computed for kQueries queries at a time and never leave a core's caches; the backward
// pass computes them again (Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B). Each
// example and head is a task of its own.

#include "kernels.h"

#include <cmath>

namespace {

constexpr int64_t kQueries = 64;
constexpr float kUnseen = -1e30f;
constexpr int64_t kTasksOfThread = 4;  // from which on queries need not be divided, too

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

// exp(x) of x <= 0, with a relative error of some 1e-7; 0 where it is less than 1e-37. By Cephes: a
// power of two times a polynomial.
INLINE Vector exp_of_negative(Vector x) {
  const Vector whole = __builtin_convertvector(
      __builtin_convertvector(x * 1.44269504f - 0.5f, Integers), Vector);
  const Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers power = (__builtin_convertvector(whole, Integers) + 127) << 23;
  return x < -85.0f ? Vector{} : y * reinterpret_cast<const Vector&>(power);
}

// Sizes of attention from queries [batch, queries, heads, channels] to keys and values
// [batch, keys, heads, channels].
struct Shape {
  int64_t batch, queries, keys, heads, channels;

  int64_t row() const { return heads * channels; }  // from one position to the next
  int64_t all_keys() const { return round_up(keys, kColumns); }
  int64_t all_channels() const { return round_up(channels, kColumns); }
  const float* query(const float* x, int64_t task) const { return x + head(task, queries); }
  const float* key(const float* x, int64_t task) const { return x + head(task, keys); }
  int64_t head(int64_t task, int64_t positions) const {
    return task / heads * positions * row() + task % heads * channels;
  }
};

Shape shape_of(const Array& q, const Array& k) {
  const auto size = q.dimensions();
  return {size[0], size[1], k.dimensions()[1], size[2], size[3]};
}

ffi::Error check(const Shape& shape, const Array& k, const Array& v, const Array& bias) {
  const auto keys = k.dimensions(), values = v.dimensions(), seen = bias.dimensions();
  const bool alike = std::equal(keys.begin(), keys.end(), values.begin(), values.end());
  if (!alike || keys[0] != shape.batch || keys[1] == 0 || keys[2] != shape.heads ||
      keys[3] != shape.channels || seen[0] != shape.batch || seen[1] != shape.keys) {
    return ffi::Error::InvalidArgument(
        "keys and values must be of one shape, with the queries' batch, heads and channels");
  }
  return ffi::Error::Success();
}

// Rows [count, channels], `stride` apart, times `factor`, as [padded, channels] with 0 behind.
void copy_rows(const float* rows, int64_t stride, int64_t count, int64_t padded, int64_t channels,
               float factor, float* to) {
  for (int64_t i = 0; i < padded; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      to[i * channels + c] = i < count ? factor * rows[i * stride + c] : 0.0f;
    }
  }
}

// The same as panels [panel of channels, padded, kColumns].
void copy_panels(const float* rows, int64_t stride, int64_t count, int64_t padded, int64_t channels,
                 float* to) {
  for (int64_t first = 0; first < channels; first += kColumns) {
    for (int64_t i = 0; i < padded; ++i, to += kColumns) {
      for (int64_t c = 0; c < kColumns; ++c) {
        to[c] = i < count && first + c < channels ? rows[i * stride + first + c] : 0.0f;
      }
    }
  }
}

// The same, transposed: [panel of rows, channels, kColumns].
void copy_transposed(const float* rows, int64_t stride, int64_t count, int64_t padded,
                     int64_t channels, float* to) {
  for (int64_t i = 0; i < padded; ++i) {
    float* column = to + i / kColumns * channels * kColumns + i % kColumns;
    for (int64_t c = 0; c < channels; ++c) {
      column[c * kColumns] = i < count ? rows[i * stride + c] : 0.0f;
    }
  }
}

// to [rows, columns] = a [rows, depth] times b in panels [panel, depth, kColumns]; see product.
template <bool kAdd = false>
void multiply(const float* a, int64_t row, int64_t column, const float* b, float* to, int64_t rows,
              int64_t columns, int64_t depth) {
  for (int64_t j = 0; j < columns; j += kColumns) {
    for (int64_t i = 0; i < rows; i += kRows) {
      product<kAdd>(a + i * row, row, column, b + j * depth, to + i * columns + j, columns, depth);
    }
  }
}

// What keys that are not seen, or that are none, have added to their logits.
void copy_bias(const float* bias, int64_t keys, int64_t padded, float* to) {
  std::copy_n(bias, keys, to);
  std::fill(to + keys, to + padded, kUnseen);
}

ffi::Error Attend(ffi::ThreadPool pool, Array q, Array k, Array v, Array bias, Result result,
                  Result log_totals) {
  const Shape shape = shape_of(q, k);
  ffi::Error error = check(shape, k, v, bias);
  if (error.failure()) return error;
  const Parallel parallel(pool);
  const int64_t keys = shape.all_keys(), channels = shape.channels, wide = shape.all_channels();
  const int64_t tasks = shape.batch * shape.heads;
  // Queries of one task: all, if there are tasks enough.
  const int64_t part = tasks >= kTasksOfThread * parallel.threads() ? shape.queries : kQueries;
  const int64_t parts = ceil_div(shape.queries, part);
  const float scale = 1.0f / std::sqrt(static_cast<float>(channels));
  const float *q_data = q.typed_data(), *k_data = k.typed_data(), *v_data = v.typed_data();
  const float* bias_data = bias.typed_data();
  float *out_data = result->typed_data(), *totals_data = log_totals->typed_data();

  parallel(tasks * parts, [=](int64_t i) {
    const int64_t task = i / parts, begin = i % parts * part;
    const int64_t end = std::min(shape.queries, begin + part);
    Scratch memory(keys * (1 + channels + wide) + kQueries * (channels + keys + wide));
    float* unseen = memory.data();
    float* k_panels = unseen + keys;
    float* v_panels = k_panels + keys * channels;
    float* queries = v_panels + keys * wide;
    float* weights = queries + kQueries * channels;  // first logits
    float* sums = weights + kQueries * keys;
    copy_bias(bias_data + task / shape.heads * shape.keys, shape.keys, keys, unseen);
    copy_transposed(shape.key(k_data, task), shape.row(), shape.keys, keys, channels, k_panels);
    copy_panels(shape.key(v_data, task), shape.row(), shape.keys, keys, channels, v_panels);
    for (int64_t first = begin; first < end; first += kQueries) {
      const int64_t count = std::min(kQueries, end - first), rows = round_up(count, kRows);
      copy_rows(shape.query(q_data, task) + first * shape.row(), shape.row(), count, rows, channels,
                scale, queries);
      multiply(queries, channels, 1, k_panels, weights, rows, keys, channels);
      float total[kQueries];
      for (int64_t r = 0; r < count; ++r) {
        float* row = weights + r * keys;
        Vector top = at(row) + at(unseen);
        for (int64_t j = 0; j < keys; j += kLanes) {
          at(row + j) += at(unseen + j);
          top = at(row + j) > top ? at(row + j) : top;
        }
        float largest = top[0];
        for (int lane = 1; lane < kLanes; ++lane) largest = std::max(largest, top[lane]);
        Vector sum = {};
        for (int64_t j = 0; j < keys; j += kLanes) {
          at(row + j) = exp_of_negative(at(row + j) - largest);
          sum += at(row + j);
        }
        total[r] = 0;
        for (int lane = 0; lane < kLanes; ++lane) total[r] += sum[lane];
        totals_data[task * shape.queries + first + r] = largest + std::log(total[r]);
      }
      multiply(weights, keys, 1, v_panels, sums, rows, wide, keys);
      float* out = out_data + shape.head(task, shape.queries) + first * shape.row();
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < channels; ++c) {
          out[r * shape.row() + c] = sums[r * wide + c] / total[r];
        }
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error AttendGradients(ffi::ThreadPool pool, Array q, Array k, Array v, Array bias, Array out,
                           Array log_totals, Array gradient, Result of_q, Result of_k,
                           Result of_v) {
  const Shape shape = shape_of(q, k);
  ffi::Error error = check(shape, k, v, bias);
  if (error.failure()) return error;
  const Parallel parallel(pool);
  const int64_t keys = shape.all_keys(), channels = shape.channels, wide = shape.all_channels();
  const float scale = 1.0f / std::sqrt(static_cast<float>(channels));
  const float *q_data = q.typed_data(), *k_data = k.typed_data(), *v_data = v.typed_data();
  const float *bias_data = bias.typed_data(), *out_data = out.typed_data();
  const float *totals_data = log_totals.typed_data(), *gradient_data = gradient.typed_data();
  float *of_q_data = of_q->typed_data(), *of_k_data = of_k->typed_data();
  float* of_v_data = of_v->typed_data();

  parallel(shape.batch * shape.heads, [=](int64_t task) {
    Scratch memory(keys * (1 + 2 * channels + 3 * wide) +
                   kQueries * (2 * channels + 3 * wide + 2 * keys));
    float* unseen = memory.data();
    float* k_transposed = unseen + keys;
    float* v_transposed = k_transposed + keys * channels;
    float* k_panels = v_transposed + keys * channels;
    float* k_sums = k_panels + keys * wide;
    float* v_sums = k_sums + keys * wide;
    float* queries = v_sums + keys * wide;
    float* gradients = queries + kQueries * channels;
    float* q_panels = gradients + kQueries * channels;
    float* gradient_panels = q_panels + kQueries * wide;
    float* q_sums = gradient_panels + kQueries * wide;
    float* weights = q_sums + kQueries * wide;
    float* of_logits = weights + kQueries * keys;
    const int64_t row = shape.row(), head = shape.head(task, shape.queries);
    copy_bias(bias_data + task / shape.heads * shape.keys, shape.keys, keys, unseen);
    copy_transposed(shape.key(k_data, task), row, shape.keys, keys, channels, k_transposed);
    copy_transposed(shape.key(v_data, task), row, shape.keys, keys, channels, v_transposed);
    copy_panels(shape.key(k_data, task), row, shape.keys, keys, channels, k_panels);
    std::fill_n(k_sums, 2 * keys * wide, 0.0f);
    for (int64_t first = 0; first < shape.queries; first += kQueries) {
      const int64_t count = std::min(kQueries, shape.queries - first), offset = head + first * row;
      const int64_t rows = round_up(count, kRows);
      copy_rows(q_data + offset, row, count, rows, channels, scale, queries);
      copy_rows(gradient_data + offset, row, count, rows, channels, 1.0f, gradients);
      copy_panels(q_data + offset, row, count, rows, channels, q_panels);
      copy_panels(gradient_data + offset, row, count, rows, channels, gradient_panels);
      multiply(queries, channels, 1, k_transposed, weights, rows, keys, channels);
      multiply(gradients, channels, 1, v_transposed, of_logits, rows, keys, channels);
      for (int64_t r = 0; r < rows; ++r) {
        float *weight = weights + r * keys, *of_logit = of_logits + r * keys;
        if (r >= count) {
          std::fill_n(weight, keys, 0.0f);
          std::fill_n(of_logit, keys, 0.0f);
          continue;
        }
        const float log_total = totals_data[task * shape.queries + first + r];
        float shared = 0;
        for (int64_t c = 0; c < channels; ++c) {
          shared += gradients[r * channels + c] * out_data[offset + r * row + c];
        }
        for (int64_t j = 0; j < keys; j += kLanes) {
          at(weight + j) = exp_of_negative(at(weight + j) + at(unseen + j) - log_total);
          at(of_logit + j) = at(weight + j) * (at(of_logit + j) - shared) * scale;
        }
      }
      multiply(of_logits, keys, 1, k_panels, q_sums, rows, wide, keys);
      for (int64_t r = 0; r < count; ++r) {
        std::copy_n(q_sums + r * wide, channels, of_q_data + offset + r * row);
      }
      multiply<true>(weights, 1, keys, gradient_panels, v_sums, keys, wide, rows);
      multiply<true>(of_logits, 1, keys, q_panels, k_sums, keys, wide, rows);
    }
    const int64_t to = shape.head(task, shape.keys);
    for (int64_t j = 0; j < shape.keys; ++j) {
      std::copy_n(k_sums + j * wide, channels, of_k_data + to + j * row);
      std::copy_n(v_sums + j * wide, channels, of_v_data + to + j * row);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    attention_forward, Attend,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
        .Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    attention_gradients, AttendGradients,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
        .Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Array>().Ret<Array>());
