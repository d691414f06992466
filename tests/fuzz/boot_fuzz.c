/*
 * Fuzzes the kernel loader: the input is the kernel's file. When it loads, what the first vCPU is told must lie in RAM.
 * Memory is never cleaned between runs: the loader may not depend on what was there.
 */
#include "vmm/boot/boot.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct memory mem;
	static int kernel, initrd;
	struct boot_entry entry;

	if (!mem.host) {
		kernel = memfd_create("kernel", MFD_CLOEXEC);
		initrd = memfd_create("initrd", MFD_CLOEXEC);
		if (kernel < 0 || initrd < 0 || ftruncate(initrd, 100000) < 0 || memory_create(&mem, 16 * MIB))
			abort();
	}
	if (ftruncate(kernel, 0) < 0 || pwrite(kernel, data, size, 0) != (ssize_t)size)
		abort();
	const struct boot_config config = {
		.kernel_fd = kernel,
		.kernel_name = "kernel",
		.initrd_fd = initrd,
		.initrd_name = "initrd",
		.cmdline = "console=ttyS0",
		.vcpus = 1,
		.mmio64_base = 8 * GIB,
	};
	cleanup_error struct error *e = boot_load(&mem, &config, &entry);
	if (e)
		return 0;
	if (!memory_at(&mem, entry.rip, 1) || !memory_at(&mem, entry.long_mode ? entry.rsi : entry.rbx, PAGE_BYTES) ||
	    !memory_at(&mem, entry.gdt_base, entry.gdt_limit + 1ull))
		abort();
	return 0;
}
