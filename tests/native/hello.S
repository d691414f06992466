/*
 * The smallest guest: its first instructions write to the serial port, the rest says hello and powers off. For
 * measuring how long it takes to get here. The code is the same in 32 and 64 bits, so both entries share it: it keeps
 * to encodings that mean the same in both.
 */
#include "lib/header.S"

	.section .entry, "ax"
	.code64
	.org	0x200			/* where a bzImage is entered; PVH takes any place */
	.globl	_start
_start:
	mov	$0x3f8, %edx
	mov	$'>', %al
	out	%al, %dx
	mov	$message, %esi
1:	lodsb
	test	%al, %al
	jz	2f
	out	%al, %dx
	jmp	1b
2:	mov	$0x604, %edx		/* PM1a_CNT: SLP_TYP 0, SLP_EN */
	mov	$0x2000, %eax
	out	%ax, %dx
3:	hlt
	jmp	3b

	.section .rodata
message:
	.asciz	" hello\n"
