/*
 * torture: a program that checks all of its own state all of the time and says so in a heartbeat file (see torture.h).
 *
 *   torture --threads N --heartbeat FILE [--children K] [--mode mixed|running|blocked]
 *           [--sysv] [--sockets] [--stopped] [--no-forks] [--ignore CODE]...
 *   torture --components       prints the parts of the vector state that are checked: "GROUP OFFSET SIZE"
 *
 * It knows nothing of checkpoints: whatever happens to it from outside must not show. What is checked, and where:
 *
 * torture_regs_x86.h  every general register, held over a long loop of user code and over system calls (SYSCALL; INT 0x80 and
 *                     SYSENTER on 32 bit); stack pointer; red zone (64 bit); flags with DF; x87 stack, control, status and tag word;
 *                     MXCSR; XMM, YMM, ZMM 0-31, k0-k7, PKRU as far as the processor has them; selectors; FS and GS base (64 bit);
 *                     a TLS entry of the GDT of its own in %fs (32 bit)
 * torture.c           thread-local variables, words on the stack
 * torture_memory.c    malloc heap, brk heap, data segment, private anonymous memory with PROT_NONE holes, read-only memory, a sparse
 *                     mapping (zero where never written), a growing MAP_GROWSDOWN mapping, a private file mapping half dirtied, MAP_SHARED
 *                     anonymous memory, shared file mapping, memfd (all three shared by all processes), a locked page, a
 *                     PROT_NONE reservation of 1 TiB (64 bit; 512 MiB on 32 bit), layout and protection of each; after a fork
 *                     parent and children go on with their own diverging copies
 * torture_signals.c   mask of each thread; all 64 dispositions with flags and masks; alternate stack of each thread; pending
 *                     signals that stay pending with their siginfo: a standard one, a queued one with a value, a pair in order, and
 *                     one for each thread; nothing else pending; no handler that should not run; ITIMER_REAL and a POSIX timer keep
 *                     coming with their interval (handlers on the normal and on the alternate stack, which check registers themselves);
 *                     ITIMER_VIRTUAL, and timers that never fire, stay set
 * torture_files.c     file position with and without O_APPEND, a position shared with the children, descriptor flags and status flags,
 *                     the set of open descriptors, a pipe with content and a size of its own, eventfd (counter and semaphore), a deleted
 *                     file, O_PATH, directory (and openat by it), /dev/null, current directory, umask
 * torture_process.c   pid, tid, parent (of children), group, session; names; nice value, scheduling policy; credentials; pdeath signal,
 *                     subreaper, no_new_privs, timer slack, dumpable; all limits; personality; oom_score_adj; affinity; arguments,
 *                     environment, auxiliary vector; robust list; rseq alive; children alive, a zombie unreaped with its status, a
 *                     stopped child (--stopped), no other child; CLOCK_MONOTONIC and CLOCK_BOOTTIME never run backwards, vdso and
 *                     system call agree
 * torture_waits.c     threads in nanosleep, clock_nanosleep relative and absolute, poll, ppoll, select, pselect6, futex wait (relative,
 *                     absolute, without end), epoll_wait, sigtimedwait, read of a pipe, pause, sigsuspend, wait4, pthread_join, (--sysv)
 *                     semtimedop, semop and msgrcv, (--sockets) recv with a time limit: the result must be what it would be alone (no EINTR, never
 *                     shorter than asked), and all registers must outlive the call
 *
 * Not compared: the parent of the first process (a restart gives it another) and process CPU time.
 *
 * When the word `end` of the heartbeat file is set, it joins and reaps all and exits, with 0 if there was no error.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "torture.h"

_Thread_local struct task *self;
_Thread_local u64 tls_words[8];
struct options options = {.threads = 1, .children = 2, .forks = true};
struct shared *shared;

static struct header *header;
static struct slot *slots;
static struct task *tasks;
static unsigned slot_count;

/* ------------------------------------------------------------------------------------------------ small things */

u64 next_random(void)
{
	self->random ^= self->random << 13;
	self->random ^= self->random >> 7;
	self->random ^= self->random << 17;
	return self->random;
}

u64 monotonic(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

bool stopping(void)
{
	return shared->stop >= (self->first_process ? 1u : 2u);
}

/* A killed owner leaves a robust lock behind: EOWNERDEAD. Nobody may ever be killed here, so that is an error as well. */
void lock_shared(void)
{
	int error = pthread_mutex_lock(&shared->lock);
	if (error == EOWNERDEAD)
		pthread_mutex_consistent(&shared->lock);
	if (error)
		fail(PROC_ROBUST, (u64)error, "locking the shared mutex: %s", strerror(error));
}

void unlock_shared(void)
{
	int error = pthread_mutex_unlock(&shared->lock);
	if (error)
		fail(PROC_ROBUST, (u64)error, "unlocking the shared mutex: %s", strerror(error));
}

void check_registers(unsigned loops)
{
	struct regs_change change;
	const long none[6] = {0x11, 0x22, 0x33, 0x44, 0x55, 0x66};
	regs_shuffle(&self->regs);
	change = regs_hold(&self->regs, loops);
	report_registers(&change);
	long pid = regs_call(&self->regs, SYS_getpid, none, &change);
	report_registers(&change);
	if (pid != self->pid)
		fail(REG_RESULT, (u64)pid, "getpid() should be %d, is %ld", self->pid, pid);
}

static void check_tls(void)
{
	for (unsigned i = 0; i < 8; i++)
		if (tls_words[i] != self->seed + i)
			fail(TLS_WORD, tls_words[i], "thread-local word %u should be %#llx, is %#llx", i,
			     (unsigned long long)(self->seed + i), (unsigned long long)tls_words[i]);
}

/* ------------------------------------------------------------------------------------------------ rounds */

/* A sleep whose result is checked like every other wait. */
void sleep_ns(u64 ns)
{
	struct timespec asked = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
	long result = held_call(SYS_nanosleep, (long)&asked, 0, 0, 0, 0, 0);
	if (result)
		fail(result == -EINTR ? WAIT_EINTR : WAIT_RESULT, (u64)result, "nanosleep between rounds gave %ld", result);
}

static void pause_between_rounds(u64 mixed_us)
{
	if (options.mode == RUNNING)
		return;
	if (options.mode == BLOCKED && mixed_us < 10000)
		mixed_us = 10000;
	quiet_begin();
	sleep_ns(mixed_us * 1000);
	quiet_end();
}

static unsigned loops(void)
{
	/* A loop instruction takes about 2 ns: 40 us to 0.4 ms. */
	return options.mode == RUNNING ? 1000000 : 20000 + (unsigned)(next_random() % 180000);
}

/* What every task does in every round. */
static void common_round(unsigned length)
{
	volatile u64 words[64];
	const u64 base = next_random();
	for (unsigned i = 0; i < 64; i++)
		words[i] = base + i;
	check_registers(length);
	struct regs_change change = regs_bases_check(&self->regs);
	report_registers(&change);
	check_tls();
	signals_check_thread();
	process_check_task();
	for (unsigned i = 0; i < 64; i++)
		if (words[i] != base + i)
			fail(STACK_WORD, words[i], "word %u on the stack should be %#llx, is %#llx", i, (unsigned long long)(base + i),
			     (unsigned long long)words[i]);
	self->round++;
}

static void beat(void)
{
	self->slot->count++;
}

static void become(struct task *task)
{
	self = task;
	task->pid = getpid();
	task->tid = (pid_t)syscall(SYS_gettid);
	task->slot->tid = (u64)task->tid;
	task->slot->pid = (u32)task->pid;
	for (unsigned i = 0; i < 8; i++)
		tls_words[i] = task->seed + i;
	regs_bases_set(&task->regs);
	signals_init_thread();
	process_init_task();
}

/* ------------------------------------------------------------------------------------------------ threads */

static unsigned waiter_count(void)
{
	const unsigned workers = options.threads - 1;
	if (workers == 0)
		return 0;
	const unsigned most = workers > 4 ? workers - 2 : workers; /* two are left for the registers alone */
	return most < waits_kinds() ? most : waits_kinds();
}

static void wait_for_all(void)
{
	while (!header->ready)
		syscall(SYS_futex, &header->ready, FUTEX_WAIT, 0, NULL, NULL, 0);
}

/* The waits of worker number `index` are kinds index-1, index-1+waiters, ...: each kind belongs to one thread only. */
static void *worker(void *argument)
{
	struct task *task = argument;
	const unsigned waiters = waiter_count();
	become(task);
	__atomic_add_fetch(&shared->ready_threads, 1, __ATOMIC_SEQ_CST);
	wait_for_all();
	for (u64 turn = 0; !stopping(); turn++) {
		if (task->index <= waiters) {
			const unsigned mine = (waits_kinds() - task->index) / waiters + 1;
			common_round(options.mode == RUNNING ? loops() : 5000);
			if (options.mode != RUNNING || turn % 16 == 0)
				waits_run(task->index - 1 + (unsigned)(turn % mine) * waiters);
		} else if (task->index <= waiters + 2) {
			common_round(loops());
			pause_between_rounds(1000);
		} else { /* one of many: next to no load */
			common_round(3000);
			sleep_ns(30000000 + next_random() % 30000000);
		}
		beat();
	}
	return NULL;
}

static void first_thread(void)
{
	for (u64 turn = 0; !*(volatile u32 *)&header->end; turn++) {
		common_round(loops());
		signals_check_process();
		memory_check();
		files_check();
		process_check_process();
		if (turn % 256 == 255)
			memory_check_layout();
		if (options.threads == 1 && (options.mode != RUNNING || turn % 16 == 0)) {
			quiet_begin();
			waits_run((unsigned)(turn % waits_kinds()));
			quiet_end();
		}
		pause_between_rounds(2000);
		beat();
	}
}

/* ------------------------------------------------------------------------------------------------ children */

static unsigned child_number(const struct task *task)
{
	return task->index - options.threads;
}

static void child_loop(void)
{
	while (!stopping()) {
		common_round(options.mode == RUNNING ? 400000 : 20000);
		signals_check_process();
		memory_check();
		files_check_child();
		process_check_process();
		if (child_number(self) == 0)
			waits_partner_step();
		else if (child_number(self) == 1 && options.forks)
			waits_forker_step();
		else
			pause_between_rounds(5000);
		beat();
	}
	_exit(self->slot->errors ? 1 : 0);
}

/* Nobody is left over when the first process is killed. */
static void die_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it died before */
		_exit(3);
}

static void child(struct task *task, struct task *own_child) __attribute__((noreturn));
static void child(struct task *task, struct task *own_child)
{
	const pid_t own_pid = getpid();
	const unsigned number = child_number(task);
	task->first_process = false;
	self = task;
	if (number == 0)
		setpgid(0, 0);
	if (number == 1)
		setsid();
	signals_init_child(number);
	memset(child_pids, 0, sizeof child_pids);
	zombie_pid = stopped_pid = 0;
	if (own_child) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			die_with(own_pid);
			child(own_child, NULL);
		}
		child_pids[0] = pid;
	}
	become(task);
	signals_baseline();
	files_baseline();
	memory_baseline();
	__atomic_add_fetch(&shared->ready_children, 1, __ATOMIC_SEQ_CST);
	wait_for_all();
	child_loop();
	__builtin_unreachable();
}

static void start_children(void)
{
	const pid_t own_pid = getpid();
	for (unsigned i = 0; i < options.children; i++) {
		struct task *task = &tasks[options.threads + i];
		struct task *own_child = i == 1 ? &tasks[options.threads + options.children] : NULL;
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			die_with(own_pid);
			child(task, own_child);
		}
		child_pids[i] = pid;
	}
	if (options.stopped) {
		struct task *task = &tasks[slot_count - 1];
		stopped_pid = fork();
		if (stopped_pid == 0) {
			die_with(own_pid);
			self = task;
			task->slot->tid = task->slot->pid = (u32)(task->pid = task->tid = getpid());
			for (;;) {
				raise(SIGSTOP);
				task->slot->count++;
				fail(PROC_STOPPED, task->slot->count, "a stopped child went on");
			}
		}
		task->slot->flags = FLAG_SILENT;
	}
	if (options.children) {
		zombie_pid = fork();
		if (zombie_pid == 0)
			_exit(42);
		siginfo_t info; /* its SIGCHLD comes now, and not to a thread that is waiting for something else */
		waitid(P_PID, (id_t)zombie_pid, &info, WEXITED | WNOWAIT);
	}
}

static void set_role(struct task *task, const char *role)
{
	for (unsigned i = 0; i < sizeof task->slot->role - 1 && role[i]; i++)
		task->slot->role[i] = role[i];
}

static void name_roles(void)
{
	static const char *const children[] = {"partner", "session"};
	char text[40];
	const unsigned waiters = waiter_count();
	for (unsigned i = 0; i < slot_count; i++) {
		struct task *task = &tasks[i];
		if (i == 0)
			snprintf(text, sizeof text, "main");
		else if (i < options.threads && i <= waiters && i + waiters > waits_kinds())
			snprintf(text, sizeof text, "%s", waits_name(i - 1));
		else if (i < options.threads)
			snprintf(text, sizeof text, "%s-%u", i <= waiters ? "waits" : i <= waiters + 2 ? "regs" : "light", i);
		else if (i < options.threads + options.children)
			snprintf(text, sizeof text, "%s-%u", i - options.threads < 2 ? children[i - options.threads] : "child", i);
		else
			snprintf(text, sizeof text, "%s", options.stopped && i == slot_count - 1 ? "stopped" : "grandchild");
		set_role(task, text);
	}
}

/* ------------------------------------------------------------------------------------------------ start and end */

static void map_heartbeat(void)
{
	slot_count = options.threads + options.children + (options.children > 1) + options.stopped;
	const size_t size = sizeof *header + slot_count * sizeof *slots;
	int fd = open(options.heartbeat, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size))
		die(options.heartbeat);
	header = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (header == MAP_FAILED)
		die("mmap of the heartbeat file");
	close(fd);
	slots = (struct slot *)(header + 1);
	memcpy(header->magic, "TORTURE1", 8);
	header->slot_size = sizeof *slots;
	header->slots = slot_count;
	header->bits = 8 * sizeof(long);
	header->pid = (u32)getpid();
	header->threads = options.threads;
	header->children = options.children;

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	tasks = calloc(slot_count, sizeof *tasks);
	if (shared == MAP_FAILED || !tasks)
		die("memory");
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&shared->lock, &attributes);
	for (unsigned i = 0; i < slot_count; i++) {
		struct task *task = &tasks[i];
		task->slot = &slots[i];
		task->index = i;
		task->first_process = true;
		task->seed = task->random = 0x9e3779b97f4a7c15ull * (i + 1);
		regs_create(&task->regs, task->seed);
		regs_create(&task->handler_regs, task->seed + 1);
	}
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{"threads", 1, NULL, 't'}, {"heartbeat", 1, NULL, 'h'}, {"children", 1, NULL, 'c'},
		{"mode", 1, NULL, 'm'},	   {"sysv", 0, NULL, 'v'},	{"sockets", 0, NULL, 'k'},  {"stopped", 0, NULL, 'p'},
		{"no-forks", 0, NULL, 'f'}, {"components", 0, NULL, 'x'}, {"ignore", 1, NULL, 'i'},
		{NULL, 0, NULL, 0}};
	static struct regs regs;
	static char path[PATH_MAX];
	int option;
	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 't': options.threads = (unsigned)atoi(optarg); break;
		case 'h': options.heartbeat = optarg; break;
		case 'c': options.children = (unsigned)atoi(optarg); break;
		case 'm': options.mode = *optarg == 'r' ? RUNNING : *optarg == 'b' ? BLOCKED : MIXED; break;
		case 'v': options.sysv = true; break;
		case 'k': options.sockets = true; break;
		case 'p': options.stopped = true; break;
		case 'f': options.forks = false; break;
		case 'i': report_ignore(optarg); break;
		case 'x':
			regs_create(&regs, 1);
			regs_describe(&regs);
			exit(0);
		default: exit(2);
		}
	if (!options.heartbeat || options.threads < 1 || options.threads > 4000 || options.children > 60) {
		dprintf(2, "usage: torture --threads N --heartbeat FILE [--children K] ...\n");
		exit(2);
	}
	if (*options.heartbeat == '/') {
		snprintf(path, sizeof path, "%s", options.heartbeat);
	} else {
		char here[PATH_MAX / 2];
		if (!getcwd(here, sizeof here))
			die("getcwd");
		snprintf(path, sizeof path, "%s/%.*s", here, PATH_MAX / 2 - 2, options.heartbeat);
	}
	options.heartbeat = path;
	report_init(path);
}

static int finish(pthread_t *threads)
{
	u64 errors = 0;
	shared->stop = 1; /* the threads first: some of them wait for an answer of a child */
	for (unsigned i = 1; i < options.threads; i++)
		if (pthread_join(threads[i], NULL))
			fail(END_THREAD, i, "thread %u cannot be joined", i);
	shared->stop = 2;
	for (unsigned i = 0; i < options.children; i++) {
		int status = 0;
		pid_t pid;
		do
			pid = waitpid(child_pids[i], &status, 0);
		while (pid < 0 && errno == EINTR);
		if (pid != child_pids[i] || status)
			fail(END_CHILD, (u64)status, "child %u ended with status %#x", i, status);
	}
	if (stopped_pid)
		kill(stopped_pid, SIGKILL);
	waits_finish();
	for (unsigned i = 0; i < slot_count; i++)
		errors += slots[i].errors;
	return errors ? 1 : 0;
}

static void *nothing(void *argument)
{
	return argument;
}

/* The C library installs a signal handler of its own when the first thread is made: before dispositions are compared. */
static void first_use_of_threads(void)
{
	pthread_t thread;
	if ((errno = pthread_create(&thread, NULL, nothing, NULL)) || (errno = pthread_join(thread, NULL)))
		die("pthread_create");
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	map_heartbeat();
	self = &tasks[0];
	signals_init_process();
	memory_init();
	files_init();
	waits_init();
	name_roles();
	first_use_of_threads();
	start_children(); /* before there are threads: each child is a copy of this one */
	become(&tasks[0]);
	quiet_begin(); /* threads begin with the mask of their maker */

	pthread_t *threads = calloc(options.threads, sizeof *threads);
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 192 * 1024);
	for (unsigned i = 1; i < options.threads; i++)
		if ((errno = pthread_create(&threads[i], &attributes, worker, &tasks[i])))
			die("pthread_create");
	const unsigned grandchildren = options.children > 1;
	while (shared->ready_threads < options.threads - 1 || shared->ready_children < options.children + grandchildren)
		usleep(1000);
	quiet_end();
	process_baseline();
	memory_baseline();
	files_baseline();
	signals_baseline();
	header->ready = 1;
	syscall(SYS_futex, &header->ready, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	first_thread();
	return finish(threads);
}
