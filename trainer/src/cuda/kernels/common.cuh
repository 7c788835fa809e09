// What all kernels share: element types, packs for wide loads, sums over a warp or a block.
//
// T is float or bf16: what products are made of. The residual stream, statistics, losses, gradients of parameters and
// the optimizer's state are float throughout. Every sum is made in an order that depends on shapes only.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name)                      \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type* name = reinterpret_cast<type*>(name##_bytes)
#endif

#define WARP 32
#define LOG2E 1.4426950408889634f

// Rows whose column sums are made by one block; the pieces are added in row order.
#define PIECE_ROWS 128

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// N neighbours, loaded and stored at once.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

template <typename T> __device__ inline void load4(const T* from, float to[4]) {
    Pack<T, 4> pack = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = to_float(pack.at[i]);
}

template <typename T> __device__ inline void store4(T* to, const float from[4]) {
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; i++) pack.at[i] = from_float<T>(from[i]);
    *reinterpret_cast<Pack<T, 4>*>(to) = pack;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}
