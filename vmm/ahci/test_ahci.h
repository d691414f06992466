/*
 * The guest's side of AHCI, for unit tests and the fuzz target: a controller in a machine without KVM
 * (vmm/virtio/test_driver.h) and a small driver: it starts ports, issues commands and reads what was received. What
 * goes wrong in here is a failed test, so it asserts.
 */
#ifndef GLINT_VMM_AHCI_TEST_AHCI_H
#define GLINT_VMM_AHCI_TEST_AHCI_H

#include "vmm/ahci/internal.h"
#include "vmm/virtio/test_driver.h"

#define TEST_PORTS 2
/* Port i's command list lies at TEST_LISTS + i * TEST_LIST_STEP, frames behind it, the table of slot s at s + 1 pages.
 */
#define TEST_LISTS     (1 * MIB)
#define TEST_LIST_STEP 0x40000ull
#define TEST_PRDS      64

struct test_ahci {
	struct test_machine machine;
	struct drive_config drive_config; /* of the medium in port 0; fd -1: none */
	struct drive *medium;
	struct ahci *ahci;
	uint64_t bar;
};

struct test_prd {
	uint64_t address;
	uint32_t reserved, size;
};

static inline struct error *test_ahci_make(struct test_ahci *t)
{
	struct ahci_config config = {.ports = TEST_PORTS,
				     .id = {"serial-one", "two"},
				     .threads = t->machine.threads,
				     .thread_count = TEST_THREADS};

	t->drive_config.threads = t->machine.threads;
	t->drive_config.thread_count = TEST_THREADS;
	if (t->drive_config.fd >= 0)
		TRY(drive_new(&t->medium, &t->drive_config));
	config.medium[0] = t->medium;
	return ahci_new(&t->ahci, &config, &t->machine.memory, &t->machine.pci, TEST_SLOT, 0);
}

static inline void test_ahci_free(struct test_ahci *t)
{
	ahci_free(t->ahci);
	drive_free(t->medium);
	t->ahci = NULL;
	t->medium = NULL;
}

static inline void *test_ram(struct test_ahci *t, uint64_t gpa)
{
	return test_at(&t->machine, gpa);
}

/* --- registers --- */

static inline uint32_t test_hba(struct test_ahci *t, unsigned offset)
{
	return (uint32_t)bus_read(&t->machine.mmio, t->bar + offset, 4);
}

static inline void test_set_hba(struct test_ahci *t, unsigned offset, uint32_t value)
{
	bus_write(&t->machine.mmio, t->bar + offset, value, 4);
}

static inline uint32_t test_px(struct test_ahci *t, unsigned port, unsigned offset)
{
	return test_hba(t, AHCI_PORTS + port * AHCI_PORT_BYTES + offset);
}

static inline void test_set_px(struct test_ahci *t, unsigned port, unsigned offset, uint32_t value)
{
	test_set_hba(t, AHCI_PORTS + port * AHCI_PORT_BYTES + offset, value);
}

static inline void test_ahci_find(struct test_ahci *t)
{
	test_config_write(&t->machine, 0x04, 6, 2);
	t->bar = test_bar(&t->machine, AHCI_BAR);
}

static inline uint64_t test_list(unsigned port)
{
	return TEST_LISTS + port * TEST_LIST_STEP;
}

static inline uint64_t test_frames(unsigned port)
{
	return test_list(port) + 0x400;
}

static inline uint64_t test_table(unsigned port, unsigned slot)
{
	return test_list(port) + 0x1000ull * (slot + 1);
}

static inline void test_stop_port(struct test_ahci *t, unsigned port)
{
	test_set_px(t, port, AHCI_PX_CMD, 0);
}

static inline void test_start_port(struct test_ahci *t, unsigned port)
{
	test_stop_port(t, port);
	test_set_px(t, port, AHCI_PX_CLB, (uint32_t)test_list(port));
	test_set_px(t, port, AHCI_PX_CLBU, 0);
	test_set_px(t, port, AHCI_PX_FB, (uint32_t)test_frames(port));
	test_set_px(t, port, AHCI_PX_FBU, 0);
	test_set_px(t, port, AHCI_PX_SCTL, 0);
	test_set_px(t, port, AHCI_PX_CMD, AHCI_CMD_RECEIVE);
	test_set_px(t, port, AHCI_PX_IS, ~0u);
	test_set_px(t, port, AHCI_PX_IE, ~0u);
	test_set_px(t, port, AHCI_PX_CMD, AHCI_CMD_RECEIVE | AHCI_CMD_START);
}

/* --- commands --- */

/* Puts a command into its slot: of an ATA code, or a packet. @prds of them are the buffers. */
static inline void test_prepare(struct test_ahci *t, unsigned port, unsigned slot, uint8_t code, const uint8_t *cdb,
				bool dma, const struct test_prd *prd, unsigned prds)
{
	uint32_t header[8] = {5 | (cdb ? 0x20 : 0) | prds << 16, 0xdeadbeef, (uint32_t)test_table(port, slot)};
	uint8_t *table = test_ram(t, test_table(port, slot));

	memset(table, 0, 0x80);
	table[0] = 0x27;
	table[1] = 0x80;
	table[2] = code;
	table[3] = dma;
	if (cdb)
		memcpy(table + 0x40, cdb, 12);
	memcpy(table + 0x80, prd, prds * sizeof(*prd));
	memcpy((uint8_t *)test_ram(t, test_list(port)) + 32 * (size_t)slot, header, sizeof(header));
}

static inline uint32_t test_moved(struct test_ahci *t, unsigned port, unsigned slot)
{
	return ((uint32_t *)test_ram(t, test_list(port)))[8 * slot + 1];
}

static inline struct test_prd test_buffer(uint64_t address, uint32_t len)
{
	return (struct test_prd){address, 0, len - 1};
}

#endif
