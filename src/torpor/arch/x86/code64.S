# What runs inside an x86-64 task on torpor's behalf. It lies in the zero padding behind the vdso's section headers (or in
# the stub of a restart), is position independent and needs no stack. Whatever happens to torpor, every path ends in `heal`,
# which puts back each register, the flags and the signal mask that the variables below hold. docs/architecture.md has the story.
#
# The work area (tasks/remote.py): +0 address of the next call, +8 calls left; a call is nine 64-bit words:
# number, six arguments, result, address to which the result is copied too.
.intel_syntax noprefix
.text
entry:                              # block signals, then map the work area at the chosen address
	mov	eax, 14             # rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	mov	edi, 2
	lea	rsi, [rip + v_block]
	xor	edx, edx
	mov	r10d, 8
	syscall
	mov	eax, 9              # mmap(v_work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	mov	rdi, [rip + v_work]
	mov	esi, [rip + v_length]
	mov	edx, 3
	mov	r10d, 0x108022
	mov	r8, -1
	xor	r9d, r9d
	syscall
	lea	r15, [rip + finish]
	cmp	rax, [rip + v_work]
	je	notify
	lea	r15, [rip + heal]   # nothing was mapped: nothing to undo
	jmp	notify
batch:
	mov	r12, [rip + v_work]
next:
	mov	rbx, [r12]
	mov	rax, [rbx]
	mov	rdi, [rbx + 8]
	mov	rsi, [rbx + 16]
	mov	rdx, [rbx + 24]
	mov	r10, [rbx + 32]
	mov	r8, [rbx + 40]
	mov	r9, [rbx + 48]
	syscall
	mov	[rbx + 56], rax
	mov	rcx, [rbx + 64]
	mov	[rcx], rax
	add	qword ptr [r12], 72
	dec	qword ptr [r12 + 8]
	jnz	next
	lea	r15, [rip + finish]
notify:                             # tgkill(v_tgid, v_tid, v_signal): a stop for the tracer, nothing when there is none
	mov	eax, 234
	mov	edi, [rip + v_tgid]
	mov	esi, [rip + v_tid]
	mov	edx, [rip + v_signal]
	syscall
notified:
	jmp	r15
finish:
	mov	eax, 11             # munmap(v_work, v_length)
	mov	rdi, [rip + v_work]
	mov	esi, [rip + v_length]
	syscall
	lea	r15, [rip + heal]
	jmp	notify
heal:                               # flags first, read by popf from this page while every signal is still blocked
	lea	rsp, [rip + v_flags]
	popfq
	mov	rsp, [rip + r_rsp]
	mov	eax, 14             # rt_sigprocmask(SIG_SETMASK, &v_mask, NULL, 8); from here on nothing may touch the flags
	mov	edi, 2
	lea	rsi, [rip + v_mask]
	mov	edx, 0
	mov	r10d, 8
	syscall
	mov	rbx, [rip + r_rbx]
	mov	rcx, [rip + r_rcx]
	mov	rdx, [rip + r_rdx]
	mov	rsi, [rip + r_rsi]
	mov	rdi, [rip + r_rdi]
	mov	rbp, [rip + r_rbp]
	mov	r8, [rip + r_r8]
	mov	r9, [rip + r_r9]
	mov	r10, [rip + r_r10]
	mov	r11, [rip + r_r11]
	mov	r12, [rip + r_r12]
	mov	r13, [rip + r_r13]
	mov	r14, [rip + r_r14]
	mov	r15, [rip + r_r15]
	mov	rax, [rip + r_rax]
	jmp	[rip + r_rip]
	.balign	8, 0xcc
v_work:	.quad 0
v_length: .long 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
v_block: .quad 0
v_mask:	.quad 0
v_flags: .quad 0
r_rax:	.quad 0
r_rbx:	.quad 0
r_rcx:	.quad 0
r_rdx:	.quad 0
r_rsi:	.quad 0
r_rdi:	.quad 0
r_rbp:	.quad 0
r_rsp:	.quad 0
r_r8:	.quad 0
r_r9:	.quad 0
r_r10:	.quad 0
r_r11:	.quad 0
r_r12:	.quad 0
r_r13:	.quad 0
r_r14:	.quad 0
r_r15:	.quad 0
r_rip:	.quad 0
end:
