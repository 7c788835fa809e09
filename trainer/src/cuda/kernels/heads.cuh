// Queries, keys and values in one row for each token; rotary embedding and the norms of heads on them.
#pragma once
#include "common.cuh"

// Where heads are in a row of `width` features: query head h begins at q + h * q_step, key head h at k + h * kv_step,
// value head h at v + h * kv_step.
struct Heads {
    int batch, time, heads, kv_heads, head_dim, width, q, k, v, q_step, kv_step;
    // What products are multiplied by, and how many keys a query sees (0: all before it).
    float scale;
    int window;
    // Scores become softcap * tanh(score / softcap), unless that is 0; and of the weights a share `rate` is dropped, by the
    // stream of this key.
    float softcap, rate;
    // Where the document of each token begins in its sequence, and where it ends, (batch, time); or null.
    const int *starts, *ends;
    uint64_t key;
};

// The position of the token of a row in its document.
__device__ inline int position(const Heads& s, size_t row) {
    int step = row % s.time;
    return s.starts ? step - s.starts[row] : step;
}

__device__ inline int head_start(const Heads& s, int head) {
    return head < s.heads ? s.q + head * s.q_step : s.k + (head - s.heads) * s.kv_step;
}

// Rotates queries and keys of x: (rows, width), in place; `half` features with as many others: the next half, or their
// neighbours. `sign` -1 is the backward. One thread for each pair, or for four of them (`fours`).
template <typename T>
__device__ void rope(
    T* x, const float* cosines, const float* sines, Heads s, int half, int interleaved, int fours,
    float sign) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t rows = (size_t)s.batch * s.time;
    int heads = s.heads + s.kv_heads;
    if (fours) at *= 4;
    if (at >= rows * heads * half) return;
    int pair = at % half, head = at / half % heads;
    size_t row = at / half / heads;
    int step = position(s, row);
    T* from = x + row * s.width + head_start(s, head);
    if (fours) {
        float a[4], b[4], c[4], d[4];
        load4(from + pair, a);
        load4(from + pair + half, b);
        load4(cosines + (size_t)step * half + pair, c);
        load4(sines + (size_t)step * half + pair, d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float low = a[i] * c[i] - b[i] * (d[i] * sign);
            b[i] = b[i] * c[i] + a[i] * (d[i] * sign);
            a[i] = low;
        }
        store4(from + pair, a);
        store4(from + pair + half, b);
        return;
    }
    T* low = from + (interleaved ? 2 * pair : pair);
    T* high = interleaved ? low + 1 : low + half;
    float c = cosines[(size_t)step * half + pair], d = sines[(size_t)step * half + pair] * sign;
    float a = to_float(*low), b = to_float(*high);
    *low = from_float<T>(a * c - b * d);
    *high = from_float<T>(b * c + a * d);
}

// RMSNorm of each query's and key's head; y: (rows, width) gets them and the values as they are. One warp for each head
// of a row, values included.
template <typename T>
__device__ void head_norm_forward(
    const T* x, T* y, const float* q_weight, const float* k_weight, float offset, float epsilon, Heads s) {
    int lane = threadIdx.x % WARP;
    size_t at = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    int all = s.heads + 2 * s.kv_heads;
    if (at >= (size_t)s.batch * s.time * all) return;
    size_t row = at / all;
    int head = at % all;
    bool is_value = head >= s.heads + s.kv_heads;
    int start = is_value ? s.v + (head - s.heads - s.kv_heads) * s.kv_step : head_start(s, head);
    const T* from = x + row * s.width + start;
    T* to = y + row * s.width + start;
    if (is_value) {
        for (int c = lane; c < s.head_dim; c += WARP) to[c] = from[c];
        return;
    }
    const float* weight = head < s.heads ? q_weight : k_weight;
    float squares = 0;
    for (int c = lane; c < s.head_dim; c += WARP) squares += to_float(from[c]) * to_float(from[c]);
    float scale = 1.0f / sqrtf(warp_sum(squares) / s.head_dim + epsilon);
    for (int c = lane; c < s.head_dim; c += WARP) to[c] = from_float<T>(to_float(from[c]) * scale * (weight[c] + offset));
}

// Heads of one kind that one warp takes, one after the other.
#define HEADS_OF_WARP 32
// Features of a head at most, in units of a warp.
#define HEAD_PARTS 8

// Turns the gradients of normed heads in dx into those of the heads x, in place. Blocks of 8 warps; blockIdx.y 0 is for
// queries, 1 for keys. `pieces`: for each block its sums of the weight's gradient, queries then keys of blocks of
// gridDim.x, (2, gridDim.x, head_dim).
template <typename T>
__device__ void head_norm_backward(
    T* dx, const T* x, const float* q_weight, const float* k_weight, float offset, float epsilon, float* pieces,
    Heads s) {
    __shared__ float shared[8][HEAD_PARTS * WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool keys = blockIdx.y == 1;
    int heads = keys ? s.kv_heads : s.heads;
    const float* weight = keys ? k_weight : q_weight;
    size_t count = (size_t)s.batch * s.time * heads;
    size_t begin = ((size_t)blockIdx.x * 8 + warp) * HEADS_OF_WARP;
    float dw[HEAD_PARTS];
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) dw[part] = 0;
    for (size_t at = begin; at < begin + HEADS_OF_WARP && at < count; at++) {
        size_t row = at / heads;
        int head = at % heads;
        size_t start = row * s.width + head_start(s, keys ? s.heads + head : head);
        float values[HEAD_PARTS], gradients[HEAD_PARTS], squares = 0, products = 0;
#pragma unroll
        for (int part = 0; part < HEAD_PARTS; part++) {
            int c = part * WARP + lane;
            bool there = c < s.head_dim;
            values[part] = there ? to_float(x[start + c]) : 0;
            gradients[part] = there ? to_float(dx[start + c]) : 0;
            squares += values[part] * values[part];
            products += values[part] * gradients[part] * (there ? weight[c] + offset : 0);
        }
        float scale = 1.0f / sqrtf(warp_sum(squares) / s.head_dim + epsilon);
        float mean = warp_sum(products) * scale * scale / s.head_dim;
#pragma unroll
        for (int part = 0; part < HEAD_PARTS; part++) {
            int c = part * WARP + lane;
            if (c < s.head_dim) {
                dw[part] += gradients[part] * values[part] * scale;
                dx[start + c] = from_float<T>(scale * (gradients[part] * (weight[c] + offset) - values[part] * mean));
            }
        }
    }
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) shared[warp][part * WARP + lane] = dw[part];
    __syncthreads();
    if (threadIdx.x < s.head_dim) {
        float sum = 0;
        for (int i = 0; i < 8; i++) sum += shared[i][threadIdx.x];
        pieces[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * s.head_dim + threadIdx.x] = sum;
    }
}

#define HEAD_KERNELS(T, name)                                                                                      \
    extern "C" __global__ void rope_##name(                                                                        \
        T* x, const float* cosines, const float* sines, Heads s, int half, int interleaved, int fours,             \
        float sign) {                                                                                              \
        rope<T>(x, cosines, sines, s, half, interleaved, fours, sign);                                             \
    }                                                                                                              \
    extern "C" __global__ void head_norm_forward_##name(                                                           \
        const T* x, T* y, const float* q_weight, const float* k_weight, float offset, float epsilon, Heads s) {    \
        head_norm_forward<T>(x, y, q_weight, k_weight, offset, epsilon, s);                                        \
    }                                                                                                              \
    extern "C" __global__ void head_norm_backward_##name(                                                          \
        T* dx, const T* x, const float* q_weight, const float* k_weight, float offset, float epsilon,              \
        float* pieces, Heads s) {                                                                                  \
        head_norm_backward<T>(dx, x, q_weight, k_weight, offset, epsilon, pieces, s);                              \
    }
HEAD_KERNELS(float, f32)
HEAD_KERNELS(bf16, bf16)
