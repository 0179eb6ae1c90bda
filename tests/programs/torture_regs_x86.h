/* Registers of x86-64 and i386; see torture_regs.h for the contract. Vector and x87 state go in and out by XRSTOR and XSAVE,
 * so that every component of the processor (AVX, opmask, ZMM, PKRU) is held without a line of its own.
 *
 * Not compared, because no kernel or processor promises them: the ID flag (ptrace cannot set it), the x87 instruction and
 * data pointers (AMD saves them only when an exception is pending), AMX tiles (need a permission first). AC is left out
 * as well: a handler must not inherit it. */
#ifndef TORTURE_REGS_X86_H
#define TORTURE_REGS_X86_H

#include <asm/ldt.h>
#include <cpuid.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The order of in[] and out[]. */
enum { AX, BX, CX, DX, SI, DI, BP, SP, R8, R9, R10, R11, R12, R13, R14, R15 };

struct regs {
	/* The assembler below knows the offsets of these. */
	unsigned long in[16], out[16], flags_in, flags_out, red[16], red_out[16];
	u32 components[2]; /* of XSAVE, low and high half */
	unsigned char *vector_in, *vector_out, *vector_clean;
	/* From here on only C. */
	u64 random;
	unsigned vector_size;
	struct { unsigned offset, size; } component[32];
	unsigned selectors[6], rounds;
	unsigned long tls_base;
	u64 block[4]; /* what the extra base (%gs on 64 bit, %fs on 32 bit) points at */
};

#ifdef __x86_64__
#define REGS 16
#define OFFSET(index) (8 * (index))
#else
#define REGS 8
#define OFFSET(index) (4 * (index))
#endif
_Static_assert(offsetof(struct regs, out) == OFFSET(16) && offsetof(struct regs, flags_in) == OFFSET(32), "asm");
_Static_assert(offsetof(struct regs, red) == OFFSET(34) && offsetof(struct regs, red_out) == OFFSET(50), "asm");
_Static_assert(offsetof(struct regs, components) == OFFSET(66) && offsetof(struct regs, vector_in) == OFFSET(66) + 8, "asm");

/*
 * void NAME(struct regs *): load everything from `in`, run BODY, save everything to `out`. The address of the struct lies
 * at 0(sp) meanwhile, so that every register is free for a pattern; the red zone is the 128 bytes below sp.
 */
#ifdef __x86_64__
#define RED_IN "regs_i = 0\n .rept 16\n mov 272+8*regs_i(%rdi),%rax\n mov %rax,8*regs_i-128(%rsp)\n regs_i = regs_i+1\n .endr\n"
#define RED_OUT "regs_i = 0\n .rept 16\n mov 8*regs_i-128(%rsp),%rbx\n mov %rbx,400+8*regs_i(%rax)\n regs_i = regs_i+1\n .endr\n"
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	__asm__(".text\n .p2align 4\n .type " #NAME ",@function\n" #NAME ":\n"                                                   \
		"push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n sub $40,%rsp\n"                         \
		"mov %rdi,(%rsp)\n mov %rsp,56(%rdi)\n"                                                                          \
		"mov 528(%rdi),%eax\n mov 532(%rdi),%edx\n mov 536(%rdi),%rcx\n test %eax,%eax\n jz 7f\n xrstor64 (%rcx)\n"      \
		"7: push 256(%rdi)\n popf\n" RED_IN                                                                              \
		"mov (%rdi),%rax\n mov 8(%rdi),%rbx\n mov 16(%rdi),%rcx\n mov 24(%rdi),%rdx\n mov 32(%rdi),%rsi\n"               \
		"mov 48(%rdi),%rbp\n mov 64(%rdi),%r8\n mov 72(%rdi),%r9\n mov 80(%rdi),%r10\n mov 88(%rdi),%r11\n"              \
		"mov 96(%rdi),%r12\n mov 104(%rdi),%r13\n mov 112(%rdi),%r14\n mov 120(%rdi),%r15\n mov 40(%rdi),%rdi\n"         \
		BODY "\n"                                                                                                        \
		"mov %rax,8(%rsp)\n mov (%rsp),%rax\n"                                                                           \
		"mov %rbx,136(%rax)\n mov %rcx,144(%rax)\n mov %rdx,152(%rax)\n mov %rsi,160(%rax)\n mov %rdi,168(%rax)\n"       \
		"mov %rbp,176(%rax)\n mov %rsp,184(%rax)\n mov %r8,192(%rax)\n mov %r9,200(%rax)\n mov %r10,208(%rax)\n"         \
		"mov %r11,216(%rax)\n mov %r12,224(%rax)\n mov %r13,232(%rax)\n mov %r14,240(%rax)\n mov %r15,248(%rax)\n"       \
		"mov 8(%rsp),%rbx\n mov %rbx,128(%rax)\n" RED_OUT                                                                \
		"pushf\n pop 264(%rax)\n cld\n mov %rax,%rdi\n"                                                                  \
		"mov 528(%rdi),%eax\n mov 532(%rdi),%edx\n mov 544(%rdi),%rcx\n test %eax,%eax\n jz 8f\n xsave64 (%rcx)\n"       \
		"mov 552(%rdi),%rcx\n xrstor64 (%rcx)\n"                                                                         \
		"8: add $40,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"                      \
		".size " #NAME ",.-" #NAME "\n");                                                                                \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
HOLD_FUNCTION(hold_loop, "1: loop 1b");
HOLD_FUNCTION(hold_count, "2: dec %r15\n jnz 2b");
HOLD_FUNCTION(hold_syscall, "syscall");
#else
#define HOLD_FUNCTION(NAME, BODY)                                                                                                \
	__asm__(".text\n .p2align 4\n .type " #NAME ",@function\n" #NAME ":\n"                                                   \
		"mov 4(%esp),%eax\n push %ebp\n push %ebx\n push %esi\n push %edi\n sub $12,%esp\n"                              \
		"mov %eax,%edi\n mov %edi,(%esp)\n mov %esp,28(%edi)\n"                                                          \
		"mov 264(%edi),%eax\n mov 268(%edi),%edx\n mov 272(%edi),%ecx\n test %eax,%eax\n jz 7f\n xrstor (%ecx)\n"        \
		"7: push 128(%edi)\n popf\n"                                                                                     \
		"mov (%edi),%eax\n mov 4(%edi),%ebx\n mov 8(%edi),%ecx\n mov 12(%edi),%edx\n mov 16(%edi),%esi\n"                \
		"mov 24(%edi),%ebp\n mov 20(%edi),%edi\n"                                                                        \
		BODY "\n"                                                                                                        \
		"mov %eax,4(%esp)\n mov (%esp),%eax\n"                                                                           \
		"mov %ebx,68(%eax)\n mov %ecx,72(%eax)\n mov %edx,76(%eax)\n mov %esi,80(%eax)\n mov %edi,84(%eax)\n"            \
		"mov %ebp,88(%eax)\n mov %esp,92(%eax)\n mov 4(%esp),%ebx\n mov %ebx,64(%eax)\n"                                 \
		"pushf\n pop 132(%eax)\n cld\n mov %eax,%edi\n"                                                                  \
		"mov 264(%edi),%eax\n mov 268(%edi),%edx\n mov 276(%edi),%ecx\n test %eax,%eax\n jz 8f\n xsave (%ecx)\n"         \
		"mov 280(%edi),%ecx\n xrstor (%ecx)\n"                                                                           \
		"8: add $12,%esp\n pop %edi\n pop %esi\n pop %ebx\n pop %ebp\n ret\n"                                            \
		".size " #NAME ",.-" #NAME "\n");                                                                                \
	extern void NAME(struct regs *) __attribute__((visibility("hidden")))
HOLD_FUNCTION(hold_loop, "1: loop 1b");
HOLD_FUNCTION(hold_count, "2: dec %edi\n jnz 2b");
HOLD_FUNCTION(hold_syscall, "int $0x80");
HOLD_FUNCTION(hold_vsyscall, "call *%gs:0x10"); /* glibc keeps the address of __kernel_vsyscall there: SYSENTER */
#endif

#ifdef __x86_64__
static const char *const reg_names[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
					"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
#else
static const char *const reg_names[] = {"eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp"};
#endif

/* XSAVE's components: bit, group, name, bytes that this mode can see (0: all of it). x87 and SSE are compared apart. */
static const struct { unsigned bit; enum regs_group group; const char *name; unsigned visible; } vector_parts[] = {
#ifdef __x86_64__
	{2, REGS_AVX, "ymm (upper halves)", 0},
	{5, REGS_OPMASK, "k0-k7", 0},
	{6, REGS_ZMM_HIGH, "zmm0-15 (upper halves)", 0},
	{7, REGS_ZMM_16_31, "zmm16-31", 0},
	{9, REGS_PKRU, "pkru", 4},
#else /* the other eight registers do not exist in 32-bit code */
	{2, REGS_AVX, "ymm (upper halves)", 128},
	{5, REGS_OPMASK, "k0-k7", 0},
	{6, REGS_ZMM_HIGH, "zmm0-7 (upper halves)", 256},
	{9, REGS_PKRU, "pkru", 4},
#endif
};
#define VECTOR_PARTS (sizeof vector_parts / sizeof *vector_parts)

static inline u64 regs_random(struct regs *r)
{
	r->random ^= r->random << 13;
	r->random ^= r->random >> 7;
	r->random ^= r->random << 17;
	return r->random;
}

static inline unsigned char *regs_area(unsigned size)
{
	void *area = NULL;
	if (posix_memalign(&area, 64, (size + 63) & ~63u))
		abort();
	memset(area, 0, size);
	return area;
}

static inline void regs_random_bytes(struct regs *r, unsigned char *to, unsigned size)
{
	for (unsigned i = 0; i < size; i += 4) {
		u32 word = (u32)(regs_random(r) >> 16);
		memcpy(to + i, &word, size - i < 4 ? size - i : 4);
	}
}

/* New patterns everywhere. A quarter of them puts into the result register what looks like an interrupted call. */
static inline void regs_shuffle(struct regs *r)
{
	static const long restarts[] = {-512, -513, -514, -516, -4, -38};
	for (unsigned i = 0; i < REGS; i++)
		r->in[i] = (unsigned long)regs_random(r);
	if (regs_random(r) % 4 == 0)
		r->in[AX] = (unsigned long)restarts[regs_random(r) % 6];
	for (unsigned i = 0; i < 16; i++)
		r->red[i] = (unsigned long)regs_random(r);
	r->flags_in = 0x202 | (regs_random(r) & 0xcd5); /* CF PF AF ZF SF DF OF */
	if (!r->vector_in)
		return;
	unsigned char *v = r->vector_in;
	u32 top = (u32)regs_random(r);
	const uint16_t fcw = 0x37f | (top & 0x0c00), fsw = (top & 0x7f00) | 0x24; /* all masked; top and condition bits any */
	const u32 mxcsr = 0x1f80 | (top & 0xe05f);			      /* rounding, flush, denormals, sticky flags */
	memcpy(v, &fcw, 2);
	memcpy(v + 2, &fsw, 2);
	v[4] = 0xff; /* all eight x87 registers in use */
	memcpy(v + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++)
		regs_random_bytes(r, v + 32 + 16 * i, 10);
	regs_random_bytes(r, v + 160, 16 * REGS);
	for (unsigned i = 0; i < VECTOR_PARTS; i++)
		if (r->components[0] >> vector_parts[i].bit & 1) {
			unsigned visible = vector_parts[i].visible;
			unsigned char *part = v + r->component[vector_parts[i].bit].offset;
			regs_random_bytes(r, part, visible ? visible : r->component[vector_parts[i].bit].size);
			if (vector_parts[i].bit == 9) /* all memory has key 0: leave that one allowed */
				part[0] &= 0xfc;
		}
	memcpy(v + 512, r->components, 8);
}

static inline void regs_create(struct regs *r, u64 seed)
{
	unsigned a, b, c, d;
	memset(r, 0, sizeof *r);
	r->random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
	if (__get_cpuid(1, &a, &b, &c, &d) && c & bit_OSXSAVE) {
		u32 low, high, wanted = 3;
		__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
		for (unsigned i = 0; i < VECTOR_PARTS; i++)
			wanted |= 1u << vector_parts[i].bit;
		if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & 1u << 4)) /* OSPKE: a 32-bit kernel does not keep PKRU */
			wanted &= ~(1u << 9);
		r->components[0] = low & wanted;
		__cpuid_count(0xd, 0, a, b, c, d);
		r->vector_size = b;
		for (unsigned i = 2; i < 32; i++)
			if (r->components[0] >> i & 1) {
				__cpuid_count(0xd, i, a, b, c, d);
				r->component[i].offset = b;
				r->component[i].size = a;
			}
		r->vector_in = regs_area(r->vector_size);
		r->vector_out = regs_area(r->vector_size);
		r->vector_clean = regs_area(576); /* no component in it: XRSTOR makes all of them initial */
		const u32 mxcsr = 0x1f80;
		memcpy(r->vector_clean + 24, &mxcsr, 4);
	}
	regs_shuffle(r);
}

static inline void regs_describe(const struct regs *r)
{
	for (unsigned i = 0; i < VECTOR_PARTS; i++)
		if (r->components[0] >> vector_parts[i].bit & 1)
			printf("%u %u %u\n", vector_parts[i].group, r->component[vector_parts[i].bit].offset,
			       r->component[vector_parts[i].bit].size);
}

static inline struct regs_change regs_same(void)
{
	return (struct regs_change){REGS_SAME, "", 0, 0, 0};
}

static inline bool regs_bytes_differ(struct regs *r, unsigned offset, unsigned size, struct regs_change *change)
{
	if (memcmp(r->vector_in + offset, r->vector_out + offset, size) == 0)
		return false;
	unsigned at = 0;
	while (r->vector_in[offset + at] == r->vector_out[offset + at])
		at++;
	change->index = at;
	memcpy(&change->expected, r->vector_in + offset + at, 8);
	memcpy(&change->got, r->vector_out + offset + at, 8);
	return true;
}

/* `clobbered`: bits of registers that may have changed. */
static inline struct regs_change regs_compare(struct regs *r, unsigned clobbered, bool flags)
{
	struct regs_change change = regs_same();
	for (unsigned i = 0; i < REGS; i++)
		if (r->in[i] != r->out[i] && !(clobbered >> i & 1))
			return (struct regs_change){i == SP ? REGS_STACK : REGS_GENERAL, reg_names[i], i, r->in[i], r->out[i]};
	const unsigned long shown = 0xcd5;
	if (flags && (r->flags_in ^ r->flags_out) & shown)
		return (struct regs_change){REGS_FLAGS, "flags", 0, r->flags_in & shown, r->flags_out & shown};
#ifdef __x86_64__
	for (unsigned i = 0; i < 16; i++)
		if (r->red[i] != r->red_out[i])
			return (struct regs_change){REGS_RED_ZONE, "red zone", i, r->red[i], r->red_out[i]};
#endif
	if (!r->vector_in)
		return change;
	change.group = REGS_X87;
	change.name = "x87 control, status, tag";
	if (regs_bytes_differ(r, 0, 5, &change))
		return change;
	change.name = "x87 stack";
	for (unsigned i = 0; i < 8; i++)
		if (regs_bytes_differ(r, 32 + 16 * i, 10, &change))
			return change;
	change.group = REGS_SSE;
	change.name = "mxcsr";
	if (regs_bytes_differ(r, 24, 4, &change))
		return change;
	change.name = "xmm";
	if (regs_bytes_differ(r, 160, 16 * REGS, &change))
		return change;
	for (unsigned i = 0; i < VECTOR_PARTS; i++) {
		const unsigned bit = vector_parts[i].bit, visible = vector_parts[i].visible;
		change.group = vector_parts[i].group;
		change.name = vector_parts[i].name;
		if (r->components[0] >> bit & 1
		    && regs_bytes_differ(r, r->component[bit].offset, visible ? visible : r->component[bit].size, &change))
			return change;
	}
	return regs_same();
}

/* Every second time the counter is another register, so that no register is never compared. */
static inline struct regs_change regs_hold(struct regs *r, unsigned loops)
{
	const unsigned last = REGS == 16 ? R15 : DI;
	if (r->rounds++ & 1) {
		r->in[last] = loops;
		hold_count(r);
		r->in[last] = 0;
		return regs_compare(r, 0, false);
	}
	r->in[CX] = loops;
	hold_loop(r);
	r->in[CX] = 0;
	return regs_compare(r, 0, true);
}

static inline long regs_call(struct regs *r, long number, const long args[6], struct regs_change *change)
{
#ifdef __x86_64__
	static const unsigned order[] = {DI, SI, DX, R10, R8, R9};
	const unsigned clobbered = 1u << AX | 1u << CX | 1u << R11;
#else
	static const unsigned order[] = {BX, CX, DX, SI, DI, BP};
	const unsigned clobbered = 1u << AX;
#endif
	bool flags = true;
	r->in[AX] = (unsigned long)number;
	for (unsigned i = 0; i < 6; i++)
		r->in[order[i]] = (unsigned long)args[i];
#ifdef __i386__
	if (r->rounds++ & 1) { /* not every entry path keeps the flags here; and DF must be clear by the ABI */
		r->flags_in &= ~0x400ul;
		flags = false;
		hold_vsyscall(r);
	} else
#endif
		hold_syscall(r);
	*change = regs_compare(r, clobbered, flags);
	return (long)r->out[AX];
}

static inline void regs_selectors(unsigned out[6])
{
	__asm__ volatile("mov %%cs,%0\n mov %%ss,%1\n mov %%ds,%2\n mov %%es,%3\n mov %%fs,%4\n mov %%gs,%5"
			 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]), "=r"(out[4]), "=r"(out[5]));
	for (unsigned i = 0; i < 6; i++)
		out[i] &= 0xffff;
}

#ifdef __x86_64__
#define ARCH_SET_GS 0x1001
#define ARCH_GET_FS 0x1003
#define ARCH_GET_GS 0x1004

static inline void regs_bases_set(struct regs *r)
{
	for (unsigned i = 0; i < 4; i++)
		r->block[i] = regs_random(r);
	if (regs_random(r) & 1) /* unused in 64-bit code, but they are kept as well */
		__asm__ volatile("mov %0,%%ds\n mov %0,%%es" ::"r"(0x2b));
	syscall(SYS_arch_prctl, ARCH_SET_GS, r->block);
	syscall(SYS_arch_prctl, ARCH_GET_FS, &r->tls_base);
	regs_selectors(r->selectors);
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	static const char *const names[] = {"cs", "ss", "ds", "es", "fs", "gs"};
	unsigned now[6];
	unsigned long fs = 0, gs = 0, word;
	regs_selectors(now);
	for (unsigned i = 0; i < 6; i++)
		if (now[i] != r->selectors[i])
			return (struct regs_change){REGS_SELECTOR, names[i], i, r->selectors[i], now[i]};
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs);
	if (fs != r->tls_base)
		return (struct regs_change){REGS_TLS_BASE, "fs base", 0, r->tls_base, fs};
	syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
	if (gs != (unsigned long)r->block)
		return (struct regs_change){REGS_EXTRA_BASE, "gs base", 0, (unsigned long)r->block, gs};
	__asm__ volatile("mov %%gs:8,%0" : "=r"(word));
	if (word != r->block[1])
		return (struct regs_change){REGS_EXTRA_BASE, "word at gs:8", 0, r->block[1], word};
	return regs_same();
}
#else
/* The C library uses the first of the three TLS slots of the GDT (12-14, on a 32-bit kernel 6-8); threads take one of the
 * others by turns. */
static inline struct user_desc regs_descriptor(const struct regs *r)
{
	struct user_desc descriptor;
	unsigned of_library;
	__asm__("mov %%gs,%0" : "=r"(of_library));
	memset(&descriptor, 0, sizeof descriptor);
	descriptor.entry_number = ((of_library & 0xffff) >> 3) + 1 + ((unsigned)r->block[3] & 1);
	descriptor.base_addr = (unsigned)(unsigned long)r->block;
	descriptor.limit = 0xfffff;
	descriptor.seg_32bit = 1;
	descriptor.limit_in_pages = 1;
	descriptor.useable = 1;
	return descriptor;
}

static inline void regs_bases_set(struct regs *r)
{
	for (unsigned i = 0; i < 4; i++)
		r->block[i] = regs_random(r);
	struct user_desc descriptor = regs_descriptor(r);
	syscall(SYS_set_thread_area, &descriptor);
	__asm__ volatile("mov %0,%%fs" ::"r"(descriptor.entry_number * 8 + 3));
	__asm__ volatile("mov %%gs:0,%0" : "=r"(r->tls_base));
	regs_selectors(r->selectors);
}

static inline struct regs_change regs_bases_check(struct regs *r)
{
	static const char *const names[] = {"cs", "ss", "ds", "es", "fs", "gs"};
	unsigned now[6];
	unsigned long word;
	regs_selectors(now);
	for (unsigned i = 0; i < 6; i++)
		if (now[i] != r->selectors[i])
			return (struct regs_change){REGS_SELECTOR, names[i], i, r->selectors[i], now[i]};
	__asm__ volatile("mov %%gs:0,%0" : "=r"(word));
	if (word != r->tls_base)
		return (struct regs_change){REGS_TLS_BASE, "word at gs:0", 0, r->tls_base, word};
	struct user_desc expected = regs_descriptor(r), got = expected;
	got.base_addr = 0;
	syscall(SYS_get_thread_area, &got);
	if (memcmp(&expected, &got, sizeof got))
		return (struct regs_change){REGS_EXTRA_BASE, "TLS entry", expected.entry_number, expected.base_addr, got.base_addr};
	__asm__ volatile("mov %%fs:8,%0" : "=r"(word));
	if (word != (unsigned long)r->block[1])
		return (struct regs_change){REGS_EXTRA_BASE, "word at fs:8", 0, (unsigned long)r->block[1], word};
	return regs_same();
}
#endif

#endif
