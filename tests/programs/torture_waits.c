/*
 * torture: blocking calls. Each is made by a raw system call with all registers held over it (held_call), and its result
 * must be what it would have been alone: no EINTR, not shorter than asked. Every kind belongs to one thread only.
 *
 * Waits without a time limit are ended by the first child ("partner"): the waiter writes a request into a pipe, blocks, and
 * is answered some milliseconds later with the number of its request. pause and sigsuspend are ended by a timer.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "older_calls.h"
#include "torture.h"

/* The kernel's own timespecs: the 64-bit calls and the *_time64 calls of 32 bit use `wide`, the old 32-bit calls `old`. */
struct wide { int64_t seconds, nanoseconds; };
struct old { long seconds, nanoseconds; };

#if __SIZEOF_LONG__ == 4
#define PAIR(name) SYS_##name, SYS_##name##_time64
#else
#define PAIR(name) SYS_##name, SYS_##name
#endif

#if __SIZEOF_LONG__ == 4
#define SEMTIMEDOP SYS_semtimedop_time64
#else
#define SEMTIMEDOP SYS_semtimedop
#endif

enum request { ASK_PIPE, ASK_EPOLL, ASK_FUTEX, ASK_POLL, ASK_SEMAPHORE, ASK_MESSAGE };
struct asked { u32 what, reserved; u64 sequence; };

static int request[2], answer[2], poll_answer[2], event_answer, epoll_quiet, epoll_asked, quiet_pipe[2], quiet_socket[2];
static int semaphores, messages;
static u32 futex_never;
static u64 sequences[8];

static void opened(int result, const char *what)
{
	if (result < 0)
		die(what);
}

void waits_init(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	opened(pipe2(request, O_CLOEXEC), "pipe");
	opened(pipe2(answer, O_CLOEXEC), "pipe");
	opened(pipe2(poll_answer, 0), "pipe");
	opened(pipe2(quiet_pipe, 0), "pipe");
	opened(event_answer = eventfd(0, EFD_CLOEXEC), "eventfd");
	opened(epoll_quiet = epoll_create1(EPOLL_CLOEXEC), "epoll");
	opened(epoll_asked = epoll_create1(0), "epoll");
	event.data.u64 = 0x1122334455667788;
	opened(epoll_ctl(epoll_quiet, EPOLL_CTL_ADD, quiet_pipe[0], &event), "epoll_ctl");
	event.data.u64 = 0x99aabbccddeeff00;
	opened(epoll_ctl(epoll_asked, EPOLL_CTL_ADD, event_answer, &event), "epoll_ctl");
	if (options.sockets)
		opened(socketpair(AF_UNIX, SOCK_STREAM, 0, quiet_socket), "socketpair");
	if (options.sysv) {
		opened(semaphores = semget(IPC_PRIVATE, 2, 0600), "semget");
		opened(messages = msgget(IPC_PRIVATE, 0600), "msgget");
		/* They outlive a program that is killed: whoever kills it finds their numbers here. */
		char path[4096 + 8];
		snprintf(path, sizeof path, "%s.ipc", options.heartbeat);
		FILE *file = fopen(path, "w");
		if (!file || fprintf(file, "sem %d\nmsg %d\n", semaphores, messages) < 0 || fclose(file))
			die(path);
	}
}

void waits_finish(void)
{
	if (options.sysv) {
		semctl(semaphores, 0, IPC_RMID);
		msgctl(messages, IPC_RMID, NULL);
	}
}

long held_call(long number, long a, long b, long c, long d, long e, long f)
{
	struct regs_change change;
	const long args[6] = {a, b, c, d, e, f};
	regs_shuffle(&self->regs);
	const long result = regs_call(&self->regs, number, args, &change);
	report_registers(&change);
	return result;
}

/* ------------------------------------------------------------------------------------------------ with a time limit */

static void check_result(const char *name, long result, long expected)
{
	if (result == expected)
		return;
	fail(result == -EINTR ? WAIT_EINTR : WAIT_RESULT, (u64)result, "%s gave %ld, should be %ld", name, result, expected);
}

static void check_length(const char *name, u64 start, u64 asked)
{
	const u64 took = monotonic() - start;
	if (took < asked)
		fail(WAIT_SHORT, took, "%s took %llu ns, should be at least %llu", name, (unsigned long long)took, (unsigned long long)asked);
}

/* Both forms of a timespec, of which a call uses one; calls that write back what is left must leave nothing. */
struct limit { struct wide wide; struct old old; };

static struct limit limit_of(u64 ns)
{
	const long seconds = (long)(ns / 1000000000u), rest = (long)(ns % 1000000000u);
	return (struct limit){{seconds, rest}, {seconds, rest}};
}

/* Which of the pair of calls: by turns on 32 bit, where there are two. */
static bool wide_turn(void)
{
	return sizeof(long) == 8 || self->round % 2;
}

static long limit_pointer(struct limit *limit, bool wide)
{
	return wide ? (long)&limit->wide : (long)&limit->old;
}

static void check_nothing_left(const char *name, const struct limit *limit, bool wide)
{
	const u64 left = wide ? (u64)(limit->wide.seconds | limit->wide.nanoseconds)
			      : (u64)(limit->old.seconds | limit->old.nanoseconds);
	if (left)
		fail(WAIT_REST, left, "%s ran to its end, but says that %llu is left", name, (unsigned long long)left);
}

static u64 some_time(void)
{
	return (3 + next_random() % 12) * 1000000 + (next_random() & 0xfff);
}

static void wait_nanosleep(void)
{
	const u64 ns = some_time(), start = monotonic();
	struct old asked = {0, (long)ns}, rest = {-1, -2};
	check_result("nanosleep", held_call(SYS_nanosleep, (long)&asked, (long)&rest, 0, 0, 0, 0), 0);
	check_length("nanosleep", start, ns);
}

static void wait_clock_nanosleep(void)
{
	static const long calls[] = {PAIR(clock_nanosleep)};
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit asked = limit_of(ns), rest = asked;
	check_result("clock_nanosleep",
		     held_call(calls[wide], CLOCK_MONOTONIC, 0, limit_pointer(&asked, wide), limit_pointer(&rest, wide), 0, 0), 0);
	check_length("clock_nanosleep", start, ns);
}

static void wait_clock_nanosleep_absolute(void)
{
	static const long calls[] = {PAIR(clock_nanosleep)};
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit until = limit_of(start + ns);
	check_result("clock_nanosleep TIMER_ABSTIME",
		     held_call(calls[wide], CLOCK_MONOTONIC, TIMER_ABSTIME, limit_pointer(&until, wide), 0, 0, 0), 0);
	check_length("clock_nanosleep TIMER_ABSTIME", start, ns);
}

static void wait_poll(void)
{
	struct pollfd fd = {quiet_pipe[0], POLLIN, 0};
	const u64 ms = 3 + next_random() % 12, start = monotonic();
	struct two_longs limit;
	check_result("poll", held_call(POLL_ONE(&fd, ms, &limit)), 0);
	check_length("poll", start, ms * 1000000);
}

static void wait_ppoll(void)
{
	static const long calls[] = {PAIR(ppoll)};
	struct pollfd fd = {quiet_pipe[0], POLLIN, 0};
	u64 mask = self->mask | BIT(SIGALRM) | BIT(SIG_TICK) | BIT(SIGXCPU); /* another mask during the call */
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit limit = limit_of(ns);
	check_result("ppoll", held_call(calls[wide], (long)&fd, 1, limit_pointer(&limit, wide), (long)&mask, 8, 0), 0);
	check_length("ppoll", start, ns);
	check_nothing_left("ppoll", &limit, wide);
}

static void wait_select(void)
{
	struct two_longs limit;
	fd_set set;
	const u64 us = 3000 + next_random() % 12000, start = monotonic();
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	check_result("select", held_call(SELECT(quiet_pipe[0] + 1, &set, (long long)us * 1000, &limit)), 0);
	check_length("select", start, us * 1000);
	if (limit.seconds || limit.fraction || FD_ISSET(quiet_pipe[0], &set))
		fail(WAIT_REST, (u64)limit.fraction, "select ran to its end, but says that %ld us or ns are left", limit.fraction);
}

static void wait_pselect(void)
{
	static const long calls[] = {PAIR(pselect6)};
	u64 mask = self->mask | BIT(SIGALRM) | BIT(SIG_TICK);
	struct { unsigned long mask; unsigned long size; } sixth = {(unsigned long)&mask, 8};
	fd_set set;
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit limit = limit_of(ns);
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	check_result("pselect6",
		     held_call(calls[wide], quiet_pipe[0] + 1, (long)&set, 0, 0, limit_pointer(&limit, wide), (long)&sixth), 0);
	check_length("pselect6", start, ns);
	check_nothing_left("pselect6", &limit, wide);
}

static void wait_futex(void)
{
	static const long calls[] = {PAIR(futex)};
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit limit = limit_of(ns);
	check_result("futex wait",
		     held_call(calls[wide], (long)&futex_never, FUTEX_WAIT_PRIVATE, 0, limit_pointer(&limit, wide), 0, 0), -ETIMEDOUT);
	check_length("futex wait", start, ns);
}

static void wait_futex_absolute(void)
{
	static const long calls[] = {PAIR(futex)};
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit until = limit_of(start + ns);
	check_result("futex wait absolute",
		     held_call(calls[wide], (long)&futex_never, FUTEX_WAIT_BITSET_PRIVATE, 0, limit_pointer(&until, wide), 0, -1),
		     -ETIMEDOUT);
	check_length("futex wait absolute", start, ns);
}

static void wait_epoll(void)
{
	struct epoll_event events[4];
	const u64 ms = 3 + next_random() % 12, start = monotonic();
	check_result("epoll_wait", held_call(EPOLL_WAIT(epoll_quiet, events, 4, ms)), 0);
	check_length("epoll_wait", start, ms * 1000000);
}

static void wait_sigtimedwait(void)
{
	static const long calls[] = {PAIR(rt_sigtimedwait)};
	u64 set = BIT(SIG_NEVER);
	siginfo_t info;
	const u64 ns = some_time(), start = monotonic();
	const bool wide = wide_turn();
	struct limit limit = limit_of(ns);
	check_result("sigtimedwait", held_call(calls[wide], (long)&set, (long)&info, limit_pointer(&limit, wide), 8, 0, 0), -EAGAIN);
	check_length("sigtimedwait", start, ns);
}

static void wait_recv(void)
{
	char byte;
	const u64 us = 3000 + next_random() % 12000;
	const struct timeval limit = {0, (suseconds_t)us};
	setsockopt(quiet_socket[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	const u64 start = monotonic();
	check_result("recv with a time limit", held_call(SYS_recvfrom, quiet_socket[0], (long)&byte, 1, 0, 0, 0), -EAGAIN);
	/* Sockets count in ticks of the kernel's clock, at most 10 ms each. */
	check_length("recv with a time limit", start, us > 11000 ? (us - 11000) * 1000 : 0);
}

static void wait_semtimedop(void)
{
	struct sembuf down = {1, -1, 0};
	const long call = SEMTIMEDOP;
	const u64 ns = some_time(), start = monotonic();
	struct wide limit = {0, (int64_t)ns};
	check_result("semtimedop", held_call(call, semaphores, (long)&down, 1, (long)&limit, 0, 0), -EAGAIN);
	check_length("semtimedop", start, ns);
}

/* ------------------------------------------------------------------------------------------------ until answered */

static u64 ask(enum request what)
{
	const struct asked asked = {what, 0, ++sequences[what]};
	if (write(request[1], &asked, sizeof asked) != sizeof asked)
		fail(FILE_CALL, (u64)errno, "request to the partner: %s", strerror(errno));
	return asked.sequence;
}

static void check_sequence(const char *name, u64 got, u64 expected)
{
	if (got != expected)
		fail(WAIT_SEQUENCE, got, "%s: answer %llu, should be %llu", name, (unsigned long long)got, (unsigned long long)expected);
}

static void wait_read(void)
{
	u64 got = 0;
	const u64 expected = ask(ASK_PIPE);
	check_result("read of a pipe", held_call(SYS_read, answer[0], (long)&got, 8, 0, 0, 0), 8);
	check_sequence("read of a pipe", got, expected);
}

static void wait_epoll_forever(void)
{
	struct epoll_event events[4];
	u64 got = 0;
	const u64 expected = ask(ASK_EPOLL);
	check_result("epoll_wait without end", held_call(EPOLL_WAIT(epoll_asked, events, 4, -1)), 1);
	if (events[0].data.u64 != 0x99aabbccddeeff00)
		fail(WAIT_RESULT, events[0].data.u64, "epoll_wait gave the data of another descriptor");
	if (read(event_answer, &got, 8) != 8)
		fail(FILE_EVENTFD, (u64)errno, "eventfd of the answer: %s", strerror(errno));
	check_sequence("epoll_wait without end", got, expected);
}

static void wait_poll_forever(void)
{
	struct pollfd fd = {poll_answer[0], POLLIN, 0};
	struct two_longs limit;
	u64 got = 0;
	const u64 expected = ask(ASK_POLL);
	check_result("poll without end", held_call(POLL_ONE(&fd, -1, &limit)), 1);
	if (read(poll_answer[0], &got, 8) != 8)
		fail(FILE_PIPE, (u64)errno, "pipe of the answer: %s", strerror(errno));
	check_sequence("poll without end", got, expected);
}

/* The answer may come before the wait (EAGAIN), and a futex may wake for no reason: both are part of its contract. */
static void wait_futex_forever(void)
{
	const u32 before = shared->futex_answer;
	const u64 expected = ask(ASK_FUTEX);
	while (shared->futex_answer == before) {
		const long result = held_call(SYS_futex, (long)&shared->futex_answer, FUTEX_WAIT, (long)before, 0, 0, 0);
		if (result && result != -EAGAIN)
			check_result("futex wait without end", result, 0);
	}
	check_sequence("futex wait without end", shared->futex_answer, (u32)expected);
}

static void wait_semop(void)
{
	struct sembuf down = {0, -1, 0};
	ask(ASK_SEMAPHORE);
#ifdef SYS_semop
	const long call = SYS_semop;
#else
	const long call = SEMTIMEDOP;
#endif
	check_result("semop", held_call(call, semaphores, (long)&down, 1, 0, 0, 0), 0);
}

static void wait_msgrcv(void)
{
	struct { long type; u64 sequence; } message = {0, 0};
	const u64 expected = ask(ASK_MESSAGE);
#ifdef __i386__
	const long given = msgrcv(messages, &message, 8, 7, 0), got = given < 0 ? -errno : given; /* many calls in one (ipc) in the old ABI */
#else
	const long got = held_call(SYS_msgrcv, messages, (long)&message, 8, 7, 0, 0);
#endif
	check_result("msgrcv", got, 8);
	check_sequence("msgrcv", message.sequence, expected);
}

static void give(int fd, u64 value)
{
	if (write(fd, &value, 8) != 8)
		fail(FILE_CALL, (u64)errno, "answer of the partner: %s", strerror(errno));
}

/* Blocks like the others do, but no longer than it takes to count on; answers after some milliseconds. */
void waits_partner_step(void)
{
	struct pollfd fd = {request[0], POLLIN, 0};
	struct two_longs limit;
	struct asked asked[16];
	struct sembuf up = {0, 1, 0};
	struct { long type; u64 sequence; } message = {7, 0};
	quiet_begin();
	const long ready = held_call(POLL_ONE(&fd, 40, &limit));
	if (ready < 0)
		check_result("poll of the partner", ready, 0);
	if (ready > 0) {
		sleep_ns(2000000 + next_random() % 4000000);
		const ssize_t got = read(request[0], asked, sizeof asked);
		for (ssize_t i = 0; i < got / (ssize_t)sizeof *asked; i++)
			switch ((enum request)asked[i].what) {
			case ASK_PIPE: give(answer[1], asked[i].sequence); break;
			case ASK_EPOLL: give(event_answer, asked[i].sequence); break;
			case ASK_POLL: give(poll_answer[1], asked[i].sequence); break;
			case ASK_FUTEX:
				shared->futex_answer = (u32)asked[i].sequence;
				syscall(SYS_futex, &shared->futex_answer, FUTEX_WAKE, 1, NULL, NULL, 0);
				break;
			case ASK_SEMAPHORE:
				if (semop(semaphores, &up, 1))
					fail(FILE_CALL, (u64)errno, "semop: %s", strerror(errno));
				break;
			case ASK_MESSAGE:
				message.sequence = asked[i].sequence;
				if (msgsnd(messages, &message, 8, 0))
					fail(FILE_CALL, (u64)errno, "msgsnd: %s", strerror(errno));
				break;
			}
	}
	quiet_end();
}

/* ------------------------------------------------------------------------------------------------ until a signal */

/* A timer of its own that comes again and again: a signal between unblocking and pause() does no harm. */
static void until_signal(const char *name, bool suspend)
{
	struct sigevent event;
	const struct itimerspec every = {{0, 9000000}, {0, 9000000}};
	timer_t timer;
	u64 mask = signal_mask();
	memset(&event, 0, sizeof event);
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = SIG_PAUSE;
	event._sigev_un._tid = self->tid;
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL))
		fail(TIMER_SETTING, (u64)errno, "timer for %s: %s", name, strerror(errno));
	u64 other = mask & ~BIT(SIG_PAUSE);
	if (!suspend)
		set_signal_mask(other);
	const u64 before = self->pauses;
	const long result = suspend ? held_call(SYS_rt_sigsuspend, (long)&other, 8, 0, 0, 0, 0) : held_call(PAUSE);
	const u64 after = self->pauses;
	set_signal_mask(mask);
	timer_delete(timer);
	/* EINTR is its only result, but only after a handler has run. */
	if (result != -EINTR || after == before)
		fail(WAIT_RESULT, (u64)result, "%s gave %ld after %llu signals", name, result, (unsigned long long)(after - before));
	const struct timespec now = {0, 0};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIG_PAUSE);
	sigtimedwait(&set, NULL, &now);
}

static void wait_pause(void)
{
	until_signal("pause", false);
}

static void wait_sigsuspend(void)
{
	until_signal("sigsuspend", true);
}

/* ------------------------------------------------------------------------------------------------ until another ends */

static void *short_thread(void *argument)
{
	struct timespec ns = {0, 4000000};
	nanosleep(&ns, NULL);
	return argument;
}

/* pthread_join waits on the word that the kernel clears and wakes when a thread ends. */
static void wait_join(void)
{
	pthread_t thread;
	pthread_attr_t attributes;
	sigset_t all;
	void *result = NULL;
	sigfillset(&all); /* the handlers need what only the tasks have */
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	pthread_attr_setsigmask_np(&attributes, &all);
	int error = pthread_create(&thread, &attributes, short_thread, self);
	if (!error)
		error = pthread_join(thread, &result);
	if (error || result != self)
		fail(WAIT_RESULT, (u64)error, "pthread_join gave %d, result %p", error, result);
}

/* A child that forks, waits in wait4, and looks at the status. */
void waits_forker_step(void)
{
	const int code = (int)(self->round & 0x7f);
	int status = -1;
	quiet_begin();
	const u64 start = monotonic();
	pid_t pid = fork();
	if (pid == 0) {
		struct timespec ns = {0, 8000000};
		nanosleep(&ns, NULL);
		_exit(code);
	}
	shared->helper_pids[0] = pid;
	const long result = held_call(SYS_wait4, pid, (long)&status, 0, 0, 0, 0);
	check_result("wait4", result, pid);
	check_length("wait4", start, 8000000);
	if (status != code << 8)
		fail(WAIT_RESULT, (u64)status, "wait4: status %#x, should be %#x", (unsigned)status, (unsigned)code << 8);
	shared->helper_pids[0] = 0;
	quiet_end();
}

/* ------------------------------------------------------------------------------------------------ the table */

enum { ALONE, PARTNER, NEEDS_SYSV, NEEDS_SYSV_AND_PARTNER, NEEDS_SOCKETS, NEEDS_FORKS };

static const struct { const char *name; void (*run)(void); int needs; } kinds[] = {
	{"nanosleep", wait_nanosleep, ALONE},
	{"read", wait_read, PARTNER},
	{"poll", wait_poll, ALONE},
	{"futex", wait_futex, ALONE},
	{"epoll", wait_epoll, ALONE},
	{"pause", wait_pause, ALONE},
	{"futex-forever", wait_futex_forever, PARTNER},
	{"clock", wait_clock_nanosleep, ALONE},
	{"clock-abs", wait_clock_nanosleep_absolute, ALONE},
	{"sigtimedwait", wait_sigtimedwait, ALONE},
	{"epoll-forever", wait_epoll_forever, PARTNER},
	{"ppoll", wait_ppoll, ALONE},
	{"select", wait_select, ALONE},
	{"pselect", wait_pselect, ALONE},
	{"futex-abs", wait_futex_absolute, ALONE},
	{"poll-forever", wait_poll_forever, PARTNER},
	{"sigsuspend", wait_sigsuspend, ALONE},
	{"join", wait_join, NEEDS_FORKS},
	{"semtimedop", wait_semtimedop, NEEDS_SYSV},
	{"semop", wait_semop, NEEDS_SYSV_AND_PARTNER},
	{"msgrcv", wait_msgrcv, NEEDS_SYSV_AND_PARTNER},
	{"recv", wait_recv, NEEDS_SOCKETS},
};

static bool available(int needs)
{
	const bool partner = options.children > 0;
	switch (needs) {
	case PARTNER: return partner;
	case NEEDS_SYSV: return options.sysv;
	case NEEDS_SYSV_AND_PARTNER: return options.sysv && partner;
	case NEEDS_SOCKETS: return options.sockets;
	case NEEDS_FORKS: return options.forks;
	default: return true;
	}
}

unsigned waits_kinds(void)
{
	unsigned count = 0;
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		count += available(kinds[i].needs);
	return count;
}

static unsigned kind_at(unsigned number)
{
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (available(kinds[i].needs) && number-- == 0)
			return i;
	return 0;
}

const char *waits_name(unsigned number)
{
	return kinds[kind_at(number)].name;
}

void waits_run(unsigned number)
{
	kinds[kind_at(number)].run();
}
