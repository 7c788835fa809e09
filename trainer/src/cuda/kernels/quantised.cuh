// Weights in 4 or 8 bits become values; the format is that of ops/quantised.rs, and so are the roundings.
#pragma once
#include "common.cuh"

// values[i] = codebook[code i] * the scale of its block. The scales are float (`scales`, one a block), or 8-bit codes
// (`scale_codes`) of `map`, each 256 with a scale of their own (`scales`), plus `offset`. A block of threads makes
// 4,096 values, eight a thread and turn, from 4 bytes; blocks of scales have a multiple of eight values.
template <typename T>
__device__ void restore_four_bit(
    T* values, const uint8_t* codes, const float* codebook, const float* scales, const uint8_t* scale_codes,
    const float* map, float offset, int block, size_t count) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = codebook[threadIdx.x];
    __syncthreads();
    for (int turn = 0; turn < 2; turn++) {
        size_t at = ((size_t)blockIdx.x * 2 + turn) * blockDim.x * 8 + (size_t)threadIdx.x * 8;
        if (at >= count) return;
        size_t place = at / block;
        // No multiplication and addition in one rounding: the CPU rounds twice.
        float scale = scale_codes ? __fadd_rn(__fmul_rn(map[scale_codes[place]], scales[place / 256]), offset) : scales[place];
        int last = count - at < 8 ? (int)(count - at) : 8;
        for (int pair = 0; pair < last; pair += 4) {
            uint8_t first = codes[(at + pair) / 2], second = codes[(at + pair) / 2 + 1];
            float v[4] = {table[first >> 4] * scale, table[first & 15] * scale, table[second >> 4] * scale, table[second & 15] * scale};
            store4(values + at + pair, v);
        }
    }
}

// values: (rows, columns) = code * the scale of its row / 127; one thread for four values, `columns` a multiple of that.
template <typename T>
__device__ void restore_int8(T* values, const int8_t* codes, const float* scales, int columns, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float scale = scales[at / columns] * (1.0f / 127.0f), v[4];
    Pack<int8_t, 4> four = *reinterpret_cast<const Pack<int8_t, 4>*>(codes + at);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = four.at[i] * scale;
    store4(values + at, v);
}

#define QUANTISED_KERNELS(T, name)                                                                                \
    extern "C" __global__ void restore_four_bit_##name(                                                           \
        T* values, const uint8_t* codes, const float* codebook, const float* scales, const uint8_t* scale_codes,  \
        const float* map, float offset, int block, uint64_t count) {                                              \
        restore_four_bit<T>(values, codes, codebook, scales, scale_codes, map, offset, block, count);             \
    }                                                                                                         \
    extern "C" __global__ void restore_int8_##name(                                                           \
        T* values, const int8_t* codes, const float* scales, int columns, uint64_t count) {                   \
        restore_int8<T>(values, codes, scales, columns, count);                                               \
    }
QUANTISED_KERNELS(float, f32)
QUANTISED_KERNELS(bf16, bf16)
