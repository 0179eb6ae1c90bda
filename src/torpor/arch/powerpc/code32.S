# What runs inside a 32-bit PowerPC task on torpor's behalf: the same as code64.S in that ABI's terms, on a kernel of either width.
#
# The kernel looks for the frame of rt_sigreturn(2) above the stack pointer, behind 80 bytes for a caller and siginfo's 128
# (arch/powerpc/kernel/signal_32.c); the registers lie where the frame says (struct mcontext in asm/ucontext.h).
#
# The words of the work area are of 64 bits here, too: the lower half of one comes second.
	.text
entry:
	bcl	20, 31, 1f
1:	mflr	31
	addi	31, 31, entry - 1b
	li	0, 174			# rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	li	3, 2
	addi	4, 31, v_block - entry
	li	5, 0
	li	6, 8
	sc
	li	0, 192			# mmap2(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	lwz	3, v_work - entry(31)
	lwz	4, v_length - entry(31)
	li	5, 3
	lis	6, 0x10
	ori	6, 6, 0x8022
	li	7, -1
	li	8, 0
	sc
	lwz	4, v_work - entry(31)
	cmpw	3, 4
	addi	30, 31, finish - entry
	beq	notify
	addi	30, 31, heal - entry	# nothing was mapped: nothing to undo
	b	notify
batch:
	bcl	20, 31, 2f
2:	mflr	31
	addi	31, 31, entry - 2b
	lwz	29, v_work - entry(31)
next:
	lwz	28, 4(29)
	lwz	0, 4(28)
	lwz	3, 12(28)
	lwz	4, 20(28)
	lwz	5, 28(28)
	lwz	6, 36(28)
	lwz	7, 44(28)
	lwz	8, 52(28)
	sc
	bns	3f			# an error is a positive number beside the summary overflow bit
	neg	3, 3
3:	stw	3, 60(28)
	lwz	9, 68(28)
	stw	3, 0(9)
	addi	28, 28, 72
	stw	28, 4(29)
	lwz	9, 12(29)
	addi	9, 9, -1
	stw	9, 12(29)
	cmpwi	9, 0
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
	lwz	3, v_work - entry(31)
	lwz	4, v_length - entry(31)
	sc
	addi	30, 31, heal - entry
	b	notify
heal:					# registers, flags and signal mask, all at once
	addi	1, 31, frame - 208 - entry
	li	0, 172			# rt_sigreturn()
	sc

	.balign	16
frame:					# struct ucontext: flags; link, which is 0 where there is no transaction
	.long	0, 0
	.long	0, 0x7fffffff, 0	# uc_stack: flags that sigaltstack(2) does not take, so that it stays as it is
v_work:	.long 0				# room that nobody uses
v_length: .long 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
v_block: .quad 0
places:	.long registers
v_mask:	.quad 0				# uc_sigmask, of which no more is read
rest:	.balign	16
registers:				# struct mcontext
r_r0:	.long 0
r_r1:	.long 0
r_r2:	.long 0
r_r3:	.long 0
r_r4:	.long 0
r_r5:	.long 0
r_r6:	.long 0
r_r7:	.long 0
r_r8:	.long 0
r_r9:	.long 0
r_r10:	.long 0
r_r11:	.long 0
r_r12:	.long 0
r_r13:	.long 0
r_r14:	.long 0
r_r15:	.long 0
r_r16:	.long 0
r_r17:	.long 0
r_r18:	.long 0
r_r19:	.long 0
r_r20:	.long 0
r_r21:	.long 0
r_r22:	.long 0
r_r23:	.long 0
r_r24:	.long 0
r_r25:	.long 0
r_r26:	.long 0
r_r27:	.long 0
r_r28:	.long 0
r_r29:	.long 0
r_r30:	.long 0
r_r31:	.long 0
r_nip:	.long 0
v_msr:	.long 0				# which of the vector registers below count
r_orig_r3: .long 0
r_ctr:	.long 0
r_link:	.long 0
r_xer:	.long 0
v_flags: .long 0			# cr
others:	.space registers + 192 - others
v_fp:	.space 264			# f0 to f31, fpscr
unused:	.quad	0
v_vmx:	.space 528			# v0 to v31; then vrsave, and vscr in the last word
v_vsx:	.space 256			# the lower halves of vs0 to vs31
end:
