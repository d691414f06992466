/* Tests of the machine itself: what is not there, clocks, power, processors. */
#include "tests.h"

/* --- unmapped --- */

static void check_ports(uint16_t port)
{
	outb(port, 0x5a);
	outw(port, 0x5a5a);
	outl(port, 0x5a5a5a5a);
	CHECK(inb(port) == 0xff, "port %x reads %x", port, inb(port));
	CHECK(inw(port) == 0xffff, "port %x reads %x as 16 bits", port, inw(port));
	CHECK(inl(port) == ALL_ONES32, "port %x reads %x as 32 bits", port, inl(port));
}

static void check_mmio(uint64_t at)
{
	mmio_write8(at, 0x5a);
	mmio_write16(at, 0x5a5a);
	mmio_write32(at, 0x5a5a5a5a);
	mmio_write64(at, 0x5a5a5a5a5a5a5a5a);
	CHECK(mmio_read8(at) == 0xff, "%lx reads %x", at, mmio_read8(at));
	CHECK(mmio_read16(at) == 0xffff, "%lx reads %x as 16 bits", at, mmio_read16(at));
	CHECK(mmio_read32(at) == ALL_ONES32, "%lx reads %x as 32 bits", at, mmio_read32(at));
	CHECK(mmio_read64(at) == ~0ull, "%lx reads %lx as 64 bits", at, mmio_read64(at));
}

void test_unmapped(void)
{
	static const uint16_t ports[] = {0x10, 0xe0, 0x1ce, 0x2f8, 0x3bc, 0x4e, 0x5658, 0x7fff, 0xfffc};
	uint8_t bytes[9] = {0};

	for (unsigned i = 0; i < COUNT(ports); i++)
		check_ports(ports[i]);
	/* 0xFED40000 is where firmware looks for a TPM; the last page below 4 GiB is where flash would be. */
	const uint64_t places[] = {0xfed40000, 0xfffff000, 0xbffffff8, map(1ull << 37, PAGE),
				   map((1ull << 37) + 0x1001, PAGE)};
	for (unsigned i = 0; i < COUNT(places); i++)
		check_mmio(places[i]);
	/* A string instruction: one exit for many items. */
	void *to = bytes;
	uint64_t n = 8;
	__asm__ volatile("rep insb" : "+D"(to), "+c"(n) : "d"(0x2f8) : "memory");
	for (unsigned i = 0; i < 8; i++)
		CHECK(bytes[i] == 0xff, "rep insb: byte %u is %x", i, bytes[i]);
	CHECK(bytes[8] == 0, "rep insb wrote past its end");
}

/* --- clocks --- */

static uint8_t cmos_read(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static void cmos_write(uint8_t reg, uint8_t value)
{
	outb(0x70, reg);
	outb(0x71, value);
}

static unsigned bcd(uint8_t v)
{
	return (v >> 4) * 10u + (v & 15);
}

static void print_time(void)
{
	CHECK(WAIT_FOR(2000000, !(cmos_read(0x0a) & 0x80)), "an update never ends");
	print("RTC %02u%02u-%02u-%02u %02u:%02u:%02u\n", bcd(cmos_read(0x32)), bcd(cmos_read(9)), bcd(cmos_read(8)),
	      bcd(cmos_read(7)), bcd(cmos_read(4)), bcd(cmos_read(2)), bcd(cmos_read(0)));
}

static void rtc_interrupt(void)
{
	cmos_read(0x0c); /* reading the flags takes them down */
}

/* @count more interrupts come, in no less time than @least_us: on a busy machine some fall together, none come early.
 */
static void expect_ticks(const char *what, uint32_t count, uint64_t least_us)
{
	struct deadline least = deadline_in(least_us), most = deadline_in(30000000);

	interrupts[VECTOR_RTC] = 0;
	while (interrupts[VECTOR_RTC] < count) {
		(void)deadline_over(&least);
		CHECK(!deadline_over(&most), "%u %s interrupts in 30 s", interrupts[VECTOR_RTC], what);
	}
	CHECK(deadline_over(&least), "%u %s interrupts in less than %lu us", count, what, least_us);
}

void test_rtc(void)
{
	print_time();
	on_interrupt[VECTOR_RTC] = rtc_interrupt;
	ioapic_route(8, VECTOR_RTC, false, false, lapic_id());
	/* Update-ended interrupts: one a second; not the one that was flagged before anybody asked. */
	cmos_read(0x0c);
	cmos_write(0x0b, (cmos_read(0x0b) & ~0x70) | 0x10);
	irq_on();
	expect_ticks("update", 3, 1990000);
	/* Periodic ones at 64 Hz. */
	cmos_write(0x0a, 0x2a);
	cmos_read(0x0c);
	cmos_write(0x0b, (cmos_read(0x0b) & ~0x70) | 0x40);
	expect_ticks("periodic (64 Hz)", 33, 490000);
	cmos_write(0x0b, cmos_read(0x0b) & ~0x70);
	cmos_read(0x0c);
	irq_off();
	ioapic_mask(8);
	/* CMOS memory remembers. */
	cmos_write(0x60, 0xa7);
	CHECK(cmos_read(0x60) == 0xa7, "CMOS byte 0x60 is %x", cmos_read(0x60));
	print_time();
}

void test_pm_timer(void)
{
	uint32_t last = pm_timer(), wraps = 0, max = 0;
	struct deadline d = deadline_in(option_number("seconds", 6) * 1000000);

	/* A 24-bit timer wraps every 4.7 s. */
	print("PM-TIMER begin\n");
	while (!deadline_over(&d)) {
		uint32_t now = inl(0x608);
		CHECK(now <= 0xffffff, "the timer has more than 24 bits: %x", now);
		uint32_t step = (now - last) & 0xffffff;
		CHECK(step < 0x800000, "the timer goes back: %x to %x", last, now);
		wraps += now < last;
		max = step > max ? step : max;
		last = now;
	}
	print("PM-TIMER end\n");
	CHECK(wraps >= 1, "no wrap seen");
}

/* --- power --- */

static volatile unsigned presses;

static void button_interrupt(void)
{
	presses += inw(0x600) >> 8 & 1;
	outw(0x600, 1 << 8); /* takes the status down, and with it the line */
}

void test_button(void)
{
	on_interrupt[VECTOR_SCI] = button_interrupt;
	ioapic_route(9, VECTOR_SCI, true, false, lapic_id());
	CHECK(inw(0x604) & 1, "SCI_EN is off: %x", inw(0x604));
	outw(0x602, 1 << 8);
	CHECK(inw(0x602) == 1 << 8, "the enable register reads %x", inw(0x602));
	print("BUTTON waiting\n");
	while (!presses)
		irq_sleep();
	irq_on();
	wait_us(10000);
	irq_off();
	CHECK(presses == 1, "%u presses for one", presses);
	CHECK(!(inw(0x600) & 1 << 8), "the status stays: %x", inw(0x600));
}

void test_poweroff(void)
{
	power_off();
}

/* A triple fault: no IDT, then an exception. */
static void triple_fault(void)
{
	const struct [[gnu::packed]] {
		uint16_t limit;
		uint64_t base;
	} none = {0, 0};

	__asm__ volatile("lidt %0; ud2" : : "m"(none));
}

/* Counts in a CMOS byte, which a reset leaves alone; by=cf9|port64|port92|triple says how to reset. */
void test_reset(void)
{
	const char *by = option("by", "cf9");
	uint64_t boots = option_number("boots", 3);
	uint8_t n = (uint8_t)(cmos_read(0x61) + 1);

	print("BOOT %u\n", n);
	/* Reset puts devices back: an interrupt enable of the serial port that was set before. */
	CHECK(inb(0x3f9) == 0, "the serial port still has interrupts on: %x", inb(0x3f9));
	CHECK(inw(0x602) == 0, "the power button is still enabled: %x", inw(0x602));
	outb(0x3f9, 1);
	outw(0x602, 1 << 8);
	if (n < boots) {
		cmos_write(0x61, n);
		if (strcmp(by, "port64") == 0)
			outb(0x64, 0xfe);
		else if (strcmp(by, "port92") == 0)
			outb(0x92, inb(0x92) | 1);
		else if (strcmp(by, "triple") == 0)
			triple_fault();
		else
			reset_machine();
		for (;;)
			__asm__ volatile("hlt");
	}
	cmos_write(0x61, 0);
	outb(0x3f9, 0);
}

/* Sleeps until a character comes over the serial port. */
void test_idle(void)
{
	ioapic_route(4, VECTOR_SERIAL, false, false, lapic_id());
	outb(0x3fc, 0x0b); /* OUT2 lets the interrupt out */
	outb(0x3f9, 1);
	print("IDLE\n");
	while (serial_get() < 0)
		irq_sleep();
	outb(0x3f9, 0);
}

/* --- processors --- */

static volatile uint32_t seen_ids[CPUS_MAX];
static volatile uint64_t rounds[CPUS_MAX];
static uint64_t ecam; /* found by one processor: the ports of PCI are an address and then data, for one at a time */

static void note_id(unsigned cpu)
{
	seen_ids[cpu] = lapic_id() + 1;
}

/* All at once on the buses: configuration by ECAM, ports nobody answers, a device's register. */
static void hammer(unsigned cpu)
{
	for (unsigned i = 0; i < 300; i++) {
		CHECK(mmio_read32(ecam + (i & 31) * 0x8000) == mmio_read32(ecam + (i & 31) * 0x8000), "ECAM");
		CHECK(inb(0x2f8) == 0xff, "port 0x2f8");
		CHECK(mmio_read32(ecam) == 0x29c08086, "ECAM reads %x on processor %u", mmio_read32(ecam), cpu);
		CHECK(pm_timer() <= 0xffffff, "timer");
		rounds[cpu]++;
	}
}

void test_smp(void)
{
	unsigned wanted = (unsigned)option_number("cpus", 1), n = smp_start();

	CHECK(n == wanted, "%u processors, %lu are expected", n, (uint64_t)wanted);
	smp_run(note_id);
	seen_ids[0] = lapic_id() + 1;
	for (unsigned i = 0; i < n; i++)
		for (unsigned j = i + 1; j < n; j++)
			CHECK(seen_ids[i] != seen_ids[j], "processors %u and %u have the same APIC id", i, j);
	ecam = pci_ecam();
	for (unsigned i = 0; i < n; i++)
		rounds[i] = 0;
	smp_run(hammer);
	for (unsigned i = 1; i < n; i++)
		CHECK(rounds[i] == 300, "processor %u did %lu rounds", i, rounds[i]);
	print("SMP %u\n", n);
}

/* --- panic, watchdog --- */

/* Tells that it panicked, by events=N, after a character came; then waits for another. */
void test_panic(void)
{
	CHECK(inb(0x505) == 3, "pvpanic knows events %x", inb(0x505));
	print("PANIC ready\n");
	while (serial_get() < 0)
		relax();
	outb(0x505, (uint8_t)option_number("events", 1));
	print("PANIC told\n");
	while (serial_get() < 0)
		relax();
}

static uint64_t dog;

static void dog_write(unsigned reg, uint32_t value)
{
	mmio_write16(dog + 12, 0x80);
	mmio_write16(dog + 12, 0x86);
	if (reg < 8)
		mmio_write32(dog + reg, value);
	else
		mmio_write16(dog + reg, (uint16_t)value);
}

/*
 * Feeds the watchdog, whose stages last ms=N each, for a while; after a character came it does not. A kernel that finds
 * the machine was reset by it is done.
 */
void test_watchdog(void)
{
	uint32_t stage = (uint32_t)option_number("ms", 500);
	int slot = pci_find(0x8086, 0x25ab, 0);

	CHECK(slot >= 0, "there is no watchdog");
	dog = pci_bar((unsigned)slot, 0);
	pci_enable((unsigned)slot);
	if (mmio_read16(dog + 12) & 0x200) {
		print("WATCHDOG reset\n");
		dog_write(12, 0x200);
		CHECK(mmio_read16(dog + 12) == 0, "the reset status stays: %x", mmio_read16(dog + 12));
		return;
	}
	pci_write((unsigned)slot, 0x60, 2, 3);
	dog_write(0, stage);
	dog_write(4, stage);
	pci_write((unsigned)slot, 0x68, 1, 2);
	for (unsigned i = 0; i < 10; i++) {
		wait_us(stage * 400ull);
		dog_write(12, 0x100);
	}
	print("WATCHDOG fed\n");
	while (serial_get() < 0) {
		wait_us(stage * 200ull);
		dog_write(12, 0x100);
	}
	CHECK(WAIT_FOR(stage * 2000ull, mmio_read16(dog + 8) & 1), "the first stage does not end");
	print("WATCHDOG stage 2\n");
	while (serial_get() < 0)
		relax();
	dog_write(12, 0x200);
	pci_write((unsigned)slot, 0x68, 1, 0);
}
