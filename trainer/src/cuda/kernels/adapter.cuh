// Dropout of what an adapter takes. The mask is that of ops/dropout.rs: a function of the stream's key and the position.
#pragma once
#include "common.cuh"

// As shared/src/random.rs has it.
__device__ inline uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// What the value at a position is multiplied by.
__device__ inline float kept(uint64_t key, size_t at, double rate, float factor) {
    double uniform = (double)(mix(key ^ mix(at)) >> 11) * (1.0 / 9007199254740992.0);
    return uniform < rate ? 0.0f : factor;
}

// y = mask * x, or y += mask * x; one thread for four values.
template <typename T> __device__ void dropout(T* y, const T* x, uint64_t key, float rate, int add, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float factor = 1.0f / (1.0f - rate), v[4], sum[4] = {0, 0, 0, 0};
    load4(x + at, v);
    if (add) load4(y + at, sum);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += v[i] * kept(key, at + i, (double)rate, factor);
    store4(y + at, sum);
}

#define ADAPTER_KERNELS(T, name)                                                                               \
    extern "C" __global__ void dropout_##name(T* y, const T* x, uint64_t key, float rate, int add, uint64_t count) { \
        dropout<T>(y, x, key, rate, add, count);                                                               \
    }
ADAPTER_KERNELS(float, f32)
ADAPTER_KERNELS(bf16, bf16)
