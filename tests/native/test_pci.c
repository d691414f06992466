/* Tests of PCI: configuration space both ways, BARs that move, MSI-X, the INTx line; and the entropy source. */
#include "tests.h"

void test_pci_scan(void)
{
	uint64_t ecam = pci_ecam();
	unsigned found = 0;

	CHECK(pci_read(0, 0, 4) == 0x29c08086, "slot 0 is %x, not the Q35 host bridge", pci_read(0, 0, 4));
	for (unsigned slot = 0; slot < 32; slot++) {
		uint64_t base = ecam + slot * 0x8000;
		uint32_t id = pci_read(slot, 0, 4);
		CHECK(mmio_read32(base) == id, "slot %u is %x by ports, %x by ECAM", slot, id, mmio_read32(base));
		if (id == ALL_ONES32)
			continue;
		found++;
		print("PCI %u %04x:%04x class %06x\n", slot, id & 0xffff, id >> 16, pci_read(slot, 8, 4) >> 8);
		for (unsigned at = 0; at < 256; at += 4) {
			uint32_t value = pci_read(slot, at, 4);
			CHECK(mmio_read32(base + at) == value, "slot %u register %x differs", slot, at);
			for (unsigned i = 0; i < 4; i++) {
				uint8_t byte = (uint8_t)(value >> i * 8);
				CHECK(pci_read(slot, at + i, 1) == byte && mmio_read8(base + at + i) == byte,
				      "slot %u byte %x differs", slot, at + i);
			}
			CHECK(mmio_read16(base + at + 2) == value >> 16, "slot %u word %x differs", slot, at + 2);
		}
		/* Only who says so has more functions; other buses are empty. */
		bool several = pci_read(slot, 0x0e, 1) & 0x80;
		CHECK((mmio_read32(base + 0x1000) == ALL_ONES32) != several, "function 1 of slot %u", slot);
		CHECK(mmio_read32(base + (1 << 20)) == ALL_ONES32, "bus 1 has slot %u", slot);
	}
	print("PCI found %u\n", found);
	/* With the enable bit off 0xCFC is a port like any other. */
	outl(0xcf8, 0);
	CHECK(inl(0xcfc) == ALL_ONES32, "0xcfc answers with configuration off: %x", inl(0xcfc));
	outl(0xcf8, 0x80000000);
	CHECK(inl(0xcf8) == 0x80000000, "0xcf8 reads %x", inl(0xcf8));
	outb(0xcf8, 0x11); /* only 32-bit writes reach the address register */
	CHECK(inl(0xcf8) == 0x80000000, "0xcf8 took a byte: %x", inl(0xcf8));
}

/* Writes everywhere, at random, in every width, but for what would take the ground from under the test. */
void test_pci_garbage(void)
{
	uint64_t ecam = pci_ecam(), n = option_number("writes", 4000);
	unsigned devices[32], count = 0;
	uint32_t ids[32];

	for (unsigned slot = 1; slot < 32; slot++) {
		ids[count] = pci_read(slot, 0, 4);
		devices[count] = slot;
		count += ids[count] != ALL_ONES32;
	}
	CHECK(count > 0, "no device to throw garbage at");
	for (uint64_t i = 0; i < n; i++) {
		uint64_t r = random_next();
		uint64_t at = ecam + devices[r % count] * 0x8000 + (r >> 8 & 0xfff);
		uint64_t value = random_next();
		switch (r >> 24 & 7) {
		case 0:
			mmio_write8(at, (uint8_t)value);
			break;
		case 1:
			mmio_write16(at, (uint16_t)value);
			break;
		case 2:
		case 3:
			mmio_write32(at & ~3ull, (uint32_t)value);
			break;
		case 4:
			mmio_write64(at, value);
			break;
		case 5:
			(void)mmio_read64(at);
			break;
		case 6:
			outl(0xcf8, (uint32_t)value | 0x80000000u);
			if (!(value >> 11 & 0x1f))
				break; /* the host bridge: ECAM would move away */
			outl(0xcfc, (uint32_t)(value >> 32));
			break;
		default:
			outl(0xcf8, 0x80000000u | devices[r % count] << 11 | (r >> 8 & 0xfc));
			outb(0xcfc + (r >> 4 & 3), (uint8_t)value);
		}
	}
	/* Identity cannot be written. */
	for (unsigned i = 0; i < count; i++)
		CHECK(pci_read(devices[i], 0, 4) == ids[i], "slot %u became %x", devices[i],
		      pci_read(devices[i], 0, 4));
	CHECK(pci_read(0, 0, 4) == 0x29c08086, "the host bridge became %x", pci_read(0, 0, 4));
}

void test_pci_bars(void)
{
	struct virtio v;

	CHECK(virtio_find(&v, 2, 0) || virtio_find(&v, 4, 0), "no virtio device");
	unsigned cap = 0;
	do {
		cap = pci_capability(v.slot, 9, cap);
	} while (pci_read(v.slot, cap + 3, 1) != 1);
	unsigned bar = pci_read(v.slot, cap + 4, 1), offset = pci_read(v.slot, cap + 8, 4);
	uint64_t home = pci_bar(v.slot, bar), size = pci_bar_size(v.slot, bar);
	CHECK(size >= 0x1000 && (size & (size - 1)) == 0, "BAR %u has %lx bytes", bar, size);
	CHECK(home % size == 0 && home, "BAR %u of %lx bytes is at %lx", bar, size, home);
	virtio_reset(&v);
	uint64_t away = 0xdf000000; /* in the 32-bit window, where no BAR was put */
	uint32_t queues = mmio_read16(home + offset + 18);
	CHECK(queues != 0xffff && queues > 0, "%u queues", queues);

	for (unsigned round = 0; round < 20; round++) {
		pci_set_bar(v.slot, bar, away);
		CHECK(mmio_read16(away + offset + 18) == queues, "BAR does not answer at its new place");
		CHECK(mmio_read16(home + offset + 18) == 0xffff, "BAR still answers at its old place");
		pci_set_bar(v.slot, bar, home);
		CHECK(mmio_read16(home + offset + 18) == queues, "BAR does not answer at home");
		CHECK(mmio_read16(away + offset + 18) == 0xffff, "BAR still answers away");
	}
	/* Decoding off. */
	uint32_t command = pci_read(v.slot, PCI_COMMAND, 2);
	pci_write(v.slot, PCI_COMMAND, 2, command & ~(uint32_t)PCI_COMMAND_MEM);
	CHECK(mmio_read16(home + offset + 18) == 0xffff, "BAR answers with decoding off");
	pci_write(v.slot, PCI_COMMAND, 2, command);
	CHECK(mmio_read16(home + offset + 18) == queues, "BAR does not come back with decoding");
	/* On top of RAM, of the APIC, of another device's place: RAM stays RAM, and it comes back. */
	const uint64_t bad[] = {0, 0x100000, 0xfee00000, pci_ecam(), 0xfffffffff0000000};
	for (unsigned i = 0; i < COUNT(bad); i++) {
		pci_set_bar(v.slot, bar, bad[i]);
		CHECK(pci_read(0, 0, 4) == 0x29c08086, "the host bridge is gone");
		CHECK(mmio_read32(pci_ecam()) == 0x29c08086, "ECAM is gone");
		lapic_id();
	}
	pci_set_bar(v.slot, bar, home);
	CHECK(mmio_read16(home + offset + 18) == queues, "BAR does not come home");
}

/* One read by a disk, or entropy: something that ends in an interrupt. */
static void *data;
static uint64_t sector;

static void provoke(struct virtio *v)
{
	static struct blk_request r;

	r = (struct blk_request){.header = {.type = BLK_IN, .sector = sector}, .data = data, .len = SECTOR};
	CHECK(blk_submit(v, 0, &r, 1, false), "the queue is full");
	virtq_kick(&v->queue[0]);
	CHECK(WAIT_FOR(5000000, v->queue[0].used[1] != v->queue[0].used_seen), "the request never completes");
	CHECK(virtq_get(&v->queue[0], NULL) == &r && r.status == BLK_OK, "the request fails");
}

void test_pci_msix(void)
{
	struct virtio v;
	const struct msix *m = &v.msix;
	volatile uint32_t *got = &interrupts[VECTOR_MSI];

	data = alloc(SECTOR, SECTOR);
	blk_open(&v, 0, true);
	irq_on();
	provoke(&v);
	CHECK(WAIT_FOR(1000000, *got == 1), "%u interrupts for one request", *got);
	/* Masked: pending, and delivered when unmasked. */
	msix_mask(m, 0, true);
	provoke(&v);
	CHECK(WAIT_FOR(1000000, msix_pending(m, 0)), "a masked vector is not pending");
	wait_us(20000);
	CHECK(*got == 1, "a masked vector interrupts");
	msix_mask(m, 0, false);
	CHECK(WAIT_FOR(1000000, *got == 2), "an unmasked vector does not deliver what was pending");
	CHECK(!msix_pending(m, 0), "still pending after delivery");
	/* The same by the mask of the whole function. */
	msix_enable(m, true, true);
	provoke(&v);
	CHECK(WAIT_FOR(1000000, msix_pending(m, 0)), "function masked: not pending");
	CHECK(*got == 2, "function masked: interrupts");
	msix_enable(m, true, false);
	CHECK(WAIT_FOR(1000000, *got == 3), "function unmasked: not delivered");
	/* Another vector while masked: what was pending goes where the entry says then. */
	msix_mask(m, 0, true);
	provoke(&v);
	CHECK(WAIT_FOR(1000000, msix_pending(m, 0)), "not pending");
	mmio_write32(m->table + 8, VECTOR_MSI + 40);
	msix_mask(m, 0, false);
	CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI + 40] == 1) && *got == 3, "the changed entry is not obeyed");
	/* The table reads back, in every width that drivers use. */
	CHECK(mmio_read64(m->table) == msi_address(lapic_id()), "entry 0 address %lx", mmio_read64(m->table));
	CHECK(mmio_read64(m->table + 8) == VECTOR_MSI + 40, "entry 0 data %lx", mmio_read64(m->table + 8));
	CHECK(mmio_read32(m->table + 8) == VECTOR_MSI + 40, "entry 0 data %x", mmio_read32(m->table + 8));
	mmio_write64(m->table + 8, (uint64_t)1 << 32 | VECTOR_MSI);
	CHECK(mmio_read32(m->table + 12) == 1, "a 64-bit write does not mask");
	mmio_write64(m->table + 8, VECTOR_MSI);
	provoke(&v);
	CHECK(WAIT_FOR(1000000, *got == 4), "entry 0 written by 64 bits does not deliver");
	/* Garbage in the table is the guest's own loss. */
	for (unsigned i = 0; i < 500; i++)
		mmio_write32(m->table + (random_next() % (m->vectors * 4)) * 4, (uint32_t)random_next() | 0x100);
	for (unsigned i = 0; i < m->vectors; i++) {
		msix_mask(m, i, true);
		msix_route(m, i, (uint8_t)(VECTOR_MSI + i), lapic_id());
	}
	uint32_t before = *got;
	provoke(&v);
	CHECK(WAIT_FOR(1000000, *got > before), "no interrupt after garbage in the table");
	irq_off();
	virtio_reset(&v);
}

static struct virtio *intx_device;
static volatile uint32_t intx_count, intx_isr;

/*
 * Counts what the device asked for. One for nothing is allowed, as it is on any shared line; KVM that runs without
 * hardware virtualisation has been seen to deliver a level-triggered interrupt twice.
 */
static void intx_interrupt(void)
{
	uint8_t isr = mmio_read8(intx_device->isr); /* reading takes the line down */

	intx_isr |= isr;
	intx_count += isr != 0;
}

void test_pci_intx(void)
{
	static struct virtio v;

	data = alloc(SECTOR, SECTOR);
	blk_open(&v, 0, false);
	intx_device = &v;
	unsigned pin = 16 + v.slot % 8;
	CHECK(pci_read(v.slot, 0x3d, 1) == 1, "the interrupt pin is %u, not INTA", pci_read(v.slot, 0x3d, 1));
	on_interrupt[VECTOR_PIN] = intx_interrupt;
	ioapic_route(pin, VECTOR_PIN, true, false, lapic_id());
	irq_on();
	for (unsigned i = 1; i <= 5; i++) {
		provoke(&v);
		CHECK(WAIT_FOR(1000000, intx_count == i), "%u line interrupts for %u requests", intx_count, i);
		CHECK(intx_isr == 1, "ISR %x", intx_isr);
	}
	/* The command register can silence it; what waits is delivered when it may speak again. */
	uint32_t command = pci_read(v.slot, PCI_COMMAND, 2);
	pci_write(v.slot, PCI_COMMAND, 2, command | PCI_INTX_OFF);
	provoke(&v);
	wait_us(20000);
	CHECK(intx_count == 5, "a disabled line interrupts");
	CHECK(pci_read(v.slot, 6, 2) & 8, "the status register does not show the waiting interrupt");
	pci_write(v.slot, PCI_COMMAND, 2, command);
	CHECK(WAIT_FOR(1000000, intx_count == 6), "the enabled line does not deliver");
	irq_off();
	virtio_reset(&v);
	ioapic_mask(pin);
}

void test_rng(void)
{
	static struct virtio v;
	uint8_t *a = alloc(4096, PAGE), *b = alloc(4096, PAGE);
	uint32_t got = 0, total = 0;

	CHECK(virtio_find(&v, 4, 0), "no entropy device");
	virtio_setup(&v, 1ull << VIRTIO_F_INDIRECT | 1ull << VIRTIO_F_EVENT_IDX, 1, true, lapic_id());
	irq_on();
	for (unsigned round = 0; round < 2; round++) {
		uint8_t *to = round ? b : a;
		const struct segment segs[] = {{to, 100, true}, {to + 100, 3996, true}};
		CHECK(virtq_add(&v.queue[0], segs, 2, to, round == 1), "the queue is full");
		virtq_kick(&v.queue[0]);
		CHECK(virtq_wait(&v.queue[0], &got, 5000000) == to, "no entropy comes");
		CHECK(got > 0 && got <= 4096, "%u bytes of 4096", got);
		total += got;
		unsigned used[256] = {0};
		for (unsigned i = 0; i < got; i++)
			used[to[i]]++;
		for (unsigned i = 0; i < 256 && got >= 256; i++)
			CHECK(used[i] < got / 8 + 8, "byte %x comes %u times in %u", i, used[i], got);
	}
	CHECK(memcmp(a, b, 64) != 0, "the same twice");
	CHECK(WAIT_FOR(1000000, interrupts[VECTOR_MSI] >= 1), "no interrupt");
	irq_off();
	print("RNG %u\n", total);
	virtio_reset(&v);
}
