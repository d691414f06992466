/* Interrupts: IDT, local APIC by its registers at 0xFEE00000 or in x2APIC mode, IOAPIC at 0xFEC00000. The 8259s are
 * masked. */
#include "guest.h"

#define LAPIC  0xfee00000ull
#define IOAPIC 0xfec00000ull

volatile uint32_t interrupts[256];
void (*volatile on_interrupt[256])(void);

struct frame {
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

static struct {
	uint16_t low, selector;
	uint8_t ist, type;
	uint16_t mid;
	uint32_t high, reserved;
} idt[256];

void interrupt_handle(const struct frame *f);

void interrupt_handle(const struct frame *f)
{
	uint64_t cr2;

	if (f->vector < 32) {
		__asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
		fail("exception %lu, error %lx, rip %lx, cr2 %lx, cpu %u", f->vector, f->error, f->rip, cr2,
		     lapic_id());
	}
	__atomic_fetch_add(&interrupts[f->vector], 1, __ATOMIC_SEQ_CST);
	if (on_interrupt[f->vector])
		on_interrupt[f->vector]();
	lapic_write(0xb0, 0);
}

/* The mode in which whoever started us left it, for all processors. */
static bool x2apic;

uint32_t lapic_read(unsigned reg)
{
	if (x2apic)
		return (uint32_t)rdmsr(0x800 + reg / 16);
	return mmio_read32(LAPIC + reg);
}

void lapic_write(unsigned reg, uint32_t value)
{
	if (x2apic)
		wrmsr(0x800 + reg / 16, value);
	else
		mmio_write32(LAPIC + reg, value);
}

unsigned lapic_id(void)
{
	return lapic_read(0x20) >> (x2apic ? 0 : 24);
}

void lapic_send(unsigned cpu, uint32_t command)
{
	if (x2apic) {
		wrmsr(0x830, (uint64_t)cpu << 32 | command);
		return;
	}
	lapic_write(0x310, cpu << 24);
	lapic_write(0x300, command);
	while (lapic_read(0x300) & 1 << 12)
		relax();
}

void irq_load(void);

/* On each processor: its table and its APIC. */
void irq_load(void)
{
	const struct [[gnu::packed]] {
		uint16_t limit;
		uint64_t base;
	} pointer = {sizeof(idt) - 1, (uint64_t)idt};

	__asm__ volatile("lidt %0" : : "m"(pointer));
	lapic_write(0x80, 0);     /* task priority: everything may come */
	lapic_write(0xf0, 0x1ff); /* on; spurious ones to 0xff */
}

void irq_init(void)
{
	extern char interrupt_stubs[];

	for (unsigned i = 0; i < 256; i++) {
		uint64_t stub = (uint64_t)interrupt_stubs + i * 16;
		idt[i].low = (uint16_t)stub;
		idt[i].selector = 0x10;
		idt[i].type = 0x8e;
		idt[i].mid = (uint16_t)(stub >> 16);
		idt[i].high = (uint32_t)(stub >> 32);
	}
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	x2apic = rdmsr(0x1b) >> 10 & 1;
	irq_load();
}

static void ioapic_write(uint32_t reg, uint32_t value)
{
	mmio_write32(IOAPIC, reg);
	mmio_write32(IOAPIC + 0x10, value);
}

void ioapic_route(unsigned pin, uint8_t vector, bool level, bool active_low, unsigned cpu)
{
	ioapic_write(0x11 + pin * 2, cpu << 24);
	ioapic_write(0x10 + pin * 2, vector | (active_low ? 1u << 13 : 0) | (level ? 1u << 15 : 0));
}

void ioapic_mask(unsigned pin)
{
	ioapic_write(0x10 + pin * 2, 1 << 16);
}
