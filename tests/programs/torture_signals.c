/*
 * torture: signals and timers. Dispositions are read back in the kernel's own form right after they were made and compared
 * with that ever after. Pending signals stay pending; every now and then they are taken, looked at and queued again.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/time.h>

#include "torture.h"

struct kernel_action {
	unsigned long handler, flags, restorer;
	u32 mask[2];
};

static struct kernel_action actions[65];
static bool handled[65];     /* has a handler that must never run */
static volatile u64 alarms, ticks;
static bool has_tick;
static timer_t tick_timer, idle_timer;
static u64 order_value;	     /* of the first of the pair that is pending */
static u64 process_pending;  /* signals that only this process's first thread takes */
static int muted;	     /* SIGALRM and SIG_TICK go to the first thread, outside of quiet sections */

enum { ALARM_US = 7000, TICK_NS = 11000000 };

u64 signal_mask(void)
{
	u64 mask = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
	return mask;
}

void set_signal_mask(u64 mask)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
}

/* ------------------------------------------------------------------------------------------------ handlers */

/* Registers are held inside the handler as well: a checkpoint may come there, on either stack. */
static void check_in_handler(void)
{
	regs_shuffle(&self->handler_regs);
	struct regs_change change = regs_hold(&self->handler_regs, 5000);
	report_registers(&change);
}

static void on_alarm(int signal)
{
	const int saved = errno;
	(void)signal;
	check_in_handler();
	alarms++;
	errno = saved;
}

static void on_tick(int signal, siginfo_t *info, void *context)
{
	const int saved = errno;
	const char *here = (const char *)__builtin_frame_address(0), *base = self->altstack.ss_sp;
	(void)context;
	if (here < base || here >= base + self->altstack.ss_size)
		fail(SIG_NOT_ON_ALTSTACK, (u64)(unsigned long)here, "handler runs at %p, the alternate stack is at %p", (const void *)here,
		     (const void *)base);
	if (info->si_code != SI_TIMER || info->si_value.sival_int != 0x71c4)
		fail(SIG_INFO, (u64)info->si_code, "signal %d of the timer: code %d, value %#x", signal, info->si_code,
		     (unsigned)info->si_value.sival_int);
	check_in_handler();
	ticks++;
	errno = saved;
}

static void on_pause(int signal)
{
	(void)signal;
	self->pauses++;
}

static void on_stray(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (signal == SIGCHLD && (!handled[signal] || stopping())) /* children end only at the end */
		return;
	fail(SIG_STRAY, (u64)signal, "signal %d came, code %d, from %d", signal, info->si_code, info->si_pid);
}

static void on_crash(int signal, siginfo_t *info, void *context)
{
	(void)context;
	fail(SIG_CRASH, (u64)(unsigned long)info->si_addr, "signal %d, code %d, address %p", signal, info->si_code, info->si_addr);
	_exit(99);
}

/* ------------------------------------------------------------------------------------------------ dispositions */

static void set_action(int signal, void (*handler)(int, siginfo_t *, void *), int flags, u64 mask)
{
	struct sigaction action;
	memset(&action, 0, sizeof action);
	if (flags & SA_SIGINFO)
		action.sa_sigaction = handler;
	else
		action.sa_handler = (void (*)(int))(void (*)(void))handler;
	action.sa_flags = flags;
	for (int other = 1; other <= 64; other++)
		if (mask & BIT(other))
			sigaddset(&action.sa_mask, other);
	if (sigaction(signal, &action, NULL))
		die("sigaction");
	handled[signal] = handler == on_stray;
}

/* `turn` differs between the processes, so that no two have the same table. 32 and 33 belong to the C library. */
static void set_actions(unsigned turn)
{
	static const int flags[] = {SA_SIGINFO | SA_RESTART, SA_SIGINFO | SA_ONSTACK, SA_SIGINFO | SA_NODEFER | SA_RESTART,
				    SA_SIGINFO | SA_RESETHAND | SA_ONSTACK};
	for (int signal = 1; signal <= 64; signal++) {
		const u64 mask = (0x5a5a5a5a12345678ull * (unsigned)(signal + 1)) ^ turn;
		if (signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33)
			continue;
		if (signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE)
			set_action(signal, on_crash, SA_SIGINFO | SA_ONSTACK | SA_RESETHAND, mask);
		else if (((unsigned)signal + turn) % 3 == 0)
			sysv_signal(signal, SIG_IGN);
		else if (((unsigned)signal + turn) % 3 == 1)
			set_action(signal, on_stray, flags[(unsigned)signal % 4], mask);
	}
	/* What the rest of the program needs. SIGTRAP ignored: what a careless tracer resets. */
	set_action(SIGALRM, (void (*)(int, siginfo_t *, void *))(void (*)(void))on_alarm, SA_RESTART, BIT(SIG_TICK));
	set_action(SIG_TICK, on_tick, SA_SIGINFO | SA_ONSTACK | SA_RESTART, BIT(SIGALRM));
	set_action(SIG_PAUSE, (void (*)(int, siginfo_t *, void *))(void (*)(void))on_pause, 0, 0);
	set_action(SIGVTALRM, on_stray, SA_SIGINFO, 0);
	sysv_signal(SIGTRAP, SIG_IGN);
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	set_action(SIG_QUEUED, on_stray, SA_SIGINFO, 0);
	set_action(SIG_ORDER, on_stray, SA_SIGINFO, 0);
	set_action(SIG_THREAD, on_stray, SA_SIGINFO, 0);
	set_action(SIG_NEVER, on_stray, SA_SIGINFO, 0);
	set_action(SIGUSR2, on_stray, SA_SIGINFO, 0);
	/* First process: SIGCHLD handled, SIGURG left alone. Children: by turns everything that is ignored by default is handled. */
	if (turn == 0 || turn % 2 == 1)
		set_action(SIGCHLD, on_stray, SA_SIGINFO | SA_NOCLDSTOP | SA_RESTART, BIT(SIGUSR1));
	else
		signal(SIGCHLD, SIG_DFL);
	handled[SIGCHLD] = false; /* until all is set up: the zombie ends before */
	if (turn == 0) {
		signal(SIGURG, SIG_DFL);
	} else if (turn % 2 == 1) {
		set_action(SIGURG, on_stray, SA_SIGINFO | SA_RESTART, 0);
		set_action(SIGWINCH, on_stray, SA_SIGINFO | SA_RESTART, 0);
	}
}

static void read_action(int signal, struct kernel_action *action)
{
	memset(action, 0, sizeof *action);
	syscall(SYS_rt_sigaction, signal, NULL, action, 8);
}

void signals_baseline(void)
{
	for (int signal = 1; signal <= 64; signal++)
		read_action(signal, &actions[signal]);
	handled[SIGCHLD] = actions[SIGCHLD].handler > 1;
}

static void check_actions(void)
{
	struct kernel_action now;
	for (int signal = 1; signal <= 64; signal++) {
		const struct kernel_action *was = &actions[signal];
		read_action(signal, &now);
		if (memcmp(&now, was, sizeof now))
			fail(SIG_ACTION, (u64)signal, "signal %d: handler %#lx, flags %#lx, mask %08x%08x should be %#lx, %#lx, %08x%08x", signal,
			     now.handler, now.flags, now.mask[1], now.mask[0], was->handler, was->flags, was->mask[1], was->mask[0]);
	}
}

/* ------------------------------------------------------------------------------------------------ pending signals */

static void queue_to_process(int signal, int value)
{
	if (sigqueue(getpid(), signal, (union sigval){.sival_int = value}))
		fail(SIG_PENDING_LOST, (u64)signal, "sigqueue: %s", strerror(errno));
}

static void queue_to_thread(void)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = SIG_THREAD;
	info.si_code = SI_QUEUE;
	info.si_pid = self->pid;
	info.si_uid = getuid();
	info.si_value.sival_int = (int)(self->queued = next_random() & 0x7fffffff);
	if (syscall(SYS_rt_tgsigqueueinfo, self->pid, self->tid, SIG_THREAD, &info))
		fail(SIG_PENDING_LOST, SIG_THREAD, "rt_tgsigqueueinfo: %s", strerror(errno));
}

static void take(int signal, int code, u64 value)
{
	siginfo_t info;
	const struct timespec now = {0, 0};
	sigset_t set;
	memset(&info, 0, sizeof info);
	sigemptyset(&set);
	sigaddset(&set, signal);
	if (sigtimedwait(&set, &info, &now) != signal) {
		fail(SIG_PENDING_LOST, (u64)signal, "signal %d should be pending: %s", signal, strerror(errno));
		return;
	}
	if (info.si_signo != signal || info.si_code != code || info.si_pid != self->pid || info.si_uid != getuid()
	    || (code == SI_QUEUE && (u64)(unsigned)info.si_value.sival_int != value))
		fail(SIG_INFO, (u64)(unsigned)info.si_value.sival_int, "pending signal %d: code %d, from %d, value %#x; should be %d, %d, %#llx",
		     signal, info.si_code, info.si_pid, (unsigned)info.si_value.sival_int, code, self->pid, (unsigned long long)value);
}

static void queue_all(void)
{
	queue_to_process(SIG_QUEUED, 0xbeef);
	queue_to_process(SIG_ORDER, (int)order_value);
	queue_to_process(SIG_ORDER, (int)order_value + 1);
	kill(getpid(), SIGUSR2);
	process_pending = BIT(SIG_QUEUED) | BIT(SIG_ORDER) | BIT(SIGUSR2);
}

static void check_pending(void)
{
	u64 now = 0;
	const u64 timers = BIT(SIGALRM) | BIT(SIG_TICK) | BIT(SIG_PAUSE);
	const bool owner = process_pending && self->tid == self->pid;
	const u64 must = BIT(SIG_THREAD) | (owner ? process_pending : 0), may = must | process_pending | timers;
	syscall(SYS_rt_sigpending, &now, 8);
	if (must & ~now)
		fail(SIG_PENDING_LOST, must & ~now, "no longer pending: %#llx", (unsigned long long)(must & ~now));
	if (now & ~may)
		fail(SIG_PENDING_EXTRA, now & ~may, "pending, but nobody sent it: %#llx", (unsigned long long)(now & ~may));
	if (self->round % 16 == 5) {
		take(SIG_THREAD, SI_QUEUE, self->queued);
		queue_to_thread();
	}
}

/* ------------------------------------------------------------------------------------------------ timers */

static void start_timers(bool ticking)
{
	struct sigevent event;
	const struct itimerval alarm_every = {{0, ALARM_US}, {0, ALARM_US}}, in_an_hour = {{3600, 0}, {3600, 0}};
	const struct itimerspec tick_every = {{0, TICK_NS}, {0, TICK_NS}}, far = {{1000, 7}, {100000, 0}};
	memset(&event, 0, sizeof event);
	if (setitimer(ITIMER_REAL, &alarm_every, NULL) || setitimer(ITIMER_VIRTUAL, &in_an_hour, NULL))
		die("setitimer");
	has_tick = ticking;
	if (!ticking)
		return;
	event.sigev_notify = SIGEV_NONE;
	if (timer_create(CLOCK_MONOTONIC, &event, &idle_timer) || timer_settime(idle_timer, 0, &far, NULL))
		die("timer_create");
	event.sigev_notify = SIGEV_SIGNAL;
	event.sigev_signo = SIG_TICK;
	event.sigev_value.sival_int = 0x71c4;
	if (timer_create(CLOCK_MONOTONIC, &event, &tick_timer) || timer_settime(tick_timer, 0, &tick_every, NULL))
		die("timer_create");
}

/* A timer is silent when three looks in a row, 0.3 s apart, found no new signal: one look may span a time of being stopped. */
static void check_silence(const char *name, u64 count, u64 *last_count, u64 *last_time, unsigned *looks)
{
	const u64 now = monotonic();
	if (count != *last_count) {
		*last_count = count;
		*last_time = now;
		*looks = 0;
	} else if (now - *last_time > 300000000) {
		*last_time = now;
		if (++*looks == 3)
			fail(TIMER_SILENT, count, "%s: no signal in three looks, 0.3 s apart, after %llu", name, (unsigned long long)count);
	}
}

static void check_timers(void)
{
	static u64 counts[2], times[2];
	static unsigned looks[2];
	struct itimerval alarm_now = {0}, virtual_now = {0};
	struct itimerspec tick_now = {0}, idle_now = {0};
	/* Less than a microsecond left shows as nothing left, and so does a timer whose signal is still on its way from another CPU. */
	const u64 start = monotonic();
	for (int tries = 0; alarm_now.it_value.tv_usec == 0 && (tries < 100 || monotonic() - start < 5000000); tries++)
		getitimer(ITIMER_REAL, &alarm_now);
	if (alarm_now.it_interval.tv_sec || alarm_now.it_interval.tv_usec != ALARM_US || alarm_now.it_value.tv_sec
	    || alarm_now.it_value.tv_usec == 0 || alarm_now.it_value.tv_usec > ALARM_US)
		fail(TIMER_SETTING, (u64)alarm_now.it_interval.tv_usec, "ITIMER_REAL: %ld us left, every %ld us",
		     (long)alarm_now.it_value.tv_usec, (long)alarm_now.it_interval.tv_usec);
	getitimer(ITIMER_VIRTUAL, &virtual_now);
	if (virtual_now.it_interval.tv_sec != 3600 || virtual_now.it_value.tv_sec < 1)
		fail(TIMER_SETTING, (u64)virtual_now.it_value.tv_sec, "ITIMER_VIRTUAL: %ld s left, every %ld s",
		     (long)virtual_now.it_value.tv_sec, (long)virtual_now.it_interval.tv_sec);
	check_silence("ITIMER_REAL", alarms, &counts[0], &times[0], &looks[0]);
	if (!has_tick)
		return;
	if (timer_gettime(tick_timer, &tick_now) || tick_now.it_interval.tv_nsec != TICK_NS
	    || (tick_now.it_value.tv_sec == 0 && tick_now.it_value.tv_nsec == 0) || tick_now.it_value.tv_sec)
		fail(TIMER_SETTING, (u64)tick_now.it_interval.tv_nsec, "POSIX timer: %ld ns left, every %ld ns",
		     (long)tick_now.it_value.tv_nsec, (long)tick_now.it_interval.tv_nsec);
	if (timer_gettime(idle_timer, &idle_now) || idle_now.it_interval.tv_sec != 1000 || idle_now.it_interval.tv_nsec != 7
	    || idle_now.it_value.tv_sec > 100000 || idle_now.it_value.tv_sec < 1000)
		fail(TIMER_SETTING, (u64)idle_now.it_value.tv_sec, "POSIX timer that never fires: %ld s left, every %ld s %ld ns",
		     (long)idle_now.it_value.tv_sec, (long)idle_now.it_interval.tv_sec, (long)idle_now.it_interval.tv_nsec);
	check_silence("POSIX timer", ticks, &counts[1], &times[1], &looks[1]);
}

/* ------------------------------------------------------------------------------------------------ set-up and checks */

void signals_init_process(void)
{
	/* Blocked from the very beginning; every thread and child is made with these blocked. */
	set_signal_mask(BIT(SIGALRM) | BIT(SIG_TICK) | BIT(SIG_QUEUED) | BIT(SIG_ORDER) | BIT(SIG_THREAD) | BIT(SIG_NEVER)
			| BIT(SIG_PAUSE) | BIT(SIGUSR2));
	set_actions(0);
	order_value = 100;
	queue_all();
}

void signals_init_child(unsigned number)
{
	/* Pending signals and timers are not inherited. */
	set_actions(number + 1);
	alarms = ticks = 0;
	has_tick = false;
	order_value = 1000 * (number + 1);
	queue_all();
}

/* The mask: what is common, and by the thread's number a pattern of others. Only the first thread takes the timers' signals. */
void signals_init_thread(void)
{
	const bool takes_timers = self->tid == self->pid;
	const u64 pattern = (self->index * 37 & 0xff) * BIT(51);
	u64 mask = BIT(SIG_QUEUED) | BIT(SIG_ORDER) | BIT(SIG_THREAD) | BIT(SIG_NEVER) | BIT(SIG_PAUSE) | BIT(SIGUSR2) | pattern;
	if (self->index % 2)
		mask |= BIT(SIGTTIN) | BIT(SIGPIPE);
	if (!takes_timers)
		mask |= BIT(SIGALRM) | BIT(SIG_TICK);
	self->altstack.ss_size = 64 * 1024;
	self->altstack.ss_sp = mmap(NULL, self->altstack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (self->altstack.ss_sp == MAP_FAILED || sigaltstack(&self->altstack, NULL))
		die("sigaltstack");
	if (takes_timers) {
		start_timers(self->first_process);
		muted = 0;
	}
	queue_to_thread();
	set_signal_mask(mask);
	self->mask = signal_mask();
}

void signals_check_thread(void)
{
	stack_t stack;
	const u64 mask = signal_mask();
	if (mask != self->mask)
		fail(SIG_MASK, mask, "signal mask should be %#llx, is %#llx", (unsigned long long)self->mask, (unsigned long long)mask);
	sigaltstack(NULL, &stack);
	if (stack.ss_sp != self->altstack.ss_sp || stack.ss_size != self->altstack.ss_size || stack.ss_flags != self->altstack.ss_flags)
		fail(SIG_ALTSTACK, (u64)(unsigned long)stack.ss_sp, "alternate stack should be at %p, is at %p, flags %#x", self->altstack.ss_sp,
		     stack.ss_sp, (unsigned)stack.ss_flags);
	check_pending();
}

void signals_check_process(void)
{
	check_actions();
	check_timers();
	if (self->round % 32 != 7)
		return;
	/* None of this is pending for a moment; other threads know that. */
	take(SIG_QUEUED, SI_QUEUE, 0xbeef);
	take(SIG_ORDER, SI_QUEUE, order_value);
	take(SIG_ORDER, SI_QUEUE, order_value + 1);
	take(SIGUSR2, SI_USER, 0);
	order_value = (order_value + 2) & 0xffff;
	queue_all();
}

/* Timers' signals would end a blocking call of the first thread; other threads have them blocked anyway. */
void quiet_begin(void)
{
	if (self->tid == self->pid && muted++ == 0)
		set_signal_mask(self->mask | BIT(SIGALRM) | BIT(SIG_TICK));
}

void quiet_end(void)
{
	if (self->tid == self->pid && --muted == 0)
		set_signal_mask(self->mask);
}
