/*
 * Fuzzes the registers of a virtio function (virtio-blk, two queues): configuration space, BAR 0, MSI-X table,
 * doorbells, at every width and alignment, in any order, with pauses and saved states in between. Memory holds decent
 * rings that a program may stumble upon. Whatever it did, after power-on reset the device must serve a decent request,
 * and a state that was saved must load.
 */
#include "tests/fuzz/program.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/test_driver.h"

#include <linux/virtio_blk.h>
#include <sys/mman.h>

#define DISK_BYTES 0x10000

static struct test_machine machine;
static struct drive *drive;
static struct blk *blk;
static struct virtio_pci *vp;
static struct unit unit;
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	test_machine_adopt(&machine);
	assert(ftruncate(fd, DISK_BYTES) == 0);
	const struct drive_config drive_config = {
		.name = "fuzz", .format = "raw", .fd = fd, .threads = machine.threads, .thread_count = TEST_THREADS};
	test_no_error(drive_new(&drive, &drive_config));
	const struct blk_config config = {
		.drive = drive, .queues = 2, .threads = machine.threads, .thread_count = TEST_THREADS};
	test_no_error(blk_new(&blk, &machine.memory, &config));
	test_no_error(virtio_pci_new(&vp, blk_device(blk), &machine.pci, TEST_SLOT));
	test_no_error(drive_activate(drive));
	unit = virtio_pci_unit(vp, "fuzz");
	atomic_flag_test_and_set(&vp->complained);
	return 0;
}

/* Saves the paused device and loads it back: what a device can be in can be saved. */
static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

static void access_bar(struct program *p, unsigned bar, uint64_t offset, unsigned size, bool write)
{
	uint64_t address = test_bar(&machine, bar) + offset;

	if (write)
		bus_write(&machine.mmio, address, take(p, size), size);
	else
		(void)bus_read(&machine.mmio, address, size);
}

static void step(struct program *p)
{
	uint64_t what = take(p, 1);
	unsigned size = 1u << (what >> 4 & 3);
	bool write = what & 0x80;

	switch (what & 15) {
	case 0: /* configuration space */
	case 1:
		if (write)
			test_config_write(&machine, (unsigned)take(p, 1), (uint32_t)take(p, size), size > 4 ? 4 : size);
		else
			(void)test_config_read(&machine, (unsigned)take(p, 1), size > 4 ? 4 : size);
		break;
	case 2:
		access_bar(p, VIRTIO_PCI_MSIX_BAR, take(p, 2), size, write);
		break;
	case 3:
		access_bar(p, VIRTIO_PCI_BAR, take(p, 2), size, write);
		break;
	case 4:
		access_bar(p, VIRTIO_PCI_BAR, VIRTIO_BAR_DEVICE + take(p, 1), size, write);
		break;
	case 5:
		access_bar(p, VIRTIO_PCI_BAR, VIRTIO_BAR_NOTIFY + take(p, 1) % 16, size, true);
		break;
	case 6:
		(void)access_bar(p, VIRTIO_PCI_BAR, VIRTIO_BAR_ISR, size, write);
		break;
	case 7:
		unit.ops->pause(unit.self);
		if (write)
			save_and_load();
		unit.ops->resume(unit.self);
		break;
	case 8: { /* a ring at a decent place, so that programs get further */
		uint64_t base = TEST_RINGS + take(p, 1) % 4 * TEST_RING_STEP;
		uint64_t common = test_bar(&machine, VIRTIO_PCI_BAR);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_Q_DESCLO, base, 8);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_Q_AVAILLO, base + 0x2000, 8);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_Q_USEDLO, base + 0x3000, 8);
		break;
	}
	case 9: { /* as far as FEATURES_OK or DRIVER_OK in one go */
		uint64_t common = test_bar(&machine, VIRTIO_PCI_BAR);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_GF, 0x101, 4);
		bus_write(&machine.mmio, common + VIRTIO_PCI_COMMON_STATUS, write ? 15 : 11, 1);
		break;
	}
	default: /* the common configuration */
		access_bar(p, VIRTIO_PCI_BAR, VIRTIO_BAR_COMMON + take(p, 1) % 64, size, write);
	}
}

static void check(void)
{
	struct test_driver d;
	struct test_ring r[2];

	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	test_driver_find(&d, &machine, vp);
	test_driver_negotiate(&d, ~0ull);
	for (unsigned i = 0; i < 2; i++)
		test_ring_init(&r[i], &d, i, 16);
	test_driver_ok(&d);
	for (unsigned i = 0; i < 2; i++) {
		test_blk_add(&r[i], 0, VIRTIO_BLK_T_IN, 1, TEST_DATA, 512, true);
		test_ring_publish(&r[i]);
	}
	unit.ops->pause(unit.self);
	unit.ops->resume(unit.self);
	unit.ops->pause(unit.self);
	for (unsigned i = 0; i < 2; i++)
		assert(r[i].used->idx == 1 && *test_blk_status(&r[i], 0) == VIRTIO_BLK_S_OK);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};

	test_config_write(&machine, 0x04, 6, 2);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p);
	check();
	return 0;
}
