/* Tests of the processors: what CPUID says on each, interrupts to the one farthest away, kvmclock. */
#include "tests.h"

/* --- cpuid --- */

static struct {
	uint32_t apic;
	struct cpuid basic, extended, amd;
} seen[CPUS_MAX];

static void look(unsigned cpu)
{
	seen[cpu].apic = lapic_id();
	seen[cpu].basic = cpuid(1, 0);
	seen[cpu].extended = cpuid(0xb, 1);
	seen[cpu].amd = cpuid(0x8000001e, 0);
}

/* Every leaf as the first processor sees it, then what differs by processor. */
void test_cpuid(void)
{
	static const uint32_t first[] = {0, 0x40000000, 0x40000100, 0x80000000};
	unsigned n = smp_start();

	for (unsigned i = 0; i < COUNT(first); i++) {
		uint32_t last = cpuid(first[i], 0).eax;
		for (uint32_t f = first[i]; f <= last && f < first[i] + 0x30; f++)
			for (uint32_t index = 0; index < (f == 4 || f == 7 || f == 0xb || f == 0xd ? 8 : 1); index++) {
				struct cpuid r = cpuid(f, index);
				if (r.eax || r.ebx || r.ecx || r.edx)
					print("LEAF %x %x %x %x %x %x\n", f, index, r.eax, r.ebx, r.ecx, r.edx);
			}
	}
	look(0);
	smp_run(look);
	for (unsigned i = 0; i < n; i++) {
		uint32_t id = seen[i].apic;
		CHECK(seen[i].basic.ebx >> 24 == (id & 0xff), "leaf 1 says %x on %x", seen[i].basic.ebx, id);
		CHECK(seen[i].extended.edx == id, "leaf B says %x on %x", seen[i].extended.edx, id);
		CHECK(!seen[i].amd.ebx || seen[i].amd.eax == id, "leaf 8000001E says %x on %x", seen[i].amd.eax, id);
		print("CPU %x %x %x\n", id, seen[i].amd.ebx, seen[i].amd.ecx);
	}
}

/* --- far-irq --- */

static volatile unsigned came, came_to[CPUS_MAX];

static void note(void)
{
	if (lapic_id() < CPUS_MAX)
		came_to[lapic_id()]++;
	came++;
}

static void note_rtc(void)
{
	note();
	outb(0x70, 0x0c); /* reading the flags takes them down */
	inb(0x71);
}

static void came_only_to(unsigned cpu, const char *what)
{
	irq_on();
	CHECK(WAIT_FOR(5000000, came > 0), "%s never comes", what);
	wait_us(20000);
	irq_off();
	for (unsigned i = 0; i < CPUS_MAX; i++)
		CHECK(!came_to[i] == (i != cpu), "%s for processor %u came %u times to %u", what, cpu, came_to[i], i);
	came = came_to[cpu] = 0;
}

/* An MSI and a line of the IOAPIC to the last processor go to it, and to no other. */
void test_far_irq(void)
{
	unsigned cpu = smp_start() - 1;
	struct virtio v;

	CHECK(virtio_find(&v, 4, 0), "there is no entropy device");
	virtio_setup(&v, 0, 1, true, cpu);
	on_interrupt[VECTOR_MSI] = note;
	const struct segment segment = {alloc(64, 64), 64, true};
	CHECK(virtq_add(&v.queue[0], &segment, 1, &v, false), "the ring is full");
	virtq_kick(&v.queue[0]);
	came_only_to(cpu, "an MSI");

	on_interrupt[VECTOR_RTC] = note_rtc;
	ioapic_route(8, VECTOR_RTC, false, false, cpu);
	outb(0x70, 0x0a);
	outb(0x71, 0x2a); /* 64 Hz */
	outb(0x70, 0x0b);
	outb(0x71, 0x42);
	came_only_to(cpu, "a line");
	outb(0x70, 0x0b);
	outb(0x71, 0x02);
	ioapic_mask(8);
}

/* --- kvmclock (Linux's Documentation/virt/kvm/x86/msr.rst) --- */

#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define STOPPED             2

static volatile struct {
	uint32_t version, pad0;
	uint64_t tsc, ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad1[2];
} clock __attribute__((aligned(64)));

static uint64_t clock_ns(void)
{
	uint32_t version;
	uint64_t ns;

	do {
		version = clock.version;
		barrier();
		uint64_t delta = rdtsc() - clock.tsc;
		delta = clock.shift < 0 ? delta >> -clock.shift : delta << clock.shift;
		ns = clock.ns + (uint64_t)((unsigned __int128)delta * clock.mul >> 32);
		barrier();
	} while (version & 1 || version != clock.version);
	return ns;
}

/* Tells the time, and each time that it was stopped; until a character comes. */
void test_kvmclock(void)
{
	uint64_t last = 0;

	wrmsr(MSR_KVM_SYSTEM_TIME, (uint64_t)&clock | 1);
	while (serial_get() < 0) {
		uint64_t now = clock_ns();
		CHECK(now >= last, "time goes back: %lu to %lu", last, now);
		last = now;
		print("CLOCK %lu us\n", now / 1000);
		if (clock.flags & STOPPED) {
			clock.flags &= ~STOPPED;
			print("STOPPED\n");
		}
		wait_us(50000);
	}
}
