// 3x3 convolutions of float32 images by Winograd's minimal filtering (Lavin & Gray 2016).
//
// An image is cut into tiles of 4 x 4 outputs, each of which sees 6 x 6 inputs. Tiles and kernel are
// transformed to 36 points; at each of them, channels are a product of matrices. Tiles go through
// all of it in groups that stay in a core's caches, where XLA's own products and fusions would each
// pass over the whole batch.
//
// WINOGRAD_A, WINOGRAD_B and WINOGRAD_G are the matrices of winograd.py.

#include "kernels.h"

namespace {

constexpr int kOutputs = 4, kTaps = 3, kInputs = 6, kPoints = kInputs * kInputs;
constexpr float kA[kOutputs][kInputs] = WINOGRAD_A;
constexpr float kB[kInputs][kInputs] = WINOGRAD_B;
constexpr float kG[kInputs][kTaps] = WINOGRAD_G;

constexpr int64_t kMultiple = 16;  // of kLanes and kRows on every machine
constexpr int64_t kGroup = 32;     // tiles
constexpr int64_t kGradientGroup = 64;
// Threads take a group each where there are so many for each thread; else they share every group.
constexpr int64_t kGroupsOfThread = 3;

// y = transpose(matrix x); with kTransposed, of the transposed matrix.
template <bool kTransposed, int N, int M, int S, int Rows, int Cols>
INLINE void transform_columns(const float (&matrix)[Rows][Cols], const Vector (&x)[M][S],
                              Vector (&y)[S][N]) {
  static_assert(N == (kTransposed ? Cols : Rows) && M == (kTransposed ? Rows : Cols));
  UNROLL for (int n = 0; n < N; ++n) {
    UNROLL for (int s = 0; s < S; ++s) {
      y[s][n] = Vector{};
      UNROLL for (int m = 0; m < M; ++m) {
        const float factor = kTransposed ? matrix[m][n] : matrix[n][m];
        if (factor != 0) y[s][n] += factor * x[m][s];
      }
    }
  }
}

// y = matrix x transpose(matrix); with kTransposed, of the transposed matrix.
template <bool kTransposed, int N, int M, int Rows, int Cols>
INLINE void transform(const float (&matrix)[Rows][Cols], const Vector (&x)[M][M],
                      Vector (&y)[N][N]) {
  Vector half[M][N];
  transform_columns<kTransposed>(matrix, x, half);
  transform_columns<kTransposed>(matrix, half, y);
}

// A batch of images [batch, height, width, channels], cut into tiles.
struct Images {
  int64_t batch, height, width, channels;

  int64_t across() const { return ceil_div(width, kOutputs); }
  int64_t down() const { return ceil_div(height, kOutputs); }
  int64_t tiles() const { return batch * down() * across(); }
  int64_t wide() const { return round_up(channels, kMultiple); }

  // Where the Size x Size pixels from (-margin, -margin) of a tile on are; -1 outside the image.
  template <int Size>
  void offsets(int64_t tile, int margin, int64_t (&result)[Size][Size]) const {
    const int64_t left = tile % across() * kOutputs - margin;
    const int64_t top = tile / across() % down() * kOutputs - margin;
    const int64_t image = tile / across() / down();
    for (int i = 0; i < Size; ++i) {
      for (int j = 0; j < Size; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = 0 <= y && y < height && 0 <= x && x < width;
        result[i][j] = inside ? ((image * height + y) * width + x) * channels : -1;
      }
    }
  }
};

// Transforms Size x Size pixels of a tile; channels from c on at point p go to *store(p, c).
template <bool kTransposed, int Size, int Rows, int Cols, typename Store>
INLINE void transform_tile(const Images& shape, const float* images, int64_t tile, int margin,
                           const float (&matrix)[Rows][Cols], const Store& store) {
  int64_t offset[Size][Size];
  shape.offsets(tile, margin, offset);
  for (int64_t c = 0; c < shape.channels; c += kLanes) {
    Vector x[Size][Size], y[kInputs][kInputs];
    UNROLL for (int i = 0; i < Size; ++i) {
      UNROLL for (int j = 0; j < Size; ++j) {
        x[i][j] = offset[i][j] < 0 ? Vector{}
                                   : load(images + offset[i][j] + c, shape.channels - c);
      }
    }
    transform<kTransposed>(matrix, x, y);
    UNROLL for (int p = 0; p < kPoints; ++p) at(store(p, c)) = y[p / kInputs][p % kInputs];
  }
}

// Whether there are images, and `expected` is their number of channels.
ffi::Error check(const Images& in, int64_t expected, int64_t outputs) {
  if (in.channels != expected) {
    return ffi::Error::InvalidArgument("images must have as many channels as the kernel takes");
  }
  if (in.tiles() == 0 || in.channels == 0 || outputs == 0) {
    return ffi::Error::InvalidArgument("images and results must not be empty");
  }
  return ffi::Error::Success();
}

// The convolution of images with a kernel [3, 3, in, out]; with kTransposed, of the gradient of
// its results with the same kernel, whose axes are then [3, 3, out, in] and turned around.
template <bool kTransposed>
ffi::Error Convolve(ffi::ThreadPool pool, Array x, Array kernel, Result result) {
  const auto size = x.dimensions(), window = kernel.dimensions();
  const int64_t inputs = size[3], outputs = window[kTransposed ? 2 : 3];
  const Images in{size[0], size[1], size[2], inputs}, out{size[0], size[1], size[2], outputs};
  ffi::Error error = check(in, window[kTransposed ? 3 : 2], outputs);
  if (error.failure()) return error;
  const int64_t panels = ceil_div(outputs, kColumns), padded = panels * kColumns;
  const Parallel parallel(pool);

  Scratch taps_memory(kPoints * inputs * padded);
  float* taps = taps_memory.data();  // [point, panel, in, kColumns]
  const float* k = kernel.typed_data();
  parallel(inputs, [=](int64_t i) {
    for (int64_t o = 0; o < padded; o += kLanes) {
      Vector from[kTaps][kTaps] = {}, y[kInputs][kInputs];
      for (int tap = 0; tap < kTaps * kTaps && o < outputs; ++tap) {
        Vector& value = from[tap / kTaps][tap % kTaps];
        if (kTransposed) {
          const float* turned = k + ((kTaps * kTaps - 1 - tap) * outputs + o) * inputs + i;
          const int64_t count = std::min<int64_t>(kLanes, outputs - o);
          for (int64_t lane = 0; lane < count; ++lane) value[lane] = turned[lane * inputs];
        } else {
          value = load(k + (tap * inputs + i) * outputs + o, outputs - o);
        }
      }
      transform<false>(kG, from, y);
      for (int p = 0; p < kPoints; ++p) {
        at(taps + ((p * panels + o / kColumns) * inputs + i) * kColumns + o % kColumns) =
            y[p / kInputs][p % kInputs];
      }
    }
  });

  const float* from = x.typed_data();
  float* to = result->typed_data();
  const int64_t tiles = in.tiles(), group = std::min(kGroup, tiles);
  const int64_t rows = round_up(group, kRows), wide = in.wide();
  const auto convolve = [=](int64_t first, const auto& each) {
    const int64_t count = std::min(group, tiles - first);
    Scratch memory(kPoints * rows * (wide + padded));
    float* points = memory.data();                       // [point, tile, wide]
    float* products = points + kPoints * rows * wide;    // [point, tile, padded]
    each(count, [=](int64_t t) {
      transform_tile<false, kInputs>(in, from, first + t, 1, kB, [=](int p, int64_t c) {
        return points + (p * rows + t) * wide + c;
      });
    });
    each(kPoints * panels, [=](int64_t i) {
      const int64_t p = i / panels, panel = i % panels;
      for (int64_t t = 0; t < count; t += kRows) {
        product<false>(points + (p * rows + t) * wide, wide, 1, taps + i * inputs * kColumns,
                       products + (p * rows + t) * padded + panel * kColumns, padded, inputs,
                       outputs - panel * kColumns);
      }
    });
    each(count, [=](int64_t t) {
      int64_t offset[kOutputs][kOutputs];
      out.offsets(first + t, 0, offset);
      for (int64_t c = 0; c < outputs; c += kLanes) {
        Vector x[kInputs][kInputs], y[kOutputs][kOutputs];
        UNROLL for (int p = 0; p < kPoints; ++p) {
          x[p / kInputs][p % kInputs] = at(products + (p * rows + t) * padded + c);
        }
        transform<false>(kA, x, y);
        UNROLL for (int i = 0; i < kOutputs; ++i) {
          UNROLL for (int j = 0; j < kOutputs; ++j) {
            if (offset[i][j] >= 0) store(y[i][j], to + offset[i][j] + c, outputs - c);
          }
        }
      }
    });
  };
  const int64_t groups = ceil_div(tiles, group);
  if (groups >= kGroupsOfThread * parallel.threads()) {
    parallel(groups, [=](int64_t i) { convolve(i * group, Serial()); });
  } else {
    for (int64_t i = 0; i < groups; ++i) convolve(i * group, parallel);
  }
  return ffi::Error::Success();
}

// The kernel's gradient [3, 3, in, out], from images and the gradient of the results.
ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array gradient, Result result) {
  const auto size = x.dimensions();
  const int64_t inputs = size[3], outputs = gradient.dimensions()[3];
  const Images in{size[0], size[1], size[2], inputs}, out{size[0], size[1], size[2], outputs};
  ffi::Error error = check(in, inputs, outputs);
  if (error.failure()) return error;
  const int64_t panels = ceil_div(outputs, kColumns), padded = panels * kColumns;
  const int64_t wide = in.wide();
  const Parallel parallel(pool);

  // Each group of tiles passes over all sums: as many tiles, then, as they are as large as the sums.
  const int64_t tiles = in.tiles(), balanced = inputs * outputs / (inputs + outputs);
  const int64_t group = std::min(tiles, std::max(kGradientGroup, balanced));
  const bool many = tiles >= kGroupsOfThread * parallel.threads() * group;
  const int64_t share = ceil_div(tiles, many ? parallel.threads() : 1);
  const int64_t shares = ceil_div(tiles, share);  // none of them without tiles

  Scratch sums_memory(shares * kPoints * wide * padded);
  float* sums = sums_memory.data();  // [share, point, panel, wide, kColumns]
  const int64_t sums_size = kPoints * wide * padded;
  const float *from = x.typed_data(), *from_gradient = gradient.typed_data();
  const auto add_up = [=](int64_t begin, float* sums, const auto& each) {
    Scratch memory(kPoints * group * (wide + padded));
    float* points = memory.data();                          // [point, tile, wide]
    float* of_gradient = points + kPoints * group * wide;   // [point, panel, tile, kColumns]
    const int64_t end = std::min(tiles, begin + share);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      each(count, [=](int64_t t) {
        transform_tile<false, kInputs>(in, from, first + t, 1, kB, [=](int p, int64_t c) {
          return points + (p * group + t) * wide + c;
        });
        transform_tile<true, kOutputs>(out, from_gradient, first + t, 0, kA, [=](int p, int64_t c) {
          return of_gradient + ((p * panels + c / kColumns) * group + t) * kColumns + c % kColumns;
        });
      });
      each(kPoints * panels, [=](int64_t i) {
        const float* a = points + i / panels * group * wide;
        const float* b = of_gradient + i * group * kColumns;
        float* to = sums + i * wide * kColumns;
        const int64_t columns = outputs - i % panels * kColumns;
        for (int64_t c = 0; c < inputs; c += kRows) {
          if (first == begin) {
            product<false>(a + c, 1, wide, b, to + c * kColumns, kColumns, count, columns);
          } else {
            product<true>(a + c, 1, wide, b, to + c * kColumns, kColumns, count, columns);
          }
        }
      });
    }
  };
  if (many) {
    parallel(shares, [=](int64_t s) { add_up(s * share, sums + s * sums_size, Serial()); });
  } else {
    add_up(0, sums, parallel);
  }

  float* to = result->typed_data();
  parallel(inputs, [=](int64_t i) {
    for (int64_t o = 0; o < outputs; o += kLanes) {
      Vector x[kInputs][kInputs] = {}, y[kTaps][kTaps];
      for (int p = 0; p < kPoints; ++p) {
        const int64_t offset =
            ((p * panels + o / kColumns) * wide + i) * kColumns + o % kColumns;
        for (int64_t s = 0; s < shares; ++s) {
          x[p / kInputs][p % kInputs] += at(sums + s * sums_size + offset);
        }
      }
      transform<true>(kG, x, y);
      for (int tap = 0; tap < kTaps * kTaps; ++tap) {
        store(y[tap / kTaps][tap % kTaps], to + (tap * inputs + i) * outputs + o, outputs - o);
      }
    }
  });
  return ffi::Error::Success();
}

auto binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_convolve, Convolve<false>, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_convolve_transposed, Convolve<true>, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_kernel_gradient, KernelGradient, binding());
