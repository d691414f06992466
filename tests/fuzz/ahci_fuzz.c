/*
 * Fuzzes the AHCI controller and its CD drives: registers at every width, commands and packets made of the input with
 * buffers that lead anywhere, frames of every kind, trays that are changed and locked, pauses with saved states, in any
 * order. Whatever it did, after power-on reset the drive must serve a decent driver, and a state that was saved must
 * load.
 */
#include "tests/fuzz/program.h"
#include "vmm/ahci/test_ahci.h"

#include <sys/mman.h>

#define MEDIUM_BYTES 0x100000

static struct test_ahci t;
static struct unit unit;
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	int fd = memfd_create("medium", MFD_CLOEXEC);

	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	test_machine_adopt(&t.machine);
	assert(ftruncate(fd, MEDIUM_BYTES) == 0);
	t.drive_config = (struct drive_config){.name = "fuzz", .format = "raw", .fd = fd, .readonly = true};
	test_no_error(test_ahci_make(&t));
	test_no_error(drive_activate(t.medium));
	unit = ahci_unit(t.ahci, "fuzz");
	return 0;
}

/* Saves the paused controller and loads it back: what it can be in can be saved. */
static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

/* An address that may lead somewhere: data, a list, a table, frames, the end of memory, anywhere. */
static uint64_t address(struct program *p)
{
	uint64_t what = take(p, 1);
	uint64_t low = what & 0x80 ? take(p, 2) : 0;

	switch (what & 7) {
	case 0:
	case 1:
		return TEST_DATA + low;
	case 2:
		return test_list(0) + low;
	case 3:
		return test_table((what >> 3) & 1, (what >> 4) & 7) + low;
	case 4:
		return TEST_MEMORY - 0x1000 + (low & 0xfff);
	case 5:
		return test_frames(0) + low;
	case 6:
		return t.bar + low;
	default:
		return take(p, 8);
	}
}

/* A command in a slot, issued: mostly packets. */
static void command(struct program *p, unsigned port)
{
	static const uint8_t packets[] = {0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x43,
					  0x46, 0x4a, 0x51, 0x5a, 0xa8, 0xbd, 0xbe, 0x28, 0x28};
	static const uint8_t codes[] = {0xa1, 0xec, 0xef, 0x08, 0x20, 0xe5, 0xa0, 0x77};
	uint64_t what = take(p, 1), kind = take(p, 1);
	unsigned slot = what & 7, prds = (unsigned)(what >> 3 & 3);
	struct test_prd prd[4];
	uint8_t cdb[12];

	for (unsigned i = 0; i < prds; i++) {
		prd[i].address = address(p);
		prd[i].reserved = 0;
		prd[i].size = (uint32_t)take(p, what & 0x20 ? 3 : 2);
	}
	cdb[0] = packets[kind % sizeof(packets)];
	for (unsigned i = 1; i < 12; i++)
		cdb[i] = (uint8_t)take(p, 1);
	if (kind & 0x80)
		cdb[2] = cdb[3] = cdb[6] = cdb[7] = 0; /* small numbers */
	test_prepare(&t, port, slot, what & 0x40 ? codes[kind % sizeof(codes)] : 0xa0, cdb, what & 0x80, prd, prds);
	if ((kind & 0x60) == 0x60) { /* and a few bytes of it otherwise: header, frame */
		((uint8_t *)test_ram(&t, test_list(port)))[32 * slot + take(p, 1) % 16] = (uint8_t)take(p, 1);
		((uint8_t *)test_ram(&t, test_table(port, slot)))[take(p, 1) % 20] = (uint8_t)take(p, 1);
	}
	test_set_px(&t, port, AHCI_PX_CI, 1u << slot);
}

/* The threads are this one, so pausing serves what waits. */
static void settle(void)
{
	unit.ops->pause(unit.self);
	unit.ops->resume(unit.self);
}

static void access_bar(struct program *p, uint64_t offset, unsigned size, bool write)
{
	uint64_t at = test_bar(&t.machine, AHCI_BAR) + offset;

	if (write)
		bus_write(&t.machine.mmio, at, take(p, size), size);
	else
		(void)bus_read(&t.machine.mmio, at, size);
}

static void step(struct program *p)
{
	uint64_t what = take(p, 1);
	unsigned size = 1u << (what >> 4 & 3), port = what >> 6 & 1;
	bool flag = what & 0x80;

	switch (what & 15) {
	case 0:
		test_config_write(&t.machine, (unsigned)take(p, 1), (uint32_t)take(p, size), size > 4 ? 4 : size);
		break;
	case 1:
		access_bar(p, take(p, 1), size, flag);
		break;
	case 2:
	case 3:
		access_bar(p, AHCI_PORTS + port * AHCI_PORT_BYTES + take(p, 1) % 0x48, size, flag || size == 4);
		break;
	case 4:
		unit.ops->pause(unit.self);
		if (flag)
			save_and_load();
		unit.ops->resume(unit.self);
		break;
	case 5:
		test_ahci_find(&t);
		test_start_port(&t, port);
		break;
	case 6: { /* a tray */
		bool there = t.ahci->port[0].medium;
		error_free(ahci_change(t.ahci, 0, there ? NULL : t.medium, flag));
		break;
	}
	case 7:
		settle();
		break;
	case 8:
		test_set_hba(&t, AHCI_GHC, (uint32_t)take(p, 1) & 3);
		break;
	case 9: /* a reset by the link or by frames */
		test_set_px(&t, port, AHCI_PX_SCTL, flag ? 1 : 0);
		break;
	default:
		command(p, port);
	}
}

static unsigned packet(const uint8_t *cdb)
{
	struct test_prd prd = test_buffer(TEST_DATA, 4096);

	test_prepare(&t, 0, 0, 0xa0, cdb, true, &prd, 1);
	test_set_px(&t, 0, AHCI_PX_IS, ~0u);
	test_set_px(&t, 0, AHCI_PX_CI, 1);
	settle(); /* sees that it waits */
	settle(); /* sees it through */
	assert(test_px(&t, 0, AHCI_PX_IS) & AHCI_IS_D2H);
	unsigned status = test_px(&t, 0, AHCI_PX_TFD) & 0xff;
	if (status & 1)
		test_start_port(&t, 0);
	return status;
}

static void check(void)
{
	static const uint8_t ready[12] = {0}, load[12] = {0x1b, 0, 0, 0, 3}, read[12] = {0x28, [5] = 3, [8] = 2};

	if (!t.ahci->port[0].medium)
		test_no_error(ahci_change(t.ahci, 0, t.medium, true));
	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	test_ahci_find(&t);
	test_start_port(&t, 0);
	assert(test_px(&t, 0, AHCI_PX_TFD) == 0x100);
	assert(packet(ready) & 1); /* it was reset */
	assert(packet(load) == 0x50);
	if (packet(ready) & 1) /* the tray was open */
		assert(packet(ready) == 0x50);
	assert(packet(read) == 0x50);
	assert(test_moved(&t, 0, 0) == 4096);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};

	test_ahci_find(&t);
	for (unsigned i = 0; i < TEST_PORTS; i++)
		test_start_port(&t, i);
	test_set_hba(&t, AHCI_GHC, AHCI_GHC_INTERRUPTS);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p);
	check();
	return 0;
}
