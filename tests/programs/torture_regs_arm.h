/* Registers of 32-bit ARM; see torture_regs.h for the contract.
 *
 * Held in ARM and in Thumb code by turns; most of the Thumb loop is IT blocks, of which no register tells. Not compared: r7 over an interrupted system call on a 64-bit kernel, which itself leaves
 * the number of restart_syscall there. There is no red zone: what lies below sp belongs to nobody. */
#ifndef TORTURE_REGS_ARM_H
#define TORTURE_REGS_ARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define REGS 15
#define SP 13
#define FLAGS 0xf80f0000u /* N Z C V Q, GE */

struct regs {
	/* The assembler below knows the offsets of these. */
	unsigned long in[REGS], out[REGS], flags_in, flags_out, fpscr, fpscr_out, loops, reserved[3];
	unsigned char v_in[256], v_out[256];
	/* From here on only C. */
	u64 random;
	unsigned rounds;
	unsigned long tls_base;
};

_Static_assert(offsetof(struct regs, out) == 60 && offsetof(struct regs, flags_in) == 120, "asm");
_Static_assert(offsetof(struct regs, fpscr) == 128 && offsetof(struct regs, loops) == 136 && offsetof(struct regs, v_in) == 152, "asm");

#ifdef __thumb__
#define OWN_STATE ".thumb\n"
#else
#define OWN_STATE ".arm\n"
#endif

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 0(sp) meanwhile, so that every register is free for a pattern. Built for a floating point unit of 32 registers.
 */
#define HOLD_FUNCTION(NAME, STATE, BODY)                                                                                         \
	__asm__(".text\n .p2align 4\n .syntax unified\n .fpu neon\n " STATE "\n .type " #NAME ",%function\n" #NAME ":\n"         \
		"push {r3-r11,lr}\n vpush {d8-d15}\n sub sp,sp,#16\n str r0,[sp]\n mov r1,sp\n str r1,[r0,#52]\n"                \
		"ldr r1,[r0,#128]\n vmsr fpscr,r1\n"                                                                             \
		"add r1,r0,#152\n vldmia r1!,{d0-d15}\n vldmia r1,{d16-d31}\n"                                                   \
		"ldr r1,[r0,#120]\n msr APSR_nzcvqg,r1\n"                                                                        \
		"ldr r14,[r0,#56]\n ldr r12,[r0,#48]\n ldr r11,[r0,#44]\n ldr r10,[r0,#40]\n ldr r9,[r0,#36]\n"                  \
		"ldr r8,[r0,#32]\n ldr r7,[r0,#28]\n ldr r6,[r0,#24]\n ldr r5,[r0,#20]\n ldr r4,[r0,#16]\n"                      \
		"ldr r3,[r0,#12]\n ldr r2,[r0,#8]\n ldr r1,[r0,#4]\n ldr r0,[r0]\n"                                              \
		BODY "\n"                                                                                                        \
		"str r0,[sp,#4]\n ldr r0,[sp]\n str r1,[r0,#64]\n str r2,[r0,#68]\n str r3,[r0,#72]\n str r4,[r0,#76]\n"         \
		"str r5,[r0,#80]\n str r6,[r0,#84]\n str r7,[r0,#88]\n str r8,[r0,#92]\n str r9,[r0,#96]\n"                      \
		"str r10,[r0,#100]\n str r11,[r0,#104]\n str r12,[r0,#108]\n str r14,[r0,#116]\n mov r1,sp\n str r1,[r0,#112]\n" \
		"ldr r1,[sp,#4]\n str r1,[r0,#60]\n mrs r1,apsr\n str r1,[r0,#124]\n vmrs r1,fpscr\n str r1,[r0,#132]\n"         \
		"add r1,r0,#408\n vstmia r1!,{d0-d15}\n vstmia r1,{d16-d31}\n mov r1,#0\n vmsr fpscr,r1\n"                       \
		"add sp,sp,#16\n vpop {d8-d15}\n pop {r3-r11,pc}\n"                                                              \
		".size " #NAME ",.-" #NAME "\n" OWN_STATE);                                                                      \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
/*
 * ARM: the flags are part of the loop, and known at its end. Thumb: none of these instructions changes a flag; with Z, r5 and r6 count
 * the rounds, without it r8 and r9. A stop in an IT block that came out of it would let others count, too.
 */
HOLD_FUNCTION(hold_arm, ".arm", "1: subs r0,r0,#1\n bne 1b");
HOLD_FUNCTION(hold_thumb, ".thumb\n .thumb_func",
	      "1: ittee eq\n addeq r5,r5,#1\n addeq r6,r6,#1\n addne r8,r8,#1\n addne r9,r9,#1\n sub r4,r4,#1\n cbz r4,2f\n b 1b\n 2:");
HOLD_FUNCTION(hold_syscall_arm, ".arm", "svc #0");
HOLD_FUNCTION(hold_syscall_thumb, ".thumb\n .thumb_func", "svc #0");

static const char *const reg_names[] = {"r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "sp", "lr"};

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
	r->flags_in = regs_random(r) & FLAGS;
	r->fpscr = regs_random(r) & 0xffc0009f;	   /* conditions, saturation, modes, rounding and the sticky exceptions */
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
	const unsigned long flags_out = r->flags_out & FLAGS; /* the others may show the mode */
	if (r->flags_in != flags_out)
		return (struct regs_change){REGS_FLAGS, "apsr", 0, r->flags_in, flags_out};
	if (r->fpscr != r->fpscr_out)
		return (struct regs_change){REGS_VECTOR, "fpscr", 0, r->fpscr, r->fpscr_out};
	for (unsigned i = 0; i < sizeof r->v_in; i += 8)
		if (memcmp(r->v_in + i, r->v_out + i, 8)) {
			struct regs_change change = {REGS_VECTOR, "d", i, 0, 0};
			memcpy(&change.expected, r->v_in + i, 8);
			memcpy(&change.got, r->v_out + i, 8);
			return change;
		}
	return regs_same();
}

static inline struct regs_change regs_hold(struct regs *r, unsigned loops)
{
	const unsigned thumb = r->rounds++ & 1, equal = r->flags_in >> 30 & 1;
	r->in[thumb ? 4 : 0] = loops;
	if (thumb)
		hold_thumb(r);
	else
		hold_arm(r);
	r->in[thumb ? 4 : 0] = 0;
	if (thumb) {
		r->in[equal ? 5 : 8] += loops;
		r->in[equal ? 6 : 9] += loops;
	} else {
		r->flags_in = (r->flags_in & 0x080f0000) | 0x60000000; /* Z and C: 1 - 1 */
	}
	return regs_compare(r, 0);
}

static inline bool regs_wide_kernel(void)
{
	struct utsname name;
	return uname(&name) == 0 && (strcmp(name.machine, "aarch64") == 0 || strcmp(name.machine, "armv8l") == 0);
}

/* Every second call is made from Thumb code. */
static inline long regs_call(struct regs *r, long number, const long args[6], struct regs_change *change)
{
	r->in[7] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[i] = (unsigned long)args[i];
	if (r->rounds & 1)
		hold_syscall_thumb(r);
	else
		hold_syscall_arm(r);
	*change = regs_compare(r, 1u | (r->out[7] == SYS_restart_syscall && regs_wide_kernel()) << 7);
	return (long)r->out[0];
}

/* The C library's own variables hang on the thread pointer: it is looked at, and not changed. */
static inline unsigned long regs_thread_pointer(void)
{
	return (unsigned long)__builtin_thread_pointer();
}

static inline void regs_bases_set(struct regs *r)
{
	r->tls_base = regs_thread_pointer();
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	if (regs_thread_pointer() != r->tls_base)
		return (struct regs_change){REGS_TLS_BASE, "tpidruro", 0, r->tls_base, regs_thread_pointer()};
	return regs_same();
}

#endif
