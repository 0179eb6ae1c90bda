/*
 * Registers held and compared: the one thing in these programs that differs from processor to processor.
 *
 * A new architecture is one more header with the same names:
 *   struct regs                 patterns going in, values that came out, and room for vector state
 *   regs_create(r, seed)        allocate and fill; once for each struct
 *   regs_shuffle(r)             new patterns
 *   regs_hold(r, loops)         all registers hold the patterns over a loop of pure user code; what changed, if any
 *   regs_call(r, number, args, change)  the same over one system call; its raw result (-errno)
 *   regs_describe(r)            one line "GROUP OFFSET SIZE" for each part of the vector state, to standard output
 *   regs_bases_set(r), regs_bases_check(r)  thread-local bases and selectors of this thread
 */
#ifndef TORTURE_REGS_H
#define TORTURE_REGS_H

#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

/* What a change belongs to; the error code is 100 + group. */
enum regs_group {
	REGS_SAME = -1,
	REGS_GENERAL,
	REGS_FLAGS,
	REGS_STACK,
	REGS_RED_ZONE,
	REGS_X87,
	REGS_SSE,
	REGS_AVX,
	REGS_OPMASK,
	REGS_ZMM_HIGH,
	REGS_ZMM_16_31,
	REGS_PKRU,
	REGS_SELECTOR,
	REGS_TLS_BASE,
	REGS_EXTRA_BASE,
	REGS_VECTOR,
};

struct regs_change {
	enum regs_group group;
	const char *name; /* of the register or the component */
	unsigned index;	  /* byte within the component, or word within the red zone */
	u64 expected, got;
};

/* A set of signals as the kernel takes it: longs, the one with signal 1 first. */
#if __SIZEOF_LONG__ == 4 && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BIT(signal) (1ull << (((signal)-1) ^ 32))
#else
#define BIT(signal) (1ull << ((signal)-1))
#endif

#if defined(__x86_64__) || defined(__i386__)
#include "torture_regs_x86.h"
#elif defined(__aarch64__)
#include "torture_regs_arm64.h"
#elif defined(__powerpc__)
#include "torture_regs_power.h"
#elif defined(__riscv) && __riscv_xlen == 64
#include "torture_regs_riscv64.h"
#elif defined(__s390x__)
#include "torture_regs_s390x.h"
#elif defined(__arm__)
#include "torture_regs_arm.h"
#else
#error "torture_regs: write the header for this architecture"
#endif

#endif
