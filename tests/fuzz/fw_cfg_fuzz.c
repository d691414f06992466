/*
 * Fuzzes fw_cfg and the LPC bridge beside it: the input is a program of port accesses, DMA descriptors laid into memory
 * with whatever they hold, PCI configuration writes, resets, and its own bytes as a saved state to load. Whatever
 * happened, after a reset the signature reads well and the tables link to an RSDP.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "tests/fuzz/program.h"
#include "vmm/firmware/firmware.h"
#include "vmm/firmware/lpc.h"

#include <assert.h>
#include <endian.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_BYTES (2 * MIB)
#define STEPS_MAX 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
	struct bus pio, mmio;
	struct memory mem;
	struct irqs irqs;
	struct pci_bus pci;
	struct lpc lpc;
	struct firmware fw;
	int file;
};

static void must(struct error *err)
{
	assert(!err);
}

static void build(struct world *w)
{
	memset(w, 0, sizeof(*w));
	bus_init(&w->pio, "port");
	bus_init(&w->mmio, "MMIO");
	must(memory_create(&w->mem, RAM_BYTES));
	must(irqs_init(&w->irqs, -1));
	must(pci_bus_init(&w->pci, &w->pio, &w->mmio, &w->irqs, 8 * GIB));
	must(lpc_init(&w->lpc, &w->pci, false));
	w->file = memfd_create("image", MFD_CLOEXEC);
	assert(ftruncate(w->file, 0x10000) == 0);
	assert(pwrite(w->file, "HdrS", 4, 0x202) == 4);
	const struct firmware_config config = {.code_fd = w->file,
					       .vars_fd = -1,
					       .code_name = "image",
					       .name = "fuzz",
					       .vcpus = 2,
					       .mmio64_base = 8 * GIB,
					       .kernel_fd = w->file,
					       .initrd_fd = w->file,
					       .kernel_name = "image",
					       .initrd_name = "image",
					       .cmdline = "quiet"};
	must(firmware_init(&w->fw, &w->mem, -1, &w->pio, &w->mmio, &w->pci, &config));
}

static void take_down(struct world *w)
{
	firmware_destroy(&w->fw);
	lpc_destroy(&w->lpc);
	pci_bus_destroy(&w->pci);
	irqs_destroy(&w->irqs);
	memory_destroy(&w->mem);
	close(w->file);
}

/* An address: most in the first pages, some at the end of memory, some anywhere. */
static uint64_t take_address(struct program *p)
{
	uint64_t kind = take(p, 1);

	return kind == 0xff ? take(p, 8) : kind == 0xfe ? RAM_BYTES - take(p, 1) : kind << 8 | take(p, 1);
}

static void dma(struct world *w, struct program *p)
{
	uint32_t control = (uint32_t)take(p, 1) | (uint32_t)take(p, 1) << 16 | (uint32_t)take(p, 1) << 24;
	uint32_t length = (uint32_t)take(p, take(p, 1) % 5);
	uint64_t descriptor = take_address(p), address = htobe64(take_address(p));
	uint8_t *at = memory_at(&w->mem, descriptor, 16);

	control = htobe32(control);
	length = htobe32(length);
	if (at) {
		memcpy(at, &control, 4);
		memcpy(at + 4, &length, 4);
		memcpy(at + 8, &address, 8);
	}
	bus_write(&w->pio, 0x514, htobe32((uint32_t)(descriptor >> 32)), 4);
	bus_write(&w->pio, 0x518, htobe32((uint32_t)descriptor), 4);
}

static void load(struct world *w, struct program *p)
{
	cleanup_fd int fd = memfd_create("stream", MFD_CLOEXEC);
	cleanup_saved struct saved *s = NULL;

	assert(write(fd, p->data, p->left) == (ssize_t)p->left && lseek(fd, 0, SEEK_SET) == 0);
	p->left = 0;
	struct error *err = saved_open(fd, "fuzz", &s);
	if (!err)
		err = saved_unit(s, "fw-cfg", fw_cfg_unit.version, fw_cfg_unit.state, &w->fw.fw_cfg);
	error_free(err);
}

static void step(struct world *w, struct program *p)
{
	uint64_t kind = take(p, 1), offset, size;

	switch (kind % 8) {
	case 0:
	case 1:
		dma(w, p);
		break;
	case 2:
		bus_write(&w->pio, 0x510, take(p, 2), 2);
		break;
	case 3:
		for (uint64_t n = take(p, 1); n > 0; n--)
			(void)bus_read(&w->pio, 0x511, 1);
		break;
	case 4: /* every width and alignment */
		offset = take(p, 1) % 16;
		size = 1 + take(p, 1) % 8;
		bus_write(&w->pio, 0x50e + offset, take(p, 8), (unsigned)size);
		(void)bus_read(&w->pio, 0x50e + offset, (unsigned)size);
		break;
	case 5: /* configuration space of the host bridge (ECAM) or the LPC bridge */
		offset = take(p, 1);
		bus_write(&w->pio, 0xcf8, 0x80000000 | (kind & 8 ? LPC_SLOT << 11 : 0) | (offset & 0xfc), 4);
		bus_write(&w->pio, 0xcfc, take(p, 4), 4);
		break;
	case 6:
		if (kind == 0xfe)
			load(w, p);
		break;
	default:
		fw_cfg_unit.reset(&w->fw.fw_cfg);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	struct program p = {.data = data, .left = size};
	bool loaded = memchr(data, 0xfe, size) != NULL;

	build(&w);
	for (unsigned i = 0; i < STEPS_MAX && p.left; i++)
		step(&w, &p);
	fw_cfg_unit.reset(&w.fw.fw_cfg);
	bus_write(&w.pio, 0x510, 0, 2);
	for (unsigned i = 0; i < 4 && !loaded; i++)
		assert(bus_read(&w.pio, 0x511, 1) == (uint64_t)"QEMU"[i]);
	take_down(&w);
	return 0;
}
