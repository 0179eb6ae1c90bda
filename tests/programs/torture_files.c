/*
 * torture: descriptors. Files lie beside the heartbeat file (FILE.d/). Only the first thread of the first process moves
 * positions and contents; children look at the flags of what they inherited and at the position that all share.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "torture.h"

enum { PLAIN, APPEND, COMMON, COMMON_DUP, DELETED, PIPE_OUT, PIPE_IN, COUNTER, SEMAPHORE, PATH, DIRECTORY, NULL_DEVICE, KINDS };

static const char *const names[KINDS] = {"regular file",  "file with O_APPEND", "file with a shared position", "dup of it", "deleted file",
					 "pipe, read end", "pipe, write end",	"eventfd",		      "eventfd semaphore",
					 "O_PATH",	  "directory",		"/dev/null"};
enum { PIPE_SIZE = 4 << 16, FILE_LIMIT = 65536, PIPE_CONTENT = 3000, COUNTER_VALUE = 0x1234567, SEMAPHORE_VALUE = 5, TABLE = 1024 };

static int fds[KINDS];
static struct { int descriptor_flags, status_flags; dev_t device; ino_t inode; mode_t mode; } known[KINDS];
static u64 plain_position, append_size, records;
static unsigned char table[TABLE]; /* which descriptors are open: 1, with CLOEXEC 2 */
static unsigned table_looks;
static char directory[4096];
static u64 pipe_generation;

static int opened(int fd, const char *what)
{
	if (fd < 0)
		die(what);
	return fd;
}

static void failed_call(const char *call, int kind)
{
	fail(FILE_CALL, (u64)errno, "%s on %s: %s", call, names[kind], strerror(errno));
}

static unsigned char deleted_byte(unsigned i)
{
	return (unsigned char)(i * 7 + 3);
}

static void fill_pipe(void)
{
	unsigned char text[PIPE_CONTENT];
	for (unsigned i = 0; i < sizeof text; i++)
		text[i] = (unsigned char)(i * 13 + pipe_generation);
	/* In three writes, so that the pipe has buffers of its own for each. */
	for (unsigned i = 0; i < 3; i++)
		if (write(fds[PIPE_IN], text + i * (PIPE_CONTENT / 3), PIPE_CONTENT / 3) != PIPE_CONTENT / 3)
			failed_call("write", PIPE_IN);
}

void files_init(void)
{
	char path[4096 + 64];
	unsigned char text[5000];
	int pipe_ends[2];
	const u64 value = COUNTER_VALUE;
	snprintf(directory, sizeof directory, "%s.d", options.heartbeat);
	mkdir(directory, 0700);
	if (chdir(directory))
		die(directory);
	umask(027);
	fds[PLAIN] = opened(open("plain", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), "plain");
	fds[APPEND] = opened(open("append", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOATIME, 0600), "append");
	fds[COMMON] = opened(open("common", O_RDWR | O_CREAT | O_TRUNC, 0600), "common");
	fds[COMMON_DUP] = opened(fcntl(fds[COMMON], F_DUPFD_CLOEXEC, 100), "dup");
	fds[DELETED] = opened(open("deleted", O_RDWR | O_CREAT | O_TRUNC, 0600), "deleted");
	for (unsigned i = 0; i < sizeof text; i++)
		text[i] = deleted_byte(i);
	if (write(fds[DELETED], text, sizeof text) != sizeof text || unlink("deleted"))
		die("deleted file");
	lseek(fds[DELETED], 1234, SEEK_SET);
	if (pipe2(pipe_ends, O_NONBLOCK))
		die("pipe2");
	fds[PIPE_OUT] = pipe_ends[0];
	fds[PIPE_IN] = pipe_ends[1];
	fcntl(fds[PIPE_OUT], F_SETFD, FD_CLOEXEC);
	fcntl(fds[PIPE_IN], F_SETPIPE_SZ, PIPE_SIZE);
	fill_pipe();
	fds[COUNTER] = opened(eventfd(0, EFD_NONBLOCK), "eventfd");
	fds[SEMAPHORE] = opened(eventfd(SEMAPHORE_VALUE, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
	if (write(fds[COUNTER], &value, 8) != 8)
		die("eventfd");
	snprintf(path, sizeof path, "%s/plain", directory);
	fds[PATH] = opened(open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC), "O_PATH");
	fds[DIRECTORY] = opened(open(directory, O_RDONLY | O_DIRECTORY), "directory");
	fds[NULL_DEVICE] = opened(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
	if (dup2(fds[NULL_DEVICE], 777) != 777) /* a number far away from the others */
		die("dup2");
}

static void read_table(unsigned char *out)
{
	for (int fd = 0; fd < TABLE; fd++) {
		int flags = fcntl(fd, F_GETFD);
		out[fd] = flags < 0 ? 0 : flags & FD_CLOEXEC ? 2 : 1;
	}
}

void files_baseline(void)
{
	struct stat status;
	for (int i = 0; i < KINDS; i++) {
		if (fstat(fds[i], &status))
			die("fstat");
		known[i].descriptor_flags = fcntl(fds[i], F_GETFD);
		known[i].status_flags = fcntl(fds[i], F_GETFL);
		known[i].device = status.st_rdev;
		known[i].inode = status.st_ino;
		known[i].mode = status.st_mode;
	}
	read_table(table);
}

/* One difference may be a moment of somebody else's; the same one in three rounds is an error. */
static void check_table(void)
{
	unsigned char now[TABLE];
	read_table(now);
	if (memcmp(now, table, sizeof now) == 0) {
		table_looks = 0;
		return;
	}
	if (++table_looks != 3)
		return;
	for (int fd = 0; fd < TABLE; fd++)
		if (now[fd] != table[fd])
			fail(FILE_TABLE, (u64)fd, "descriptor %d: %s, should be %s", fd, now[fd] == 0 ? "closed" : now[fd] == 1 ? "open" : "CLOEXEC",
			     table[fd] == 0 ? "closed" : table[fd] == 1 ? "open" : "CLOEXEC");
}

static void check_position(int kind, u64 expected)
{
	const off_t now = lseek(fds[kind], 0, SEEK_CUR);
	if (now < 0 || (u64)now != expected)
		fail(FILE_POSITION, (u64)now, "%s: position should be %llu, is %lld", names[kind], (unsigned long long)expected, (long long)now);
}

static void check_flags(void)
{
	struct stat status;
	for (int i = 0; i < KINDS; i++) {
		const int descriptor = fcntl(fds[i], F_GETFD), file = fcntl(fds[i], F_GETFL);
		if (descriptor != known[i].descriptor_flags || file != known[i].status_flags)
			fail(FILE_FLAGS, (u64)(unsigned)file, "%s: descriptor flags %d, status flags %#o, should be %d and %#o", names[i], descriptor,
			     (unsigned)file, known[i].descriptor_flags, (unsigned)known[i].status_flags);
		if (fstat(fds[i], &status)) {
			failed_call("fstat", i);
			continue;
		}
		const bool own_inode = i == PLAIN || i == APPEND || i == COMMON || i == COMMON_DUP || i == PATH || i == DIRECTORY;
		if (status.st_mode != known[i].mode || status.st_rdev != known[i].device
		    || (own_inode && status.st_ino != known[i].inode))
			fail(FILE_IDENTITY, status.st_ino, "%s: another file (mode %#o, inode %llu; was %#o, %llu)", names[i], status.st_mode,
			     (unsigned long long)status.st_ino, known[i].mode, (unsigned long long)known[i].inode);
	}
}

/* Records are numbered; what was written in the round before is read back by position. */
static void check_regular(void)
{
	u64 record[4] = {records, ~records, records * 3, 0x70727574726f74}, back[4];
	check_position(PLAIN, plain_position);
	if (write(fds[PLAIN], record, sizeof record) != sizeof record)
		failed_call("write", PLAIN);
	if (pread(fds[PLAIN], back, sizeof back, (off_t)plain_position) != sizeof back || memcmp(record, back, sizeof back))
		fail(FILE_CONTENT, back[0], "regular file: record at %llu is %llu, should be %llu", (unsigned long long)plain_position,
		     (unsigned long long)back[0], (unsigned long long)records);
	plain_position += sizeof record;
	check_position(PLAIN, plain_position);
	if (plain_position >= FILE_LIMIT)
		lseek(fds[PLAIN], (off_t)(plain_position = 0), SEEK_SET);

	struct stat status;
	lseek(fds[APPEND], 0, SEEK_SET); /* must not matter */
	if (write(fds[APPEND], record, sizeof record) != sizeof record)
		failed_call("write", APPEND);
	append_size += sizeof record;
	check_position(APPEND, append_size);
	if (fstat(fds[APPEND], &status) || (u64)status.st_size != append_size)
		fail(FILE_CONTENT, (u64)status.st_size, "file with O_APPEND: %lld bytes, should be %llu", (long long)status.st_size,
		     (unsigned long long)append_size);
	if (append_size >= FILE_LIMIT) {
		append_size = 0;
		if (ftruncate(fds[APPEND], 0))
			failed_call("ftruncate", APPEND);
		lseek(fds[APPEND], 0, SEEK_SET);
	}
	records++;
}

/* Moved through the duplicate, looked at through the original. */
static void check_common(bool move)
{
	lock_shared();
	check_position(COMMON, shared->position);
	if (move) {
		shared->position = next_random() % 1000000;
		lseek(fds[COMMON_DUP], (off_t)shared->position, SEEK_SET);
		check_position(COMMON, shared->position);
	}
	unlock_shared();
}

static void check_deleted(void)
{
	unsigned char text[64];
	const unsigned at = (unsigned)(next_random() % 4900);
	struct stat status;
	check_position(DELETED, 1234);
	if (pread(fds[DELETED], text, sizeof text, at) != sizeof text) {
		failed_call("pread", DELETED);
		return;
	}
	for (unsigned i = 0; i < sizeof text; i++)
		if (text[i] != deleted_byte(at + i)) {
			fail(FILE_CONTENT, at + i, "deleted file: byte %u should be %#x, is %#x", at + i, deleted_byte(at + i), text[i]);
			return;
		}
	if (fstat(fds[DELETED], &status) || status.st_nlink != 0 || status.st_size != 5000)
		fail(FILE_IDENTITY, (u64)status.st_size, "deleted file: %u links, %lld bytes, should be 0 and 5000", (unsigned)status.st_nlink,
		     (long long)status.st_size);
}

static void check_pipe(void)
{
	unsigned char text[PIPE_CONTENT + 100];
	int inside = -1;
	const int size = fcntl(fds[PIPE_IN], F_GETPIPE_SZ);
	if (ioctl(fds[PIPE_OUT], FIONREAD, &inside) || inside != PIPE_CONTENT || size != PIPE_SIZE)
		fail(FILE_PIPE, (u64)inside, "pipe: %d bytes inside, size %d, should be %d and %d", inside, size, PIPE_CONTENT, PIPE_SIZE);
	if (records % 16)
		return;
	const ssize_t got = read(fds[PIPE_OUT], text, sizeof text);
	for (ssize_t i = 0; i < got; i++)
		if (text[i] != (unsigned char)((u64)i * 13 + pipe_generation)) {
			fail(FILE_PIPE, (u64)i, "pipe: byte %zd should be %#x, is %#x", i, (unsigned char)((u64)i * 13 + pipe_generation), text[i]);
			break;
		}
	if (got != PIPE_CONTENT)
		fail(FILE_PIPE, (u64)got, "pipe: read gave %zd bytes, should be %d", got, PIPE_CONTENT);
	pipe_generation++;
	fill_pipe();
}

static void check_eventfd(int kind, u64 total, unsigned reads)
{
	u64 value = 0, sum = 0;
	for (unsigned i = 0; i < reads; i++) {
		if (read(fds[kind], &value, 8) != 8)
			fail(FILE_EVENTFD, sum, "%s: read %u: %s; the sum was %#llx, should be %#llx", names[kind], i, strerror(errno),
			     (unsigned long long)sum, (unsigned long long)total);
		sum += value;
		value = 0;
	}
	if (sum != total || read(fds[kind], &value, 8) != -1)
		fail(FILE_EVENTFD, sum, "%s: counter should be %#llx, is %#llx", names[kind], (unsigned long long)total,
		     (unsigned long long)(sum + value));
	if (write(fds[kind], &total, 8) != 8)
		failed_call("write", kind);
}

static void check_surroundings(void)
{
	char here[4096], byte;
	struct stat status;
	const mode_t mask = umask(027); /* sets what it is */
	if (mask != 027)
		fail(FILE_UMASK, mask, "umask should be 027, is %03o", mask);
	if (!getcwd(here, sizeof here) || strcmp(here, directory))
		fail(FILE_CWD, 0, "current directory should be %s, is %s", directory, here);
	if (fstatat(fds[DIRECTORY], "plain", &status, 0) || status.st_ino != known[PLAIN].inode)
		fail(FILE_IDENTITY, status.st_ino, "directory: its file \"plain\" cannot be found or is another");
	if (read(fds[PATH], &byte, 1) != -1 || errno != EBADF)
		fail(FILE_IDENTITY, 0, "O_PATH descriptor can be read");
	if (write(fds[NULL_DEVICE], &byte, 1) != 1 || read(fds[NULL_DEVICE], &byte, 1) != 0)
		fail(FILE_IDENTITY, 0, "/dev/null does not behave as such");
}

void files_check(void)
{
	check_flags();
	check_regular();
	check_common(true);
	check_deleted();
	check_pipe();
	if (self->round % 8 == 3) {
		check_eventfd(COUNTER, COUNTER_VALUE, 1);
		check_eventfd(SEMAPHORE, SEMAPHORE_VALUE, SEMAPHORE_VALUE);
		check_surroundings();
		check_table();
	}
}

void files_check_child(void)
{
	check_flags();
	check_common(false);
	if (self->round % 8 == 3)
		check_table();
}
