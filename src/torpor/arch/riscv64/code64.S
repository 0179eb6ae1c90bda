# What runs inside a riscv64 task on torpor's behalf; arch/x86/code64.S tells what all such code has in common.
#
# A jump to where the task was would need a register, so `heal` ends in rt_sigreturn(2). The vdso has some 1,100 bytes to spare,
# its section headers included, and the frame alone is of 1,088 (struct rt_sigframe in arch/riscv/kernel/signal.c). So only what the
# kernel reads of it is there, and the code lies in its gaps: `frame` is what comes behind siginfo, uc_flags and uc_link.
#
# A jump by t2 needs no landing pad where the processor looks for them (Zicfilp).
#
# The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
# number, six arguments, result, address to which the result is copied too.
	.text
	.option norelax
frame:				# struct rt_sigframe from its byte 144 on: uc_stack, with a flag that sigaltstack(2) does not know ...
	.dword	0		# ... so that the task's own stays as it is (the kernel overlooks the error)
	.word	0x7fffffff, 0
	.dword	0
v_mask:	.dword	0		# uc_sigmask, and then room for more signals than there are
v_work:	.dword	0
v_length: .word	0
v_tgid:	.word	0
v_tid:	.word	0
v_signal: .word	0
v_block: .dword	0
notify:				# tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	lla	s0, v_work
	li	a7, 131
	lw	a0, 12(s0)
	lw	a1, 16(s0)
	lw	a2, 20(s0)
	ecall
notified:
	jr	t2
finish:
	lla	s0, v_work
	li	a7, 215		# munmap(v_work, v_length)
	ld	a0, 0(s0)
	lw	a1, 8(s0)
	ecall
	lla	t2, heal
	j	notify
heal:				# registers and signal mask, all at once
	lla	sp, frame - 144
	li	a7, 139		# rt_sigreturn()
	ecall
	.org	frame + 160	# uc_mcontext
r_pc:	.dword	0
r_ra:	.dword	0
r_sp:	.dword	0
r_gp:	.dword	0
r_tp:	.dword	0
r_t0:	.dword	0
r_t1:	.dword	0
r_t2:	.dword	0
r_s0:	.dword	0
r_s1:	.dword	0
r_a0:	.dword	0
r_a1:	.dword	0
r_a2:	.dword	0
r_a3:	.dword	0
r_a4:	.dword	0
r_a5:	.dword	0
r_a6:	.dword	0
r_a7:	.dword	0
r_s2:	.dword	0
r_s3:	.dword	0
r_s4:	.dword	0
r_s5:	.dword	0
r_s6:	.dword	0
r_s7:	.dword	0
r_s8:	.dword	0
r_s9:	.dword	0
r_s10:	.dword	0
r_s11:	.dword	0
r_t3:	.dword	0
r_t4:	.dword	0
r_t5:	.dword	0
r_t6:	.dword	0
v_f:	.zero	256		# struct __riscv_d_ext_state; behind it the kernel has room for longer ones
v_fcsr:	.word	0
entry:				# block signals, then map the work area at the chosen address
	lla	s0, v_work
	li	a7, 135		# rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	li	a0, 2
	addi	a1, s0, 24
	li	a2, 0
	li	a3, 8
	ecall
	li	a7, 222		# mmap(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	ld	a0, 0(s0)
	lw	a1, 8(s0)
	li	a2, 3
	li	a3, 0x108022
	li	a4, -1
	li	a5, 0
	ecall
	ld	a1, 0(s0)
	lla	t2, finish
	beq	a0, a1, 1f
	lla	t2, heal	# nothing was mapped: nothing to undo
1:	j	notify
batch:
	lla	s0, v_work
	ld	s1, 0(s0)
next:
	ld	s2, 0(s1)
	ld	a7, 0(s2)
	ld	a0, 8(s2)
	ld	a1, 16(s2)
	ld	a2, 24(s2)
	ld	a3, 32(s2)
	ld	a4, 40(s2)
	ld	a5, 48(s2)
call:
	ecall
	sd	a0, 56(s2)
	ld	a1, 64(s2)
	sd	a0, 0(a1)
	addi	s2, s2, 72
	ld	a1, 8(s1)
	addi	a1, a1, -1
	sd	s2, 0(s1)
	sd	a1, 8(s1)
	bnez	a1, next
	lla	t2, finish
	j	notify
	.org	frame + 932
	.word	0, 0, 0		# reserved, and the record that ends the list of extensions
end:
