/*
 * Entry of a test guest by either protocol, interrupt stubs, and the trampoline of the other processors. Everything
 * runs on these page tables: the first 4 GiB one to one in pages of 2 MiB; mem.c maps more.
 */
#include "header.S"

#define MSR_EFER 0xc0000080

	.section .entry, "ax"

	/* PVH: 32-bit, flat, paging off; ebx points to struct hvm_start_info. */
	.code32
	.globl	_start
_start:
	cld
	lgdt	gdt_pointer
	mov	$boot_pml4, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x20, %eax		/* PAE */
	mov	%eax, %cr4
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$0x100, %eax		/* LME */
	wrmsr
	mov	%cr0, %eax
	or	$0x80000001, %eax	/* PG, PE */
	mov	%eax, %cr0
	ljmp	$0x10, $pvh_64

	.code64
pvh_64:
	mov	%ebx, %edi
	mov	$1, %esi
	jmp	start_64

	/* bzImage: 64-bit, paging on; rsi points to struct boot_params. */
	.org	0x200
	mov	%rsi, %rdi
	xor	%esi, %esi

start_64:
	mov	$boot_pml4, %eax
	mov	%rax, %cr3
	lgdt	gdt_pointer
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$stack_top, %esp
	push	$0x10
	push	$1f
	lretq
1:	mov	%rdi, %r8
	mov	$_data_end, %edi
	mov	$_bss_end, %ecx
	sub	%edi, %ecx
	shr	$3, %ecx		/* both ends are multiples of 16 */
	xor	%eax, %eax
	cld
	rep stosq
	mov	%r8, %rdi
	call	guest_start
2:	hlt
	jmp	2b

	/* The other processors begin here: copied to TRAMPOLINE, 16-bit, cs:ip = TRAMPOLINE:0. */
	.section .rodata
	.globl	trampoline, trampoline_end
	.code16
trampoline:
	cli
	cld
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	gdt_pointer_16 - trampoline
	mov	$boot_pml4, %eax
	mov	%eax, %cr3
	mov	$0x20, %eax
	mov	%eax, %cr4
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$0x100, %eax
	wrmsr
	mov	%cr0, %eax
	and	$~0x60000000, %eax	/* caches on */
	or	$0x80000001, %eax
	mov	%eax, %cr0
	ljmpl	$0x10, $ap_64
	.align	4
gdt_pointer_16:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

	.code64
	.text
ap_64:
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$1, %edi
	lock xadd %edi, ap_next
	mov	%edi, %eax
	shl	$14, %eax		/* stacks of 16 KiB */
	add	ap_stacks, %eax
	mov	%eax, %esp
	call	ap_start
1:	hlt
	jmp	1b

	/* One stub of 16 bytes for each vector; where the processor pushes no error code, a 0 stands for it. */
	.align	16
	.globl	interrupt_stubs
interrupt_stubs:
	.set	vector, 0
	.rept	256
	.align	16
	.if	vector != 8 && !(vector >= 10 && vector <= 14) && vector != 17 && vector != 21
	push	$0
	.endif
	push	$vector
	jmp	interrupt_common
	.set	vector, vector + 1
	.endr

interrupt_common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	lea	72(%rsp), %rdi
	cld
	call	interrupt_handle
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

	.data
	.align	4096
	.globl	boot_pml4, boot_pdpt
boot_pml4:
	.quad	boot_pdpt + 3
	.fill	511, 8, 0
boot_pdpt:
	.quad	boot_pd + 3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
	.fill	508, 8, 0
boot_pd:
	.set	page, 0
	.rept	2048
	.quad	page + 0x83		/* present, writable, 2 MiB */
	.set	page, page + 0x200000
	.endr

gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff	/* 0x10: 64-bit code */
	.quad	0x00cf93000000ffff	/* 0x18: data */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt

	.globl	ap_next
	.align	4
ap_next:
	.long	1			/* the index of the next processor to come up */
	.globl	ap_stacks
ap_stacks:
	.long	0			/* a stack ends where the next begins; processor 0 has none here */

	.section .stacks, "aw", @nobits	/* not cleared: that would take as long as the rest of the start */
	.align	16
	.skip	65536
stack_top:
