// Causal attention in bf16 on tensor cores, for heads of 64 and 128 features, as in FlashAttention 2 (Dao 2023): blocks
// of 4 warps with M tiles of 16 queries each, or keys in the backward of keys and values; an operand of the other side
// is loaded once for all M tiles. What comes next is copied to shared memory while this is multiplied. The backward
// makes queries' gradients in a kernel of their own, so that no sum depends on the order of blocks.
#pragma once
#include "attention_plain.cuh"
#include "tensor_cores.cuh"

#define THREADS 128

// products += left rows of `a` · (rows of `b`)ᵀ, N columns, over D features, for M tiles of 16 rows from `row` on.
template <int D, int N, int M>
__device__ inline void multiply_rows(float products[M][N / 8][4], const bf16* a, int row, const bf16* b) {
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[M][4], right[4];
#pragma unroll
        for (int m = 0; m < M; m++) Tile<D>::left(left[m], a, row + m * 16, k);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            Tile<D>::right(right, b, n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(products[m][n / 8], left[m], right[0], right[1]);
                multiply(products[m][n / 8 + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// sums += weights, rounded to bf16, · `b`, whose K rows are what is summed over.
template <int D, int K, int M>
__device__ inline void multiply_weights(float sums[M][D / 8][4], const float weights[M][K / 8][4], const bf16* b) {
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        uint32_t left[M][4], right[4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float *low = weights[m][k / 8], *high = weights[m][k / 8 + 1];
            left[m][0] = pack(low[0], low[1]);
            left[m][1] = pack(low[2], low[3]);
            left[m][2] = pack(high[0], high[1]);
            left[m][3] = pack(high[2], high[3]);
        }
#pragma unroll
        for (int n = 0; n < D; n += 16) {
            Tile<D>::right_transposed(right, b, k, n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(sums[m][n / 8], left[m], right[0], right[1]);
                multiply(sums[m][n / 8 + 1], left[m], right[2], right[3]);
            }
        }
    }
}

template <int N, int M> __device__ inline void clear(float values[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) values[m][n][0] = values[m][n][1] = values[m][n][2] = values[m][n][3] = 0;
    }
}

// Writes 16 rows of D features from `row` on, each value times the factor of its row; rows from `end` on are not there.
template <int D>
__device__ inline void store_rows(
    bf16* to, size_t stride, const float sums[D / 8][4], int row, int end, float low_factor, float high_factor) {
    int lane = threadIdx.x % WARP, low = row + lane / 4, high = low + 8;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        int c = n * 8 + lane % 4 * 2;
        if (low < end) {
            *(uint32_t*)(to + (size_t)low * stride + c) = pack(sums[n][0] * low_factor, sums[n][1] * low_factor);
        }
        if (high < end) {
            *(uint32_t*)(to + (size_t)high * stride + c) = pack(sums[n][2] * high_factor, sums[n][3] * high_factor);
        }
    }
}

// Sum and maximum over the four lanes of a row.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Multiplies values by what the weights in their places are multiplied by. This lane's first row and the tile's first
// column are a query and a key, or a key and a query (`by_key`).
template <int N, int M>
__device__ inline void drop_weights(
    float values[M][N / 8][4], const Heads& s, int batch, int head, int row, int column, bool by_key) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + m * 16 + i / 2 * 8, c = column + n * 8 + lane % 4 * 2 + i % 2;
                values[m][n][i] *= by_key ? kept_weight(s, batch, head, c, r) : kept_weight(s, batch, head, r, c);
            }
        }
    }
}

// Grid (time / (64 M), heads, batch). Log sums are those of the plain kernel times log2 e. Shared: a tile of 64 M rows,
// 4 of 64.
template <int D, int M, bool DROPS>
__device__ void attention_forward(const bf16* qkv, bf16* out, float* log_sums, const float* slopes, Heads s) {
    constexpr int ROWS = 64 * M, KEYS = 64, STRIDE = Tile<D>::STRIDE;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *q_tile = shared, *k_tiles = q_tile + ROWS * STRIDE, *v_tiles = k_tiles + 2 * KEYS * STRIDE;
    // The longest rows first.
    int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, kv = head / (s.heads / s.kv_heads), batch = blockIdx.z;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first_query = block * ROWS;
    const bf16* rows = qkv + (size_t)batch * s.time * s.width;
    const bf16 *k = rows + s.k + kv * s.kv_step, *v = rows + s.v + kv * s.kv_step;
    auto copy_keys = [&](int first_key, int stage) {
        int there = s.time - first_key;
        Tile<D>::template copy<KEYS, THREADS>(
            k_tiles + stage * KEYS * STRIDE, k + (size_t)first_key * s.width, s.width, there);
        Tile<D>::template copy<KEYS, THREADS>(
            v_tiles + stage * KEYS * STRIDE, v + (size_t)first_key * s.width, s.width, there);
    };
    int begin = first_key_of(s, batch, first_query) / KEYS * KEYS;
    int end = min(s.time, first_query + ROWS);
    Tile<D>::template copy<ROWS, THREADS>(
        q_tile, rows + (size_t)first_query * s.width + s.q + head * s.q_step, s.width, s.time - first_query);
    copy_keys(begin, 0);
    float o[M][D / 8][4], largest[M][2], sum[M][2];
    int first[M][2];
    clear<D / 8, M>(o);
#pragma unroll
    for (int m = 0; m < M; m++) {
        largest[m][0] = largest[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    bool bounded = s.window || s.starts;
    float scale = s.scale * LOG2E, slope = slopes ? slopes[head] / s.scale : 0;
    int query = first_query + warp * 16 * M + lane / 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
        first[m][0] = first_key_of(s, batch, query + m * 16);
        first[m][1] = first_key_of(s, batch, query + m * 16 + 8);
    }
    wait_for_copies();
    __syncthreads();
    int stage = 0;
    for (int first_key = begin; first_key < end; first_key += KEYS, stage ^= 1) {
        if (first_key + KEYS < end) copy_keys(first_key + KEYS, stage ^ 1);
        if (first_key > first_query + warp * 16 * M + 16 * M - 1) { // this warp's queries see none of them
            wait_for_copies();
            __syncthreads();
            continue;
        }
        float scores[M][KEYS / 8][4];
        clear<KEYS / 8, M>(scores);
        multiply_rows<D, KEYS, M>(scores, q_tile, warp * 16 * M, k_tiles + stage * KEYS * STRIDE);
        bool whole = first_key + KEYS <= first_query && !bounded && !slopes;
#pragma unroll
        for (int m = 0; m < M; m++) {
            float now[2] = {largest[m][0], largest[m][1]};
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = query + m * 16 + i / 2 * 8, key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                    // Scores in units of `scale`, which the exponential multiplies by.
                    float x = scores[m][n][i];
                    if (!whole) x = key <= row && key >= first[m][i / 2] ? x - slope * (row - key) : -INFINITY;
                    scores[m][n][i] = x;
                    now[i / 2] = fmaxf(now[i / 2], x);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                now[half] = row_max(now[half]);
                // A row that sees nothing yet has no largest score.
                float base = now[half] == -INFINITY ? 0 : now[half] * scale;
                float fade = power_of_two(largest[m][half] * scale - base), part = 0;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
                    scores[m][n][half * 2] = power_of_two(scores[m][n][half * 2] * scale - base);
                    scores[m][n][half * 2 + 1] = power_of_two(scores[m][n][half * 2 + 1] * scale - base);
                    part += scores[m][n][half * 2] + scores[m][n][half * 2 + 1];
                }
                sum[m][half] = sum[m][half] * fade + part;
                largest[m][half] = now[half];
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    o[m][n][half * 2] *= fade;
                    o[m][n][half * 2 + 1] *= fade;
                }
            }
        }
        if constexpr (DROPS) drop_weights<KEYS, M>(scores, s, batch, head, query, first_key, false);
        multiply_weights<D, KEYS, M>(o, scores, v_tiles + stage * KEYS * STRIDE);
        wait_for_copies();
        __syncthreads();
    }
    size_t out_width = (size_t)s.heads * s.head_dim;
    bf16* to = out + (size_t)batch * s.time * out_width + head * s.head_dim;
    float* log_sum = log_sums + ((size_t)batch * s.heads + head) * s.time;
#pragma unroll
    for (int m = 0; m < M; m++) {
        float low = row_sum(sum[m][0]), high = row_sum(sum[m][1]);
        int row = query + m * 16;
        store_rows<D>(to, out_width, o[m], first_query + (warp * M + m) * 16, s.time, 1.0f / low, 1.0f / high);
        if (lane % 4 == 0) {
            if (row < s.time) log_sum[row] = largest[m][0] * scale + log2f(low);
            if (row + 8 < s.time) log_sum[row + 8] = largest[m][1] * scale + log2f(high);
        }
    }
}

// The gradients of queries. Grid as above. Shared: 2 tiles of 64 M rows, 4 of KEYS.
template <int D, int M, int KEYS, bool DROPS>
__device__ void attention_backward_q(
    const bf16* qkv, const bf16* dout, const float* log_sums, const float* delta, bf16* dqkv, const float* slopes,
    Heads s) {
    constexpr int ROWS = 64 * M, STRIDE = Tile<D>::STRIDE;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *q_tile = shared, *d_tile = q_tile + ROWS * STRIDE, *k_tiles = d_tile + ROWS * STRIDE,
         *v_tiles = k_tiles + 2 * KEYS * STRIDE;
    int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, kv = head / (s.heads / s.kv_heads), batch = blockIdx.z;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first_query = block * ROWS;
    const bf16* rows = qkv + (size_t)batch * s.time * s.width;
    const bf16 *k = rows + s.k + kv * s.kv_step, *v = rows + s.v + kv * s.kv_step;
    auto copy_keys = [&](int first_key, int stage) {
        int there = s.time - first_key;
        Tile<D>::template copy<KEYS, THREADS>(
            k_tiles + stage * KEYS * STRIDE, k + (size_t)first_key * s.width, s.width, there);
        Tile<D>::template copy<KEYS, THREADS>(
            v_tiles + stage * KEYS * STRIDE, v + (size_t)first_key * s.width, s.width, there);
    };
    int begin = first_key_of(s, batch, first_query) / KEYS * KEYS;
    int end = min(s.time, first_query + ROWS);
    size_t out_width = (size_t)s.heads * s.head_dim;
    const bf16* d = dout + ((size_t)batch * s.time + first_query) * out_width + head * s.head_dim;
    Tile<D>::template copy<ROWS, THREADS>(
        q_tile, rows + (size_t)first_query * s.width + s.q + head * s.q_step, s.width, s.time - first_query);
    Tile<D>::template copy<ROWS, THREADS>(d_tile, d, out_width, s.time - first_query);
    copy_keys(begin, 0);
    float dq[M][D / 8][4], log_sum[M][2], mean[M][2];
    int first[M][2];
    bool bounded = s.window || s.starts;
    clear<D / 8, M>(dq);
    float scale = s.scale * LOG2E, slope = slopes ? slopes[head] * LOG2E : 0;
    int query = first_query + warp * 16 * M + lane / 4;
    size_t statistics = ((size_t)batch * s.heads + head) * s.time;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = query + m * 16 + half * 8;
            log_sum[m][half] = row < s.time ? log_sums[statistics + row] : 0;
            mean[m][half] = row < s.time ? delta[statistics + row] : 0;
            first[m][half] = first_key_of(s, batch, row);
        }
    }
    wait_for_copies();
    __syncthreads();
    int stage = 0;
    for (int first_key = begin; first_key < end; first_key += KEYS, stage ^= 1) {
        if (first_key + KEYS < end) copy_keys(first_key + KEYS, stage ^ 1);
        if (first_key > first_query + warp * 16 * M + 16 * M - 1) { // this warp's queries see none of them
            wait_for_copies();
            __syncthreads();
            continue;
        }
        const bf16 *k_tile = k_tiles + stage * KEYS * STRIDE, *v_tile = v_tiles + stage * KEYS * STRIDE;
        float scores[M][KEYS / 8][4], slopes_of_weights[M][KEYS / 8][4];
        clear<KEYS / 8, M>(scores);
        clear<KEYS / 8, M>(slopes_of_weights);
        multiply_rows<D, KEYS, M>(scores, q_tile, warp * 16 * M, k_tile);
        multiply_rows<D, KEYS, M>(slopes_of_weights, d_tile, warp * 16 * M, v_tile);
        if constexpr (DROPS) drop_weights<KEYS, M>(slopes_of_weights, s, batch, head, query, first_key, false);
        bool whole = first_key + KEYS <= first_query && first_query + ROWS <= s.time && !bounded && !slopes;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = query + m * 16 + i / 2 * 8, key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                    float x = scores[m][n][i] * scale - log_sum[m][i / 2];
                    if (!whole) x = key <= row && key >= first[m][i / 2] ? x - slope * (row - key) : -INFINITY;
                    scores[m][n][i] = power_of_two(x) * (slopes_of_weights[m][n][i] - mean[m][i / 2]);
                }
            }
        }
        multiply_weights<D, KEYS, M>(dq, scores, k_tile);
        wait_for_copies();
        __syncthreads();
    }
    bf16* to = dqkv + (size_t)batch * s.time * s.width + s.q + head * s.q_step;
#pragma unroll
    for (int m = 0; m < M; m++) {
        store_rows<D>(to, s.width, dq[m], first_query + (warp * M + m) * 16, s.time, s.scale, s.scale);
    }
}

// The gradients of keys and values, of each query head by itself: rows of `stride` values, those of head h from h * step
// on. Grid (time / (64 M), heads, batch). Shared: 2 tiles of 64 M rows, 4 of QUERIES, and 4 floats for each of these.
template <int D, int M, int QUERIES, bool DROPS>
__device__ void attention_backward_kv(
    const bf16* qkv, const bf16* dout, const float* log_sums, const float* delta, bf16* dk_out, bf16* dv_out,
    int stride, int step, const float* slopes, Heads s) {
    constexpr int ROWS = 64 * M, STRIDE = Tile<D>::STRIDE;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *k_tile = shared, *v_tile = k_tile + ROWS * STRIDE, *q_tiles = v_tile + ROWS * STRIDE,
         *d_tiles = q_tiles + 2 * QUERIES * STRIDE;
    float *log_sum_parts = (float*)(d_tiles + 2 * QUERIES * STRIDE), *mean_parts = log_sum_parts + 2 * QUERIES;
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), batch = blockIdx.z;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first_key = blockIdx.x * ROWS;
    const bf16* rows = qkv + (size_t)batch * s.time * s.width;
    size_t out_width = (size_t)s.heads * s.head_dim;
    const bf16* q = rows + s.q + head * s.q_step;
    const bf16* d = dout + (size_t)batch * s.time * out_width + head * s.head_dim;
    size_t statistics = ((size_t)batch * s.heads + head) * s.time;
    auto copy_queries = [&](int first_query, int stage) {
        int there = s.time - first_query;
        Tile<D>::template copy<QUERIES, THREADS>(
            q_tiles + stage * QUERIES * STRIDE, q + (size_t)first_query * s.width, s.width, there);
        Tile<D>::template copy<QUERIES, THREADS>(
            d_tiles + stage * QUERIES * STRIDE, d + (size_t)first_query * out_width, out_width, there);
        if (threadIdx.x < QUERIES) {
            bool is_there = (int)threadIdx.x < there;
            size_t at = statistics + first_query + threadIdx.x;
            log_sum_parts[stage * QUERIES + threadIdx.x] = is_there ? log_sums[at] : 0;
            mean_parts[stage * QUERIES + threadIdx.x] = is_there ? delta[at] : 0;
        }
    };
    Tile<D>::template copy<ROWS, THREADS>(
        k_tile, rows + (size_t)first_key * s.width + s.k + kv * s.kv_step, s.width, s.time - first_key);
    Tile<D>::template copy<ROWS, THREADS>(
        v_tile, rows + (size_t)first_key * s.width + s.v + kv * s.kv_step, s.width, s.time - first_key);
    copy_queries(first_key, 0);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    clear<D / 8, M>(dk);
    clear<D / 8, M>(dv);
    float scale = s.scale * LOG2E, slope = slopes ? slopes[head] * LOG2E : 0;
    int key = first_key + warp * 16 * M + lane / 4;
    int last = end_of_queries(s, batch, min(s.time, first_key + ROWS) - 1), ends[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        ends[m][0] = end_of_queries(s, batch, key + m * 16);
        ends[m][1] = end_of_queries(s, batch, key + m * 16 + 8);
    }
    bool bounded = s.window || s.starts;
    wait_for_copies();
    __syncthreads();
    int stage = 0;
    for (int first_query = first_key; first_query < last; first_query += QUERIES, stage ^= 1) {
        if (first_query + QUERIES < last) copy_queries(first_query + QUERIES, stage ^ 1);
        if (first_query + QUERIES - 1 < first_key + warp * 16 * M) { // none of them sees this warp's keys
            wait_for_copies();
            __syncthreads();
            continue;
        }
        const bf16 *q_tile = q_tiles + stage * QUERIES * STRIDE, *d_tile = d_tiles + stage * QUERIES * STRIDE;
        const float *log_sum = log_sum_parts + stage * QUERIES, *mean = mean_parts + stage * QUERIES;
        float weights[M][QUERIES / 8][4], slopes_of_weights[M][QUERIES / 8][4];
        clear<QUERIES / 8, M>(weights);
        multiply_rows<D, QUERIES, M>(weights, k_tile, warp * 16 * M, q_tile);
        bool whole = first_key + ROWS <= first_query && first_query + QUERIES <= s.time && !bounded && !slopes;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = key + m * 16 + i / 2 * 8, at = n * 8 + lane % 4 * 2 + i % 2, query = first_query + at;
                    float x = weights[m][n][i] * scale - log_sum[at];
                    if (!whole) x = row <= query && query < ends[m][i / 2] ? x - slope * (query - row) : -INFINITY;
                    weights[m][n][i] = power_of_two(x);
                }
            }
        }
        if constexpr (DROPS) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) slopes_of_weights[m][n][i] = weights[m][n][i];
                }
            }
            drop_weights<QUERIES, M>(slopes_of_weights, s, batch, head, key, first_query, true);
            multiply_weights<D, QUERIES, M>(dv, slopes_of_weights, d_tile);
        } else {
            multiply_weights<D, QUERIES, M>(dv, weights, d_tile);
        }
        clear<QUERIES / 8, M>(slopes_of_weights);
        multiply_rows<D, QUERIES, M>(slopes_of_weights, v_tile, warp * 16 * M, d_tile);
        if constexpr (DROPS) drop_weights<QUERIES, M>(slopes_of_weights, s, batch, head, key, first_query, true);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    weights[m][n][i] *= slopes_of_weights[m][n][i] - mean[n * 8 + lane % 4 * 2 + i % 2];
                }
            }
        }
        multiply_weights<D, QUERIES, M>(dk, weights, q_tile);
        wait_for_copies();
        __syncthreads();
    }
    bf16* dk_rows = dk_out + (size_t)batch * s.time * stride + head * step;
    bf16* dv_rows = dv_out + (size_t)batch * s.time * stride + head * step;
#pragma unroll
    for (int m = 0; m < M; m++) {
        int row = first_key + (warp * M + m) * 16;
        store_rows<D>(dk_rows, stride, dk[m], row, s.time, s.scale, s.scale);
        store_rows<D>(dv_rows, stride, dv[m], row, s.time, 1, 1);
    }
}

// Sums the gradients of keys and values over the query heads of a group, in order: from (rows, 2, heads * head_dim) into
// their features of dqkv. One thread for four values of keys or values.
extern "C" __global__ void join_heads(const bf16* expanded, bf16* dqkv, Heads s) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    size_t kv_width = (size_t)s.kv_heads * s.head_dim, width = (size_t)s.heads * s.head_dim;
    if (at >= (size_t)s.batch * s.time * 2 * kv_width) return;
    int c = at % s.head_dim, kv = at / s.head_dim % s.kv_heads, which = at / kv_width % 2, group = s.heads / s.kv_heads;
    size_t row = at / kv_width / 2;
    const bf16* from = expanded + (row * 2 + which) * width + (size_t)kv * group * s.head_dim + c;
    float sum[4] = {0, 0, 0, 0};
    for (int i = 0; i < group; i++) {
        float v[4];
        load4(from + i * s.head_dim, v);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j] += v[j];
    }
    store4(dqkv + row * s.width + (which ? s.v : s.k) + kv * s.kv_step + c, sum);
}

// With weights that are dropped in kernels of their own: in these, the registers of the others are not enough.
#define ATTENTION_KERNELS(D, M, STEP, name, DROPS)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##name(                                 \
        const bf16* qkv, bf16* out, float* log_sums, const float* slopes, Heads s) {                                \
        attention_forward<D, M, DROPS>(qkv, out, log_sums, slopes, s);                                              \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##name(                              \
        const bf16* qkv, const bf16* dout, const float* log_sums, const float* delta, bf16* dqkv,                   \
        const float* slopes, Heads s) {                                                                             \
        attention_backward_q<D, M, STEP, DROPS>(qkv, dout, log_sums, delta, dqkv, slopes, s);                       \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##name(                             \
        const bf16* qkv, const bf16* dout, const float* log_sums, const float* delta, bf16* dk_out, bf16* dv_out,   \
        int stride, int step, const float* slopes, Heads s) {                                                       \
        attention_backward_kv<D, M, STEP, DROPS>(                                                                   \
            qkv, dout, log_sums, delta, dk_out, dv_out, stride, step, slopes, s);                                   \
    }
ATTENTION_KERNELS(64, 2, 32, 64, false)
ATTENTION_KERNELS(128, 1, 32, 128, false)
ATTENTION_KERNELS(64, 2, 32, 64_dropping, true)
ATTENTION_KERNELS(128, 1, 32, 128_dropping, true)
