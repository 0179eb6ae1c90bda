/* Registers of AArch64; see torture_regs.h for the contract.
 *
 * Not compared: x8 over an interrupted system call, in which the kernel itself leaves the number of restart_syscall, and what of
 * FPSR this processor does not have. There is no red zone: what lies below sp belongs to nobody. */
#ifndef TORTURE_REGS_ARM64_H
#define TORTURE_REGS_ARM64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REGS 32
#define SP 31

struct regs {
	/* The assembler below knows the offsets of these. */
	unsigned long in[REGS], out[REGS], flags_in, flags_out, fpcr, fpsr, fpcr_out, fpsr_out;
	unsigned char v_in[512], v_out[512];
	/* From here on only C. */
	u64 random;
	unsigned rounds;
	unsigned long tls_base;
};

_Static_assert(offsetof(struct regs, out) == 256 && offsetof(struct regs, flags_in) == 512, "asm");
_Static_assert(offsetof(struct regs, fpcr) == 528 && offsetof(struct regs, v_in) == 560, "asm");

#define LOAD_V(a, b) "ldp q" #a ",q" #b ",[x0,#16*" #a "]\n"
#define STORE_V(a, b) "stp q" #a ",q" #b ",[x0,#16*" #a "]\n"
#define ALL_V(DO) DO(0, 1) DO(2, 3) DO(4, 5) DO(6, 7) DO(8, 9) DO(10, 11) DO(12, 13) DO(14, 15) DO(16, 17) DO(18, 19)             \
	DO(20, 21) DO(22, 23) DO(24, 25) DO(26, 27) DO(28, 29) DO(30, 31)
#define LOAD_X(a, b) "ldp x" #a ",x" #b ",[x0,#8*" #a "]\n"
#define STORE_X(a, b) "stp x" #a ",x" #b ",[x0,#256+8*" #a "]\n"
#define MOST_X(DO) DO(2, 3) DO(4, 5) DO(6, 7) DO(8, 9) DO(10, 11) DO(12, 13) DO(14, 15) DO(16, 17) DO(18, 19)                      \
	DO(20, 21) DO(22, 23) DO(24, 25) DO(26, 27) DO(28, 29)

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 0(sp) meanwhile, so that every register is free for a pattern.
 */
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	__asm__(".text\n .p2align 4\n .type " #NAME ",@function\n" #NAME ":\n"                                                   \
		"stp x29,x30,[sp,#-208]!\n stp x19,x20,[sp,#16]\n stp x21,x22,[sp,#32]\n stp x23,x24,[sp,#48]\n"                 \
		"stp x25,x26,[sp,#64]\n stp x27,x28,[sp,#80]\n str x18,[sp,#96]\n"                                               \
		"stp d8,d9,[sp,#112]\n stp d10,d11,[sp,#128]\n stp d12,d13,[sp,#144]\n stp d14,d15,[sp,#160]\n"                  \
		"sub sp,sp,#32\n str x0,[sp]\n mov x1,sp\n str x1,[x0,#248]\n"                                                   \
		"ldr x1,[x0,#528]\n msr fpcr,x1\n ldr x1,[x0,#536]\n msr fpsr,x1\n ldr x1,[x0,#512]\n msr nzcv,x1\n"             \
		"add x0,x0,#560\n" ALL_V(LOAD_V) "sub x0,x0,#560\n" MOST_X(LOAD_X) "ldr x30,[x0,#240]\n ldp x0,x1,[x0]\n"         \
		BODY "\n"                                                                                                        \
		"stp x0,x1,[sp,#8]\n ldr x0,[sp]\n" MOST_X(STORE_X) "str x30,[x0,#256+240]\n mov x1,sp\n str x1,[x0,#256+248]\n"  \
		"ldp x2,x1,[sp,#8]\n stp x2,x1,[x0,#256]\n"                                                                      \
		"mrs x1,nzcv\n str x1,[x0,#520]\n mrs x1,fpcr\n str x1,[x0,#544]\n mrs x1,fpsr\n str x1,[x0,#552]\n"             \
		"add x0,x0,#560+512\n" ALL_V(STORE_V) "msr fpcr,xzr\n msr fpsr,xzr\n add sp,sp,#32\n"                             \
		"ldp d8,d9,[sp,#112]\n ldp d10,d11,[sp,#128]\n ldp d12,d13,[sp,#144]\n ldp d14,d15,[sp,#160]\n"                  \
		"ldr x18,[sp,#96]\n ldp x27,x28,[sp,#80]\n ldp x25,x26,[sp,#64]\n ldp x23,x24,[sp,#48]\n"                        \
		"ldp x21,x22,[sp,#32]\n ldp x19,x20,[sp,#16]\n ldp x29,x30,[sp],#208\n ret\n"                                    \
		".size " #NAME ",.-" #NAME "\n");                                                                                \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
HOLD_FUNCTION(hold_loop, "1: sub x28,x28,#1\n cbnz x28,1b");
HOLD_FUNCTION(hold_count, "2: sub x0,x0,#1\n cbnz x0,2b");
HOLD_FUNCTION(hold_syscall, "svc #0");

static const char *const reg_names[] = {"x0",  "x1",  "x2",  "x3",  "x4",  "x5",  "x6",  "x7",  "x8",  "x9",  "x10",
					"x11", "x12", "x13", "x14", "x15", "x16", "x17", "x18", "x19", "x20", "x21",
					"x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30", "sp"};

static inline u64 regs_random(struct regs *r)
{
	r->random ^= r->random << 13;
	r->random ^= r->random >> 7;
	r->random ^= r->random << 17;
	return r->random;
}

/* New patterns everywhere. A quarter of them puts into the result register what looks like an interrupted call. */
static inline void regs_shuffle(struct regs *r)
{
	static const long restarts[] = {-512, -513, -514, -516, -4, -38};
	for (unsigned i = 0; i < REGS; i++)
		r->in[i] = (unsigned long)regs_random(r);
	if (regs_random(r) % 4 == 0)
		r->in[0] = (unsigned long)restarts[regs_random(r) % 6];
	r->flags_in = regs_random(r) & 0xf0000000;  /* N Z C V */
	r->fpcr = regs_random(r) & 0x07c00000;	    /* alternative half precision, default NaN, flush to zero, rounding */
	r->fpsr = regs_random(r) & 0x0800009f;	    /* saturation and the sticky exceptions */
	for (unsigned i = 0; i < sizeof r->v_in; i += 8) {
		const u64 word = regs_random(r);
		memcpy(r->v_in + i, &word, 8);
	}
}

static inline void regs_create(struct regs *r, u64 seed)
{
	memset(r, 0, sizeof *r);
	r->random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
	regs_shuffle(r);
}

static inline void regs_describe(const struct regs *r)
{
	printf("%u %u %u\n", REGS_VECTOR, 0, (unsigned)sizeof r->v_in);
}

static inline struct regs_change regs_same(void)
{
	return (struct regs_change){REGS_SAME, "", 0, 0, 0};
}

/* `clobbered`: bits of registers that may have changed. */
static inline struct regs_change regs_compare(struct regs *r, unsigned clobbered)
{
	for (unsigned i = 0; i < REGS; i++)
		if (r->in[i] != r->out[i] && !(clobbered >> i & 1))
			return (struct regs_change){i == SP ? REGS_STACK : REGS_GENERAL, reg_names[i], i, r->in[i], r->out[i]};
	if (r->flags_in != r->flags_out)
		return (struct regs_change){REGS_FLAGS, "nzcv", 0, r->flags_in, r->flags_out};
	if (r->fpcr != r->fpcr_out)
		return (struct regs_change){REGS_VECTOR, "fpcr", 0, r->fpcr, r->fpcr_out};
	if (r->fpsr != r->fpsr_out)
		return (struct regs_change){REGS_VECTOR, "fpsr", 0, r->fpsr, r->fpsr_out};
	for (unsigned i = 0; i < sizeof r->v_in; i += 8)
		if (memcmp(r->v_in + i, r->v_out + i, 8)) {
			struct regs_change change = {REGS_VECTOR, "v", i, 0, 0};
			memcpy(&change.expected, r->v_in + i, 8);
			memcpy(&change.got, r->v_out + i, 8);
			return change;
		}
	return regs_same();
}

/* Every second time the counter is another register, so that no register is never compared. */
static inline struct regs_change regs_hold(struct regs *r, unsigned loops)
{
	const unsigned counter = r->rounds++ & 1 ? 0 : 28;
	r->in[counter] = loops;
	if (counter)
		hold_loop(r);
	else
		hold_count(r);
	r->in[counter] = 0;
	return regs_compare(r, 0);
}

static inline long regs_call(struct regs *r, long number, const long args[6], struct regs_change *change)
{
	r->in[8] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[i] = (unsigned long)args[i];
	hold_syscall(r);
	*change = regs_compare(r, 1u | (r->out[8] == SYS_restart_syscall) << 8);
	return (long)r->out[0];
}

/* The C library's own variables hang on the thread pointer: it is looked at, and not changed. */
static inline void regs_bases_set(struct regs *r)
{
	__asm__("mrs %0,tpidr_el0" : "=r"(r->tls_base));
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	unsigned long now;
	__asm__ volatile("mrs %0,tpidr_el0" : "=r"(now));
	if (now != r->tls_base)
		return (struct regs_change){REGS_TLS_BASE, "tpidr_el0", 0, r->tls_base, now};
	return regs_same();
}

#endif
