/* The program that the benchmarks checkpoint and restart: it measures for itself how long it stood still.
 *
 *     victim FILE MEMORY THREADS PROCESSES [huge]
 *
 * The first thread reads the clocks in a tight loop and notes the longest time between two readings in FILE, which it shares with
 * the harness; and the longest of those times in which it was stopped: it never waits by itself, so the kernel counts a voluntary
 * context switch only for a stop. What others take of its processor, or a host of all processors, is not in that.
 *
 * MEMORY bytes are filled with random data, in huge pages if it is told so (madvise(2)); when it is told to, it changes so many
 * pages of them, at random. All other threads and processes wait in pause(2), as idle ones do.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* harness.py has the same fields in the same order. Times are in ns. */
struct shared {
    _Atomic uint64_t reset;      /* set by the harness: begin anew; cleared by us when that is done */
    _Atomic uint64_t longest;    /* CLOCK_MONOTONIC: longest time between two readings */
    _Atomic uint64_t longest_gap; /* CLOCK_REALTIME: the same, but this clock shows also the time between checkpoint and restart */
    _Atomic uint64_t resumed;    /* CLOCK_REALTIME: when that longest gap ended */
    _Atomic uint64_t readings;
    _Atomic uint64_t ready;      /* threads and processes that have come up */
    _Atomic uint64_t address;    /* of the random data */
    _Atomic uint64_t change;     /* set by the harness: change so many pages of it; cleared by us when that is done */
    _Atomic uint64_t stopped;    /* CLOCK_MONOTONIC: the longest time between two readings in which we were stopped */
};

static struct shared *shared;
static uint64_t *data;
static size_t length;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Noreturn void *idle(void *unused)
{
    (void)unused;
    atomic_fetch_add(&shared->ready, 1);
    for (;;)
        pause();
}

static void change(uint64_t pages)
{
    static uint64_t x = 88172645463325252u;
    size_t page = sysconf(_SC_PAGESIZE);
    while (pages--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[x % (length / page) * page / sizeof *data]++;
    }
}

static long switches(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static _Noreturn void watch(void)
{
    long counted = switches();
    uint64_t monotonic = now(CLOCK_MONOTONIC), real = now(CLOCK_REALTIME);
    for (;;) {
        uint64_t m = now(CLOCK_MONOTONIC), r = now(CLOCK_REALTIME);
        if (shared->reset) {
            shared->longest = shared->longest_gap = shared->resumed = shared->readings = shared->stopped = 0;
            shared->reset = 0;
        } else {
            if (m - monotonic > shared->longest)
                shared->longest = m - monotonic;
            if (m - monotonic > 50000) { /* no stop is shorter; and this is seldom */
                long before = counted;
                counted = switches();
                if (counted > before && m - monotonic > shared->stopped)
                    shared->stopped = m - monotonic;
            }
            if (r > real && r - real > shared->longest_gap) {
                shared->longest_gap = r - real;
                shared->resumed = r;
            }
            atomic_store_explicit(&shared->readings, shared->readings + 1, memory_order_relaxed);
        }
        if (shared->change) {
            change(shared->change);
            shared->change = 0;
            m = now(CLOCK_MONOTONIC);
            r = now(CLOCK_REALTIME);
        }
        monotonic = m;
        real = r;
    }
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 6)
        return 2;
    length = strtoull(argv[2], NULL, 10);
    long threads = atol(argv[3]), processes = atol(argv[4]);

    int fd = open(argv[1], O_RDWR);
    if (fd < 0)
        die(argv[1]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    close(fd);

    size_t huge = 2 << 20;
    char *room = mmap(NULL, length + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        die("mmap");
    data = (uint64_t *)(((uintptr_t)room + huge - 1) & ~(uintptr_t)(huge - 1));
    if (madvise(data, length, argc == 6 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) && argc == 6)
        die("madvise");
    uint64_t x = 88172645463325252u; /* xorshift64: nothing that compresses it will find anything */
    for (size_t i = 0; i < length / sizeof *data; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[i] = x;
    }
    shared->address = (uint64_t)(uintptr_t)data;

    for (long i = 1; i < processes; i++) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (!child)
            idle(NULL);
    }
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, idle, NULL))
            die("pthread_create");
    }
    atomic_fetch_add(&shared->ready, 1);
    watch();
}
