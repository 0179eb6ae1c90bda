# What runs inside an x86-32 task on torpor's behalf: the same code as code64.S in that ABI's terms. All six arguments of a
# call take all registers but esp, so nothing can be kept in one: the addresses are absolute and filled in where the code is
# placed (the relocations of code.py; `work` is the address of the work area).
.intel_syntax noprefix
.code32
.text
entry:
	mov	eax, 175            # rt_sigprocmask(SIG_SETMASK, &v_block, NULL, 8)
	mov	ebx, 2
	mov	ecx, offset v_block
	xor	edx, edx
	mov	esi, 8
	int	0x80
	mov	eax, 192            # mmap2(work, v_length, READ|WRITE, PRIVATE|ANONYMOUS|FIXED_NOREPLACE|POPULATE, -1, 0)
	mov	ebx, offset work
	mov	ecx, [v_length]
	mov	edx, 3
	mov	esi, 0x108022
	mov	edi, -1
	xor	ebp, ebp
	int	0x80
	mov	edi, offset finish
	cmp	eax, offset work
	je	notify
	mov	edi, offset heal
	jmp	notify
batch:
	mov	ebp, [work]
	mov	eax, [ebp]
	mov	ebx, [ebp + 8]
	mov	ecx, [ebp + 16]
	mov	edx, [ebp + 24]
	mov	esi, [ebp + 32]
	mov	edi, [ebp + 40]
	mov	ebp, [ebp + 48]
	int	0x80
	mov	ebp, [work]
	mov	[ebp + 56], eax
	mov	ecx, [ebp + 64]
	mov	[ecx], eax
	add	dword ptr [work], 72
	dec	dword ptr [work + 8]
	jnz	batch
	mov	edi, offset finish
notify:                             # tgkill(v_tgid, v_tid, v_signal)
	mov	eax, 270
	mov	ebx, [v_tgid]
	mov	ecx, [v_tid]
	mov	edx, [v_signal]
	int	0x80
notified:
	jmp	edi
finish:
	mov	eax, 91             # munmap(work, v_length)
	mov	ebx, offset work
	mov	ecx, [v_length]
	int	0x80
	mov	edi, offset heal
	jmp	notify
heal:
	mov	esp, offset v_flags
	popfd
	mov	esp, [r_esp]
	mov	eax, 175            # rt_sigprocmask(SIG_SETMASK, &v_mask, NULL, 8); from here on nothing may touch the flags
	mov	ebx, 2
	mov	ecx, offset v_mask
	mov	edx, 0
	mov	esi, 8
	int	0x80
	mov	eax, [r_eax]
	mov	ebx, [r_ebx]
	mov	ecx, [r_ecx]
	mov	edx, [r_edx]
	mov	esi, [r_esi]
	mov	edi, [r_edi]
	mov	ebp, [r_ebp]
	jmp	[r_eip]
	.balign	8, 0xcc
v_length: .long 0
v_tgid:	.long 0
v_tid:	.long 0
v_signal: .long 0
v_block: .quad 0
v_mask:	.quad 0
v_flags: .long 0
r_eax:	.long 0
r_ebx:	.long 0
r_ecx:	.long 0
r_edx:	.long 0
r_esi:	.long 0
r_edi:	.long 0
r_ebp:	.long 0
r_esp:	.long 0
r_eip:	.long 0
end:
