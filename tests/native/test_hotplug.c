/* Hot-plug ports from the guest's side: a disk comes, is set up behind its bridge, works, and goes by consent. */
#include "tests.h"

#define PORT_SLOT 30u
#define PORT_PIN  (16 + PORT_SLOT % 8)
#define BUS       1u
#define WINDOW    0xd0000000ull /* of 1 MiB */

enum { LINK_STATUS = 0x12, SLOT_CONTROL = 0x18, SLOT_STATUS = 0x1a };
enum { PRESSED = 1, PRESENCE = 8, PRESENT = 0x40, LINK_CHANGE = 0x100, LINK_ACTIVE = 0x2000 };
/* Button, presence, interrupts, link; indicators off. */
#define ENABLES   (1u | 8u | 0x20u | 0x1000u | 0x3c0u)
#define POWER_OFF 0x400u

static uint64_t port, express;
static uint32_t card_id; /* device and vendor of what is expected */

static uint16_t slot_status(void)
{
	return mmio_read16(express + SLOT_STATUS);
}

static void on_pin(void)
{
	/* The enables go, so that the level does. */
	mmio_write16(express + SLOT_CONTROL, mmio_read16(express + SLOT_CONTROL) & ~0x20u);
}

/* Sleeps until the port interrupts for @events, and acknowledges them. */
static void wait_for(uint16_t events)
{
	while ((slot_status() & events) != events) {
		irq_off();
		mmio_write16(express + SLOT_CONTROL, mmio_read16(express + SLOT_CONTROL) | 0x20);
		irq_sleep();
		irq_on();
		uint16_t rest = slot_status() & (uint16_t)~events & (PRESSED | PRESENCE | LINK_CHANGE);
		mmio_write16(express + SLOT_STATUS, rest);
	}
	mmio_write16(express + SLOT_STATUS, events);
	CHECK(!(slot_status() & events), "events %x are not acknowledged: %x", events, slot_status());
}

static void find_port(void)
{
	unsigned at;

	port = pci_ecam() + PORT_SLOT * 0x8000 + option_number("port", 1) * 0x1000 - 0x1000;
	CHECK(mmio_read32(port) == 0x000c1b36, "no port: %x", mmio_read32(port));
	CHECK(mmio_read8(port + 0x0e) == 0x81, "header type %x", mmio_read8(port + 0x0e));
	for (at = mmio_read8(port + 0x34); at && mmio_read8(port + at) != 0x10;)
		at = mmio_read8(port + at + 1);
	CHECK(at, "the port has no PCI Express capability");
	express = port + at;
}

static void open_bridge(void)
{
	mmio_write32(port + 0x18, BUS << 8 | BUS << 16);
	mmio_write16(port + 0x20, (uint16_t)(WINDOW >> 16));
	mmio_write16(port + 0x22, (uint16_t)(WINDOW >> 16));
	mmio_write16(port + 4, PCI_COMMAND_MEM | PCI_COMMAND_BM);
}

/* Its BARs answer where the bridge passes, and nowhere else. */
static void check_windows(unsigned card)
{
	CHECK(pci_read(card, 0x10, 4) == 4, "a new card's BAR is at %x", pci_read(card, 0x10, 4));
	pci_set_bar(card, 0, WINDOW);
	pci_set_bar(card, 2, WINDOW + 0x10000);
	CHECK(mmio_read32(WINDOW + 0x14) == ALL_ONES32, "it decodes without being told to");
	pci_enable(card);
	CHECK(mmio_read8(WINDOW + 0x14) == 0, "the device status is %x", mmio_read8(WINDOW + 0x14));
	pci_set_bar(card, 0, WINDOW + 0x200000);
	CHECK(mmio_read32(WINDOW + 0x200014) == ALL_ONES32, "it answers outside of the window");
	pci_set_bar(card, 0, WINDOW);
	mmio_write16(port + 4, PCI_COMMAND_BM);
	CHECK(mmio_read32(WINDOW + 0x14) == ALL_ONES32, "the bridge passes what it should not");
	mmio_write16(port + 4, PCI_COMMAND_MEM | PCI_COMMAND_BM);
	mmio_write32(port + 0x18, (BUS + 1) << 8 | (BUS + 1) << 16);
	CHECK(pci_read(card, 0, 4) == ALL_ONES32, "it answers on a bus that is not its own");
	CHECK(pci_read(card + 32, 0, 4) == card_id, "it does not follow its bus number");
	mmio_write32(port + 0x18, BUS << 8 | BUS << 16);
}

static void use_disk(uint8_t round)
{
	static struct virtio v;
	uint8_t *data = alloc(SECTOR, SECTOR);
	uint32_t before = interrupts[VECTOR_MSI];

	blk_open(&v, 0, true);
	memset(data, round, SECTOR);
	CHECK(blk_do(&v, 0, BLK_OUT, round, data, SECTOR) == BLK_OK, "the write fails");
	memset(data, 0, SECTOR);
	CHECK(blk_do(&v, 0, BLK_IN, round, data, SECTOR) == BLK_OK, "the read fails");
	CHECK(data[0] == round && data[SECTOR - 1] == round, "what was written is not there");
	CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI] > before), "no interrupt came");
}

/*
 * rounds=N: so often a disk is added and removed. cold=1: one is there from the start. deaf=1: the guest does not let
 * it go. nic=1: it is an interface; each time frames are sent back until a character comes over the serial port.
 */
void test_hotplug(void)
{
	uint64_t rounds = option_number("rounds", 2), cold = option_number("cold", 0);
	bool net = option_number("nic", 0);

	card_id = net ? 0x10411af4 : 0x10421af4;
	find_port();
	open_bridge();
	on_interrupt[VECTOR_PIN] = on_pin;
	ioapic_route(PORT_PIN, VECTOR_PIN, true, false, lapic_id());
	irq_on();
	for (uint8_t round = 1; round <= rounds; round++) {
		bool there = cold && round == 1;
		CHECK(!!(slot_status() & PRESENT) == there, "the slot's status is %x", slot_status());
		if (!there) {
			CHECK(pci_read(BUS * 32, 0, 4) == ALL_ONES32, "something is behind an empty port");
			mmio_write16(express + SLOT_CONTROL, ENABLES | POWER_OFF);
			print("HOTPLUG ready\n");
			wait_for(PRESENCE | PRESSED);
			CHECK(slot_status() & PRESENT, "nothing came: %x", slot_status());
			CHECK(pci_read(BUS * 32, 0, 4) == ALL_ONES32, "it answers without power");
			mmio_write16(express + SLOT_CONTROL, ENABLES);
			wait_for(LINK_CHANGE);
		}
		mmio_write16(express + SLOT_CONTROL, ENABLES);
		CHECK(mmio_read16(express + LINK_STATUS) & LINK_ACTIVE, "the link is down");
		CHECK(pci_read(BUS * 32, 0, 4) == card_id, "there is %x", pci_read(BUS * 32, 0, 4));
		check_windows(BUS * 32);
		if (net)
			test_net_echo();
		else
			use_disk(round);
		irq_on();
		print("HOTPLUG works\n");
		wait_for(PRESSED);
		print("HOTPLUG asked\n");
		while (option_number("deaf", 0))
			relax();
		mmio_write16(express + SLOT_CONTROL, ENABLES | POWER_OFF);
		CHECK(pci_read(BUS * 32, 0, 4) == ALL_ONES32, "it answers without power");
		CHECK(mmio_read32(WINDOW + 0x14) == ALL_ONES32, "its BAR answers without power");
		wait_for(PRESENCE | LINK_CHANGE);
		print("HOTPLUG gone\n");
	}
	irq_off();
}
