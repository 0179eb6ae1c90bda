/*
 * torture: errors. Each is counted in the slot of the task that found it and written as a line of text into FILE.errors.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>

#include "torture.h"

static char error_file[PATH_MAX];
static unsigned ignored[32], ignored_count; /* errors that are known and shall not hide others */

static const char *code_name(enum code code)
{
	switch (code) {
#define X(name, number) case name: return #name;
		CODES(X)
#undef X
	}
	return "?";
}

static unsigned code_number(const char *wanted)
{
#define X(name, number) if (strcmp(wanted, #name) == 0) return number;
	CODES(X)
#undef X
	dprintf(2, "torture: no such error: %s\n", wanted);
	exit(2);
}

enum { LINES_EACH = 100 };
static u32 lines[1000]; /* of each error that this process has written */

/* The file is opened anew for each error, so that no descriptor of it is open at other times. */
void fail(enum code code, u64 detail, const char *format, ...)
{
	const int saved = errno;
	char text[512];
	struct slot *slot = self->slot;
	for (unsigned i = 0; i < ignored_count; i++)
		if (ignored[i] == code)
			return;
	slot->last_error_code = code;
	slot->detail = detail;
	slot->errors++;
	if (lines[code]++ < LINES_EACH) {
		int size = snprintf(text, sizeof text, "%u %s slot %u %s tid %d round %llu: ", code, code_name(code), self->index,
				    slot->role, self->tid, (unsigned long long)self->round);
		va_list arguments;
		va_start(arguments, format);
		size += vsnprintf(text + size, sizeof text - (size_t)size - 1, format, arguments);
		va_end(arguments);
		if (size > (int)sizeof text - 2)
			size = sizeof text - 2;
		for (int i = 0; i < size; i++)
			if (text[i] == '\n')
				text[i] = '|';
		text[size++] = '\n';
		int fd = open(error_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (fd < 0 || write(fd, text, (size_t)size) != size)
			slot->detail = (u64)-1;
		if (fd >= 0)
			close(fd);
	}
	errno = saved;
}

void die(const char *what)
{
	dprintf(2, "torture: %s: %s\n", what, strerror(errno));
	int fd = open(error_file, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (fd >= 0)
		dprintf(fd, "setup: %s: %s\n", what, strerror(errno));
	_exit(2);
}

void report_registers(const struct regs_change *change)
{
	if (change->group != REGS_SAME)
		fail(REG_GENERAL + (unsigned)change->group, change->got, "%s[%u] should be %#llx, is %#llx", change->name, change->index,
		     (unsigned long long)change->expected, (unsigned long long)change->got);
}

void report_init(const char *heartbeat)
{
	snprintf(error_file, sizeof error_file, "%.*s.errors", PATH_MAX - 16, heartbeat);
}

void report_ignore(const char *code)
{
	ignored[ignored_count++ % 32] = code_number(code);
}
