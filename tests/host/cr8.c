/*
 * Steps round a wrong check in QEMU's software emulation (7.2 to 11.1), loaded by LD_PRELOAD into the QEMU that
 * emulates the nested host of the tests, and only there.
 *
 * The emulated CR8 write (OVMF's return from an interrupt does one) calls cpu_interrupt() without QEMU's big lock when
 * a virtual interrupt is pending, and cpu_interrupt() begins with an assertion that the lock is held. The request
 * itself is atomic in QEMU 11.1, so only the assertion is in the way: the constructor finds
 *
 *	e8 xx xx xx xx	call bql_locked
 *	84 c0		test al, al
 *	74 xx		je   <assertion failed>
 *
 * inside cpu_interrupt(), which QEMU exports, and turns the jump into two nops. Where the pattern is not there exactly
 * once it writes why and ends the process: a QEMU that looks different has to be looked at again.
 *
 * It touches those two bytes of the process it is loaded into, and nothing else.
 */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The check stands at the function's start: what lies further in, even in a longer function, is something else. */
#define SEARCH_BYTES  64
#define PATTERN_BYTES 9
#define JUMP_OFFSET   7

[[noreturn]] static void refuse(const char *why)
{
	dprintf(STDERR_FILENO,
		"libcr8.so: cannot switch off the lock check of QEMU's cpu_interrupt(): %s. "
		"It knows the x86-64 QEMU 11.1 of Debian; see tests/host/cr8.c.\n",
		why);
	_exit(125);
}

static bool is_check(const uint8_t *code)
{
	return code[0] == 0xe8 && code[5] == 0x84 && code[6] == 0xc0 && code[JUMP_OFFSET] == 0x74;
}

static uint8_t *find_jump(uint8_t *function, size_t len)
{
	uint8_t *found = NULL;

	for (size_t i = 0; i + PATTERN_BYTES <= len; i++) {
		if (!is_check(function + i))
			continue;
		if (found)
			refuse("the check is there more than once");
		found = function + i + JUMP_OFFSET;
	}
	if (!found)
		refuse("the check is not there (a QEMU that does without it needs no libcr8.so)");
	return found;
}

[[gnu::constructor]] static void skip_lock_check(void)
{
	uint8_t *function = dlsym(RTLD_DEFAULT, "cpu_interrupt");
	void *found = NULL;
	Dl_info info;

	/* What QEMU itself starts is not QEMU. */
	unsetenv("LD_PRELOAD");
	if (!function)
		refuse("the program exports no such function");
	if (!dladdr1(function, &info, &found, RTLD_DL_SYMENT) || !found)
		refuse("its length is not known");

	const ElfW(Sym) *symbol = found;
	uint8_t *jump = find_jump(function, symbol->st_size < SEARCH_BYTES ? symbol->st_size : SEARCH_BYTES);
	uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
	uint8_t *page = (uint8_t *)((uintptr_t)jump & ~(page_bytes - 1));
	/* Two pages: the two bytes of the jump may lie on both sides of a page's end. */
	if (mprotect(page, 2 * page_bytes, PROT_READ | PROT_WRITE | PROT_EXEC) < 0)
		refuse("its code cannot be made writable");
	jump[0] = 0x90;
	jump[1] = 0x90;
	if (mprotect(page, 2 * page_bytes, PROT_READ | PROT_EXEC) < 0)
		refuse("its code cannot be made read-only again");
}
