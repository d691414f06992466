/*
 * What makes a guest loadable: the setup header of a bzImage (Documentation/arch/x86/boot.rst in Linux) and the PVH
 * note. The program defines _start, for both: 32-bit code when entered by PVH. The 64-bit entry is fixed by the
 * protocol: 0x200 bytes behind the program's start.
 */
	.section .setup, "a"
	.org	0x1f1
	.byte	1			/* setup_sects: with the boot sector 0x400 bytes */
	.word	0
	.long	0
	.word	0, 0xffff, 0
	.word	0xaa55
	.byte	0xeb, header_end - . - 1
	.ascii	"HdrS"
	.word	0x020f			/* protocol 2.15 */
	.long	0
	.word	0, 0
	.byte	0, 1			/* loadflags: the program goes to 1 MiB */
	.word	0
	.long	0x100000		/* code32_start */
	.long	0, 0, 0
	.word	0
	.byte	0, 0
	.long	0
	.long	0x7fffffff		/* initrd_addr_max */
	.long	0x1000			/* kernel_alignment */
	.byte	0, 0			/* not relocatable */
	.word	1			/* xloadflags: there is a 64-bit entry */
	.long	2047			/* cmdline_size */
	.long	0
	.quad	0
	.long	0, 0
	.quad	0
	.quad	0x100000		/* pref_address */
	.long	_init_size
	.long	0, 0
header_end:
	.org	0x400

	.section .note.xen, "a"
	.align	4
	.long	4, 8, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	_start

	.section .note.GNU-stack, "", @progbits
