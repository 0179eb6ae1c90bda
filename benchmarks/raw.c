/* What moving the same bytes costs without torpor: nothing is hashed. Prints times in ns.
 *
 *     raw out PID ADDRESS REGION LENGTH FILE   process_vm_readv by one thread, write by another: time until all is
 *                                            written, time until it is on disk (fsync)
 *     raw fork LENGTH [huge]                   fork of a process with so much memory of its own: the shortest stop in which the
 *                                            kernel can copy it
 *     raw next PID ADDRESS REGION COUNT FILE   read what the kernel tells of the mappings (smaps), then COUNT pages from all over
 *                                            the REGION with process_vm_readv, write, fsync: time of the first, time of all
 *     raw in FILE LENGTH                       first touch of fresh memory + read from the page cache
 *     raw touch LENGTH                         first touch of fresh memory; prints nothing
 *
 * LENGTH bytes are moved in all, those of the REGION at ADDRESS over and over.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, BUFFERS = 4 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A ring of buffers between the thread that reads and the one that writes. */
static struct {
    char data[BUFFERS][BUFFER];
    size_t length[BUFFERS];
    sem_t empty, full;
    int fd;
    size_t left;
} ring;

static void *write_all(void *unused)
{
    (void)unused;
    for (int i = 0; ring.left; i = (i + 1) % BUFFERS) {
        while (sem_wait(&ring.full))
            ;
        if (write(ring.fd, ring.data[i], ring.length[i]) != (ssize_t)ring.length[i])
            die("write");
        ring.left -= ring.length[i];
        sem_post(&ring.empty);
    }
    return NULL;
}

static int out(pid_t pid, uint64_t address, size_t region, size_t length, const char *path)
{
    memset(ring.data, 1, sizeof ring.data);
    uint64_t start = now();
    ring.fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (ring.fd < 0)
        die(path);
    ring.left = length;
    pthread_t writer;
    if (sem_init(&ring.empty, 0, BUFFERS) || sem_init(&ring.full, 0, 0) || pthread_create(&writer, NULL, write_all, NULL))
        die("pthread_create");
    int i = 0;
    for (size_t at = 0, done = 0; done < length; i = (i + 1) % BUFFERS) {
        size_t part = length - done < BUFFER ? length - done : BUFFER;
        if (part > region - at)
            part = region - at;
        while (sem_wait(&ring.empty))
            ;
        struct iovec here = { ring.data[i], part }, there = { (void *)(uintptr_t)(address + at), part };
        ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (got <= 0)
            die("process_vm_readv");
        ring.length[i] = (size_t)got;
        sem_post(&ring.full);
        done += (size_t)got;
        at = (at + (size_t)got) % region;
    }
    pthread_join(writer, NULL);
    uint64_t written = now();
    if (fsync(ring.fd))
        die("fsync");
    printf("%llu %llu\n", (unsigned long long)(written - start), (unsigned long long)(now() - start));
    return 0;
}

/* The least that it takes to find out what there is in a program and to save the pages that have changed, were these known. */
static int next(pid_t pid, uint64_t address, size_t region, size_t count, const char *path)
{
    enum { BATCH = 1024 };
    static char text[1 << 16];
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *data = malloc(count * page);
    if (!data)
        die("malloc");
    memset(data, 1, count * page);
    uint64_t start = now();
    snprintf(text, sizeof text, "/proc/%d/smaps", (int)pid);
    int from = open(text, O_RDONLY);
    if (from < 0)
        die(text);
    ssize_t got;
    while ((got = read(from, text, sizeof text)) > 0)
        ;
    if (got < 0)
        die("smaps");
    uint64_t looked = now();
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        die(path);
    for (size_t done = 0; done < count; ) {
        static struct iovec there[BATCH];
        size_t part = count - done < BATCH ? count - done : BATCH;
        for (size_t i = 0; i < part; i++) {
            size_t number = (region / page) * (done + i) / count;
            there[i] = (struct iovec){ (void *)(uintptr_t)(address + number * page), page };
        }
        struct iovec here = { data + done * page, part * page };
        if (process_vm_readv(pid, &here, 1, there, part, 0) != (ssize_t)(part * page))
            die("process_vm_readv");
        done += part;
    }
    for (size_t done = 0; done < count * page; done += (size_t)got)
        if ((got = write(fd, data + done, count * page - done)) <= 0)
            die("write");
    if (fsync(fd))
        die("fsync");
    printf("%llu %llu\n", (unsigned long long)(looked - start), (unsigned long long)(now() - start));
    return 0;
}

static int in(const char *path, size_t length)
{
    uint64_t start = now();
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        die(path);
    char *data = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        die("mmap");
    for (size_t done = 0; done < length; ) {
        ssize_t got = read(fd, data + done, length - done);
        if (got <= 0)
            die("read");
        done += (size_t)got;
    }
    printf("%llu\n", (unsigned long long)(now() - start));
    return 0;
}

static int touch(size_t length, int advice)
{
    char *data = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        die("mmap");
    if (madvise(data, length, advice) && advice == MADV_HUGEPAGE)
        die("madvise");
    for (size_t done = 0; done < length; done += (size_t)sysconf(_SC_PAGESIZE))
        data[done] = 1;
    return 0;
}

static int copy(size_t length, int advice)
{
    touch(length, advice);
    uint64_t start = now();
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (!child)
        _exit(0);
    printf("%llu\n", (unsigned long long)(now() - start));
    return waitpid(child, NULL, 0) != child;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "touch"))
        return touch(strtoull(argv[2], NULL, 10), MADV_NORMAL);
    if ((argc == 3 || argc == 4) && !strcmp(argv[1], "fork"))
        return copy(strtoull(argv[2], NULL, 10), argc == 4 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (argc == 7 && !strcmp(argv[1], "out"))
        return out(atoi(argv[2]), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10), argv[6]);
    if (argc == 7 && !strcmp(argv[1], "next"))
        return next(atoi(argv[2]), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10), argv[6]);
    if (argc == 4 && !strcmp(argv[1], "in"))
        return in(argv[2], strtoull(argv[3], NULL, 10));
    return 2;
}
