/*
 * calls: makes exactly one blocking system call and writes down how long it took and what it gave.
 *
 *   calls NAME SECONDS OUTFILE     SECONDS may have a fraction
 *   calls --list                   one line per NAME: "NAME timed|untimed"
 *
 * OUTFILE (opened with O_APPEND for each line, so that no descriptor of it is open during the call) gets two lines:
 *
 *   begin PID
 *   end MONO_START REAL_START MONO_END REAL_END RESULT ERRNO RESULT_OK REGISTERS_OK WHAT
 *
 * The four stamps are nanoseconds of CLOCK_MONOTONIC and CLOCK_REALTIME, taken right before and after the call. RESULT_OK is 1
 * if the result is what the call gives when nobody disturbs it; REGISTERS_OK is 1 if all registers that the ABI preserves over a
 * system call (64 bit: all but rax, rcx, r11; 32 bit: all but eax; flags, x87 and vector state) came out as they went in, else
 * WHAT names the one that did not ("-" otherwise).
 *
 * Timed calls end by themselves after SECONDS. The others are ended after SECONDS by a helper: a forked child that sleeps in one
 * nanosleep and then writes, wakes, unlocks or exits; pause and sigsuspend by ITIMER_REAL. On 32 bit the *_time64 names are the
 * calls with 64-bit times, and on x86 -vdso after a name enters the kernel by SYSENTER instead of INT 0x80.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "older_calls.h"
#include "torture_regs.h"

struct wide { int64_t seconds, nanoseconds; };
struct old { long seconds, nanoseconds; };

/* The one call. What it points at lives in here too: nothing of it is on the stack. */
static struct {
	long number, args[6], expected;
	u64 ns;		       /* how long it shall take */
	void (*helper)(void);  /* ends the call, in the forked child, after that time */
	bool ends_by_alarm;
	struct wide wide;
	struct old old, rest;
	struct two_longs limit;
	struct { unsigned long mask, size; } sixth;
	struct pollfd poll;
	fd_set set;
	struct epoll_event events[4];
	struct sembuf down;
	siginfo_t info;
	struct { long type; char text[8]; } message;
	u64 mask, buffer;
	int status, pipe[2], epoll, semaphores, messages, sockets[2], lock_file;
	struct flock lock;
	char big[65536];
} call;

static volatile u32 *word; /* a futex in memory shared with the helper */
static const char *out_file;
static volatile sig_atomic_t alarms;

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static u64 stamp(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

static void set_call(long number, long a, long b, long c, long d, long e, long f, long expected)
{
	const long args[6] = {a, b, c, d, e, f};
	memcpy(call.args, args, sizeof args);
	call.number = number;
	call.expected = expected;
}

static void make_pipe(void)
{
	if (pipe(call.pipe))
		die("pipe");
}

/* A set of one signal as the kernel takes it: longs, the one with signal 1 first. */
static u64 set_of(int signal)
{
	const u64 set = 1ull << (signal - 1);
	return sizeof(long) == 4 && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? set << 32 | set >> 32 : set;
}

static void limit_to(u64 ns)
{
	call.wide = (struct wide){(int64_t)(ns / 1000000000u), (int64_t)(ns % 1000000000u)};
	call.old = (struct old){(long)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

/* ------------------------------------------------------------------------------------------------ with a time limit */

/* NAME with the machine's own long in its timespec, and on 32 bit a second one with 64-bit times. */
#ifdef SYS_futex_time64
#define BOTH(function, name)                                                                                                     \
	static void function(void) { function##_with(SYS_##name, (long)&call.old); }                                             \
	static void function##_time64(void) { function##_with(SYS_##name##_time64, (long)&call.wide); }
#else
#define BOTH(function, name)                                                                                                     \
	static void function(void) { function##_with(SYS_##name, (long)&call.wide); }
#endif

static void call_nanosleep(void)
{
	limit_to(call.ns);
	set_call(SYS_nanosleep, (long)&call.old, (long)&call.rest, 0, 0, 0, 0, 0);
}

static void clock_relative_with(long number, long limit)
{
	limit_to(call.ns);
	set_call(number, CLOCK_MONOTONIC, 0, limit, 0, 0, 0, 0);
}
BOTH(clock_relative, clock_nanosleep)

static void clock_absolute_with(long number, long limit)
{
	limit_to(stamp(CLOCK_MONOTONIC) + call.ns);
	set_call(number, CLOCK_MONOTONIC, TIMER_ABSTIME, limit, 0, 0, 0, 0);
}
BOTH(clock_absolute, clock_nanosleep)

static void call_poll(void)
{
	make_pipe();
	call.poll = (struct pollfd){call.pipe[0], POLLIN, 0};
	set_call(POLL_ONE(&call.poll, call.ns / 1000000, &call.limit), 0);
}

static void call_ppoll_with(long number, long limit)
{
	call_poll();
	limit_to(call.ns);
	call.mask = set_of(SIGUSR1);
	set_call(number, (long)&call.poll, 1, limit, (long)&call.mask, 8, 0, 0);
}
BOTH(call_ppoll, ppoll)

static void call_select(void)
{
	make_pipe();
	FD_SET(call.pipe[0], &call.set);
	set_call(SELECT(call.pipe[0] + 1, &call.set, (long long)call.ns, &call.limit), 0);
}

static void call_pselect_with(long number, long limit)
{
	call_select();
	limit_to(call.ns);
	call.mask = set_of(SIGUSR1);
	call.sixth.mask = (unsigned long)&call.mask;
	call.sixth.size = 8;
	set_call(number, call.pipe[0] + 1, (long)&call.set, 0, 0, limit, (long)&call.sixth, 0);
}
BOTH(call_pselect, pselect6)

static void futex_wait_with(long number, long limit)
{
	limit_to(call.ns);
	set_call(number, (long)word, FUTEX_WAIT, 0, limit, 0, 0, -ETIMEDOUT);
}
BOTH(futex_wait, futex)

static void futex_absolute_with(long number, long limit)
{
	limit_to(stamp(CLOCK_MONOTONIC) + call.ns);
	set_call(number, (long)word, FUTEX_WAIT_BITSET, 0, limit, 0, -1, -ETIMEDOUT);
}
BOTH(futex_absolute, futex)

static void make_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1122334455667788};
	make_pipe();
	call.epoll = epoll_create1(0);
	if (call.epoll < 0 || epoll_ctl(call.epoll, EPOLL_CTL_ADD, call.pipe[0], &event))
		die("epoll");
}

static void call_epoll_wait(void)
{
	make_epoll();
	set_call(EPOLL_WAIT(call.epoll, call.events, 4, call.ns / 1000000), 0);
}

static void call_epoll_pwait2(void)
{
	make_epoll();
	limit_to(call.ns);
	set_call(SYS_epoll_pwait2, call.epoll, (long)call.events, 4, (long)&call.wide, 0, 8, 0);
}

static void call_sigtimedwait_with(long number, long limit)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	limit_to(call.ns);
	call.mask = set_of(SIGUSR2);
	set_call(number, (long)&call.mask, (long)&call.info, limit, 8, 0, 0, -EAGAIN);
}
BOTH(call_sigtimedwait, rt_sigtimedwait)

/* Such an object outlives a program that is killed: whoever kills it finds its number in OUTFILE.ipc. */
static void note_ipc(const char *kind, int number)
{
	char path[4096];
	snprintf(path, sizeof path, "%s.ipc", out_file);
	FILE *file = fopen(path, "w");
	if (!file || fprintf(file, "%s %d\n", kind, number) < 0 || fclose(file))
		die(path);
}

static void make_semaphores(void)
{
	call.semaphores = semget(IPC_PRIVATE, 1, 0600);
	if (call.semaphores < 0)
		die("semget");
	note_ipc("sem", call.semaphores);
	call.down = (struct sembuf){0, -1, 0};
}

static void call_semtimedop(void)
{
	make_semaphores();
	limit_to(call.ns);
#ifdef SYS_semtimedop_time64
	set_call(SYS_semtimedop_time64, call.semaphores, (long)&call.down, 1, (long)&call.wide, 0, 0, -EAGAIN);
#else
	set_call(SYS_semtimedop, call.semaphores, (long)&call.down, 1, (long)&call.wide, 0, 0, -EAGAIN);
#endif
}

static void make_sockets(void)
{
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, call.sockets))
		die("socketpair");
}

static void call_recv_timeout(void)
{
	const struct timeval limit = {(time_t)(call.ns / 1000000000), (suseconds_t)(call.ns % 1000000000 / 1000)};
	make_sockets();
	if (setsockopt(call.sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
		die("SO_RCVTIMEO");
	set_call(SYS_recvfrom, call.sockets[0], (long)&call.buffer, 8, 0, 0, 0, -EAGAIN);
}

/* ------------------------------------------------------------------------------------------------ ended by another */

static void write_to_pipe(void)
{
	if (write(call.pipe[1], "poked!!", 8) != 8)
		die("write");
}

static void call_read_pipe(void)
{
	make_pipe();
	call.helper = write_to_pipe;
	set_call(SYS_read, call.pipe[0], (long)&call.buffer, 8, 0, 0, 0, 8);
}

static void read_pipe_empty(void)
{
	for (int i = 0; i < 2; i++)
		if (read(call.pipe[0], call.big, sizeof call.big) < 0)
			die("read");
}

static void call_write_pipe(void)
{
	make_pipe();
	fcntl(call.pipe[1], F_SETPIPE_SZ, 65536);
	if (write(call.pipe[1], call.big, 65536) != 65536)
		die("write");
	call.helper = read_pipe_empty;
	set_call(SYS_write, call.pipe[1], (long)call.big, 4096, 0, 0, 0, 4096);
}

static void call_poll_forever(void)
{
	call_poll();
	call.helper = write_to_pipe;
	set_call(POLL_ONE(&call.poll, -1, &call.limit), 1);
}

static void call_select_forever(void)
{
	call_select();
	call.helper = write_to_pipe;
	call.args[4] = 0;
	call.expected = 1;
}

static void call_epoll_forever(void)
{
	make_epoll();
	call.helper = write_to_pipe;
	set_call(EPOLL_WAIT(call.epoll, call.events, 4, -1), 1);
}

static void wake_futex(void)
{
	*word = 1;
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void call_futex_forever(void)
{
	call.helper = wake_futex;
	set_call(SYS_futex, (long)word, FUTEX_WAIT, 0, 0, 0, 0, 0);
}

static void end_with_seven(void)
{
	_exit(7);
}

static void call_wait4(void)
{
	call.helper = end_with_seven;
	set_call(SYS_wait4, -1, (long)&call.status, 0, 0, 0, 0, 0); /* the pid is known only after the fork */
}

static void call_waitid(void)
{
	call.helper = end_with_seven;
	set_call(SYS_waitid, P_ALL, 0, (long)&call.info, WEXITED | WNOWAIT, 0, 0, 0);
}

static void on_alarm(int signal)
{
	(void)signal;
	alarms = alarms + 1;
}

static void end_by_alarm(void)
{
	struct sigaction action;
	memset(&action, 0, sizeof action);
	action.sa_handler = on_alarm;
	action.sa_flags = SA_RESTART; /* does not matter to these two */
	sigaction(SIGALRM, &action, NULL);
	call.ends_by_alarm = true;
}

static void call_pause(void)
{
	end_by_alarm();
	set_call(PAUSE, -EINTR);
}

static void call_sigsuspend(void)
{
	sigset_t set;
	end_by_alarm();
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	call.mask = set_of(SIGUSR1);
	set_call(SYS_rt_sigsuspend, (long)&call.mask, 8, 0, 0, 0, 0, -EINTR);
}

static void signal_parent(void)
{
	if (sigqueue(getppid(), SIGUSR2, (union sigval){.sival_int = 77}))
		die("sigqueue");
}

static void call_sigwaitinfo(void)
{
	call_sigtimedwait_with(SYS_rt_sigtimedwait, 0);
	call.helper = signal_parent;
	call.expected = SIGUSR2;
}

static void raise_semaphore(void)
{
	struct sembuf up = {0, 1, 0};
	if (semop(call.semaphores, &up, 1))
		die("semop");
}

static void call_semop(void)
{
	call_semtimedop();
	call.helper = raise_semaphore;
	call.args[3] = 0;
	call.expected = 0;
}

static void send_message(void)
{
	call.message.type = 7;
	if (msgsnd(call.messages, &call.message, 8, 0))
		die("msgsnd");
}

static void call_msgrcv(void)
{
	call.messages = msgget(IPC_PRIVATE, 0600);
	if (call.messages < 0)
		die("msgget");
	note_ipc("msg", call.messages);
	call.helper = send_message;
	set_call(SYS_msgrcv, call.messages, (long)&call.message, 8, 7, 0, 0, 8);
}

static void send_to_socket(void)
{
	if (write(call.sockets[1], "poked!!", 8) != 8)
		die("write");
}

static void call_recv_forever(void)
{
	make_sockets();
	call.helper = send_to_socket;
	set_call(SYS_recvfrom, call.sockets[0], (long)&call.buffer, 8, 0, 0, 0, 8);
}

/* The helper opens and locks the file itself, before the call; the futex word says when. */
static void open_lock_file(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s.lock", out_file);
	call.lock_file = open(path, O_RDWR | O_CREAT, 0600);
	if (call.lock_file < 0)
		die(path);
}

static void unlock_by_exit(void)
{
	_exit(0);
}

static void call_flock(void)
{
	open_lock_file();
	call.helper = unlock_by_exit;
	set_call(SYS_flock, call.lock_file, LOCK_EX, 0, 0, 0, 0, 0);
}

static void call_fcntl_lock(void)
{
	open_lock_file();
	call.helper = unlock_by_exit;
	call.lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
	set_call(SYS_fcntl, call.lock_file, F_SETLKW, (long)&call.lock, 0, 0, 0, 0);
}

/* ------------------------------------------------------------------------------------------------ the table */

static const struct { const char *name; void (*prepare)(void); bool timed; } calls[] = {
	{"nanosleep", call_nanosleep, true},
	{"clock_nanosleep_rel", clock_relative, true},
	{"clock_nanosleep_abs", clock_absolute, true},
	{"poll", call_poll, true},
	{"ppoll", call_ppoll, true},
	{"select", call_select, true},
	{"pselect6", call_pselect, true},
	{"futex_wait", futex_wait, true},
	{"futex_wait_bitset_abs", futex_absolute, true},
	{"epoll_wait", call_epoll_wait, true},
	{"epoll_pwait2", call_epoll_pwait2, true},
	{"sigtimedwait", call_sigtimedwait, true},
#ifdef SYS_futex_time64
	{"clock_nanosleep_rel_time64", clock_relative_time64, true},
	{"clock_nanosleep_abs_time64", clock_absolute_time64, true},
	{"ppoll_time64", call_ppoll_time64, true},
	{"pselect6_time64", call_pselect_time64, true},
	{"futex_wait_time64", futex_wait_time64, true},
	{"futex_wait_bitset_abs_time64", futex_absolute_time64, true},
	{"sigtimedwait_time64", call_sigtimedwait_time64, true},
#endif
#ifdef __i386__
	{"nanosleep-vdso", call_nanosleep, true},
	{"poll-vdso", call_poll, true},
	{"pselect6-vdso", call_pselect, true},
	{"futex_wait-vdso", futex_wait, true},
	{"epoll_wait-vdso", call_epoll_wait, true},
	{"read_pipe-vdso", call_read_pipe, false},
#endif
	{"semtimedop", call_semtimedop, true},
	{"recv_timeout", call_recv_timeout, true},
	{"read_pipe", call_read_pipe, false},
	{"write_pipe", call_write_pipe, false},
	{"poll_forever", call_poll_forever, false},
	{"select_forever", call_select_forever, false},
	{"epoll_forever", call_epoll_forever, false},
	{"futex_forever", call_futex_forever, false},
	{"wait4", call_wait4, false},
	{"waitid", call_waitid, false},
	{"pause", call_pause, false},
	{"sigsuspend", call_sigsuspend, false},
	{"sigwaitinfo", call_sigwaitinfo, false},
	{"flock_wait", call_flock, false},
	{"fcntl_lock_wait", call_fcntl_lock, false},
	{"semop", call_semop, false},
	{"msgrcv", call_msgrcv, false},
	{"recv_forever", call_recv_forever, false},
};

static void write_line(const char *text)
{
	int fd = open(out_file, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		die(out_file);
	close(fd);
}

static pid_t start_helper(void)
{
	const struct timespec time = {(time_t)(call.ns / 1000000000), (long)(call.ns % 1000000000)};
	const pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		die("fork");
	if (pid > 0) {
		while (word[1] == 0) /* it has its lock, and its sleep has begun or is about to */
			usleep(500);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(3);
	if (call.lock_file) {
		open_lock_file();
		struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		if (call.number == SYS_flock ? flock(call.lock_file, LOCK_EX) : fcntl(call.lock_file, F_SETLKW, &lock))
			die("lock");
	}
	word[1] = 1;
	if (nanosleep(&time, NULL))
		_exit(4);
	call.helper();
	_exit(0);
}

int main(int argc, char **argv)
{
	const unsigned count = sizeof calls / sizeof *calls;
	static struct regs regs;
	struct regs_change change;
	char text[512];
	unsigned i = 0;
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (i = 0; i < count; i++)
			printf("%s %s\n", calls[i].name, calls[i].timed ? "timed" : "untimed");
		return 0;
	}
	while (argc == 4 && i < count && strcmp(calls[i].name, argv[1]))
		i++;
	if (argc != 4 || i == count) {
		dprintf(2, "usage: calls NAME SECONDS OUTFILE | calls --list\n");
		return 2;
	}
	out_file = argv[3];
	call.ns = (u64)(atof(argv[2]) * 1e9);
	word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (word == MAP_FAILED)
		die("mmap");
	calls[i].prepare();
	regs_create(&regs, (u64)getpid());
#ifdef __i386__
	regs.rounds = strstr(calls[i].name, "-vdso") != NULL; /* odd: by way of the vdso */
#elif defined(__arm__)
	regs.rounds = i; /* odd: from Thumb code */
#endif
	if (call.helper) {
		const pid_t pid = start_helper();
		if (call.number == SYS_wait4)
			call.expected = pid;
	}
	snprintf(text, sizeof text, "begin %d\n", getpid());
	write_line(text);
	if (call.ends_by_alarm) {
		const struct itimerval once = {{0, 0}, {(time_t)(call.ns / 1000000000), (suseconds_t)(call.ns % 1000000000 / 1000)}};
		setitimer(ITIMER_REAL, &once, NULL);
	}
	u64 mono_start, real_start;
	do { /* one instant, though others may be given the processor between the two */
		mono_start = stamp(CLOCK_MONOTONIC);
		real_start = stamp(CLOCK_REALTIME);
	} while (stamp(CLOCK_MONOTONIC) - mono_start > 10000000);
	if (calls[i].prepare == clock_absolute || calls[i].prepare == futex_absolute)
		limit_to(mono_start + call.ns);
#ifdef SYS_futex_time64
	if (calls[i].prepare == clock_absolute_time64 || calls[i].prepare == futex_absolute_time64)
		limit_to(mono_start + call.ns);
#endif

	const long result = regs_call(&regs, call.number, call.args, &change);
	const u64 mono_end = stamp(CLOCK_MONOTONIC), real_end = stamp(CLOCK_REALTIME);

	const bool failed = result < 0 && result > -4096;
	bool right = result == call.expected && (!call.ends_by_alarm || alarms == 1);
	if (call.number == SYS_wait4 && call.status != 7 << 8)
		right = false;
	snprintf(text, sizeof text, "end %llu %llu %llu %llu %ld %ld %d %d %s\n", (unsigned long long)mono_start,
		 (unsigned long long)real_start, (unsigned long long)mono_end, (unsigned long long)real_end, failed ? -1 : result,
		 failed ? -result : 0, right, change.group == REGS_SAME, change.group == REGS_SAME ? "-" : change.name);
	write_line(text);
	if (call.semaphores)
		semctl(call.semaphores, 0, IPC_RMID);
	if (call.messages)
		msgctl(call.messages, IPC_RMID, NULL);
	return right && change.group == REGS_SAME ? 0 : 1;
}
