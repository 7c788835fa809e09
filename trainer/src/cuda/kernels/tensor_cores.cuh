// The matrix instructions of sm_80 and later: 16 x 8 += 16 x 16 · 16 x 8, bf16 with float sums, and the loads of their
// operands from tiles in shared memory.
//
// Lane l holds of the result rows l/4 and l/4 + 8, columns 2(l%4) and the next.
#pragma once
#include "common.cuh"

#ifndef EMULATED
__device__ inline void load_matrices(uint32_t r[4], const bf16* row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t r[4], const bf16* row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void copy_async(bf16* to, const bf16* from, bool there) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0; // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2 to the x, 0 below 2 to the -126: one instruction.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline uint32_t pack(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

// Rows of a tile are one access of 16 bytes longer than D, so that eight of them lie in different banks.
template <int D> struct Tile {
    static constexpr int STRIDE = D + 8;

    // 16 x 16 from (row, k) as the left operand.
    static __device__ inline void left(uint32_t r[4], const bf16* tile, int row, int k) {
        int lane = threadIdx.x % WARP;
        load_matrices(r, tile + (row + lane % 16) * STRIDE + k + lane / 16 * 8);
    }

    // Two right operands for columns n.. and n + 8.., k..: the tile's rows are columns.
    static __device__ inline void right(uint32_t r[4], const bf16* tile, int n, int k) {
        int lane = threadIdx.x % WARP;
        load_matrices(r, tile + (n + lane % 8 + lane / 16 * 8) * STRIDE + k + lane / 8 % 2 * 8);
    }

    // The same where the tile's rows are k.
    static __device__ inline void right_transposed(uint32_t r[4], const bf16* tile, int k, int n) {
        int lane = threadIdx.x % WARP;
        load_matrices_transposed(r, tile + (k + lane % 16) * STRIDE + n + lane / 16 * 8);
    }

    // ROWS rows of D features, zeros beyond `rows`.
    template <int ROWS, int THREADS>
    static __device__ inline void copy(bf16* tile, const bf16* from, size_t stride, int rows) {
        for (int at = threadIdx.x; at < ROWS * (D / 8); at += THREADS) {
            int row = at / (D / 8), c = at % (D / 8) * 8;
            bool there = row < rows;
            copy_async(tile + row * STRIDE + c, from + (there ? (size_t)row * stride + c : 0), there);
        }
    }
};
