/* What moving the same bytes costs without torpor: one thread, a buffer that stays in the cache. Prints times in ns.
 *
 *     raw out PID ADDRESS REGION LENGTH FILE   process_vm_readv + write: time until all is written, time until it is on disk
 *     raw in FILE LENGTH                       first touch of fresh memory + read from the page cache
 *
 * LENGTH bytes are moved in all, those of the REGION at ADDRESS over and over.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10 };

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

static int out(pid_t pid, uint64_t address, size_t region, size_t length, const char *path)
{
    static char buffer[BUFFER];
    memset(buffer, 1, sizeof buffer);
    uint64_t start = now();
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        die(path);
    for (size_t at = 0, done = 0; done < length; ) {
        size_t part = length - done < BUFFER ? length - done : BUFFER;
        if (part > region - at)
            part = region - at;
        struct iovec here = { buffer, part }, there = { (void *)(uintptr_t)(address + at), part };
        ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (got <= 0)
            die("process_vm_readv");
        if (write(fd, buffer, (size_t)got) != got)
            die("write");
        done += (size_t)got;
        at = (at + (size_t)got) % region;
    }
    uint64_t written = now();
    if (fsync(fd))
        die("fsync");
    printf("%llu %llu\n", (unsigned long long)(written - start), (unsigned long long)(now() - start));
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

int main(int argc, char **argv)
{
    if (argc == 7 && !strcmp(argv[1], "out"))
        return out(atoi(argv[2]), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10), argv[6]);
    if (argc == 4 && !strcmp(argv[1], "in"))
        return in(argv[2], strtoull(argv[3], NULL, 10));
    return 2;
}
