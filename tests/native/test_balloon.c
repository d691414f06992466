/* The balloon from the guest's side: gives pages back as it is told to, and takes them again when told. */
#include "tests.h"

#define BALLOON_ID    5
#define INFLATE       0
#define DEFLATE       1
#define REPORT        3
#define F_REPORTING   5
#define CONFIG_TARGET 0
#define CONFIG_ACTUAL 4
#define CHAIN_PAGES   256u
#define MIB           0x100000u

static struct virtio v;
static uint32_t *pfns;

static void give(unsigned queue, struct segment segment)
{
	int token;
	uint32_t written;

	CHECK(virtq_add(&v.queue[queue], &segment, 1, &token, false), "queue %u is full", queue);
	virtq_kick(&v.queue[queue]);
	CHECK(virtq_wait(&v.queue[queue], &written, 5000000) == &token, "queue %u does not answer", queue);
	CHECK(written == 0, "%u bytes were written", written);
}

static void wait_for_key(void)
{
	while (serial_get() < 0)
		relax();
}

/* Sends the numbers of @pages pages at @area, in chains, the last page first. */
static void send_all(unsigned queue, uint64_t area, uint32_t pages)
{
	for (uint32_t done = 0; done < pages;) {
		uint32_t n = 0;
		for (; n < CHAIN_PAGES && done < pages; n++, done++)
			pfns[n] = (uint32_t)(area / PAGE) + pages - 1 - done;
		give(queue, (struct segment){pfns, n * 4, false});
	}
	mmio_write32(v.config + CONFIG_ACTUAL, queue == INFLATE ? pages : 0);
}

static void touch(uint64_t area, uint32_t pages, uint64_t value)
{
	for (uint32_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(area + i * PAGE + 8) = value + i;
}

/* mib=N: works with so much. Each step waits for a character. */
void test_balloon(void)
{
	uint32_t pages = (uint32_t)option_number("mib", 16) * (uint32_t)(MIB / PAGE);
	uint64_t area = (uint64_t)alloc(pages * PAGE + PAGE, 2u * MIB);

	CHECK(virtio_find(&v, BALLOON_ID, 0), "there is no balloon");
	virtio_setup(&v, 1u << F_REPORTING, 4, false, 0);
	pfns = alloc(CHAIN_PAGES * 4, PAGE);
	touch(area, pages + 1, 1000);
	print("BALLOON touched\n");
	CHECK(WAIT_FOR(60000000, mmio_read32(v.config + CONFIG_TARGET) == pages), "the target is %u pages, not %u",
	      mmio_read32(v.config + CONFIG_TARGET), pages);
	send_all(INFLATE, area, pages);
	print("BALLOON inflated\n");
	wait_for_key();
	CHECK(mmio_read32(v.config + CONFIG_ACTUAL) == pages, "actual is %u", mmio_read32(v.config + CONFIG_ACTUAL));
	send_all(DEFLATE, area, pages);
	for (uint32_t i = 0; i < pages; i++)
		CHECK(*(volatile uint64_t *)(area + i * PAGE + 8) == 0, "page %u of the balloon is not zero", i);
	CHECK(*(volatile uint64_t *)(area + pages * PAGE + 8) == 1000 + pages, "a page too many was given");
	touch(area, pages, 2000);
	print("BALLOON deflated\n");
	wait_for_key();
	for (uint32_t i = 0; i < pages; i++)
		CHECK(*(volatile uint64_t *)(area + i * PAGE + 8) == 2000 + i, "page %u lost what was written", i);
	give(REPORT, (struct segment){(void *)area, pages * (uint32_t)PAGE, true});
	print("BALLOON reported\n");
	wait_for_key();
}
