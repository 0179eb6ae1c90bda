/* Registers of PowerPC, of either width and byte order; see torture_regs.h for the contract.
 *
 * Not compared over a system call is what its ABI leaves to the kernel: r0, r3 to r12, CTR, XER, CR0; after scv LR and CR1, CR5 to
 * CR7, too. What a processor does not take of XER, FPSCR and VSCR is found out by reading it back. */
#ifndef TORTURE_REGS_POWER_H
#define TORTURE_REGS_POWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REGS 32
#define SP 1
#define ALTIVEC 1 /* bits of `has` */
#define VSX 2
#define TAR 4
#define SCV 8

struct regs {
	unsigned long in[REGS], out[REGS];
	unsigned long lr_in, ctr_in, xer_in, cr_in, tar_in, dscr_in, vrsave_in;
	unsigned long lr_out, ctr_out, xer_out, cr_out, tar_out, dscr_out, vrsave_out;
	unsigned long has;
	u64 fpscr_in, fpscr_out;
	u32 vscr_in[4] __attribute__((aligned(16))), vscr_out[4];
	unsigned char vs_in[512], vs_out[512]; /* vs0 to vs31: the upper halves are f0 to f31 */
	unsigned char v_in[512], v_out[512];
	/* From here on only C. */
	u64 random;
	unsigned rounds, exceptions;
	unsigned long tls_base;
};

#ifdef __powerpc64__
#define TLS 13
#define TLS_NAME "13"
#define LOAD "ld "
#define STORE "std "
#define STORE_DOWN "stdu "
#define WORD "8"
#define MOST "0,2,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#else
#define TLS 2
#define TLS_NAME "2"
#define LOAD "lwz "
#define STORE "stw "
#define STORE_DOWN "stwu "
#define WORD "4"
#define MOST "0,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#endif
#define KEPT "14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#define KEPT_V "20,21,22,23,24,25,26,27,28,29,30,31"
#define ALL "0,1,2,3,4,5,6,7,8,9,10,11,12,13," KEPT
#define EACH(list, line) ".irp i," list "\n" line "\n .endr\n"
#define TO(special, name) LOAD "5,%[" name "_in](3)\n mt" special " 5\n"
#define FROM_SPR(number, name) "mfspr 5," number "\n" STORE "5,%[" name "_out](3)\n"
#define FROM(special, name) "mf" special " 5\n" STORE "5,%[" name "_out](3)\n"

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 64(r1) meanwhile, so that every register but the stack and the thread pointer is free for a pattern. The frame leaves the red
 * zone of what is above it alone. TAR and DSCR are put back, for a handler that holds registers itself: no signal frame has them.
 */
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	static __attribute__((noinline)) void NAME(struct regs *regs)                                                            \
	{                                                                                                                        \
		register struct regs *p __asm__("r3") = regs;                                                                    \
		__asm__ volatile(                                                                                                \
			".machine push\n .machine power9\n"                                                                      \
			STORE_DOWN "1,-1200(1)\n" STORE "3,64(1)\n mflr 0\n" STORE "0,80(1)\n mfcr 0\n" STORE "0,88(1)\n"         \
			STORE "2,96(1)\n"                                                                                        \
			EACH(KEPT, STORE "\\i,104+" WORD "*(\\i-14)(1)") EACH(KEPT, "stfd \\i,256+8*(\\i-14)(1)")                 \
			"mffs 0\n stfd 0,400(1)\n" LOAD "4,%[has](3)\n andi. 0,4,1\n beq 7f\n"                                   \
			EACH(KEPT_V, "li 5,416+16*(\\i-20)\n stvx \\i,1,5")                                                      \
			"mfvscr 0\n li 5,608\n stvx 0,1,5\n mfspr 5,256\n" STORE "5,624(1)\n"                                     \
			"li 5,%[vscr_in]\n lvx 0,3,5\n mtvscr 0\n mfvscr 0\n stvx 0,3,5\n" TO("spr 256,", "vrsave")               \
			EACH(ALL, "li 5,%[v_in]+16*\\i\n lvx \\i,3,5")                                                           \
			"7: lfd 0,%[fpscr_in](3)\n mtfsf 255,0\n mffs 0\n stfd 0,%[fpscr_in](3)\n"                                \
			"andi. 0,4,2\n beq 8f\n" EACH(ALL, "li 5,%[vs_in]+16*\\i\n lxvd2x \\i,3,5") "b 9f\n"                       \
			"8:\n" EACH(ALL, "lfd \\i,%[vs_in]+16*\\i(3)")                                                           \
			"9: andi. 0,4,4\n beq 7f\n mfspr 5,815\n" STORE "5,632(1)\n mfspr 5,3\n" STORE "5,640(1)\n"                        \
			TO("spr 815,", "tar") TO("spr 3,", "dscr")                                   \
			"7: " STORE "1,%[in]+" WORD "(3)\n" TO("lr", "lr") TO("ctr", "ctr") TO("xer", "xer")                      \
			"mfxer 5\n" STORE "5,%[xer_in](3)\n" TO("crf 255,", "cr")                                                \
			EACH(MOST, LOAD "\\i,%[in]+" WORD "*\\i(3)") LOAD "3,%[in]+" WORD "*3(3)\n"                              \
			BODY "\n"                                                                                                \
			STORE "3,72(1)\n" LOAD "3,64(1)\n" EACH(MOST, STORE "\\i,%[out]+" WORD "*\\i(3)")                         \
			STORE "1,%[out]+" WORD "(3)\n" STORE TLS_NAME ",%[out]+" WORD "*" TLS_NAME "(3)\n"                        \
			LOAD "4,72(1)\n" STORE "4,%[out]+" WORD "*3(3)\n"                                                        \
			FROM("cr", "cr") FROM("xer", "xer") FROM("lr", "lr") FROM("ctr", "ctr")                                  \
			LOAD "4,%[has](3)\n andi. 0,4,2\n beq 8f\n" EACH(ALL, "li 5,%[vs_out]+16*\\i\n stxvd2x \\i,3,5") "b 9f\n" \
			"8:\n" EACH(ALL, "stfd \\i,%[vs_out]+16*\\i(3)")                                                         \
			"9: mffs 0\n stfd 0,%[fpscr_out](3)\n andi. 0,4,1\n beq 7f\n"                                            \
			EACH(ALL, "li 5,%[v_out]+16*\\i\n stvx \\i,3,5")                                                         \
			"mfvscr 0\n li 5,%[vscr_out]\n stvx 0,3,5\n" FROM_SPR("256", "vrsave")                               \
			"li 5,608\n lvx 0,1,5\n mtvscr 0\n" LOAD "5,624(1)\n mtspr 256,5\n"                                      \
			EACH(KEPT_V, "li 5,416+16*(\\i-20)\n lvx \\i,1,5")                                                       \
			"7: andi. 0,4,4\n beq 7f\n" FROM_SPR("815", "tar") FROM_SPR("3", "dscr")                                    \
			LOAD "5,632(1)\n mtspr 815,5\n" LOAD "5,640(1)\n mtspr 3,5\n"                                          \
			                        \
			"7: lfd 0,400(1)\n mtfsf 255,0\n" EACH(KEPT, "lfd \\i,256+8*(\\i-14)(1)")                                \
			EACH(KEPT, LOAD "\\i,104+" WORD "*(\\i-14)(1)") LOAD "2,96(1)\n" LOAD "0,88(1)\n mtcrf 255,0\n"           \
			LOAD "0,80(1)\n mtlr 0\n addi 1,1,1200\n .machine pop\n"                                                 \
			: "+r"(p)                                                                                                \
			: AT(in), AT(out), AT(lr_in), AT(ctr_in), AT(xer_in), AT(cr_in), AT(tar_in), AT(dscr_in), AT(vrsave_in),  \
			  AT(lr_out), AT(ctr_out), AT(xer_out), AT(cr_out), AT(tar_out), AT(dscr_out), AT(vrsave_out), AT(has),  \
			  AT(fpscr_in), AT(fpscr_out), AT(vscr_in), AT(vscr_out), AT(vs_in), AT(vs_out), AT(v_in), AT(v_out)     \
			: "memory", "r0", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "ctr", "cr0", "cr1",    \
			  "cr5", "cr6", "cr7");                                                                                  \
	}
#define AT(member) [member] "i"(offsetof(struct regs, member))
HOLD_FUNCTION(hold_loop, "1: bdnz 1b")
HOLD_FUNCTION(hold_count, "2: addi 31,31,-1\n cmpwi 7,31,0\n bne 7,2b")
HOLD_FUNCTION(hold_syscall, "sc")
#ifdef __powerpc64__
HOLD_FUNCTION(hold_vectored, "scv 0")
#else
#define hold_vectored hold_syscall
#endif

static const char *const reg_names[] = {"r0",  "r1",  "r2",  "r3",  "r4",  "r5",  "r6",  "r7",  "r8",  "r9",  "r10",
					"r11", "r12", "r13", "r14", "r15", "r16", "r17", "r18", "r19", "r20", "r21",
					"r22", "r23", "r24", "r25", "r26", "r27", "r28", "r29", "r30", "r31"};

static inline u64 regs_random(struct regs *r)
{
	r->random ^= r->random << 13;
	r->random ^= r->random >> 7;
	r->random ^= r->random << 17;
	return r->random;
}

static inline unsigned long regs_thread_pointer(void)
{
	unsigned long now;
	__asm__ volatile("mr %0," TLS_NAME : "=r"(now));
	return now;
}

/* New patterns everywhere. A quarter of them puts into the result register what looks like an interrupted call. */
static inline void regs_shuffle(struct regs *r)
{
	static const long restarts[] = {512, 513, 514, 516, 4, 38};
	for (unsigned i = 0; i < REGS; i++)
		r->in[i] = (unsigned long)regs_random(r);
	if (regs_random(r) % 4 == 0)
		r->in[3] = (unsigned long)(regs_random(r) & 1 ? restarts[regs_random(r) % 6] : -restarts[regs_random(r) % 6]);
	r->lr_in = (unsigned long)regs_random(r);
	r->ctr_in = (unsigned long)regs_random(r);
	r->xer_in = regs_random(r) & 0xe0000000; /* overflow and carry */
	r->cr_in = regs_random(r) & 0xffffffff;
	r->tar_in = (unsigned long)regs_random(r);
	r->dscr_in = regs_random(r) & 7;
	r->vrsave_in = regs_random(r) & 0xffffffff;
	r->fpscr_in = regs_random(r) & 0x9e07f003; /* sticky exceptions, what the last result was, rounding */
	for (unsigned i = 0; i < 4; i++)
		r->vscr_in[i] = regs_random(r) & 0x00010001; /* Java mode, saturation */
	for (unsigned i = 0; i < sizeof r->v_in; i += 8) {
		const u64 one = regs_random(r), two = regs_random(r);
		memcpy(r->v_in + i, &one, 8);
		memcpy(r->vs_in + i, &two, 8);
	}
	r->in[TLS] = regs_thread_pointer();
}

static inline void regs_create(struct regs *r, u64 seed)
{
	memset(r, 0, sizeof *r);
	r->has |= getauxval(AT_HWCAP) & 0x10000000 ? ALTIVEC : 0;
	r->has |= getauxval(AT_HWCAP) & 0x00000080 ? VSX : 0;
	r->has |= getauxval(AT_HWCAP2) & 0x04000000 ? TAR : 0;
	r->has |= sizeof(long) == 8 && getauxval(AT_HWCAP2) & 0x00100000 ? SCV : 0;
	r->rounds = seed & 1;
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

/* `volatiles`: bits of general registers that may have changed; `cr`: those bits of CR that may not. */
static inline struct regs_change regs_compare(struct regs *r, u32 volatiles, u32 cr)
{
	for (unsigned i = 0; i < REGS; i++)
		if (r->in[i] != r->out[i] && !(volatiles >> i & 1))
			return (struct regs_change){i == SP ? REGS_STACK : REGS_GENERAL, reg_names[i], i, r->in[i], r->out[i]};
	if ((r->cr_in ^ r->cr_out) & cr)
		return (struct regs_change){REGS_FLAGS, "cr", 0, r->cr_in & cr, r->cr_out & cr};
	if ((u32)r->fpscr_in != (u32)r->fpscr_out)
		return (struct regs_change){REGS_VECTOR, "fpscr", 0, r->fpscr_in, r->fpscr_out};
	if (r->has & TAR && r->tar_in != r->tar_out)
		return (struct regs_change){REGS_GENERAL, "tar", 0, r->tar_in, r->tar_out};
	if (r->has & TAR && r->dscr_in != r->dscr_out)
		return (struct regs_change){REGS_GENERAL, "dscr", 0, r->dscr_in, r->dscr_out};
	for (unsigned i = 0; i < sizeof r->vs_in; i += 8)
		if ((i % 16 == 0 || r->has & VSX) && memcmp(r->vs_in + i, r->vs_out + i, 8)) {
			struct regs_change change = {REGS_VECTOR, i % 16 ? "vs (lower half)" : "f", i, 0, 0};
			memcpy(&change.expected, r->vs_in + i, 8);
			memcpy(&change.got, r->vs_out + i, 8);
			return change;
		}
	if (!(r->has & ALTIVEC))
		return regs_same();
	if (r->vrsave_in != r->vrsave_out)
		return (struct regs_change){REGS_VECTOR, "vrsave", 0, r->vrsave_in, r->vrsave_out};
	for (unsigned i = 0; i < 4; i++)
		if (r->vscr_in[i] != r->vscr_out[i])
			return (struct regs_change){REGS_VECTOR, "vscr", i, r->vscr_in[i], r->vscr_out[i]};
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
	const bool in_ctr = r->rounds++ & 1;
	if (in_ctr) {
		r->ctr_in = loops;
		hold_loop(r);
		r->ctr_in = 0;
	} else {
		r->in[31] = loops;
		hold_count(r);
		r->in[31] = 0;
	}
	const struct regs_change change = regs_compare(r, 0, in_ctr ? ~0u : ~0xfu);
	if (change.group != REGS_SAME)
		return change;
	if (r->lr_in != r->lr_out)
		return (struct regs_change){REGS_GENERAL, "lr", 0, r->lr_in, r->lr_out};
	if (r->ctr_in != r->ctr_out)
		return (struct regs_change){REGS_GENERAL, "ctr", 0, r->ctr_in, r->ctr_out};
	if (r->xer_in != r->xer_out)
		return (struct regs_change){REGS_FLAGS, "xer", 0, r->xer_in, r->xer_out};
	return regs_same();
}

/* By sc and scv in turn, where there are both. */
static inline long regs_call(struct regs *r, long number, const long args[6], struct regs_change *change)
{
	const bool vectored = r->has & SCV && r->rounds & 1;
	r->rounds++;
	r->in[0] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[3 + i] = (unsigned long)args[i];
	if (vectored)
		hold_vectored(r);
	else
		hold_syscall(r);
	*change = regs_compare(r, 0x1ff9, vectored ? 0x00fff000 : 0x0fffffff);
	if (!vectored && change->group == REGS_SAME && r->lr_in != r->lr_out)
		*change = (struct regs_change){REGS_GENERAL, "lr", 0, r->lr_in, r->lr_out};
	return !vectored && r->cr_out & 0x10000000 ? -(long)r->out[3] : (long)r->out[3];
}

/* The C library's own variables hang on the thread pointer: it is looked at, and not changed. The mode of floating point exceptions,
 * of which none is enabled, goes with it. */
static inline void regs_bases_set(struct regs *r)
{
	r->tls_base = regs_thread_pointer();
	r->exceptions = (unsigned)(regs_random(r) % 4);
	if (prctl(PR_SET_FPEXC, (unsigned long)r->exceptions))
		abort();
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	const unsigned long now = regs_thread_pointer();
	if (now != r->tls_base)
		return (struct regs_change){REGS_TLS_BASE, "thread pointer", 0, r->tls_base, now};
	unsigned exceptions = ~0u;
	if (prctl(PR_GET_FPEXC, (unsigned long)&exceptions) || exceptions != r->exceptions)
		return (struct regs_change){REGS_SELECTOR, "floating point exceptions", 0, r->exceptions, exceptions};
	return regs_same();
}

#endif
