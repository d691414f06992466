/* The other processors: found in the MADT, started by INIT and SIPI, given work by an interrupt. */
#include "guest.h"

#define TRAMPOLINE 0x8000ull
#define STACK      16384ull
#define ICR_INIT   0x4500u
#define ICR_SIPI   0x4600u

extern char trampoline[], trampoline_end[];
extern uint32_t ap_next, ap_stacks;

static unsigned cpu_count = 1;
static uint32_t apic_of[CPUS_MAX];
static volatile unsigned alive = 1, finished;
static void (*volatile work)(unsigned cpu);
static volatile unsigned work_round;

static const uint8_t *find_table(const char *signature)
{
	const uint8_t *r = (const uint8_t *)rsdp;

	if (!r || memcmp(r, "RSD PTR ", 8) != 0)
		return NULL;
	/* QEMU's firmware has an RSDT only. */
	unsigned step = r[15] >= 2 ? 8 : 4;
	const uint8_t *list = (const uint8_t *)(step == 8 ? *(const uint64_t *)(r + 24) : *(const uint32_t *)(r + 16));
	for (unsigned at = 36; at < *(const uint32_t *)(list + 4); at += step) {
		uint64_t t = step == 8 ? *(const uint64_t *)(list + at) : *(const uint32_t *)(list + at);
		if (memcmp((const void *)t, signature, 4) == 0)
			return (const uint8_t *)t;
	}
	return NULL;
}

unsigned smp_madt_count(void)
{
	const uint8_t *t = find_table("APIC");
	unsigned n = 0;

	CHECK(t, "there is no MADT");
	for (unsigned at = 44; at < *(const uint32_t *)(t + 4); at += t[at + 1]) {
		CHECK(t[at + 1] >= 2, "a MADT entry of no length");
		if (t[at] == 0 && t[at + 4] & 1 && n < CPUS_MAX)
			apic_of[n++] = t[at + 3];
		if (t[at] == 9 && t[at + 8] & 1 && n < CPUS_MAX)
			apic_of[n++] = *(const uint32_t *)(t + at + 4);
	}
	return n;
}

void ap_start(unsigned index);

void ap_start(unsigned index)
{
	void irq_load(void);
	unsigned done = work_round;

	irq_load();
	__atomic_fetch_add(&alive, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		irq_off();
		if (work_round == done) {
			irq_sleep();
			continue;
		}
		done = work_round;
		irq_on();
		work(index);
		__atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
	}
}

unsigned smp_start(void)
{
	if (cpu_count > 1)
		return cpu_count;
	unsigned n = smp_madt_count();
	ap_stacks = (uint32_t)(uint64_t)alloc(n * STACK, 16);
	memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
	for (unsigned i = 0; i < n; i++) {
		if (apic_of[i] == lapic_id())
			continue;
		unsigned before = alive;
		lapic_send(apic_of[i], ICR_INIT);
		wait_us(1000);
		lapic_send(apic_of[i], ICR_SIPI | TRAMPOLINE >> 12);
		/* A second one is for processors that missed the first. */
		if (!WAIT_FOR(200000, alive > before))
			lapic_send(apic_of[i], ICR_SIPI | TRAMPOLINE >> 12);
		CHECK(WAIT_FOR(5000000, alive > before), "processor %u (APIC %u) does not start", i, apic_of[i]);
	}
	cpu_count = alive;
	return cpu_count;
}

void smp_kick(void (*fn)(unsigned cpu))
{
	finished = 0;
	work = fn;
	barrier();
	work_round++;
	for (unsigned i = 0; i < cpu_count; i++)
		if (apic_of[i] != lapic_id())
			lapic_send(apic_of[i], 0x4000 | VECTOR_WAKE);
}

void smp_wait(void)
{
	CHECK(WAIT_FOR(30000000, finished == cpu_count - 1), "%u of %u processors finish their work", finished,
	      cpu_count - 1);
}

void smp_run(void (*fn)(unsigned cpu))
{
	smp_kick(fn);
	smp_wait();
}
