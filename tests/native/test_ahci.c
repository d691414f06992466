/*
 * A driver for a CD drive behind AHCI (AHCI 1.3, MMC-5), port 0, and the tests of it: interrupts by the pin or, with
 * the option msi=1, by message. Media hold what pattern.py makes, of one version each.
 */
#include "pci.h"
#include "tests.h"

#define BLOCK      2048u
#define BLOCK_MOST 48u /* of a read */
#define FUNCTION   2   /* of slot 31 */
#define PIN        23

/* Registers (3.1, 3.3). */
enum { GHC = 0x04, IS = 0x08, PI = 0x0c, PORT = 0x100 };
enum { CLB = 0x00, FB = 0x08, PIS = 0x10, PIE = 0x14, CMD = 0x18, TFD = 0x20, SIG = 0x24, SSTS = 0x28, CI = 0x38 };

struct buffer {
	uint64_t address;
	uint32_t reserved, size;
};

static uint64_t config, bar;
static uint8_t *list, *frames, *table, *data, *answer;
static volatile uint32_t seen; /* of the port's interrupts */

static uint32_t get(unsigned offset)
{
	return mmio_read32(bar + PORT + offset);
}

static void set(unsigned offset, uint32_t value)
{
	mmio_write32(bar + PORT + offset, value);
}

static void interrupted(void)
{
	uint32_t is = mmio_read32(bar + IS), port = get(PIS);

	set(PIS, port);
	mmio_write32(bar + IS, is);
	seen |= port;
}

static void start(void)
{
	set(CMD, 0);
	set(CLB, (uint32_t)(uint64_t)list);
	set(CLB + 4, 0);
	set(FB, (uint32_t)(uint64_t)frames);
	set(FB + 4, 0);
	set(CMD, 0x10);
	set(PIS, ~0u);
	set(PIE, ~0u);
	set(CMD, 0x11);
}

static void lead_interrupts(void)
{
	uint64_t at = config + mmio_read8(config + 0x34);

	if (!option_number("msi", 0)) {
		on_interrupt[VECTOR_PIN] = interrupted;
		ioapic_route(PIN, VECTOR_PIN, true, false, lapic_id());
		return;
	}
	while (mmio_read8(at) != 5 && mmio_read8(at + 1))
		at = config + mmio_read8(at + 1);
	CHECK(mmio_read8(at) == 5, "no MSI");
	on_interrupt[VECTOR_MSI] = interrupted;
	mmio_write32(at + 4, (uint32_t)msi_address(lapic_id()));
	mmio_write32(at + 8, 0);
	mmio_write16(at + 12, VECTOR_MSI);
	mmio_write16(at + 2, 1);
}

static void open(void)
{
	config = pci_ecam() + 31 * 0x8000 + FUNCTION * 0x1000;
	CHECK(mmio_read32(config) == 0x29228086, "no AHCI controller but %x", mmio_read32(config));
	CHECK(mmio_read32(config + 8) >> 8 == 0x010601, "class %x", mmio_read32(config + 8) >> 8);
	CHECK(mmio_read8(pci_ecam() + 31 * 0x8000 + 0x0e) & 0x80, "the slot says it has one function");
	mmio_write16(config + 4, PCI_COMMAND_MEM | PCI_COMMAND_BM);
	bar = map(mmio_read32(config + 0x24) & ~0xfffu, PAGE);
	list = memset(alloc(PAGE, PAGE), 0, PAGE);
	frames = list + 1024;
	table = memset(alloc(PAGE, PAGE), 0, PAGE);
	data = alloc(BLOCK_MOST * BLOCK + PAGE, PAGE);
	answer = alloc(PAGE, PAGE);
	lead_interrupts();
	mmio_write32(bar + GHC, 0x80000001);
	CHECK(WAIT_FOR(1000000, !(mmio_read32(bar + GHC) & 1)), "the reset never ends");
	CHECK(mmio_read32(bar + PI) & 1, "no port");
	start();
	CHECK(get(SIG) == 0xeb140101 && get(SSTS) == 0x113, "SIG %x, SSTS %x", get(SIG), get(SSTS));
	mmio_write32(bar + GHC, 0x80000002);
}

/* One packet from start to end: the buffers are @count. False: CHECK CONDITION. */
static bool packet(const uint8_t *cdb, bool dma, const struct buffer *buffer, unsigned count)
{
	uint32_t *header = (uint32_t *)list;

	header[0] = 5 | 0x20 | count << 16;
	header[1] = 0;
	header[2] = (uint32_t)(uint64_t)table;
	memset(table, 0, 0x80);
	table[0] = 0x27;
	table[1] = 0x80;
	table[2] = 0xa0;
	table[3] = dma;
	memcpy(table + 0x40, cdb, 12);
	memcpy(table + 0x80, buffer, count * sizeof(*buffer));
	seen = 0;
	barrier();
	set(CI, 1);
	while (!(seen & 0x7c000001))
		irq_sleep();
	CHECK(!(seen & 0x3c000000), "interrupt status %x", seen);
	if (seen & 1 << 30) {
		CHECK(get(TFD) & 1, "TFD %x", get(TFD));
		start();
		return false;
	}
	CHECK(get(CI) == 0 && (get(TFD) & 0xff) == 0x50, "CI %x, TFD %x", get(CI), get(TFD));
	return true;
}

static bool ask(const uint8_t *cdb)
{
	const struct buffer buffer = {(uint64_t)answer, 0, PAGE - 1};

	return packet(cdb, false, &buffer, 1);
}

/* Why the last one failed: key, code, qualifier. */
static uint32_t sense(void)
{
	CHECK(ask((const uint8_t[12]){0x03, 0, 0, 0, 18}), "REQUEST SENSE fails");
	return (uint32_t)answer[2] << 16 | (uint32_t)answer[12] << 8 | answer[13];
}

static uint32_t big_endian(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Reads into three pieces that lie behind each other. */
static bool read(uint32_t block, uint32_t count, bool dma)
{
	uint32_t len = count * BLOCK, first = 2 + (uint32_t)(random_next() % 500) * 2, second = 700;
	const struct buffer buffer[3] = {{(uint64_t)data, 0, first - 1},
					 {(uint64_t)data + first, 0, second - 1},
					 {(uint64_t)data + first + second, 0, len - first - second - 1}};
	const uint8_t cdb[12] = {0x28,         0, block >> 24, block >> 16 & 0xff, block >> 8 & 0xff,
				 block & 0xff, 0, count >> 8,  count & 0xff};

	pattern_spoil(data, len / SECTOR);
	return packet(cdb, dma, buffer, 3);
}

static uint64_t version;

/* Waits until there is a medium and nothing is owed; its blocks. @version becomes what it holds. */
static uint32_t get_ready(void)
{
	while (!ask((const uint8_t[12]){0x00})) {
		uint32_t why = sense();
		CHECK(why == 0x062900 || why == 0x062800 || why >> 8 == 0x023a, "not ready: %x", why);
		wait_us(2000);
	}
	CHECK(ask((const uint8_t[12]){0x25}), "READ CAPACITY fails");
	CHECK(big_endian(answer + 4) == BLOCK, "blocks of %u bytes", big_endian(answer + 4));
	return big_endian(answer) + 1;
}

static void check(uint32_t block, uint32_t count)
{
	uint32_t bad = pattern_check(data, (uint64_t)block * 4, count * 4, version);

	CHECK(bad == count * 4, "block %u of version %lu is not what was written", block + bad / 4, version);
}

void test_cd_verify(void)
{
	uint32_t blocks, reads = 0;

	version = option_number("version", 1);
	open();
	blocks = get_ready();
	for (uint32_t block = 0, count; block < blocks; block += count, reads++) {
		count = 1 + (uint32_t)(random_next() % BLOCK_MOST);
		if (count > blocks - block)
			count = blocks - block;
		CHECK(read(block, count, reads % 2), "a read fails: %x", sense());
		check(block, count);
	}
	CHECK(!read(blocks, 1, true) && sense() == 0x052100, "a block behind the last is read");
	print("CD %u blocks verified\n", blocks);
}

/* Reads at random until a character comes; media may be changed, and the machine moved. */
void test_cd_load(void)
{
	uint64_t done = 0, every = option_number("every", 20);
	uint32_t blocks = 0;

	open();
	print("LOAD begin\n");
	for (bool fresh = true; serial_get() < 0;) {
		if (fresh) {
			blocks = get_ready();
			if (!read(0, 1, true))
				continue;
			version = ((uint64_t *)data)[1];
			print("CD version %lu blocks %u\n", version, blocks);
			fresh = false;
		}
		uint32_t count = 1 + (uint32_t)(random_next() % BLOCK_MOST);
		uint32_t block = (uint32_t)(random_next() % (blocks - count));
		if (read(block, count, done % 2)) {
			check(block, count);
			if (++done % every == 0)
				print("LOAD %lu\n", done);
			continue;
		}
		uint32_t why = sense();
		CHECK(why == 0x062800 || why >> 8 == 0x023a, "a read fails: %x", why);
		fresh = true;
	}
	print("LOAD verified %lu\n", done);
}

/* Locks the tray; a character each: it is asked to let go and does, and takes what comes then. */
void test_cd_tray(void)
{
	open();
	get_ready();
	CHECK(ask((const uint8_t[12]){0x1e, 0, 0, 0, 1}), "it cannot be locked");
	print("LOCKED\n");
	do {
		CHECK(ask((const uint8_t[12]){0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8}), "GET EVENT STATUS fails");
	} while (answer[4] != 1);
	CHECK(!ask((const uint8_t[12]){0x1b, 0, 0, 0, 2}) && sense() == 0x055302, "a locked tray opens");
	CHECK(ask((const uint8_t[12]){0x1e}) && ask((const uint8_t[12]){0x1b, 0, 0, 0, 2}), "it does not open");
	print("OPENED\n");
	print("CD blocks %u\n", get_ready());
}
