@ What runs inside a 32-bit ARM task on torpor's behalf; arch/x86/code64.S tells what all such code has in common.
@
@ `heal` ends in rt_sigreturn(2), as AArch64's does. A load of all registers from memory would do for ARM code without flags, but
@ nothing except an exception return brings a thread back into the middle of an IT block, and this restores the signal mask in the
@ same instant. The frame (struct rt_sigframe in arch/arm/kernel/signal.c; the arm64 kernel's for 32-bit tasks is the same) has the
@ floating point registers, because the kernel insists. What the kernel does not read of it lies over the code in front.
@
@ It is ARM code whatever the program is: `entered` clears the Thumb bit. No instruction is younger than ARMv4T. r12 stays what
@ it was on the way from `leave` to `notified`: the kernel takes no other value for it at the end of a call (report_syscall()).
@
@ The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
@ number, six arguments, result, address to which the result is copied too. Of each word the lower half counts.
	.syntax	unified
	.arm
	.text
entry:					@ block signals, then map the work area at the chosen address
	mov	r7, #175		@ rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	mov	r0, #2
	adr	r1, v_block
	mov	r2, #0
	mov	r3, #8
	svc	#0
	mov	r7, #192		@ mmap2(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	ldr	r0, v_work
	ldr	r1, v_length
	mov	r2, #3
	ldr	r3, flags
	mvn	r4, #0
	mov	r5, #0
	svc	#0
	ldr	r1, v_work
	cmp	r0, r1
	adr	r4, finish
	beq	notify
leave:					@ nothing was mapped, or nothing is any more
	adr	r4, heal
	b	notify
batch:
	ldr	r8, v_work
next:
	ldr	r6, [r8]
	ldr	r7, [r6]
	ldr	r0, [r6, #8]
	ldr	r1, [r6, #16]
	ldr	r2, [r6, #24]
	ldr	r3, [r6, #32]
	ldr	r4, [r6, #40]
	ldr	r5, [r6, #48]
call:
	svc	#0
	str	r0, [r6, #56]
	ldr	r1, [r6, #64]
	str	r0, [r1]
	add	r6, r6, #72
	str	r6, [r8]
	ldr	r1, [r8, #8]
	subs	r1, r1, #1
	str	r1, [r8, #8]
	bne	next
	adr	r4, finish
notify:					@ tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	mov	r7, #268
	ldr	r0, v_tgid
	ldr	r1, v_tid
	ldr	r2, v_signal
	svc	#0
notified:
	mov	pc, r4
finish:
	mov	r7, #91			@ munmap(v_work, v_length)
	ldr	r0, v_work
	ldr	r1, v_length
	svc	#0
	b	leave
heal:					@ registers, flags and signal mask, all at once
	adr	sp, frame
	mov	r7, #173		@ rt_sigreturn()
	svc	#0

flags:	.long	0x108022
v_work:	.long	0
v_length: .long 0
v_tgid:	.long	0
v_tid:	.long	0
v_signal: .long	0
	.balign	8
v_block: .quad	0

	.equ	frame, stack - 136	@ of 8 bytes alignment, as `stack` is
stack:	.long	0, 0x7fffffff, 0	@ uc_stack: flags that sigaltstack(2) does not take, so that it stays as it is
	.long	0, 0, 0			@ uc_mcontext
r_r0:	.long	0
r_r1:	.long	0
r_r2:	.long	0
r_r3:	.long	0
r_r4:	.long	0
r_r5:	.long	0
r_r6:	.long	0
r_r7:	.long	0
r_r8:	.long	0
r_r9:	.long	0
r_r10:	.long	0
r_fp:	.long	0
r_ip:	.long	0
r_sp:	.long	0
r_lr:	.long	0
r_pc:	.long	0
v_flags: .long	0			@ cpsr
fault:	.long	0
v_mask:	.quad	0			@ uc_sigmask, and room for more signals than there are
rest:	.space	120
vfp:	.long	0x56465001, 288		@ struct vfp_sigframe: uc_regspace
v_d:	.space	256
v_fpscr: .long	0
exceptions: .long 0, 0, 0, 0, 0
end:
