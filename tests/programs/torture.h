/*
 * What the parts of the torture program share: the heartbeat file, the error codes, a task's own record.
 *
 * The heartbeat file (--heartbeat FILE) is read from outside while the program runs; all fields in the machine's own byte order:
 *
 *   header, 64 bytes:  char magic[8] = "TORTURE1"; u32 slot_size; u32 slots; u32 ready; u32 bits; u32 pid; u32 threads;
 *                      u32 children; u32 end; u32 reserved[6]
 *   slot i at 64 + i * slot_size, 64 bytes:
 *                      u64 count; u64 errors; u64 last_error_code; u64 detail; u64 tid; u32 pid; u32 flags; char role[16]
 *
 *   Python: struct.Struct("=8s8I24x") and struct.Struct("=5Q2I16s").
 *
 * `ready` becomes 1 when every task is set up. Written from outside, `end` makes the program come to its end. `count` grows with every finished round of checks. Slots 0..threads-1 are the
 * threads of the first process, then come the children. A slot with FLAG_SILENT never counts (a stopped child).
 * Every error is also one line of text in FILE.errors: "<code> <name> slot <i> <role> tid <tid>: <message>".
 */
#ifndef TORTURE_H
#define TORTURE_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "torture_regs.h"

struct header {
	char magic[8];
	u32 slot_size, slots, ready, bits, pid, threads, children, end, reserved[6];
};

enum { FLAG_SILENT = 1 };

struct slot {
	volatile u64 count, errors, last_error_code, detail;
	u64 tid;
	u32 pid, flags;
	char role[16];
};

_Static_assert(sizeof(struct header) == 64 && sizeof(struct slot) == 64, "the harness reads these from outside");

/* One line per kind of error: name, number. The number goes into the slot, the name into FILE.errors. */
#define CODES(X)                                                                                                                 \
	X(OK, 0)                                                                                                                 \
	X(REG_GENERAL, 100) X(REG_FLAGS, 101) X(REG_STACK, 102) X(REG_RED_ZONE, 103) X(REG_X87, 104) X(REG_SSE, 105)             \
	X(REG_AVX, 106) X(REG_OPMASK, 107) X(REG_ZMM_HIGH, 108) X(REG_ZMM_16_31, 109) X(REG_PKRU, 110) X(REG_SELECTOR, 111)      \
	X(REG_TLS_BASE, 112) X(REG_EXTRA_BASE, 113) X(REG_RESULT, 114)                                                           \
	X(TLS_WORD, 120) X(STACK_WORD, 121)                                                                                      \
	X(MEM_WORD, 200) X(MEM_LAYOUT, 201) X(MEM_LOCKED, 202) X(MEM_ZERO, 203)                                                  \
	X(SIG_MASK, 300) X(SIG_ACTION, 301) X(SIG_ALTSTACK, 302) X(SIG_PENDING_LOST, 303) X(SIG_PENDING_EXTRA, 304)              \
	X(SIG_INFO, 305) X(SIG_STRAY, 306) X(SIG_CRASH, 307) X(SIG_NOT_ON_ALTSTACK, 308)                                         \
	X(TIMER_SETTING, 320) X(TIMER_SILENT, 321)                                                                               \
	X(FILE_POSITION, 400) X(FILE_CONTENT, 401) X(FILE_FLAGS, 402) X(FILE_TABLE, 403) X(FILE_PIPE, 404) X(FILE_EVENTFD, 405)  \
	X(FILE_IDENTITY, 406) X(FILE_CWD, 407) X(FILE_UMASK, 408) X(FILE_CALL, 409)                                              \
	X(PROC_ID, 500) X(PROC_NAME, 501) X(PROC_CHILD_GONE, 502) X(PROC_ZOMBIE, 503) X(PROC_CHILD_EXTRA, 504)                   \
	X(PROC_PRIORITY, 505) X(PROC_PRCTL, 506) X(PROC_LIMIT, 507) X(PROC_PERSONALITY, 508) X(PROC_OOM, 509)                    \
	X(PROC_AFFINITY, 510) X(PROC_ARGUMENTS, 511) X(PROC_AUXV, 512) X(PROC_ROBUST, 513) X(PROC_RSEQ, 514)                     \
	X(PROC_CREDENTIALS, 515) X(PROC_STOPPED, 516)                                                                            \
	X(CLOCK_BACKWARDS, 520) X(CLOCK_VDSO, 521)                                                                               \
	X(WAIT_EINTR, 600) X(WAIT_RESULT, 601) X(WAIT_SHORT, 602) X(WAIT_REST, 603) X(WAIT_SEQUENCE, 604)                        \
	X(END_CHILD, 700) X(END_THREAD, 701)

#define X(name, number) name = number,
enum code { CODES(X) };
#undef X

/* One task: a thread or a single-threaded child. Everything in it was written before the rounds began. */
struct task {
	struct slot *slot;
	unsigned index;	       /* number of the slot */
	bool first_process;    /* false: a child */
	u64 seed, random, round;
	pid_t pid, ppid, tid, pgid, sid;
	u64 mask;	       /* the signal mask it must have outside of quiet sections, as the kernel numbers signals */
	stack_t altstack;
	char name[16];
	int niceness;
	void *robust_head;
	u64 affinity[16];
	u64 last_monotonic, last_boottime;
	u64 queued;	       /* value of the signal that is pending for this thread */
	struct regs regs;      /* patterns for the register checks */
	struct regs handler_regs; /* of the signal handler, which may come in the middle of the other */
	volatile u64 pauses;   /* signals that ended a pause() or sigsuspend() */
};

extern _Thread_local struct task *self;
extern _Thread_local u64 tls_words[8];

struct options {
	unsigned threads, children;
	const char *heartbeat; /* absolute */
	bool sysv, stopped, forks, sockets;
	enum { MIXED, RUNNING, BLOCKED } mode;
};
extern struct options options;

/* What the processes of the tree share (MAP_SHARED anonymous memory). */
struct shared {
	volatile u32 stop;
	volatile u32 ready_threads, ready_children;
	volatile u32 futex_answer;
	volatile u64 position;	     /* of the file whose position parent and children share */
	pthread_mutex_t lock;	     /* robust, process-shared; guards position and shared_generation */
	u32 shared_generation[3][64];
	volatile pid_t helper_pids[4]; /* of children's children, for the clean-up */
};
extern struct shared *shared;

/* torture_report.c */
void fail(enum code code, u64 detail, const char *format, ...) __attribute__((format(printf, 3, 4)));
void report_registers(const struct regs_change *change);
void die(const char *what) __attribute__((noreturn)); /* only during set-up */
void report_init(const char *heartbeat);
void report_ignore(const char *code); /* its name: not counted, not written */

/* torture.c */
void check_registers(unsigned loops);			  /* held over user code and over a cheap call */
u64 next_random(void);
u64 monotonic(void);
void lock_shared(void);
void unlock_shared(void);
void sleep_ns(u64 ns);
bool stopping(void);

/* torture_memory.c */
void memory_init(void);
void memory_baseline(void);
void memory_check(void);
void memory_check_layout(void);

/* torture_signals.c */
void signals_init_process(void);	  /* dispositions and timers */
void signals_init_child(unsigned number); /* other dispositions, own timers, own pending signals */
void signals_init_thread(void);		  /* mask, alternate stack, pending signal of the thread */
void signals_baseline(void);
void signals_check_thread(void);
void signals_check_process(void);
void quiet_begin(void); /* no handler runs in this thread until quiet_end: for blocking calls */
void quiet_end(void);
u64 signal_mask(void);
void set_signal_mask(u64 mask);
#define SIG_TICK (SIGRTMIN + 1)	  /* from the POSIX timer */
#define SIG_QUEUED (SIGRTMIN + 2) /* pending for the process, all the time */
#define SIG_ORDER (SIGRTMIN + 3)  /* pending twice, in order */
#define SIG_THREAD (SIGRTMIN + 4) /* pending for each thread */
#define SIG_NEVER (SIGRTMIN + 6)  /* what sigtimedwait waits for */
#define SIG_PAUSE (SIGRTMIN + 7)  /* ends pause() and sigsuspend() */

/* torture_files.c */
void files_init(void);
void files_baseline(void);
void files_check(void);
void files_check_child(void);

/* torture_process.c */
void process_init_task(void);
void process_baseline(void);
void process_check_task(void);
void process_check_process(void);
extern pid_t child_pids[64], zombie_pid, stopped_pid;

/* torture_waits.c */
void waits_init(void);			      /* before the children are forked */
void waits_finish(void);
unsigned waits_kinds(void);
const char *waits_name(unsigned kind);
void waits_run(unsigned kind);
void waits_partner_step(void);		      /* the child that ends the untimed waits */
void waits_forker_step(void);		      /* a child that forks and waits */
long held_call(long number, long a, long b, long c, long d, long e, long f); /* raw result; registers checked */

#endif
