/*
 * Fuzzing of the tablet: a guest that writes its registers, configuration, rings and descriptors at will while somebody
 * moves the pointer; with pauses, a round trip through saved state, and resets. Afterwards it must serve a decent
 * driver.
 *
 * The input is a program of one-byte steps with their arguments.
 */
#include "tests/fuzz/program.h"
#include "vmm/virtio/tablet.h"
#include "vmm/virtio/test_driver.h"

#include <sys/mman.h>

static struct test_machine machine;
static struct tablet *tablet;
static struct virtio_pci *vp;
static struct unit unit;
static int saved_fd;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *, char ***)
{
	saved_fd = memfd_create("saved", MFD_CLOEXEC);
	test_machine_adopt(&machine);
	test_no_error(tablet_new(&tablet, &machine.memory, machine.threads[0]));
	test_no_error(virtio_pci_new(&vp, tablet_device(tablet), &machine.pci, TEST_SLOT));
	unit = virtio_pci_unit(vp, "tablet");
	atomic_flag_test_and_set(&vp->complained);
	return 0;
}

static void save_and_load(void)
{
	test_no_error(test_save(&unit, saved_fd));
	test_no_error(test_load(&unit, saved_fd));
}

static void pause_and_resume(bool move)
{
	unit.ops->pause(unit.self);
	if (move)
		save_and_load();
	unit.ops->resume(unit.self); /* looks at all queues */
}

static struct tablet_point point(struct program *p)
{
	return (struct tablet_point){
		.x = (uint16_t)take(p, 2),
		.y = (uint16_t)take(p, 1),
		.buttons = (uint8_t)take(p, 1),
		.wheel = (int8_t)take(p, 1),
	};
}

static void decent_driver(struct test_driver *d, struct test_ring r[2])
{
	test_driver_find(d, &machine, vp);
	test_driver_negotiate(d, ~0ull);
	for (unsigned i = 0; i < 2; i++)
		test_ring_init(&r[i], d, i, 16);
	test_driver_ok(d);
}

static void step(struct program *p, struct test_ring r[2])
{
	uint64_t what = take(p, 1);
	unsigned size = 1u << (what >> 4 & 3);
	struct tablet_point to;
	uint64_t where, value;

	switch (what & 7) {
	case 0:
		to = point(p);
		tablet_move(tablet, &to);
		break;
	case 1: /* the device's configuration */
		bus_write(&machine.mmio, test_bar(&machine, VIRTIO_PCI_BAR) + VIRTIO_BAR_DEVICE + (what >> 6 & 1),
			  take(p, 1), 1);
		(void)bus_read(&machine.mmio, test_bar(&machine, VIRTIO_PCI_BAR) + VIRTIO_BAR_DEVICE + take(p, 1),
			       size);
		break;
	case 2: /* a ring's bytes */
		where = TEST_RINGS + (what >> 7) * TEST_RING_STEP + take(p, 2) % 0x3400;
		value = take(p, size);
		memcpy(test_at(&machine, where), &value, size);
		break;
	case 3:
		bus_write(&machine.mmio, test_bar(&machine, VIRTIO_PCI_BAR) + take(p, 1) % 64, take(p, size), size);
		break;
	case 4:
		pause_and_resume(what & 0x80);
		break;
	case 5: /* buffers, as a driver gives them */
		for (unsigned i = 0; i < 4; i++) {
			struct test_ring *ring = &r[what >> 7];
			if (!ring->free_count)
				break;
			test_ring_add(ring, &(struct test_buffer){take(p, 4), (uint32_t)take(p, 1), !(what & 0x40)}, 1,
				      false);
			(void)test_ring_publish(ring);
		}
		break;
	default:
		bus_write(&machine.mmio, test_bar(&machine, VIRTIO_PCI_BAR) + VIRTIO_BAR_NOTIFY + 4 * (what >> 7), 0,
			  2);
	}
}

static void power_on(void)
{
	unit.ops->pause(unit.self);
	unit.ops->reset(unit.self);
	unit.ops->resume(unit.self);
	test_config_write(&machine, 0x04, 6, 2);
}

/* Two events arrive: a movement and its end. */
static void check(void)
{
	struct test_driver d;
	struct test_ring r[2];

	power_on();
	decent_driver(&d, r);
	for (unsigned i = 0; i < 4; i++)
		test_ring_add(&r[0], &(struct test_buffer){TEST_DATA + i * 8ull, 8, true}, 1, false);
	(void)test_ring_publish(&r[0]);
	tablet_move(tablet, &(struct tablet_point){.x = 5});
	pause_and_resume(false);
	assert(r[0].used->idx == 2);
	power_on();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct program p = {data, size};
	struct test_driver d;
	struct test_ring r[2];

	power_on();
	decent_driver(&d, r);
	for (unsigned steps = 0; p.left && steps < 200; steps++)
		step(&p, r);
	check();
	return 0;
}
