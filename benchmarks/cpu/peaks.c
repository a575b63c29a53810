/* What this machine can do at most: bytes read a second, and multiply-adds a second by kind.
 *
 * cc -O3 -march=native -pthread peaks.c -o peaks && ./peaks THREADS [KIND]
 *
 * Prints one JSON object, of all kinds or of one. Each thread stays on a core of its own. Kinds that the processor lacks
 * are left out. `read` goes through far more than the caches hold; `read_small` through about what a small model's
 * weights take, of which caches may keep a part.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define BYTES ((size_t)512 << 20)
#define SMALL_BYTES ((size_t)128 << 20)
#define STREAMS 4
#define RUNS 20

enum kind { READ, READ_SMALL, INT8, BF16, FP32 };

static pthread_barrier_t barrier;
static char *buffer;
static int threads;
static volatile uint64_t sink;

static double now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + 1e-9 * moment.tv_nsec;
}

/* Several places at once in 256 bytes each: one stream alone does not keep the memory busy. */
static void read_part(int index, size_t bytes) {
    const size_t count = bytes / threads / STREAMS / sizeof(uint64_t);
    const uint64_t *part = (const uint64_t *)buffer + index * STREAMS * count;
    uint64_t sums[32] = {0};
    for (size_t at = 0; at + 32 <= count; at += 32)
        for (int stream = 0; stream < STREAMS; stream++)
            for (int lane = 0; lane < 32; lane++) sums[lane] ^= part[stream * count + at + lane];
    for (int lane = 1; lane < 32; lane++) sums[0] ^= sums[lane];
    sink = sums[0];
}

#ifdef __x86_64__
#define LOOPS 5000000L
/* Twelve accumulators hide the latency of two units; the numbers in them do not matter. */
#define TWELVE(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define OP_INT8(i) "vpdpbusd %%zmm20, %%zmm21, %%zmm" #i "\n"
#define OP_BF16(i) "vdpbf16ps %%zmm20, %%zmm21, %%zmm" #i "\n"
#define OP_FP32(i) "vfmadd231ps %%zmm20, %%zmm21, %%zmm" #i "\n"
#define USED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"
#define LOOP(op) \
    for (long loop = 0; loop < LOOPS; loop++) __asm__ volatile(TWELVE(op)::: USED)

static void compute(enum kind kind) {
    __asm__ volatile("vpxorq %%zmm20, %%zmm20, %%zmm20\nvpxorq %%zmm21, %%zmm21, %%zmm21\n" ::: "memory");
    if (kind == INT8) LOOP(OP_INT8);
    if (kind == BF16) LOOP(OP_BF16);
    if (kind == FP32) LOOP(OP_FP32);
}

static int supported(enum kind kind) {
    if (kind == INT8) return __builtin_cpu_supports("avx512vnni");
    if (kind == BF16) return __builtin_cpu_supports("avx512bf16");
    return kind <= READ_SMALL || __builtin_cpu_supports("avx512f");
}
#else
#define LOOPS 0L
static void compute(enum kind kind) { (void)kind; }
static int supported(enum kind kind) { return kind <= READ_SMALL; }
#endif

struct part {
    int index;
    enum kind kind;
    double best;
};

static void *work(void *argument) {
    struct part *part = argument;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(part->index, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    part->best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        pthread_barrier_wait(&barrier);
        const double started = now();
        if (part->kind == READ) read_part(part->index, BYTES);
        else if (part->kind == READ_SMALL) read_part(part->index, SMALL_BYTES);
        else compute(part->kind);
        pthread_barrier_wait(&barrier);
        const double seconds = now() - started;
        if (seconds < part->best) part->best = seconds;
    }
    return NULL;
}

static double best_seconds(enum kind kind) {
    pthread_t handles[64];
    struct part parts[64];
    pthread_barrier_init(&barrier, NULL, threads);
    for (int index = 0; index < threads; index++) {
        parts[index] = (struct part){index, kind, 0};
        pthread_create(&handles[index], NULL, work, &parts[index]);
    }
    for (int index = 0; index < threads; index++) pthread_join(handles[index], NULL);
    pthread_barrier_destroy(&barrier);
    return parts[0].best;
}

int main(int count, char **arguments) {
    static const char *names[] = {"read", "read_small", "int8", "bf16", "fp32"};
    static const int lanes[] = {0, 0, 64, 32, 16};
    threads = count > 1 ? atoi(arguments[1]) : 1;
    if (threads < 1 || threads > 64) {
        fprintf(stderr, "peaks THREADS [KIND], from 1 to 64\n");
        return 2;
    }
    buffer = aligned_alloc(1 << 21, BYTES);
    if (!buffer) {
        fprintf(stderr, "there is not enough memory\n");
        return 1;
    }
    madvise(buffer, BYTES, MADV_HUGEPAGE);
    memset(buffer, 1, BYTES);
    const char *before = "{";
    for (enum kind kind = READ; kind <= FP32; kind++) {
        if (!supported(kind) || (count > 2 && strcmp(arguments[2], names[kind]))) continue;
        const double work = kind == READ         ? (double)BYTES
                            : kind == READ_SMALL ? (double)SMALL_BYTES
                                                 : (double)threads * LOOPS * 12 * lanes[kind];
        printf("%s\"%s\": %.4g", before, names[kind], work / best_seconds(kind));
        before = ", ";
    }
    printf("%s\n", *before == '{' ? "{}" : "}");
    return 0;
}
