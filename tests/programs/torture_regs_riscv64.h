/* Registers of riscv64; see torture_regs.h for the contract.
 *
 * Not compared: a7 over an interrupted system call, in which the kernel itself leaves the number of restart_syscall, and v0 to v31,
 * vl, vtype and vstart over any system call, which drops them. gp and tp are the C library's: they are compared, and never changed.
 * There is no red zone: what lies below sp belongs to nobody. */
#ifndef TORTURE_REGS_RISCV64_H
#define TORTURE_REGS_RISCV64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REGS 32
enum { SP = 2, GP = 3, TP = 4, S0 = 8, A0 = 10, A7 = 17 };
#define VLENB_MAX 128 /* bytes; the vectors of longer registers are not checked */

struct regs {
	/* The assembler below knows the offsets of these. */
	unsigned long in[REGS], out[REGS], f_in[32], f_out[32];
	unsigned long fcsr, fcsr_out, vlenb, vl, vtype, vcsr, vl_out, vtype_out, vcsr_out, vstart_out;
	unsigned char v_in[32 * VLENB_MAX], v_out[32 * VLENB_MAX];
	/* From here on only C. */
	u64 random;
	unsigned rounds;
};

_Static_assert(offsetof(struct regs, out) == 256 && offsetof(struct regs, f_in) == 512 && offsetof(struct regs, fcsr) == 1024, "asm");
_Static_assert(offsetof(struct regs, v_in) == 1104 && offsetof(struct regs, v_out) == 1104 + 4096, "asm");

#define X_FREE(DO) DO(5) DO(6) DO(7) DO(8) DO(9) DO(11) DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21)       \
	DO(22) DO(23) DO(24) DO(25) DO(26) DO(27) DO(28) DO(29) DO(30) DO(31)
#define F_ALL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15) DO(16)      \
	DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23) DO(24) DO(25) DO(26) DO(27) DO(28) DO(29) DO(30) DO(31)
#define LOAD_X(n) "ld x" #n ",8*" #n "(a0)\n"
#define STORE_X(n) "sd x" #n ",256+8*" #n "(a0)\n"
#define LOAD_F(n) "fld f" #n ",512+8*" #n "(a0)\n"
#define STORE_F(n) "fsd f" #n ",768+8*" #n "(a0)\n"
#define KEEP_F(n, at) "fsd fs" #n ",128+" #at "(sp)\n"
#define BACK_F(n, at) "fld fs" #n ",128+" #at "(sp)\n"
#define SAVED_F(DO) DO(0, 0) DO(1, 8) DO(2, 16) DO(3, 24) DO(4, 32) DO(5, 40) DO(6, 48) DO(7, 56) DO(8, 64) DO(9, 72) DO(10, 80)    \
	DO(11, 88)
#define KEEP_S(n, at) "sd s" #n "," #at "(sp)\n"
#define BACK_S(n, at) "ld s" #n "," #at "(sp)\n"
#define SAVED_S(DO) DO(0, 8) DO(1, 16) DO(2, 24) DO(3, 32) DO(4, 40) DO(5, 48) DO(6, 56) DO(7, 64) DO(8, 72) DO(9, 80) DO(10, 88)   \
	DO(11, 96)

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 0(sp) meanwhile, so that every register is free for a pattern.
 */
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	__asm__(".text\n .p2align 4\n .type " #NAME ",@function\n .option push\n .option arch,+v\n" #NAME ":\n"                  \
		"addi sp,sp,-240\n sd ra,0(sp)\n" SAVED_S(KEEP_S) SAVED_F(KEEP_F)                                                \
		"addi sp,sp,-32\n sd a0,0(sp)\n sd sp,16(a0)\n sd gp,24(a0)\n sd tp,32(a0)\n"                                    \
		"ld t0,1024(a0)\n fscsr t0\n" F_ALL(LOAD_F)                                                                      \
		"ld t0,1040(a0)\n beqz t0,1f\n slli t0,t0,3\n addi t1,a0,1104\n"                                                 \
		"vl8re8.v v0,(t1)\n add t1,t1,t0\n vl8re8.v v8,(t1)\n add t1,t1,t0\n"                                            \
		"vl8re8.v v16,(t1)\n add t1,t1,t0\n vl8re8.v v24,(t1)\n"                                                         \
		"ld t0,1048(a0)\n ld t1,1056(a0)\n vsetvl x0,t0,t1\n ld t0,1064(a0)\n csrw vcsr,t0\n"                            \
		"1:" X_FREE(LOAD_X) "ld ra,8(a0)\n ld a0,80(a0)\n"                                                               \
		BODY "\n"                                                                                                        \
		"sd a0,8(sp)\n ld a0,0(sp)\n" X_FREE(STORE_X) "sd ra,256+8(a0)\n sd sp,256+16(a0)\n"                             \
		"sd gp,256+24(a0)\n sd tp,256+32(a0)\n ld t0,8(sp)\n sd t0,256+80(a0)\n"                                         \
		"frcsr t0\n sd t0,1032(a0)\n fscsr x0\n" F_ALL(STORE_F)                                                          \
		"ld t0,1040(a0)\n beqz t0,1f\n slli t0,t0,3\n"                                                                   \
		"csrr t1,vl\n sd t1,1072(a0)\n csrr t1,vtype\n sd t1,1080(a0)\n"                                                 \
		"csrr t1,vcsr\n sd t1,1088(a0)\n csrr t1,vstart\n sd t1,1096(a0)\n"                                              \
		"li t1,1104+4096\n add t1,a0,t1\n vs8r.v v0,(t1)\n add t1,t1,t0\n vs8r.v v8,(t1)\n add t1,t1,t0\n"               \
		"vs8r.v v16,(t1)\n add t1,t1,t0\n vs8r.v v24,(t1)\n csrw vcsr,x0\n"                                              \
		"1: addi sp,sp,32\n ld ra,0(sp)\n" SAVED_S(BACK_S) SAVED_F(BACK_F) "addi sp,sp,240\n ret\n"                      \
		".option pop\n .size " #NAME ",.-" #NAME "\n");                                                                  \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
HOLD_FUNCTION(hold_loop, "2: addi s0,s0,-1\n bnez s0,2b");
HOLD_FUNCTION(hold_count, "3: addi a0,a0,-1\n bnez a0,3b");
HOLD_FUNCTION(hold_syscall, "ecall");

static const char *const reg_names[] = {"zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0",
					"a1",	"a2", "a3", "a4", "a5", "a6", "a7", "s2", "s3", "s4", "s5",
					"s6",	"s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6"};

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
	for (unsigned i = 1; i < REGS; i++)
		r->in[i] = (unsigned long)regs_random(r);
	if (regs_random(r) % 4 == 0)
		r->in[A0] = (unsigned long)restarts[regs_random(r) % 6];
	for (unsigned i = 0; i < 32; i++)
		r->f_in[i] = (unsigned long)regs_random(r);
	r->fcsr = regs_random(r) % 5 << 5 | (regs_random(r) & 0x1f); /* rounding mode, sticky exceptions */
	r->vtype = (regs_random(r) & 3) << 6 | (regs_random(r) & 3) << 3 | (regs_random(r) & 3); /* vma vta, 8 to 64 bit, 1 to 8 registers */
	r->vl = r->vlenb ? regs_random(r) % (1 + (r->vlenb << (r->vtype & 7) >> (r->vtype >> 3 & 7))) : 0;
	r->vcsr = regs_random(r) & 7;
	for (unsigned i = 0; i < 32 * r->vlenb; i += 8) {
		const u64 word = regs_random(r);
		memcpy(r->v_in + i, &word, 8);
	}
}

static inline unsigned long vector_length(void)
{
	unsigned long vlenb = 0;
	if (getauxval(AT_HWCAP) >> ('v' - 'a') & 1)
		__asm__ volatile(".option push\n .option arch,+v\n csrr %0,vlenb\n .option pop" : "=r"(vlenb));
	return vlenb > VLENB_MAX ? 0 : vlenb;
}

static inline void regs_create(struct regs *r, u64 seed)
{
	memset(r, 0, sizeof *r);
	r->vlenb = vector_length();
	r->random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
	regs_shuffle(r);
}

static inline void regs_describe(const struct regs *r)
{
	if (r->vlenb)
		printf("%u %u %u\n", REGS_VECTOR, 0, (unsigned)(32 * r->vlenb));
}

static inline struct regs_change regs_same(void)
{
	return (struct regs_change){REGS_SAME, "", 0, 0, 0};
}

/* `call`: a system call lies between, which may change its result, drops the vector registers, and leaves another a7 if `restarted`. */
static inline struct regs_change regs_compare(struct regs *r, bool call, bool restarted)
{
	for (unsigned i = 1; i < REGS; i++)
		if (r->in[i] != r->out[i] && !(i == A0 && call) && !(i == A7 && restarted))
			return (struct regs_change){i == SP ? REGS_STACK : i == TP ? REGS_TLS_BASE : REGS_GENERAL, reg_names[i], i, r->in[i],
						    r->out[i]};
	for (unsigned i = 0; i < 32; i++)
		if (r->f_in[i] != r->f_out[i])
			return (struct regs_change){REGS_VECTOR, "f", i, r->f_in[i], r->f_out[i]};
	if (r->fcsr != r->fcsr_out)
		return (struct regs_change){REGS_VECTOR, "fcsr", 0, r->fcsr, r->fcsr_out};
	if (!r->vlenb)
		return regs_same();
	if (r->vcsr != r->vcsr_out)
		return (struct regs_change){REGS_VECTOR, "vcsr", 0, r->vcsr, r->vcsr_out};
	if (call)
		return regs_same();
	if (r->vl != r->vl_out)
		return (struct regs_change){REGS_VECTOR, "vl", 0, r->vl, r->vl_out};
	if (r->vtype != r->vtype_out)
		return (struct regs_change){REGS_VECTOR, "vtype", 0, r->vtype, r->vtype_out};
	if (r->vstart_out)
		return (struct regs_change){REGS_VECTOR, "vstart", 0, 0, r->vstart_out};
	for (unsigned i = 0; i < 32 * r->vlenb; i += 8)
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
	const unsigned counter = r->rounds++ & 1 ? A0 : S0;
	r->in[counter] = loops;
	if (counter == S0)
		hold_loop(r);
	else
		hold_count(r);
	r->in[counter] = 0;
	return regs_compare(r, false, false);
}

static inline long regs_call(struct regs *r, long number, const long args[6], struct regs_change *change)
{
	r->in[A7] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[A0 + i] = (unsigned long)args[i];
	hold_syscall(r);
	*change = regs_compare(r, true, r->out[A7] == SYS_restart_syscall);
	return (long)r->out[A0];
}

/* The thread pointer is among the general registers. */
static inline void regs_bases_set(struct regs *r)
{
	(void)r;
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	(void)r;
	return regs_same();
}

#endif
