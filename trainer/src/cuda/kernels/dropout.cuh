// Dropout and noise. What the CPU's are (ops/dropout.rs, model/noise.rs): functions of a stream's key and the position.
#pragma once
#include "common.cuh"

// As shared/src/random.rs has it.
__device__ inline uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// Uniform in [0, 1).
__device__ inline double uniform(uint64_t key, size_t at) {
    return (double)(mix(key ^ mix(at)) >> 11) * (1.0 / 9007199254740992.0);
}

// What the value at a position is multiplied by.
__device__ inline float kept(uint64_t key, size_t at, float rate) {
    return uniform(key, at) < (double)rate ? 0.0f : 1.0f / (1.0f - rate);
}

// y = mask * x, or y += mask * x; one thread for four values.
template <typename T> __device__ void dropout(T* y, const T* x, uint64_t key, float rate, int add, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float v[4], sum[4] = {0, 0, 0, 0};
    load4(x + at, v);
    if (add) load4(y + at, sum);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += v[i] * kept(key, at + i, rate);
    store4(y + at, sum);
}

// x += noise, uniform within plus and minus `bound`; one thread for each value.
extern "C" __global__ void add_noise(float* x, uint64_t key, double bound, uint64_t count) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) x[at] += (float)((2.0 * uniform(key, at) - 1.0) * bound);
}

#define DROPOUT_KERNELS(T, name)                                                                               \
    extern "C" __global__ void dropout_##name(T* y, const T* x, uint64_t key, float rate, int add, uint64_t count) { \
        dropout<T>(y, x, key, rate, add, count);                                                               \
    }
DROPOUT_KERNELS(float, f32)
DROPOUT_KERNELS(bf16, bf16)
