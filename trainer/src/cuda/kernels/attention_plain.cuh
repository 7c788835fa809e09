// Causal attention, inside documents if there are any, for any type and any head of up to 256 features: one warp for each query, or each key in the
// backward of keys and values. Nothing of time x time is stored; the backward makes the weights again from the log of
// each row's sum.
#pragma once
#include <limits.h>
#include "dropout.cuh"
#include "heads.cuh"

// The first key that a query sees, the last being its own; a query beyond the end sees none.
__device__ inline int first_key_of(const Heads& s, int batch, int query) {
    if (query >= s.time) return INT_MAX;
    int first = s.starts ? s.starts[(size_t)batch * s.time + query] : 0;
    return s.window ? max(first, query - s.window + 1) : first;
}

// The end of the queries that see a key, the first being its own; none sees a key beyond the end.
__device__ inline int end_of_queries(const Heads& s, int batch, int key) {
    if (key >= s.time) return 0;
    int end = s.ends ? s.ends[(size_t)batch * s.time + key] : s.time;
    return s.window && s.window < end - key ? key + s.window : end;
}

// The score of a query and a key of this product, `distance` apart in time; and the slope of its cap.
__device__ inline float score(
    const Heads& s, float product, const float* slopes, int head, int distance, float* slope = nullptr) {
    float x = product * s.scale, of_cap = 1;
    if (s.softcap > 0) {
        float capped = tanhf(x / s.softcap);
        x = s.softcap * capped;
        of_cap = 1.0f - capped * capped;
    }
    if (slope) *slope = of_cap;
    return x - (slopes ? slopes[head] * distance : 0.0f);
}

// What the weight of a key is multiplied by.
__device__ inline float kept_weight(const Heads& s, int batch, int head, int query, int key) {
    if (s.rate == 0) return 1;
    return kept(s.key, (((size_t)batch * s.heads + head) * s.time + query) * s.time + key, s.rate);
}

template <typename T> __device__ inline float dot(const T* a, const T* b, int count) {
    float sum = 0;
    for (int c = 0; c < count; c++) sum += to_float(a[c]) * to_float(b[c]);
    return sum;
}

// out: (rows, heads * head_dim); log_sums: (batch, heads, time). Grid (time / warps, heads, batch).
template <typename T>
__device__ void plain_attention_forward(const T* qkv, T* out, float* log_sums, const float* slopes, Heads s) {
    int lane = threadIdx.x % WARP, query = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (query >= s.time) return;
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), batch = blockIdx.z;
    const T* rows = qkv + (size_t)batch * s.time * s.width;
    const T* q = rows + (size_t)query * s.width + s.q + head * s.q_step;
    const T* k = rows + s.k + kv * s.kv_step;
    const T* v = rows + s.v + kv * s.kv_step;
    float largest = -INFINITY, sum = 0, o[HEAD_PARTS];
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) o[part] = 0;
    int first = first_key_of(s, batch, query);
    for (int begin = first; begin <= query; begin += WARP) {
        int key = begin + lane;
        float x = -INFINITY;
        if (key <= query) x = score(s, dot(q, k + (size_t)key * s.width, s.head_dim), slopes, head, query - key);
        float now = fmaxf(largest, warp_max(x));
        float p = expf(x - now), fade = expf(largest - now);
        sum = sum * fade + warp_sum(p);
        p *= kept_weight(s, batch, head, query, key);
        largest = now;
#pragma unroll
        for (int part = 0; part < HEAD_PARTS; part++) o[part] *= fade;
        int count = min(WARP, query + 1 - begin);
        for (int i = 0; i < count; i++) {
            float weight = __shfl_sync(0xffffffffu, p, i);
            const T* row = v + (size_t)(begin + i) * s.width;
#pragma unroll
            for (int part = 0; part < HEAD_PARTS; part++) {
                int c = part * WARP + lane;
                if (c < s.head_dim) o[part] += weight * to_float(row[c]);
            }
        }
    }
    T* to = out + ((size_t)batch * s.time + query) * s.heads * s.head_dim + head * s.head_dim;
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) {
        int c = part * WARP + lane;
        if (c < s.head_dim) to[c] = from_float<T>(o[part] / sum);
    }
    if (lane == 0) log_sums[((size_t)batch * s.heads + head) * s.time + query] = largest + logf(sum);
}

// delta: (batch, heads, time) = sum over features of dout * out; one warp for each head of a row.
template <typename T> __device__ void attention_delta(const T* dout, const T* out, float* delta, Heads s) {
    int lane = threadIdx.x % WARP;
    size_t at = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (at >= (size_t)s.batch * s.time * s.heads) return;
    float sum = 0;
    for (int c = lane * 4; c < s.head_dim; c += WARP * 4) {
        float a[4], b[4];
        load4(dout + at * s.head_dim + c, a);
        load4(out + at * s.head_dim + c, b);
        sum += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    }
    sum = warp_sum(sum);
    size_t row = at / s.heads;
    int head = at % s.heads;
    if (lane == 0) delta[((row / s.time) * s.heads + head) * s.time + row % s.time] = sum;
}

// The gradients of queries, into their features of dqkv.
template <typename T>
__device__ void plain_attention_backward_q(
    const T* qkv, const T* dout, const float* log_sums, const float* delta, T* dqkv, const float* slopes, Heads s) {
    int lane = threadIdx.x % WARP, query = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (query >= s.time) return;
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), batch = blockIdx.z;
    const T* rows = qkv + (size_t)batch * s.time * s.width;
    const T* q = rows + (size_t)query * s.width + s.q + head * s.q_step;
    const T* k = rows + s.k + kv * s.kv_step;
    const T* v = rows + s.v + kv * s.kv_step;
    const T* d = dout + ((size_t)batch * s.time + query) * s.heads * s.head_dim + head * s.head_dim;
    size_t statistics = ((size_t)batch * s.heads + head) * s.time + query;
    float log_sum = log_sums[statistics], mean = delta[statistics], dq[HEAD_PARTS];
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) dq[part] = 0;
    int first = first_key_of(s, batch, query);
    for (int begin = first; begin <= query; begin += WARP) {
        int key = begin + lane;
        float ds = 0;
        if (key <= query) {
            float slope, product = dot(q, k + (size_t)key * s.width, s.head_dim);
            float x = score(s, product, slopes, head, query - key, &slope);
            float dp = dot(d, v + (size_t)key * s.width, s.head_dim) * kept_weight(s, batch, head, query, key);
            ds = expf(x - log_sum) * (dp - mean) * slope * s.scale;
        }
        int count = min(WARP, query + 1 - begin);
        for (int i = 0; i < count; i++) {
            float factor = __shfl_sync(0xffffffffu, ds, i);
            const T* row = k + (size_t)(begin + i) * s.width;
#pragma unroll
            for (int part = 0; part < HEAD_PARTS; part++) {
                int c = part * WARP + lane;
                if (c < s.head_dim) dq[part] += factor * to_float(row[c]);
            }
        }
    }
    T* to = dqkv + ((size_t)batch * s.time + query) * s.width + s.q + head * s.q_step;
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) {
        int c = part * WARP + lane;
        if (c < s.head_dim) to[c] = from_float<T>(dq[part]);
    }
}

// Those of keys and values: one warp for each key, over all queries of its group of heads. Grid (time / warps,
// kv_heads, batch).
template <typename T>
__device__ void plain_attention_backward_kv(
    const T* qkv, const T* dout, const float* log_sums, const float* delta, T* dqkv, const float* slopes, Heads s) {
    int lane = threadIdx.x % WARP, key = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (key >= s.time) return;
    int kv = blockIdx.y, group = s.heads / s.kv_heads, batch = blockIdx.z;
    const T* rows = qkv + (size_t)batch * s.time * s.width;
    const T* k = rows + (size_t)key * s.width + s.k + kv * s.kv_step;
    const T* v = rows + (size_t)key * s.width + s.v + kv * s.kv_step;
    float dk[HEAD_PARTS], dv[HEAD_PARTS];
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) dk[part] = dv[part] = 0;
    int last = end_of_queries(s, batch, key);
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        const T* q = rows + s.q + head * s.q_step;
        const T* d = dout + (size_t)batch * s.time * s.heads * s.head_dim + head * s.head_dim;
        size_t statistics = ((size_t)batch * s.heads + head) * s.time;
        for (int begin = key; begin < last; begin += WARP) {
            int query = begin + lane;
            float p = 0, ds = 0;
            if (query < last) {
                float slope, product = dot(q + (size_t)query * s.width, k, s.head_dim);
                float x = score(s, product, slopes, head, query - key, &slope);
                float mask = kept_weight(s, batch, head, query, key);
                p = expf(x - log_sums[statistics + query]);
                float dp = dot(d + (size_t)query * s.heads * s.head_dim, v, s.head_dim) * mask;
                ds = p * (dp - delta[statistics + query]) * slope * s.scale;
                p *= mask;
            }
            int count = min(WARP, last - begin);
            for (int i = 0; i < count; i++) {
                float weight = __shfl_sync(0xffffffffu, p, i), factor = __shfl_sync(0xffffffffu, ds, i);
                const T* query_row = q + (size_t)(begin + i) * s.width;
                const T* dout_row = d + (size_t)(begin + i) * s.heads * s.head_dim;
#pragma unroll
                for (int part = 0; part < HEAD_PARTS; part++) {
                    int c = part * WARP + lane;
                    if (c < s.head_dim) {
                        dk[part] += factor * to_float(query_row[c]);
                        dv[part] += weight * to_float(dout_row[c]);
                    }
                }
            }
        }
    }
    T* to = dqkv + ((size_t)batch * s.time + key) * s.width;
#pragma unroll
    for (int part = 0; part < HEAD_PARTS; part++) {
        int c = part * WARP + lane;
        if (c < s.head_dim) {
            to[s.k + kv * s.kv_step + c] = from_float<T>(dk[part]);
            to[s.v + kv * s.kv_step + c] = from_float<T>(dv[part]);
        }
    }
}

#define PLAIN_ATTENTION_KERNELS(T, name)                                                                           \
    extern "C" __global__ void attention_forward_##name(                                                           \
        const T* qkv, T* out, float* log_sums, const float* slopes, Heads s) {                                     \
        plain_attention_forward<T>(qkv, out, log_sums, slopes, s);                                                 \
    }                                                                                                              \
    extern "C" __global__ void attention_delta_##name(const T* dout, const T* out, float* delta, Heads s) {        \
        attention_delta<T>(dout, out, delta, s);                                                                   \
    }                                                                                                              \
    extern "C" __global__ void attention_backward_q_##name(                                                        \
        const T* qkv, const T* dout, const float* log_sums, const float* delta, T* dqkv, const float* slopes,      \
        Heads s) {                                                                                                 \
        plain_attention_backward_q<T>(qkv, dout, log_sums, delta, dqkv, slopes, s);                                \
    }                                                                                                              \
    extern "C" __global__ void attention_backward_kv_##name(                                                       \
        const T* qkv, const T* dout, const float* log_sums, const float* delta, T* dqkv, const float* slopes,      \
        Heads s) {                                                                                                 \
        plain_attention_backward_kv<T>(qkv, dout, log_sums, delta, dqkv, slopes, s);                               \
    }
PLAIN_ATTENTION_KERNELS(float, f32)
PLAIN_ATTENTION_KERNELS(bf16, bf16)
