# What runs inside an s390x task on torpor's behalf; arch/x86/code64.S tells what all such code has in common.
#
# A branch to where the task was would need a register, so `heal` ends in rt_sigreturn(2), as on AArch64: the frame below holds every
# register and the signal mask. Only what the kernel reads of it is there (struct rt_sigframe in arch/s390/kernel/signal.c): the save
# area, siginfo, uc_flags and uc_link lie over the code in front, and are never looked at.
#
# The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
# number, six arguments, result, address to which the result is copied too.
	.text
entry:					# block signals, then map the work area at the chosen address
	lghi	%r2, 2			# rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	larl	%r3, v_block
	lghi	%r4, 0
	lghi	%r5, 8
	svc	175
	larl	%r2, v_work		# mmap(&{v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0})
	svc	90
	larl	%r13, finish
	cgrl	%r2, v_work
	je	notify
	larl	%r13, heal		# nothing was mapped: nothing to undo
	j	notify
batch:
	lgrl	%r12, v_work
next:
	lg	%r11, 0(%r12)
	lmg	%r1, %r7, 0(%r11)
	cghi	%r1, 90			# mmap takes the address of its six arguments (sys_old_mmap)
	jne	call
	la	%r2, 8(%r11)
call:
	svc	0			# the number is in r1
	stg	%r2, 56(%r11)
	lg	%r3, 64(%r11)
	stg	%r2, 0(%r3)
	la	%r11, 72(%r11)
	stg	%r11, 0(%r12)
	lg	%r3, 8(%r12)
	aghi	%r3, -1
	stg	%r3, 8(%r12)
	jne	next
	larl	%r13, finish
notify:					# tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	lgfrl	%r2, v_tgid
	lgfrl	%r3, v_tid
	lgfrl	%r4, v_signal
	svc	241
notified:
	br	%r13
finish:
	lgrl	%r2, v_work		# munmap(v_work, v_length)
	lgrl	%r3, v_length
	svc	91
	larl	%r13, heal
	j	notify
heal:					# registers, program mask and signal mask, all at once
	larl	%r15, frame
	svc	173			# rt_sigreturn()

	.balign	8
v_block: .quad 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
pad:	.long 0
v_work:	.quad 0				# struct mmap_arg_struct
v_length: .quad 0
prot:	.quad 3, 0x108022, -1, 0

	.equ	frame, stack - 312	# not before `entry`: a slot takes all of it
	.org	entry + 312
stack:	.quad 0				# uc_stack: flags that sigaltstack(2) does not take, so that it stays as it is
	.long	0x7fffffff, 0
	.quad	0
v_flags: .quad 0			# uc_mcontext: the PSW
r_psw_addr: .quad 0
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
v_acrs:	.space 64
v_fpc:	.long 0
r_svc_length: .long 0			# padding for the kernel; a slot is left with its help
v_fprs:	.space 128
v_mask:	.quad 0				# uc_sigmask
unused:	.space 120			# room for more signals than there are
v_low:	.space 128			# uc_mcontext_ext; the kernel looks at it where there are vector registers
v_high:	.space 256
end:
