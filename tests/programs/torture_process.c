/*
 * torture: what a task is to others and to itself: numbers, names, rights, limits, relatives, clocks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "torture.h"

#if defined(__has_include) && __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif

extern char **environ;

pid_t child_pids[64], zombie_pid, stopped_pid;

static const struct { int option; const char *name; } by_value[] = {
	{PR_GET_DUMPABLE, "dumpable"},	 {PR_GET_KEEPCAPS, "keepcaps"},		  {PR_GET_SECUREBITS, "securebits"},
	{PR_GET_TIMERSLACK, "timer slack"}, {PR_GET_NO_NEW_PRIVS, "no_new_privs"}, {PR_GET_THP_DISABLE, "THP disable"},
};
enum { BY_VALUE = sizeof by_value / sizeof *by_value };

/* What must stay as it was, of one task. Children are single-threaded: one set is enough for them and for the first thread. */
static struct {
	int values[BY_VALUE], death_signal, subreaper, niceness, policy, persona, oom;
	struct rlimit limits[RLIM_NLIMITS];
	uid_t uids[3];
	gid_t gids[3];
	char auxv[1024], arguments[4096], environment[16384];
	ssize_t auxv_size, arguments_size, environment_size;
	u64 pointed; /* checksum of argv and environ read through their pointers */
} was;
static unsigned extra_looks;

static ssize_t read_file(const char *path, char *text, size_t size)
{
	size_t used = 0;
	ssize_t got = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && used < size - 1 && (got = read(fd, text + used, size - 1 - used)) > 0)
		used += (size_t)got;
	if (fd >= 0)
		close(fd);
	text[used] = 0;
	return fd < 0 ? -1 : (ssize_t)used;
}

static u64 environment_sum(void)
{
	u64 sum = 1469598103934665603ull;
	for (char **string = environ; *string; string++)
		for (const char *c = *string; *c; c++)
			sum = (sum ^ (unsigned char)*c) * 1099511628211ull;
	return sum;
}

static int oom_score_adj(void)
{
	char text[32];
	return read_file("/proc/self/oom_score_adj", text, sizeof text) > 0 ? atoi(text) : -9999;
}

/* ------------------------------------------------------------------------------------------------ every task */

/* Runs in the task itself. Each kind of task gets attributes of its own, as far as a user without rights may set them. */
void process_init_task(void)
{
	const bool thread_of_first = self->first_process && self->tid != self->pid;
	const bool child = !self->first_process;
	struct sched_param none = {0};
	snprintf(self->name, sizeof self->name, "T%u %.9s", self->index, self->slot->role);
	prctl(PR_SET_NAME, self->name);
	prctl(PR_SET_TIMERSLACK, 50000 + 1000 * (self->index % 7));
	if (child) {
		if (self->index % 2)
			setpriority(PRIO_PROCESS, 0, 5);
		else
			sched_setscheduler(0, SCHED_BATCH, &none);
		if (self->index % 2)
			prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		else
			personality((unsigned)personality(0xffffffff) | ADDR_NO_RANDOMIZE | SHORT_INODE);
		struct rlimit limit;
		getrlimit(RLIMIT_NOFILE, &limit);
		limit.rlim_cur = limit.rlim_max < 2000 ? limit.rlim_max : 1500 + self->index;
		setrlimit(RLIMIT_NOFILE, &limit);
	} else if (!thread_of_first) {
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		const struct rlimit core = {0, 0};
		setrlimit(RLIMIT_CORE, &core);
	}
	if (self->index % 3 == 2) { /* on one of its CPUs only */
		cpu_set_t allowed;
		sched_getaffinity(0, sizeof allowed, &allowed);
		for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &allowed)) {
				CPU_ZERO(&allowed);
				CPU_SET(cpu, &allowed);
				break;
			}
		sched_setaffinity(0, sizeof allowed, &allowed);
	}
	if (thread_of_first && self->index % 5 == 4)
		setpriority(PRIO_PROCESS, 0, 1); /* of this thread alone */
	errno = 0;
	self->niceness = getpriority(PRIO_PROCESS, 0);
	memset(self->affinity, 0, sizeof self->affinity);
	syscall(SYS_sched_getaffinity, 0, sizeof self->affinity, self->affinity);
	self->ppid = getppid();
	self->pgid = getpgid(0);
	self->sid = getsid(0);
	size_t size;
	syscall(SYS_get_robust_list, 0, &self->robust_head, &size);
	if (child)
		process_baseline();
}

static void check_number(const char *what, pid_t now, pid_t before)
{
	if (now != before)
		fail(PROC_ID, (u64)now, "%s should be %d, is %d", what, before, now);
}

static void check_clocks(void)
{
	struct timespec vdso, kernel, again, boot;
	clock_gettime(CLOCK_MONOTONIC, &vdso);
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel);
	clock_gettime(CLOCK_MONOTONIC, &again);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	const u64 a = (u64)vdso.tv_sec * 1000000000u + (u64)vdso.tv_nsec, b = (u64)kernel.tv_sec * 1000000000u + (u64)kernel.tv_nsec,
		  c = (u64)again.tv_sec * 1000000000u + (u64)again.tv_nsec, d = (u64)boot.tv_sec * 1000000000u + (u64)boot.tv_nsec;
	if (a < self->last_monotonic)
		fail(CLOCK_BACKWARDS, self->last_monotonic - a, "CLOCK_MONOTONIC ran backwards by %llu ns",
		     (unsigned long long)(self->last_monotonic - a));
	if (d < self->last_boottime)
		fail(CLOCK_BACKWARDS, self->last_boottime - d, "CLOCK_BOOTTIME ran backwards by %llu ns",
		     (unsigned long long)(self->last_boottime - d));
	if (b < a || c < b)
		fail(CLOCK_VDSO, b - a, "vdso says %llu, then the kernel %llu, then the vdso %llu", (unsigned long long)a,
		     (unsigned long long)b, (unsigned long long)c);
	self->last_monotonic = c;
	self->last_boottime = d;
}

/* The C library's getcpu reads the rseq area; if that is no longer registered it shows an old CPU for ever. */
static void check_rseq(void)
{
	unsigned kernel = 0;
	int rseq = -1;
	for (int i = 0; i < 20; i++) {
		rseq = sched_getcpu();
		syscall(SYS_getcpu, &kernel, NULL, NULL);
		if (rseq == (int)kernel)
			return;
	}
	fail(PROC_RSEQ, kernel, "rseq says CPU %d, the kernel %u", rseq, kernel);
}

void process_check_task(void)
{
	char name[16] = "";
	u64 affinity[16] = {0};
	void *robust = NULL;
	size_t size;
	check_number("pid", getpid(), self->pid);
	check_number("tid", (pid_t)syscall(SYS_gettid), self->tid);
	if (!self->first_process) /* a restart gives the first process another parent */
		check_number("parent", getppid(), self->ppid);
	check_number("process group", getpgid(0), self->pgid);
	check_number("session", getsid(0), self->sid);
	prctl(PR_GET_NAME, name);
	if (strncmp(name, self->name, sizeof name - 1))
		fail(PROC_NAME, 0, "name should be \"%s\", is \"%.16s\"", self->name, name);
	const int niceness = getpriority(PRIO_PROCESS, 0);
	if (niceness != self->niceness)
		fail(PROC_PRIORITY, (u64)niceness, "nice value should be %d, is %d", self->niceness, niceness);
	syscall(SYS_sched_getaffinity, 0, sizeof affinity, affinity);
	if (memcmp(affinity, self->affinity, sizeof affinity))
		fail(PROC_AFFINITY, affinity[0], "affinity should be %#llx, is %#llx", (unsigned long long)self->affinity[0],
		     (unsigned long long)affinity[0]);
	syscall(SYS_get_robust_list, 0, &robust, &size);
	if (robust != self->robust_head)
		fail(PROC_ROBUST, (u64)(unsigned long)robust, "robust list should be at %p, is at %p", self->robust_head, robust);
	const int slack = prctl(PR_GET_TIMERSLACK);
	if (slack != 50000 + 1000 * ((int)self->index % 7))
		fail(PROC_PRCTL, (u64)slack, "timer slack is %d", slack);
	check_clocks();
	check_rseq();
}

/* ------------------------------------------------------------------------------------------------ a process */

void process_baseline(void)
{
	siginfo_t info;
	if (stopped_pid) /* before anything is compared */
		waitid(P_PID, (id_t)stopped_pid, &info, WSTOPPED | WNOWAIT);
	for (int i = 0; i < BY_VALUE; i++)
		was.values[i] = prctl(by_value[i].option, 0, 0, 0, 0);
	prctl(PR_GET_PDEATHSIG, &was.death_signal);
	prctl(PR_GET_CHILD_SUBREAPER, &was.subreaper);
	was.policy = sched_getscheduler(0);
	was.persona = personality(0xffffffff);
	was.oom = oom_score_adj();
	for (int i = 0; i < RLIM_NLIMITS; i++)
		getrlimit((enum __rlimit_resource)i, &was.limits[i]);
	getresuid(&was.uids[0], &was.uids[1], &was.uids[2]);
	getresgid(&was.gids[0], &was.gids[1], &was.gids[2]);
	was.auxv_size = read_file("/proc/self/auxv", was.auxv, sizeof was.auxv);
	was.arguments_size = read_file("/proc/self/cmdline", was.arguments, sizeof was.arguments);
	was.environment_size = read_file("/proc/self/environ", was.environment, sizeof was.environment);
	was.pointed = environment_sum();
}

static void check_attributes(void)
{
	int value = 0;
	for (int i = 0; i < BY_VALUE; i++)
		if ((value = prctl(by_value[i].option, 0, 0, 0, 0)) != was.values[i])
			fail(PROC_PRCTL, (u64)value, "%s should be %d, is %d", by_value[i].name, was.values[i], value);
	prctl(PR_GET_PDEATHSIG, &value);
	if (value != was.death_signal)
		fail(PROC_PRCTL, (u64)value, "death signal should be %d, is %d", was.death_signal, value);
	prctl(PR_GET_CHILD_SUBREAPER, &value);
	if (value != was.subreaper)
		fail(PROC_PRCTL, (u64)value, "child subreaper should be %d, is %d", was.subreaper, value);
	if ((value = sched_getscheduler(0)) != was.policy)
		fail(PROC_PRIORITY, (u64)value, "scheduling policy should be %d, is %d", was.policy, value);
	if ((value = personality(0xffffffff)) != was.persona)
		fail(PROC_PERSONALITY, (u64)value, "personality should be %#x, is %#x", (unsigned)was.persona, (unsigned)value);
	if ((value = oom_score_adj()) != was.oom)
		fail(PROC_OOM, (u64)value, "oom_score_adj should be %d, is %d", was.oom, value);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit limit = {0, 0};
		getrlimit((enum __rlimit_resource)i, &limit);
		if (limit.rlim_cur != was.limits[i].rlim_cur || limit.rlim_max != was.limits[i].rlim_max)
			fail(PROC_LIMIT, (u64)i, "limit %d should be %llu/%llu, is %llu/%llu", i, (unsigned long long)was.limits[i].rlim_cur,
			     (unsigned long long)was.limits[i].rlim_max, (unsigned long long)limit.rlim_cur,
			     (unsigned long long)limit.rlim_max);
	}
	uid_t uids[3];
	gid_t gids[3];
	getresuid(&uids[0], &uids[1], &uids[2]);
	getresgid(&gids[0], &gids[1], &gids[2]);
	if (memcmp(uids, was.uids, sizeof uids) || memcmp(gids, was.gids, sizeof gids))
		fail(PROC_CREDENTIALS, uids[1], "uids should be %u %u %u, are %u %u %u", was.uids[0], was.uids[1], was.uids[2], uids[0], uids[1],
		     uids[2]);
}

static void check_start_values(void)
{
	static char text[16384];
	if (read_file("/proc/self/auxv", text, sizeof was.auxv) != was.auxv_size || memcmp(text, was.auxv, (size_t)was.auxv_size))
		fail(PROC_AUXV, 0, "/proc/self/auxv differs");
	if (getauxval(AT_PAGESZ) != (unsigned long)sysconf(_SC_PAGESIZE) || !getauxval(AT_SYSINFO_EHDR)
	    || memcmp((const void *)getauxval(AT_SYSINFO_EHDR), "\177ELF", 4))
		fail(PROC_AUXV, getauxval(AT_SYSINFO_EHDR), "no vdso at %#lx", getauxval(AT_SYSINFO_EHDR));
	if (read_file("/proc/self/cmdline", text, sizeof was.arguments) != was.arguments_size
	    || memcmp(text, was.arguments, (size_t)was.arguments_size))
		fail(PROC_ARGUMENTS, 0, "/proc/self/cmdline differs");
	if (read_file("/proc/self/environ", text, sizeof was.environment) != was.environment_size
	    || memcmp(text, was.environment, (size_t)was.environment_size))
		fail(PROC_ARGUMENTS, 0, "/proc/self/environ differs");
	if (environment_sum() != was.pointed)
		fail(PROC_ARGUMENTS, 0, "environment strings differ");
}

static bool is_own_child(pid_t pid)
{
	if (pid == zombie_pid || pid == stopped_pid)
		return true;
	for (unsigned i = 0; i < 64; i++)
		if (pid == child_pids[i])
			return true;
	return false;
}

static void check_relatives(void)
{
	siginfo_t info;
	char text[4096], path[64], *next = text;
	for (unsigned i = 0; i < 64; i++) {
		if (!child_pids[i])
			continue;
		memset(&info, 0, sizeof info);
		if ((waitid(P_PID, (id_t)child_pids[i], &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid) && !stopping())
			fail(PROC_CHILD_GONE, (u64)child_pids[i], "child %d has ended (code %d, status %d)", child_pids[i], info.si_code,
			     info.si_status);
	}
	if (zombie_pid) {
		memset(&info, 0, sizeof info);
		if (waitid(P_PID, (id_t)zombie_pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid != zombie_pid
		    || info.si_code != CLD_EXITED || info.si_status != 42)
			fail(PROC_ZOMBIE, (u64)info.si_status, "zombie %d: pid %d, code %d, status %d", zombie_pid, info.si_pid, info.si_code,
			     info.si_status);
	}
	if (stopped_pid) {
		memset(&info, 0, sizeof info);
		if (waitid(P_PID, (id_t)stopped_pid, &info, WSTOPPED | WNOHANG | WNOWAIT) || info.si_pid != stopped_pid
		    || info.si_status != SIGSTOP)
			fail(PROC_STOPPED, (u64)stopped_pid, "child %d is no longer stopped", stopped_pid);
	}
	/* Somebody else's child may be seen for a moment; in three rounds it is one too many. The forker's come and go. */
	snprintf(path, sizeof path, "/proc/self/task/%d/children", self->tid);
	if (read_file(path, text, sizeof text) < 0)
		return;
	for (;;) {
		char *end;
		const long pid = strtol(next, &end, 10);
		if (end == next) {
			extra_looks = 0;
			return;
		}
		if (!is_own_child((pid_t)pid)) {
			if (++extra_looks == 3)
				fail(PROC_CHILD_EXTRA, (u64)pid, "there is a child %ld that nobody made", pid);
			return;
		}
		next = end;
	}
}

void process_check_process(void)
{
	check_relatives();
	check_attributes();
	if (self->round % 32 == 11)
		check_start_values();
}
