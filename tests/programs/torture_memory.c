/*
 * torture: memory. Every page is filled by a function of (seed of its region, page, generation); in each round a few pages
 * of each region are compared and one is written anew, so that clean and dirty pages lie everywhere at any instant.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>

#include "torture.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum { HOLE = 0xffff, MAX_PAGES = 128 };
enum { WRITABLE = 1, SHARED = 2, GROWS = 4, SPARSE = 8, NO_ACCESS = 16 };

struct region {
	const char *name;
	unsigned char *base;
	unsigned pages, flags, stride; /* every stride-th page is used; the others are zero */
	unsigned cursor, shared_index;
	u64 seed;
	u32 generation[MAX_PAGES];
	char layout[64 * 24]; /* lines of /proc/self/maps, as they were at the start */
};

static struct region regions[16];
static unsigned region_count;
static size_t page_size;
static unsigned char data_segment[64 * 1024] __attribute__((aligned(65536))) = {1};
static unsigned long locked_kb;

static unsigned char *page_address(const struct region *region, unsigned page)
{
	return region->base + (size_t)page * region->stride * page_size;
}

static u64 first_word(const struct region *region, unsigned page, u32 generation)
{
	return (region->seed ^ ((u64)page << 40) ^ ((u64)generation << 8)) * 0x9e3779b97f4a7c15ull;
}

static void fill(struct region *region, unsigned page, u32 generation)
{
	u64 *word = (u64 *)page_address(region, page), value = first_word(region, page, generation);
	for (size_t i = 0; i < page_size / 8; i++, value += 0x632be59bd9b4e019ull)
		word[i] = value;
}

static void compare(const struct region *region, unsigned page, u32 generation)
{
	const u64 *word = (const u64 *)page_address(region, page);
	u64 value = first_word(region, page, generation);
	for (size_t i = 0; i < page_size / 8; i++, value += 0x632be59bd9b4e019ull)
		if (word[i] != value) {
			fail(MEM_WORD, (u64)(unsigned long)&word[i], "%s: page %u (generation %u), word %zu at %p should be %#llx, is %#llx",
			     region->name, page, generation, i, (const void *)&word[i], (unsigned long long)value,
			     (unsigned long long)word[i]);
			return;
		}
}

static struct region *add(const char *name, void *base, unsigned pages, unsigned flags, unsigned stride)
{
	if (base == MAP_FAILED || !base)
		die(name);
	struct region *region = &regions[region_count++];
	region->name = name;
	region->base = base;
	region->pages = pages;
	region->flags = flags;
	region->stride = stride;
	region->seed = 0x51ed270b * (u64)region_count;
	if (!(flags & NO_ACCESS))
		for (unsigned i = 0; i < pages; i++)
			fill(region, i, region->generation[i]);
	return region;
}

static int scratch_file(const char *suffix, size_t size)
{
	char path[4096 + 16];
	snprintf(path, sizeof path, "%s%s", options.heartbeat, suffix);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size))
		die(path);
	return fd;
}

/* The stack's kind of mapping: only its upper end is mapped, the rest comes by touching it downwards. It lies where the kernel
 * places nothing else by itself: with a neighbour within the guard gap it could not grow. */
static void add_growing(void)
{
	unsigned char *const place = (unsigned char *)(sizeof(long) == 8 ? (unsigned long)((u64)0x20 << 40) : 0x30000000ul);
	unsigned char *top = mmap(place, page_size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
	struct region *region = add("growsdown", top, 1, WRITABLE | GROWS, 1);
	for (unsigned i = 0; i < 8; i++) { /* downwards, a page at a time */
		region->base -= page_size;
		region->pages++;
		for (unsigned page = 0; page < region->pages; page++)
			fill(region, page, 0);
	}
}

static void add_shared(unsigned index, const char *name, void *base, unsigned pages)
{
	struct region *region = add(name, base, pages, WRITABLE | SHARED, 1);
	region->shared_index = index;
}

void memory_init(void)
{
	const int rw = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
	page_size = (size_t)sysconf(_SC_PAGESIZE);

	/* The brk heap first, so that malloc does not own the end of it. */
	unsigned char *end = sbrk(0);
	sbrk((intptr_t)(page_size - (unsigned long)end % page_size));
	add("brk heap", sbrk((intptr_t)(64 * page_size)), 64, WRITABLE, 1);
	add("malloc heap", aligned_alloc(page_size, 96 * page_size), 96, WRITABLE, 1);
	add("data segment", data_segment, (unsigned)(sizeof data_segment / page_size), WRITABLE, 1);

	struct region *region = add("with holes", mmap(NULL, 64 * page_size, rw, anonymous, -1, 0), 64, WRITABLE, 1);
	for (unsigned i = 3; i < 64; i += 4) {
		mprotect(page_address(region, i), page_size, PROT_NONE);
		region->generation[i] = HOLE;
	}
	region = add("read-only", mmap(NULL, 16 * page_size, rw, anonymous, -1, 0), 16, 0, 1);
	mprotect(region->base, 16 * page_size, PROT_READ);
	const unsigned apart = 64 * 4096 / (unsigned)page_size; /* pages; huge pages may come with each, and memory may be short */
	add("sparse", mmap(NULL, 128 * apart * page_size, rw, anonymous | MAP_NORESERVE, -1, 0), 128, WRITABLE | SPARSE, apart);
	add_growing();

	int fd = scratch_file(".private", 32 * page_size);
	unsigned char *whole = mmap(NULL, 32 * page_size, rw, MAP_SHARED, fd, 0);
	add("file to be mapped privately", whole, 32, WRITABLE, 1); /* gives the file its content */
	u64 seed = regions[--region_count].seed;
	munmap(whole, 32 * page_size);
	region = &regions[region_count];
	memset(region, 0, sizeof *region);
	region_count++;
	region->name = "private file";
	region->base = mmap(NULL, 32 * page_size, rw, MAP_PRIVATE, fd, 0);
	region->pages = 32;
	region->flags = WRITABLE;
	region->stride = 1;
	region->seed = seed;
	for (unsigned i = 1; i < 16; i += 2) /* dirty at the start; more of the pages become so by and by */
		fill(region, i, region->generation[i] = 1);
	close(fd);

	add_shared(0, "shared anonymous", mmap(NULL, 64 * page_size, rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 64);
	fd = scratch_file(".shared", 32 * page_size);
	add_shared(1, "shared file", mmap(NULL, 32 * page_size, rw, MAP_SHARED, fd, 0), 32);
	close(fd);
	fd = memfd_create("torture", MFD_CLOEXEC); /* stays open: the descriptor and the mapping are one object */
	if (fd < 0 || ftruncate(fd, (off_t)(32 * page_size)))
		die("memfd");
	add_shared(2, "memfd", mmap(NULL, 32 * page_size, rw, MAP_SHARED, fd, 0), 32);

	region = add("locked", mmap(NULL, 2 * page_size, rw, anonymous, -1, 0), 2, WRITABLE, 1);
	mlock(region->base, 2 * page_size);
	const size_t huge = sizeof(long) == 8 ? (size_t)((u64)1 << 40) : (size_t)512 << 20;
	region = add("reservation", mmap(NULL, huge, PROT_NONE, anonymous | MAP_NORESERVE, -1, 0), 0, NO_ACCESS, 1);
	region->stride = (unsigned)(huge / page_size); /* its size, for the layout */
}

static size_t region_size(const struct region *region)
{
	return (region->flags & NO_ACCESS ? 1 : region->pages) * (size_t)region->stride * page_size;
}

/* Range and protection of what /proc/self/maps says about the region, cut to the region and neighbours of equal protection put
 * together: the kernel merges and splits as it likes. */
static void read_layout(const struct region *region, const char *maps, char *out, size_t size)
{
	const u64 base = (u64)(unsigned long)region->base, end = base + region_size(region);
	size_t used = 0, last = 0;
	unsigned long long start = 0, previous = 0;
	char before[8] = "";
	out[0] = 0;
	for (const char *line = maps; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
		unsigned long long from, to;
		char rights[8];
		if (sscanf(line, "%llx-%llx %7s", &from, &to, rights) != 3 || to <= base || from >= end)
			continue;
		if (from < base)
			from = base;
		if (to > end)
			to = end;
		if (from == previous && strcmp(rights, before) == 0) {
			used = last;
			from = start;
		}
		last = used;
		start = from;
		previous = to;
		strcpy(before, rights);
		used += (size_t)snprintf(out + used, used < size ? size - used : 0, "%llx-%llx %s\n", from, to, rights);
	}
}

static char *read_maps(void)
{
	static char text[256 * 1024]; /* 300 threads have some 600 lines; only the first thread comes here */
	size_t used = 0;
	ssize_t got;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && used < sizeof text - 1 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0)
		used += (size_t)got;
	if (fd >= 0)
		close(fd);
	text[used] = 0;
	return text;
}

static unsigned long read_locked_kb(void)
{
	char text[4096];
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = 0;
	const char *line = strstr(text, "VmLck:");
	return line ? strtoul(line + 6, NULL, 10) : 0;
}

void memory_baseline(void)
{
	const char *maps = read_maps();
	for (unsigned i = 0; i < region_count; i++)
		read_layout(&regions[i], maps, regions[i].layout, sizeof regions[i].layout);
	locked_kb = read_locked_kb(); /* a forked child has none */
}

void memory_check_layout(void)
{
	char now[sizeof regions[0].layout];
	const char *maps = read_maps();
	for (unsigned i = 0; i < region_count; i++) {
		struct region *region = &regions[i];
		read_layout(region, maps, now, sizeof now);
		if (strcmp(now, region->layout)) {
			char *line = now, *other = region->layout;
			while (*line && *line == *other)
				line++, other++;
			fail(MEM_LAYOUT, (u64)(unsigned long)region->base, "%s: mapping differs at \"%.40s\", was \"%.40s\"", region->name, line,
			     other);
		}
	}
	unsigned long locked = read_locked_kb();
	if (locked != locked_kb)
		fail(MEM_LOCKED, locked, "VmLck should be %lu kB, is %lu kB", locked_kb, locked);
}

/* One page further down, as a stack grows: the mapping must still know that it may. */
static void grow(struct region *region)
{
	if (region->pages >= 64)
		return;
	memmove(region->generation + 1, region->generation, region->pages * sizeof *region->generation);
	region->base -= page_size;
	region->generation[0] = 0;
	region->pages++;
	for (unsigned i = 0; i < region->pages; i++)
		fill(region, i, region->generation[i]);
	read_layout(region, read_maps(), region->layout, sizeof region->layout);
}

static void check_zero(const struct region *region)
{
	const unsigned page = (unsigned)(next_random() % region->pages);
	const u64 *word = (const u64 *)(page_address(region, page) + page_size * (1 + next_random() % (region->stride - 1)));
	for (size_t i = 0; i < page_size / 8; i++)
		if (word[i]) {
			fail(MEM_ZERO, (u64)(unsigned long)&word[i], "%s: untouched word at %p is %#llx", region->name, (const void *)&word[i],
			     (unsigned long long)word[i]);
			return;
		}
}

void memory_check(void)
{
	for (unsigned i = 0; i < region_count; i++) {
		struct region *region = &regions[i];
		u32 *generation = region->flags & SHARED ? shared->shared_generation[region->shared_index] : region->generation;
		if (region->flags & NO_ACCESS)
			continue;
		if (region->flags & SHARED)
			lock_shared();
		for (unsigned k = 0; k < 6; k++) {
			const unsigned page = region->cursor++ % region->pages;
			if (generation[page] != HOLE)
				compare(region, page, generation[page]);
		}
		const unsigned page = (unsigned)(next_random() % region->pages);
		if (region->flags & WRITABLE && generation[page] != HOLE) {
			compare(region, page, generation[page]);
			generation[page] = (generation[page] + 1) & 0xfff;
			fill(region, page, generation[page]);
		}
		if (region->flags & SHARED)
			unlock_shared();
		if (region->flags & SPARSE)
			check_zero(region);
		if (region->flags & GROWS && self->round % 1024 == 1023)
			grow(region);
	}
}
