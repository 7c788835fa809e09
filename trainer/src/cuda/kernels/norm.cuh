// RMSNorm and LayerNorm over the features of a row, joined with the sum of the residual stream before them; one warp
// for each row. Sums over rows (gradients of weights and biases) are made by blocks of PIECE_ROWS rows.
#pragma once
#include "dropout.cuh"

// Four values of mask * (branch + bias), from `at` on, of column `c`. The bias may be null; there is no mask if `rate` is 0.
template <typename T>
__device__ inline void load_branch(
    const T* branch, const float* bias, uint64_t key, float rate, size_t at, int c, float to[4]) {
    load4(branch + at, to);
    if (bias) {
        float b[4];
        load4(bias + c, b);
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] += b[i];
    }
    if (rate > 0) {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] *= kept(key, at + i, rate);
    }
}

// sum = x + mask * (branch + bias); one thread for four values.
template <typename T>
__device__ void add_branch(
    const float* x, const T* branch, const float* bias, uint64_t key, float rate, float* sum, int width, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float v[4], b[4];
    load4(x + at, v);
    load_branch(branch, bias, key, rate, at, at % width, b);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += b[i];
    store4(sum + at, v);
}

// sum = x (+ mask * (branch + branch_bias)); y = norm(sum). `x` may be null: 0; without a branch nothing goes to
// `sum_out`. y may be where the branch is. RMS if `bias` is null:
// y = sum * scale * (weight + offset); else y = (sum - mean) * scale * weight + bias. Shared: a row for each warp.
template <typename T>
__device__ void norm_forward(
    const float* x, const T* branch, const float* branch_bias, uint64_t key, float rate, float* sum_out, T* y,
    float* means, float* scales, const float* weight, const float* bias, float offset, float epsilon, int rows,
    int width) {
    DYNAMIC_SHARED(float, shared);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int row = blockIdx.x * (blockDim.x / WARP) + warp;
    if (row >= rows) return;
    float* kept = shared + (size_t)warp * width;
    size_t start = (size_t)row * width;
    float sum = 0, squares = 0;
    for (int c = lane * 4; c < width; c += WARP * 4) {
        float v[4] = {0, 0, 0, 0}, b[4];
        if (x) load4(x + start + c, v);
        if (branch) {
            load_branch(branch, branch_bias, key, rate, start + c, c, b);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += b[i];
            store4(sum_out + start + c, v);
        }
        store4(kept + c, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += v[i];
            squares += v[i] * v[i];
        }
    }
    float mean = 0;
    if (bias) {
        mean = warp_sum(sum) / width;
        // Deviations anew: the difference of mean(x²) and mean² would cancel.
        squares = 0;
        for (int c = lane * 4; c < width; c += WARP * 4) {
            float v[4];
            load4(kept + c, v);
#pragma unroll
            for (int i = 0; i < 4; i++) squares += (v[i] - mean) * (v[i] - mean);
        }
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / width + epsilon);
    for (int c = lane * 4; c < width; c += WARP * 4) {
        float v[4], w[4], b[4] = {0, 0, 0, 0};
        load4(kept + c, v);
        load4(weight + c, w);
        if (bias) load4(bias + c, b);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = (v[i] - mean) * scale * (w[i] + offset) + b[i];
        store4(y + start + c, v);
    }
    if (lane == 0) {
        scales[row] = scale;
        if (bias) means[row] = mean;
    }
}

// Adds the gradient of a norm's input to dx (or sets it), and rounds the sum to T if `rounded` is not null. `means` is
// null for RMS.
template <typename T>
__device__ void norm_backward(
    const T* dy, const float* x, const float* means, const float* scales, const float* weight, float offset, float* dx,
    T* rounded, int add, int rows, int width) {
    int lane = threadIdx.x % WARP, row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    size_t start = (size_t)row * width;
    float mean = means ? means[row] : 0, scale = scales[row];
    float of_g = 0, of_gn = 0;
    for (int c = lane * 4; c < width; c += WARP * 4) {
        float d[4], v[4], w[4];
        load4(dy + start + c, d);
        load4(x + start + c, v);
        load4(weight + c, w);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float g = d[i] * (w[i] + offset);
            of_g += g;
            of_gn += g * (v[i] - mean) * scale;
        }
    }
    float mean_g = means ? warp_sum(of_g) / width : 0, mean_gn = warp_sum(of_gn) / width;
    for (int c = lane * 4; c < width; c += WARP * 4) {
        float d[4], v[4], w[4], sum[4] = {0, 0, 0, 0};
        load4(dy + start + c, d);
        load4(x + start + c, v);
        load4(weight + c, w);
        if (add) load4(dx + start + c, sum);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float g = d[i] * (w[i] + offset), n = (v[i] - mean) * scale;
            sum[i] += scale * (g - mean_g - n * mean_gn);
        }
        store4(dx + start + c, sum);
        if (rounded) store4(rounded + start + c, sum);
    }
}

// Column sums over PIECE_ROWS rows; blocks of 32 x 8 threads, four columns for each. `of_weights`: sums of dy * the
// normed x; `of_biases`: sums of dy. Each may be null; both are (pieces, width).
template <typename T>
__device__ void column_sums(
    const T* dy, const float* x, const float* means, const float* scales, float* of_weights, float* of_biases,
    int rows, int width) {
    __shared__ float shared[2][8][WARP * 4];
    int c = (blockIdx.x * WARP + threadIdx.x) * 4;
    float dw[4] = {0, 0, 0, 0}, db[4] = {0, 0, 0, 0};
    int begin = blockIdx.y * PIECE_ROWS, end = min(rows, begin + PIECE_ROWS);
    if (c < width) {
        for (int row = begin + threadIdx.y; row < end; row += 8) {
            float d[4], v[4];
            load4(dy + (size_t)row * width + c, d);
#pragma unroll
            for (int i = 0; i < 4; i++) db[i] += d[i];
            if (of_weights) {
                load4(x + (size_t)row * width + c, v);
                float mean = means ? means[row] : 0, scale = scales[row];
#pragma unroll
                for (int i = 0; i < 4; i++) dw[i] += d[i] * (v[i] - mean) * scale;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        shared[0][threadIdx.y][threadIdx.x * 4 + i] = dw[i];
        shared[1][threadIdx.y][threadIdx.x * 4 + i] = db[i];
    }
    __syncthreads();
    int column = threadIdx.y * WARP + threadIdx.x; // 256 threads for 128 columns, twice
    int which = column / (WARP * 4), at = column % (WARP * 4);
    float* to = which == 0 ? of_weights : of_biases;
    int out = blockIdx.x * WARP * 4 + at;
    if (to && out < width) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += shared[which][i][at];
        to[(size_t)blockIdx.y * width + out] = sum;
    }
}

// sums[c] (+)= the sum over pieces, in order; blocks of 32 x 8.
extern "C" __global__ void join_pieces(float* sums, const float* pieces, int count, int width, int add) {
    __shared__ float shared[8][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (c < width) {
        for (int piece = threadIdx.y; piece < count; piece += 8) sum += pieces[(size_t)piece * width + c];
    }
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        float total = add ? sums[c] : 0;
#pragma unroll
        for (int i = 0; i < 8; i++) total += shared[i][threadIdx.x];
        sums[c] = total;
    }
}

#define NORM_KERNELS(T, name)                                                                                       \
    extern "C" __global__ void add_branch_##name(                                                                   \
        const float* x, const T* branch, const float* bias, uint64_t key, float rate, float* sum, int width,        \
        uint64_t count) {                                                                                           \
        add_branch<T>(x, branch, bias, key, rate, sum, width, count);                                               \
    }                                                                                                               \
    extern "C" __global__ void norm_forward_##name(                                                                 \
        const float* x, const T* branch, const float* branch_bias, uint64_t key, float rate, float* sum, T* y,      \
        float* means, float* scales, const float* weight, const float* bias, float offset, float epsilon, int rows, \
        int width) {                                                                                                \
        norm_forward<T>(                                                                                            \
            x, branch, branch_bias, key, rate, sum, y, means, scales, weight, bias, offset, epsilon, rows, width);  \
    }                                                                                                               \
    extern "C" __global__ void norm_backward_##name(                                                                \
        const T* dy, const float* x, const float* means, const float* scales, const float* weight, float offset,    \
        float* dx, T* rounded, int add, int rows, int width) {                                                      \
        norm_backward<T>(dy, x, means, scales, weight, offset, dx, rounded, add, rows, width);                      \
    }                                                                                                               \
    extern "C" __global__ void column_sums_##name(                                                                  \
        const T* dy, const float* x, const float* means, const float* scales, float* of_weights, float* of_biases,  \
        int rows, int width) {                                                                                      \
        column_sums<T>(dy, x, means, scales, of_weights, of_biases, rows, width);                                   \
    }
NORM_KERNELS(float, f32)
NORM_KERNELS(bf16, bf16)
