/* Registers of s390x; see torture_regs.h for the contract.
 *
 * The program mask does without the bit that makes additions trap: signal handlers, which may run at any time, are compiled code.
 * There is no red zone: what lies below r15 belongs to nobody. */
#ifndef TORTURE_REGS_S390X_H
#define TORTURE_REGS_S390X_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REGS 16
#define RESULT 2
#define SP 15
#define HAS_VECTORS 2048 /* HWCAP_S390_VX */

struct regs {
	/* The assembler below knows the offsets of these. */
	unsigned long in[REGS], out[REGS], flags_in, flags_out;
	u32 fpc, fpc_out, vectors, unused, acr_in[16], acr_out[16];
	unsigned char v_in[512], v_out[512];
	/* From here on only C. */
	u64 random;
	unsigned rounds;
	u32 thread_pointer[2];
};

_Static_assert(offsetof(struct regs, out) == 128 && offsetof(struct regs, flags_in) == 256, "asm");
_Static_assert(offsetof(struct regs, fpc) == 272 && offsetof(struct regs, vectors) == 280, "asm");
_Static_assert(offsetof(struct regs, acr_in) == 288 && offsetof(struct regs, acr_out) == 352, "asm");
_Static_assert(offsetof(struct regs, v_in) == 416 && offsetof(struct regs, v_out) == 928, "asm");

#define LOAD_F(n) "ld %f" #n ",416+16*" #n "(%r2)\n"
#define STORE_F(n) "std %f" #n ",928+16*" #n "(%r2)\n"
#define KEEP_F(n) "std %f" #n ",112+8*" #n "(%r15)\n"
#define BACK_F(n) "ld %f" #n ",112+8*" #n "(%r15)\n"
#define SAVED_F(DO) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define ALL_F(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) SAVED_F(DO)

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 160(r15) meanwhile, so that every register is free for a pattern.
 */
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	__asm__(".text\n .balign 16\n .machine push\n .machine z13\n .type " #NAME ",@function\n" #NAME ":\n"                    \
		"stmg %r6,%r15,48(%r15)\n aghi %r15,-256\n" SAVED_F(KEEP_F) "stg %r2,160(%r15)\n stg %r15,120(%r2)\n"            \
		"l %r1,272(%r2)\n sfpc %r1\n lam %a2,%a15,288+8(%r2)\n"                                                          \
		"l %r1,280(%r2)\n ltr %r1,%r1\n jz 1f\n vlm %v0,%v15,416(%r2)\n vlm %v16,%v31,416+256(%r2)\n j 2f\n"             \
		"1:\n" ALL_F(LOAD_F) "2: lg %r1,256(%r2)\n spm %r1\n lmg %r0,%r14,0(%r2)\n"                                      \
		BODY "\n"                                                                                                        \
		"stg %r2,168(%r15)\n lg %r2,160(%r15)\n stmg %r0,%r1,128(%r2)\n stmg %r3,%r15,128+24(%r2)\n"                     \
		"lghi %r1,0\n ipm %r1\n stg %r1,264(%r2)\n lg %r1,168(%r15)\n stg %r1,128+16(%r2)\n"                             \
		"stfpc 276(%r2)\n stam %a2,%a15,352+8(%r2)\n"                                                                    \
		"l %r1,280(%r2)\n ltr %r1,%r1\n jz 1f\n vstm %v0,%v15,928(%r2)\n vstm %v16,%v31,928+256(%r2)\n j 2f\n"           \
		"1:\n" ALL_F(STORE_F) "2: lghi %r1,0\n sfpc %r1\n spm %r1\n" SAVED_F(BACK_F)                                     \
		"lmg %r6,%r15,256+48(%r15)\n br %r14\n .machine pop\n"                                                           \
		".size " #NAME ",.-" #NAME "\n");                                                                                \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
HOLD_FUNCTION(hold_loop, "3: brctg %r12,3b");
HOLD_FUNCTION(hold_count, "3: brctg %r0,3b");
HOLD_FUNCTION(hold_syscall, "svc 0");

static const char *const reg_names[] = {"r0", "r1", "r2",  "r3",  "r4",	 "r5",	"r6",  "r7",
					"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};

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
		r->in[RESULT] = (unsigned long)restarts[regs_random(r) % 6];
	r->flags_in = regs_random(r) & 0x37000000; /* condition code, and of the program mask all but fixed-point overflow */
	r->fpc = regs_random(r) & 0x00f8ff73;	   /* flags, the code of the last exception, decimal and binary rounding */
	for (unsigned i = 2; i < 16; i++)
		r->acr_in[i] = (u32)regs_random(r);
	for (unsigned i = 0; i < sizeof r->v_in; i += 8) {
		const u64 word = regs_random(r);
		memcpy(r->v_in + i, &word, 8);
	}
}

static inline void regs_create(struct regs *r, u64 seed)
{
	memset(r, 0, sizeof *r);
	r->vectors = (getauxval(AT_HWCAP) & HAS_VECTORS) != 0;
	r->random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
	regs_shuffle(r);
}

static inline void regs_describe(const struct regs *r)
{
	printf("%u %u %u\n", REGS_VECTOR, 0, (unsigned)(r->vectors ? sizeof r->v_in : 256));
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
		return (struct regs_change){REGS_FLAGS, "psw", 0, r->flags_in, r->flags_out};
	if (r->fpc != r->fpc_out)
		return (struct regs_change){REGS_VECTOR, "fpc", 0, r->fpc, r->fpc_out};
	for (unsigned i = 2; i < 16; i++)
		if (r->acr_in[i] != r->acr_out[i])
			return (struct regs_change){REGS_EXTRA_BASE, "access", i, r->acr_in[i], r->acr_out[i]};
	for (unsigned i = 0; i < sizeof r->v_in; i += 8)
		if (memcmp(r->v_in + i, r->v_out + i, 8) && (r->vectors || (i < 256 && i % 16 == 0))) {
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
	const unsigned counter = r->rounds++ & 1 ? 0 : 12;
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
	r->in[1] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[RESULT + i] = (unsigned long)args[i];
	hold_syscall(r);
	*change = regs_compare(r, 1u << RESULT);
	return (long)r->out[RESULT];
}

/* The C library's own variables hang on the thread pointer: it is looked at, and not changed. */
static inline void regs_bases_set(struct regs *r)
{
	__asm__("ear %0,%%a0\n ear %1,%%a1" : "=&d"(r->thread_pointer[0]), "=d"(r->thread_pointer[1]));
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	u32 high, low;
	__asm__ volatile("ear %0,%%a0\n ear %1,%%a1" : "=&d"(high), "=d"(low));
	if (high != r->thread_pointer[0] || low != r->thread_pointer[1])
		return (struct regs_change){REGS_TLS_BASE, "a0, a1", 0,
					    (u64)r->thread_pointer[0] << 32 | r->thread_pointer[1], (u64)high << 32 | low};
	return regs_same();
}

#endif
