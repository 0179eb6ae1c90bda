// What runs inside an AArch64 task on torpor's behalf; arch/x86/code64.S tells what all such code has in common.
//
// A branch to where the task was would need a register, so `heal` ends in rt_sigreturn(2): the frame below holds every register,
// the signal mask and, because the kernel insists, the vector registers. Only what the kernel reads of it is there (struct
// rt_sigframe in arch/arm64/kernel/signal.c): siginfo, uc_flags, uc_link lie over the code in front, and are never looked at.
//
// `ret` and no `br` jumps by register: the vdso is guarded memory where the processor has BTI, and this is no landing pad.
//
// The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
// number, six arguments, result, address to which the result is copied too.
	.text
entry:					// block signals, then map the work area at the chosen address
	mov	x8, #135		// rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	mov	x0, #2
	adr	x1, v_block
	mov	x2, #0
	mov	x3, #8
	svc	#0
	mov	x8, #222		// mmap(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	ldr	x0, v_work
	ldr	w1, v_length
	mov	x2, #3
	mov	x3, #0x8022
	movk	x3, #0x10, lsl #16
	mov	x4, #-1
	mov	x5, #0
	svc	#0
	ldr	x1, v_work
	cmp	x0, x1
	adr	x19, finish
	b.eq	notify
	adr	x19, heal		// nothing was mapped: nothing to undo
	b	notify
batch:
	ldr	x20, v_work
next:
	ldr	x21, [x20]
	ldp	x8, x0, [x21]
	ldp	x1, x2, [x21, #16]
	ldp	x3, x4, [x21, #32]
	ldr	x5, [x21, #48]
call:
	svc	#0
	str	x0, [x21, #56]
	ldr	x9, [x21, #64]
	str	x0, [x9]
	add	x21, x21, #72
	ldr	x9, [x20, #8]
	sub	x9, x9, #1
	stp	x21, x9, [x20]
	cbnz	x9, next
	adr	x19, finish
notify:					// tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	mov	x8, #131
	ldr	w0, v_tgid
	ldr	w1, v_tid
	ldr	w2, v_signal
	svc	#0
notified:
	ret	x19
finish:
	mov	x8, #215		// munmap(v_work, v_length)
	ldr	x0, v_work
	ldr	w1, v_length
	svc	#0
	adr	x19, heal
	b	notify
heal:					// registers, flags and signal mask, all at once
	adr	x0, frame
	mov	sp, x0
	mov	x8, #139		// rt_sigreturn()
	svc	#0

	.balign	8
v_work:	.quad 0
v_length: .long 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
v_block: .quad 0

	.equ	frame, stack - 144	// of 16 bytes alignment, as `stack` is
	.balign	16
stack:	.quad 0				// uc_stack: flags that sigaltstack(2) does not take, so that it stays as it is
	.long	0x7fffffff, 0
	.quad	0
v_mask:	.quad 0				// uc_sigmask, and room for more signals than there are
	.space	120
	.balign	16			// uc_mcontext, after fault_address
	.quad	0
r_x0:	.quad 0
r_x1:	.quad 0
r_x2:	.quad 0
r_x3:	.quad 0
r_x4:	.quad 0
r_x5:	.quad 0
r_x6:	.quad 0
r_x7:	.quad 0
r_x8:	.quad 0
r_x9:	.quad 0
r_x10:	.quad 0
r_x11:	.quad 0
r_x12:	.quad 0
r_x13:	.quad 0
r_x14:	.quad 0
r_x15:	.quad 0
r_x16:	.quad 0
r_x17:	.quad 0
r_x18:	.quad 0
r_x19:	.quad 0
r_x20:	.quad 0
r_x21:	.quad 0
r_x22:	.quad 0
r_x23:	.quad 0
r_x24:	.quad 0
r_x25:	.quad 0
r_x26:	.quad 0
r_x27:	.quad 0
r_x28:	.quad 0
r_x29:	.quad 0
r_x30:	.quad 0
r_sp:	.quad 0
r_pc:	.quad 0
v_flags: .quad 0			// pstate
	.balign	16
vectors: .long	0x46508001, 528		// struct fpsimd_context
v_fpsr:	.long 0
v_fpcr:	.long 0
v_v:	.space 512
terminator: .quad 0			// no more records
end:
