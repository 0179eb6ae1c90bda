"""A C program that fills every register it can from a seed, spins, and checks what it holds when it is told to go on.

    program LOAD EXPECT [untouched]

LOAD is the seed of what it puts into its registers, EXPECT of what it must find in them afterwards: exit code 0, or 1
with the names of what differs on stderr. It finds the XSAVE layout by CPUID itself, so that it agrees with nobody by
accident. `untouched`: it asks for AMX tiles and does not use them, unless the seed says so. Seed 0 is the initial state;
an odd seed leaves some components in it. It is static and at fixed addresses, so that two of them are alike.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from pathlib import Path

from tests.conftest import M32
from torpor.arch.x86.registers import REGISTERS_32, REGISTERS_64, X86Registers
from torpor.linux import ptrace

SOURCE = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if __x86_64__
enum { NGPR = 16 };
static const char *const gpr_names[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
#else
enum { NGPR = 8 };
static const char *const gpr_names[] = {"eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp"};
#endif
typedef unsigned long word;
struct state { word gpr[NGPR], flags, es, fs, gs, at_fs, at_gs; };
struct desc { unsigned entry, base, limit, flags; };

/* What the assembly below works on. */
struct state in, out;
unsigned char xs_in[16384] __attribute__((aligned(64))), xs_out[16384] __attribute__((aligned(64)));
volatile unsigned char go;
word saved_sp, saved_fs, segment_area[8][8];
unsigned char stack[65536] __attribute__((aligned(4096)));
void run(void);
extern char spin[], spun[];

#if __x86_64__
asm(R"(
    .text
    .globl run, spin, spun
run:
    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
    mov %rsp, saved_sp
    mov $158, %eax; mov $0x1003, %edi; mov $saved_fs, %rsi; syscall     /* arch_prctl(ARCH_GET_FS) */
    mov $158, %eax; mov $0x1001, %edi; mov in+152, %rsi; syscall        /* ARCH_SET_GS: in.gs */
    mov $158, %eax; mov $0x1002, %edi; mov in+144, %rsi; syscall        /* ARCH_SET_FS: in.fs */
    mov in+136, %eax; mov %eax, %es
    mov $-1, %eax; mov $-1, %edx; xrstor64 xs_in
    pushq in+128; popfq
    mov in+8, %rbx; mov in+16, %rcx; mov in+24, %rdx; mov in+32, %rsi; mov in+40, %rdi; mov in+48, %rbp
    mov in+64, %r8; mov in+72, %r9; mov in+80, %r10; mov in+88, %r11
    mov in+96, %r12; mov in+104, %r13; mov in+112, %r14; mov in+120, %r15
    mov in+56, %rsp; mov in, %rax
spin:
    testb $1, go
    jz spin
spun:
    mov %rax, out; mov %rbx, out+8; mov %rcx, out+16; mov %rdx, out+24; mov %rsi, out+32; mov %rdi, out+40
    mov %rbp, out+48; mov %rsp, out+56; mov %r8, out+64; mov %r9, out+72; mov %r10, out+80; mov %r11, out+88
    mov %r12, out+96; mov %r13, out+104; mov %r14, out+112; mov %r15, out+120
    mov saved_sp, %rsp
    pushfq; popq out+128
    pushq $2; popfq
    mov $-1, %eax; mov $-1, %edx; xsave64 xs_out
    fninit; ldmxcsr plain
    xor %eax, %eax; mov %es, %eax; mov %rax, out+136
    mov $158, %eax; mov $0x1003, %edi; mov $out+144, %rsi; syscall
    mov $158, %eax; mov $0x1004, %edi; mov $out+152, %rsi; syscall
    mov %fs:0, %rax; mov %rax, out+160
    mov %gs:0, %rax; mov %rax, out+168
    mov $158, %eax; mov $0x1002, %edi; mov saved_fs, %rsi; syscall
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
    ret
    .section .rodata
plain: .long 0x1f80
    .text
)");
#else
asm(R"(
    .text
    .globl run, spin, spun
run:
    push %ebx; push %ebp; push %esi; push %edi
    mov %esp, saved_sp
    mov in+36, %eax; mov %eax, %es
    mov in+40, %eax; mov %eax, %fs
    mov $-1, %eax; mov $-1, %edx; xrstor xs_in
    pushl in+32; popfl
    mov in+4, %ebx; mov in+8, %ecx; mov in+12, %edx; mov in+16, %esi; mov in+20, %edi; mov in+24, %ebp
    mov in+28, %esp; mov in, %eax
spin:
    testb $1, go
    jz spin
spun:
    mov %eax, out; mov %ebx, out+4; mov %ecx, out+8; mov %edx, out+12; mov %esi, out+16; mov %edi, out+20
    mov %ebp, out+24; mov %esp, out+28
    mov saved_sp, %esp
    pushfl; popl out+32
    pushl $2; popfl
    mov $-1, %eax; mov $-1, %edx; xsave xs_out
    fninit; ldmxcsr plain
    xor %eax, %eax; mov %es, %eax; mov %eax, out+36
    xor %eax, %eax; mov %fs, %eax; mov %eax, out+40
    xor %eax, %eax; mov %gs, %eax; mov %eax, out+44
    mov %fs:0, %eax; mov %eax, out+48
    mov $0x2b, %eax; mov %eax, %es
    pop %edi; pop %esi; pop %ebp; pop %ebx
    ret
    .section .rodata
plain: .long 0x1f80
    .text
)");
#endif

static uint64_t noise;
static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = noise += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
static void fill(unsigned char *at, unsigned n) { while (n--) *at++ = draw(); }

static uint64_t xcr0(void) {
    unsigned a, d;
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a | (uint64_t)d << 32;
}

/* The part of component n that this word size can load, and where it is. */
static unsigned place(int n, unsigned *offset) {
    unsigned size, c, d;
    __cpuid_count(0xd, n, size, *offset, c, d);
    if (n == 9) return 4;
#if !__x86_64__
    if (n == 2 || n == 6) return size / 2;
    if (n == 7 || n > 9) return 0;
#endif
    return size;
}
enum { NXMM = NGPR };

static void build(struct state *s, unsigned char *xs, int seed) {
    noise = 1000 + seed;
    memset(s, 0, sizeof *s);
    memset(xs, 0, 16384);
    for (int i = 0; i < NGPR; i++) s->gpr[i] = seed ? draw() : 0;
    s->gpr[7] = (word)(stack + 32768 + 64 * seed);
    s->flags = 0x202 | (seed ? 0x400 | (seed & 2 ? 0x40000 : 0) | (seed & 4 ? 0x4000 : 0) : 0); /* DF, AC, NT */
    s->at_fs = s->at_gs = 0;
#if __x86_64__
    s->es = seed ? 0x63 : 0;
    s->fs = (word)segment_area[seed], s->gs = (word)segment_area[seed + 1 & 7];
    s->at_fs = segment_area[seed][0], s->at_gs = segment_area[seed + 1 & 7][0];
#else
    s->es = seed ? 0x73 : 0x2b;
    s->fs = 0x6b, s->gs = 0x63; /* 12 is the C library's */
    s->at_fs = segment_area[seed][0];
#endif
    uint64_t bv = seed & 1 ? 0x21 : ~0ull;
    if (seed == 0) bv = 1 << 9; /* Linux gives every program a PKRU that is not the hardware's, which is 0 */
    bv &= xcr0();
    unsigned mxcsr = seed ? 0x1f80 | (seed & 3) << 13 | 0x21 : 0x1f80;
    *(uint16_t *)xs = 0x37f;
    memcpy(xs + 24, &mxcsr, 4);
    for (int n = 2; n < 63; n++) {
        unsigned offset, size = xcr0() >> n & 1 ? place(n, &offset) : 0;
        if (!(bv >> n & 1) || !size) { bv &= ~(1ull << n); continue; }
        if (n == 9) { uint32_t pkru = 0x55555554 ^ (seed ? 1u << 2 * (2 + seed) : 0); memcpy(xs + offset, &pkru, 4); }
        else if (n == 17) {
            xs[offset] = 1;
            for (int t = 0; t < 8; t++) xs[offset + 16 + 2 * t] = 4 * (1 + t), xs[offset + 48 + t] = 1 + seed;
        } else fill(xs + offset, size);
    }
    if (bv & 1) {
        *(uint16_t *)xs = 0x27f | (seed & 3) << 10;
        *(uint16_t *)(xs + 2) = (seed & 7) << 11 | 0x4101; /* TOP, C3 C0 IE; masked, so nothing is pending */
        xs[4] = 0x5a + seed;
        for (int i = 0; i < 8; i++) fill(xs + 32 + 16 * i, 10);
    }
    if (bv & 2) fill(xs + 160, 16 * NXMM);
    memcpy(xs + 512, &bv, 8);
}

static int bad;
static void differs(const char *what, int n) { fprintf(stderr, "%s %d differs\n", what, n); bad = 1; }

static void touch_tiles(void) { /* SIGILL without the permission */
    static unsigned char tiles[16384] __attribute__((aligned(64)));
    *(uint64_t *)(tiles + 512) = 1 << 18;
    asm volatile("xrstor %0" : : "m"(tiles), "a"(1 << 18), "d"(0));
}

int main(int argc, char **argv) {
    int load = atoi(argv[1]), expect = atoi(argv[2]);
    for (int i = 0; i < 8; i++) segment_area[i][0] = 0x5e6000 + i;
#if __x86_64__
    if (xcr0() >> 18 & 1) {
        /* ARCH_REQ_XCOMP_PERM; and to touch the tiles once, for only then has the kernel room for them. */
        if (syscall(SYS_arch_prctl, 0x1023, 18)) return 3;
        if (argc < 4) touch_tiles();
    }
#endif
    /* GDT TLS: 12 for 64-bit programs; for 32-bit ones 12 is the C library's, 13 is FS, 14 is ES. int 0x80 in both. */
    enum { FIRST = NGPR == 16 ? 12 : 13, LAST = NGPR == 16 ? 12 : 14 };
    for (int entry = FIRST; entry <= LAST; entry++) {
        if (entry == LAST && !load) break;
        static struct desc d;
        d.entry = entry, d.base = 0, d.limit = 0xfffff, d.flags = 0x59;
        if (entry == FIRST) d.base = (unsigned)(word)segment_area[load], d.flags = 0x51;
        int result;
        asm volatile("int $0x80" : "=a"(result) : "0"(243), "b"(&d) : "memory");
        if (result) return 2;
    }
    build(&in, xs_in, load);
    printf("%lx %lx %lx\n", (word)&go, (word)spin, (word)spun);
    fflush(stdout);
    run();
    static struct state want;
    static unsigned char xs_want[16384];
    build(&want, xs_want, expect);
    for (int i = 0; i < NGPR; i++) if (out.gpr[i] != want.gpr[i]) differs(gpr_names[i], i);
    /* test changed CF PF AF ZF SF OF */
    if ((out.flags ^ want.flags) & ~0x8d5ul) fprintf(stderr, "flags %lx not %lx\n", out.flags, want.flags), bad = 1;
    if (out.es != want.es || out.fs != want.fs || out.gs != want.gs) differs("segment", 0);
    if (out.at_fs != want.at_fs) differs("memory behind fs", 0);
    if (NGPR == 16 && out.at_gs != want.at_gs) differs("memory behind gs", 0);
    if (memcmp(xs_out, xs_want, 5)) differs("x87 control", 0);
    if (memcmp(xs_out + 24, xs_want + 24, 4)) differs("mxcsr", 0);
    for (int i = 0; i < 8; i++) if (memcmp(xs_out + 32 + 16 * i, xs_want + 32 + 16 * i, 10)) differs("st", i);
    for (int i = 0; i < NXMM; i++) if (memcmp(xs_out + 160 + 16 * i, xs_want + 160 + 16 * i, 16)) differs("xmm", i);
    for (int n = 2; n < 63; n++) {
        unsigned offset, size = xcr0() >> n & 1 ? place(n, &offset) : 0;
        if (memcmp(xs_out + offset, xs_want + offset, size)) differs("state component", n);
    }
    static struct desc d;
    d.entry = NGPR == 16 ? 12 : 13;
    asm volatile("int $0x80" : : "a"(244), "b"(&d) : "memory");
    if (d.base != (NGPR == 16 && !expect ? 0 : (unsigned)(word)segment_area[expect])) differs("TLS base", 0);
#if __x86_64__
    if (xcr0() >> 18 & 1) touch_tiles();
#endif
    return bad;
}
"""

ADDR_NO_RANDOMIZE = 0x0040000
_libc = ctypes.CDLL(None)


def build(directory: Path, word: int) -> Path:
    """The program as a static executable of this word size."""
    source = directory / "registers.c"
    source.write_text(SOURCE)
    program = directory / f"registers{8 * word}"
    flags = M32 if word == 4 else ()
    # No vector instructions of the compiler's own while the registers are ours.
    command = ["gcc", *flags, "-O1", "-static", "-no-pie", "-fno-pie", "-fcf-protection=none", "-w", "-o"]
    subprocess.run([*command, str(program), str(source)], check=True)
    return program


class Child:
    """The program, spinning with the registers of seed `load`; stopped by ptrace inside the `with` block."""

    def __init__(self, program: Path, load: int, expect: int) -> None:
        self.word = 8 if program.name.endswith("64") else 4
        self.sets: X86Registers = REGISTERS_64 if self.word == 8 else REGISTERS_32
        self.process = subprocess.Popen(
            [str(program), str(load), str(expect)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: _libc.personality(ADDR_NO_RANDOMIZE),
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.go, self.spin, self.spun = (int(part, 16) for part in line.split())
        self.tid = self.process.pid
        self.attached = False

    def __enter__(self) -> Child:
        self.stop()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()

    def stop(self) -> None:
        """Stop the program inside its loop."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            ptrace.seize(self.tid)
            ptrace.interrupt(self.tid)
            ptrace.wait(self.tid)
            self.attached = True
            regs = self.sets.read_general(self.tid)
            if self.spin <= regs["rip" if self.word == 8 else "eip"] < self.spun:
                return
            self.release()
            time.sleep(0.001)
        raise AssertionError("the program does not reach its loop")

    def release(self) -> None:
        """Let it spin on, untraced."""
        if self.attached:
            ptrace.detach(self.tid)
            self.attached = False

    def finish(self) -> tuple[int, str]:
        """Let it leave its loop: its exit code (negative: a signal), and what it says differs."""
        self.release()
        with open(f"/proc/{self.tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self.go)
            memory.write(b"\1")
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said

    def is_executable(self, address: int) -> bool:
        return self.spin <= address < self.spun
