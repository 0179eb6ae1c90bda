/* A program whose memory is checked against what it must hold, by itself, in the first instants after a restart.
 *
 *     lazy ACTION MIB DIRECTORY
 *
 * Page i of its memory begins with the number i + 1, and so on every 512 bytes; some pages hold zeros. It writes DIRECTORY/ready and
 * then waits, without a system call that could see to its memory, until DIRECTORY/go is there. Then it does ACTION, and writes to
 * DIRECTORY/done how many pages were not there when it began, and "good", or what was wrong, and ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ul << 20)

static size_t page, pages, length;
static unsigned char *memory;
static char place[4096];
static size_t missing;

static const char *in(const char *name)
{
    static char path[2][8192];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", place, name);
    return path[turn];
}

static _Noreturn void say(const char *format, ...)
{
    char text[512];
    int used = snprintf(text, sizeof text, "%zu ", missing);
    va_list list;
    va_start(list, format);
    used += vsnprintf(text + used, sizeof text - used, format, list);
    va_end(list);
    int fd = open(in("writing"), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (write(fd, text, used) != used)
        _exit(3);
    close(fd);
    rename(in("writing"), in("done"));
    _exit(strstr(text, "good") ? 0 : 1);
}

static int is_zero(size_t i)
{
    return i % 97 == 13 || (i > pages / 2 && i < pages / 2 + 600);
}

static void fill(unsigned char *at, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++, at += page)
        if (!is_zero(i))
            for (size_t j = 0; j < page; j += 512)
                *(uint64_t *)(at + j) = i + 1;
        else
            *(volatile unsigned char *)at = 0; /* it is there, and is left out of an image */
}

static int page_is(const unsigned char *at, uint64_t number)
{
    for (size_t j = 0; j < page; j += 512)
        if (*(volatile const uint64_t *)(at + j) != number)
            return 0;
    return 1;
}

/* Pages first.. of the memory are at `at`. */
static void check(const char *what, const unsigned char *at, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++, at += page)
        if (!page_is(at, is_zero(i) ? 0 : i + 1))
            say("%s: page %zu at %p holds %llu", what, i, (const void *)at, (unsigned long long)*(const uint64_t *)at);
}

static void check_zeros(const char *what, const unsigned char *at, size_t count)
{
    for (size_t i = 0; i < count; i++, at += page)
        if (!page_is(at, 0))
            say("%s: page %zu at %p should be zeros, holds %llu", what, i, (const void *)at, (unsigned long long)*(const uint64_t *)at);
}

static size_t not_there(void)
{
    size_t found = 0;
    unsigned char *seen = malloc(pages);
    if (mincore(memory, length, seen))
        say("mincore: %s", strerror(errno));
    for (size_t i = 0; i < pages; i++)
        found += !(seen[i] & 1) && !is_zero(i);
    free(seen);
    return found;
}

static void do_nothing(void)
{
}

static void do_backwards(void)
{
    for (size_t i = pages; i-- > 0;)
        check("backwards", memory + i * page, i, 1);
}

static void do_fork(void)
{
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        if (child < 0)
            say("fork: %s", strerror(errno));
        if (!child) {
            size_t from = pages * round / 20;
            check("in a child", memory + from * page, from, pages - from);
            fill(memory, 0, 64);
            _exit(0);
        }
        memset(memory + (size_t)round * page, 1, page); /* what only the parent writes */
    }
    int status;
    while (wait(&status) > 0)
        if (status)
            say("a child ended with %#x", status);
    for (int round = 0; round < 20; round++) {
        memset(memory + (size_t)round * page, 0, page);
        fill(memory + (size_t)round * page, round, 1);
    }
}

static void do_mremap(void)
{
    size_t part = pages / 4;
    unsigned char *old = memory + part * page;
    unsigned char *room = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *moved = mremap(old, part * page, 2 * part * page, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    if (moved != room)
        say("mremap: %s", strerror(errno));
    unsigned char *again = mmap(old, part * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (again != old)
        say("mmap: %s", strerror(errno));
    check_zeros("where it was", old, part);
    check("moved", moved, part, part);
    check_zeros("grown", moved + part * page, part);
    munmap(old, part * page);
    if (mremap(moved, part * page, part * page, MREMAP_MAYMOVE | MREMAP_FIXED, old) != old)
        say("mremap back: %s", strerror(errno));
    unsigned char *kept = memory + 3 * part * page;
    unsigned char *both = mremap(kept, part * page, part * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (both == MAP_FAILED)
        say("mremap without unmap: %s", strerror(errno));
    check_zeros("left behind", kept, part);
    check("moved without unmap", both, 3 * part, part);
    if (mremap(both, part * page, part * page, MREMAP_MAYMOVE | MREMAP_FIXED, kept) != kept)
        say("mremap back: %s", strerror(errno));
}

/* Unmapped memory, and a mapping that grows to where it was: nothing of the old one may come back. */
static void do_munmap(void)
{
    size_t half = pages / 2;
    munmap(memory + half * page, (pages - half) * page);
    unsigned char *grown = mremap(memory, half * page, length, 0);
    if (grown == MAP_FAILED)
        say("mremap to grow in place: %s", strerror(errno));
    check_zeros("grown", memory + half * page, pages - half);
    check("kept", memory, 0, half);
    fill(memory + half * page, half, pages - half);
}

static void discard(int advice, const char *what)
{
    size_t from = pages / 3, count = pages / 3;
    if (madvise(memory + from * page, count * page, advice))
        say("madvise: %s", strerror(errno));
    if (advice == MADV_DONTNEED)
        check_zeros(what, memory + from * page, count);
    else
        for (size_t i = from; i < from + count; i++)
            if (!page_is(memory + i * page, 0) && !page_is(memory + i * page, i + 1))
                say("freed: page %zu holds neither zeros nor what it held", i);
    memset(memory + from * page, 0, count * page);
    fill(memory + from * page, from, count);
}

static void do_dontneed(void)
{
    discard(MADV_DONTNEED, "thrown away");
}

static void do_free(void)
{
    discard(MADV_FREE, "freed");
}

static void do_mprotect(void)
{
    for (size_t i = 0; i < pages; i += 3)
        if (mprotect(memory + i * page, page, i % 2 ? PROT_READ : PROT_NONE))
            break; /* as many mappings as there may be */
    for (size_t i = 0; i < pages; i++)
        if (i % 3)
            check("between protected pages", memory + i * page, i, 1);
    usleep(300000);
    if (mprotect(memory, length, PROT_READ | PROT_WRITE))
        say("mprotect: %s", strerror(errno));
}

static void do_exec(void)
{
    if (!fork()) {
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    int status;
    wait(&status);
    if (status)
        say("a program that was executed ended with %#x", status);
    pid_t child = vfork();
    if (!child) {
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    wait(&status);
    if (status)
        say("a program that was executed after vfork ended with %#x", status);
}

static void *mover(void *argument)
{
    size_t share = pages / 8, from = share * (size_t)argument;
    unsigned char *at = memory + from * page;
    for (int round = 0; round < 40; round++) {
        /* To where the kernel wants it: often to where another thread's share has just been. */
        unsigned char *there = mremap(at, share * page, (share + 1 + round % 3) * page, MREMAP_MAYMOVE);
        if (there == MAP_FAILED)
            say("mremap in a thread: %s", strerror(errno));
        usleep(rand() % 2000);
        size_t seen = (size_t)rand() % share;
        check("in a thread", there + seen * page, from + seen, 1);
        check_zeros("grown in a thread", there + share * page, 1);
        at = mremap(there, (share + 1 + round % 3) * page, share * page, 0);
        unsigned char *next = mremap(at, share * page, share * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        if (next != MAP_FAILED) {
            munmap(at, share * page);
            at = next;
        }
    }
    check("at the end of a thread", at, from, share);
    return NULL;
}

static void do_threads(void)
{
    pthread_t thread[8];
    for (size_t i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, mover, (void *)i);
    for (size_t i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
    say("good"); /* each part is somewhere else now */
}

/* The kernel itself touches what is not there. */
static void do_read(void)
{
    int fd = open(in("ready"), O_RDWR), out = open("/dev/null", O_WRONLY);
    for (size_t i = 0; i < pages; i += 5) {
        if (pwrite(fd, memory + i * page, page, 0) != (ssize_t)page)
            say("pwrite: %s", strerror(errno));
        if (pread(fd, memory + i * page, page, 0) != (ssize_t)page)
            say("pread: %s", strerror(errno));
    }
    close(fd);
    close(out);
}

static void do_lock(void)
{
    if (mlock(memory, length) && errno != ENOMEM && errno != EPERM)
        say("mlock: %s", strerror(errno));
    munlock(memory, length);
}

static void do_leave(void)
{
    /* A process that nobody of the tree is the parent of any more. */
    pid_t child = fork();
    if (child)
        _exit(0);
    usleep(1000);
}

static void do_sleep(void)
{
    sleep(2);
}

static void do_die(void)
{
    _exit(7);
}

static const struct {
    const char *name;
    void (*run)(void);
} actions[] = {
    {"nothing", do_nothing}, {"backwards", do_backwards}, {"fork", do_fork}, {"mremap", do_mremap}, {"munmap", do_munmap},
    {"dontneed", do_dontneed}, {"free", do_free}, {"mprotect", do_mprotect}, {"exec", do_exec}, {"threads", do_threads},
    {"read", do_read}, {"lock", do_lock}, {"leave", do_leave}, {"sleep", do_sleep}, {"die", do_die},
};

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    snprintf(place, sizeof place, "%s", argv[3]);
    page = (size_t)sysconf(_SC_PAGESIZE);
    length = strtoul(argv[2], NULL, 10) * MIB;
    pages = length / page;
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 3;
    fill(memory, 0, pages);
    close(open(in("ready"), O_CREAT | O_WRONLY, 0600));
    while (access(in("go"), F_OK))
        ;
    missing = not_there();
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (!strcmp(actions[i].name, argv[1])) {
            actions[i].run();
            check("at the end", memory, 0, pages);
            say("good");
        }
    return 2;
}
