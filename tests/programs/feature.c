/* Holds a pattern in registers that not every processor of its family has, or touches none of them: what decides whether it can
 * go on on another one.
 *
 *     feature used|unused STOP
 *
 * until the file STOP is there; then it exits with 42, or with 1 if the pattern has changed. It is linked statically, and of the C
 * library it calls nothing that chooses its code by the processor, as exit() does on AArch64 and syscall() on 64-bit PowerPC. */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WIDEST 256
#define TURNS (1ul << 27) /* about a second where QEMU translates: a system call may drop such registers, so there are few */

static unsigned char in[WIDEST] __attribute__((aligned(64))), out[WIDEST] __attribute__((aligned(64)));

/* LOAD from `from`, turn, STORE to `to`. */
#if defined(__x86_64__) || defined(__i386__) /* AVX */
#define BYTES 32
#define LOAD "vmovdqu (%1), %%ymm1\n"
#define TURN "1: sub $1, %0\n jnz 1b\n"
#define STORE "vmovdqu %%ymm1, (%2)\n"
#define LOST "xmm1"
#define KIND , target("avx")
#elif defined(__aarch64__) /* SVE, of any length */
#define BYTES 16
#define LOAD ".arch armv8-a+sve\n ptrue p0.b\n ld1b {z1.b}, p0/z, [%1]\n"
#define TURN "1: subs %0, %0, #1\n b.ne 1b\n"
#define STORE "st1b {z1.b}, p0, [%2]\n"
#define LOST "v1"
#elif defined(__arm__) /* NEON: the upper half of the double registers */
#define BYTES 16
#define LOAD ".fpu neon\n vld1.8 {d16-d17}, [%1]\n"
#define TURN "1: subs %0, %0, #1\n bne 1b\n"
#define STORE "vst1.8 {d16-d17}, [%2]\n"
#define LOST "cc"
#elif defined(__powerpc64__) /* VSX */
#define BYTES 16
#define LOAD ".machine power7\n lxvd2x 1, 0, %1\n"
#define TURN "mtctr %0\n 1: bdnz 1b\n"
#define STORE "stxvd2x 1, 0, %2\n"
#define LOST "ctr", "fr1"
#elif defined(__powerpc__) /* AltiVec */
#define BYTES 16
#define LOAD ".machine altivec\n lvx 1, 0, %1\n"
#define TURN "mtctr %0\n 1: bdnz 1b\n"
#define STORE "stvx 1, 0, %2\n"
#define LOST "ctr"
#elif defined(__s390x__) /* the vector facility: a register that is no floating point one */
#define BYTES 16
#define ADDRESS "a"
#define LOAD ".machine z13\n vl %%v16, 0(%1)\n"
#define TURN "1: brctg %0, 1b\n"
#define STORE "vst %%v16, 0(%2)\n"
#define LOST "cc"
#elif defined(__riscv) /* V, of any length */
#define BYTES 16
#define LOAD ".option push\n .option arch, +v\n vsetivli zero, 16, e8, m1, ta, ma\n vle8.v v1, (%1)\n"
#define TURN "1: addi %0, %0, -1\n bnez %0, 1b\n"
#define STORE "vse8.v v1, (%2)\n .option pop\n"
#define LOST "cc"
#endif
#ifndef KIND
#define KIND
#endif
#ifndef ADDRESS
#define ADDRESS "r"
#endif

#ifdef __powerpc64__
static long call(long number, long first, long second, long third)
{
	register long r0 __asm__("r0") = number, r3 __asm__("r3") = first, r4 __asm__("r4") = second, r5 __asm__("r5") = third;
	__asm__ volatile("sc\n bns+ 1f\n neg %1,%1\n 1:" : "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5) : : "memory", "cr0", "ctr", "r6",
			 "r7", "r8", "r9", "r10", "r11", "r12");
	return r3;
}
#else
#define call syscall
#endif

/* What the C library has left there at its start; nothing else here uses these registers. */
static void clear(void)
{
#ifdef __powerpc64__
	__asm__ volatile(".machine power7\n .set n,0\n .rept 32\n xxlxor n,n,n\n .set n,n+1\n .endr\n");
#elif defined(__powerpc__)
	__asm__ volatile(".machine altivec\n .set n,0\n .rept 32\n vxor n,n,n\n .set n,n+1\n .endr\n");
#endif
#ifdef __arm__
	__asm__ volatile(".fpu neon\n .irp n,8,9,10,11,12,13,14,15\n vmov.i32 q\\n,#0\n .endr\n");
#endif
#ifdef __s390x__
	__asm__ volatile(".machine z13\n .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vgbm %%v\\n,0\n .endr\n"
			 ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n vgbm %%v\\n,0\n .endr\n"
			 : : : "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14", "f15");
#endif
}

static void turn(void)
{
	unsigned long turns = TURNS;
	__asm__ volatile(TURN : "+r"(turns) : : "cc", "memory"
#ifdef __powerpc__
			 , "ctr"
#endif
	);
}

__attribute__((noinline KIND)) static void turn_with_pattern(void)
{
	unsigned long turns = TURNS;
	__asm__ volatile(LOAD TURN STORE : "+r"(turns) : ADDRESS(in), ADDRESS(out) : "cc", "memory", LOST);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int used = argv[1][1] == 's';
	for (int i = 0; i < WIDEST; i++)
		in[i] = (unsigned char)(0x41 + i);
	if (!used)
		clear();
	while (call(SYS_faccessat, AT_FDCWD, (long)argv[2], F_OK)) {
		if (used)
			turn_with_pattern();
		else
			turn();
		for (int i = 0; used && i < BYTES; i++)
			if (out[i] != in[i])
				return 1;
	}
	return (int)call(SYS_exit_group, 42, 0, 0);
}
