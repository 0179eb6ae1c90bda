# What runs inside a 64-bit PowerPC task on torpor's behalf; arch/x86/code64.S tells what all such code has in common. It is
# assembled in both byte orders.
#
# No branch to a far address leaves all registers alone, so `heal` ends in rt_sigreturn(2): the frame below holds every register
# and the signal mask, and the floating point and vector registers, which the kernel takes from a frame whether they have changed
# or not. Only what it reads is there (struct ucontext in asm/ucontext.h, struct sigcontext in asm/sigcontext.h).
#
# r31 holds the address of `entry`, r30 where `notify` goes on: a system call leaves r14 to r31 as they are.
#
# The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
# number, six arguments, result, address to which the result is copied too.
	.text
entry:					# block signals, then map the work area at the chosen address
	bcl	20, 31, 1f		# the one form of a call that is meant to tell where it is
1:	mflr	31
	addi	31, 31, entry - 1b
	li	0, 174			# rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	li	3, 2
	addi	4, 31, v_block - entry
	li	5, 0
	li	6, 8
	sc
	li	0, 90			# mmap(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	ld	3, v_work - entry(31)
	lwz	4, v_length - entry(31)
	li	5, 3
	lis	6, 0x10
	ori	6, 6, 0x8022
	li	7, -1
	li	8, 0
	sc
	ld	4, v_work - entry(31)
	cmpd	3, 4
	addi	30, 31, finish - entry
	beq	notify
	addi	30, 31, heal - entry	# nothing was mapped: nothing to undo
	b	notify
batch:
	bcl	20, 31, 2f
2:	mflr	31
	addi	31, 31, entry - 2b
	ld	29, v_work - entry(31)
next:
	ld	28, 0(29)
	ld	0, 0(28)
	ld	3, 8(28)
	ld	4, 16(28)
	ld	5, 24(28)
	ld	6, 32(28)
	ld	7, 40(28)
	ld	8, 48(28)
	sc
	bns	3f			# an error is a positive number beside the summary overflow bit
	neg	3, 3
3:	std	3, 56(28)
	ld	9, 64(28)
	std	3, 0(9)
	addi	28, 28, 72
	std	28, 0(29)
	ld	9, 8(29)
	addi	9, 9, -1
	std	9, 8(29)
	cmpdi	9, 0
	bne	next
	addi	30, 31, finish - entry
notify:					# tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	li	0, 250
	lwz	3, v_tgid - entry(31)
	lwz	4, v_tid - entry(31)
	lwz	5, v_signal - entry(31)
	sc
notified:
	mtctr	30
	bctr
finish:
	bcl	20, 31, 4f
4:	mflr	31
	addi	31, 31, entry - 4b
	li	0, 91			# munmap(v_work, v_length)
	ld	3, v_work - entry(31)
	lwz	4, v_length - entry(31)
	sc
	addi	30, 31, heal - entry
	b	notify
heal:					# registers, flags and signal mask, all at once
	addi	1, 31, frame - entry
	li	0, 172			# rt_sigreturn()
	sc

	.balign	16
frame:					# struct ucontext: flags and link, of which nobody takes notice
	.quad	0, 0
	.quad	0			# uc_stack: flags that sigaltstack(2) does not take, so that it stays as it is
	.long	0x7fffffff, 0
	.quad	0
v_mask:	.quad 0				# uc_sigmask; what follows up to the registers is room for more signals than there are
v_block: .quad 0
v_work:	.quad 0
v_length: .long 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
reserved: .space frame + 232 - reserved
r_r0:	.quad 0
r_r1:	.quad 0
r_r2:	.quad 0
r_r3:	.quad 0
r_r4:	.quad 0
r_r5:	.quad 0
r_r6:	.quad 0
r_r7:	.quad 0
r_r8:	.quad 0
r_r9:	.quad 0
r_r10:	.quad 0
r_r11:	.quad 0
r_r12:	.quad 0
r_r13:	.quad 0
r_r14:	.quad 0
r_r15:	.quad 0
r_r16:	.quad 0
r_r17:	.quad 0
r_r18:	.quad 0
r_r19:	.quad 0
r_r20:	.quad 0
r_r21:	.quad 0
r_r22:	.quad 0
r_r23:	.quad 0
r_r24:	.quad 0
r_r25:	.quad 0
r_r26:	.quad 0
r_r27:	.quad 0
r_r28:	.quad 0
r_r29:	.quad 0
r_r30:	.quad 0
r_r31:	.quad 0
r_nip:	.quad 0
v_msr:	.quad 0				# which of the vector registers below count, and the byte order
r_orig_r3: .quad 0
r_ctr:	.quad 0
r_link:	.quad 0
r_xer:	.quad 0
v_flags: .quad 0			# cr
others:	.space frame + 616 - others
v_fp:	.space 264			# f0 to f31, fpscr
vectors: .quad v_vmx
	.balign	16
v_vmx:	.space 544			# v0 to v31, vscr, vrsave
v_vsx:	.space 256			# the lower halves of vs0 to vs31
end:
