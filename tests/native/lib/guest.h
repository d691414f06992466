/*
 * The library of the test guests: what a program on bare x86-64 needs to drive the devices of a virtual machine. One
 * guest is one program; memory is mapped one to one, so a pointer is a physical address. No SSE, no heap to free.
 * Where KVM itself runs on a hypervisor without hardware virtualisation, a guest is interpreted at about a million
 * instructions (or items of a string instruction) a second: nothing here may be generous with them.
 *
 * A test writes lines to the serial port that the Python side looks for: "TEST name ok" or "TEST name FAIL words".
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CPUS_MAX   256
#define PAGE       4096ull
#define COUNT(a)   (sizeof(a) / sizeof((a)[0]))
#define ALL_ONES32 0xffffffffu

/* --- ports and memory-mapped registers --- */

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t function, uint32_t index)
{
	struct cpuid r = {function, 0, index, 0};

	__asm__ volatile("cpuid" : "+a"(r.eax), "=b"(r.ebx), "+c"(r.ecx), "=d"(r.edx));
	return r;
}

/* One instruction of just this width each, whatever the compiler thinks of it. */
#define MMIO(bits, suffix, reg)                                                                                        \
	static inline uint##bits##_t mmio_read##bits(uint64_t addr)                                                    \
	{                                                                                                              \
		uint##bits##_t value;                                                                                  \
		__asm__ volatile("mov" suffix " (%1), %" reg "0" : "=r"(value) : "r"(addr) : "memory");                \
		return value;                                                                                          \
	}                                                                                                              \
	static inline void mmio_write##bits(uint64_t addr, uint##bits##_t value)                                       \
	{                                                                                                              \
		__asm__ volatile("mov" suffix " %" reg "1, (%0)" : : "r"(addr), "r"(value) : "memory");                \
	}
MMIO(8, "b", "b")
MMIO(16, "w", "w")
MMIO(32, "l", "k")
MMIO(64, "q", "q")
#undef MMIO

static inline void barrier(void)
{
	__asm__ volatile("mfence" ::: "memory");
}

static inline void relax(void)
{
	__asm__ volatile("pause" ::: "memory");
}

/* --- print.c: the serial port, polled --- */

/* Formats: %s %c %d %u %x %lu %lx %p, with a width and 0 for numbers. */
[[gnu::format(printf, 1, 2)]] void print(const char *fmt, ...);
/* A character from the serial port, or -1. */
int serial_get(void);
/* Ends the current test: it failed. Powers off. */
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char *fmt, ...);
#define CHECK(cond, ...)                                                                                               \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			fail(__VA_ARGS__);                                                                             \
	} while (0)

/* --- mem.c --- */

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);

/* Memory, never freed, with whatever was in it; @align is a power of two. alloc_high() takes it from above 4 GiB, NULL
 * where none is. */
void *alloc(size_t bytes, size_t align);
void *alloc_high(size_t bytes, size_t align);
/* Makes [addr, addr + len) reachable: for what lies above 4 GiB (BARs, RAM). Returns addr. */
uint64_t map(uint64_t addr, uint64_t len);

extern uint64_t ram_low_end, ram_high_end; /* ram_high_end 0: none above 4 GiB */
extern uint64_t rsdp;

/* --- options: words of the command line, "name=value" --- */

/* The value of @name, or @otherwise. Valid for good. */
const char *option(const char *name, const char *otherwise);
uint64_t option_number(const char *name, uint64_t otherwise);

/* --- irq.c: interrupts --- */

#define VECTOR_SERIAL 0x30
#define VECTOR_RTC    0x31
#define VECTOR_SCI    0x32
#define VECTOR_PIN    0x33
#define VECTOR_IPI    0x34
#define VECTOR_WAKE   0x35
#define VECTOR_KEYS   0x36
#define VECTOR_MOUSE  0x37
#define VECTOR_MSI    0x50 /* and on: of devices */

/* How often each vector came in; and what is done then, before the end of interrupt. */
extern volatile uint32_t interrupts[256];
extern void (*volatile on_interrupt[256])(void);

void irq_init(void);
static inline void irq_on(void)
{
	__asm__ volatile("sti" ::: "memory");
}
static inline void irq_off(void)
{
	__asm__ volatile("cli" ::: "memory");
}
/* Sleeps until an interrupt, with interrupts off before and after; one that came before is not lost. */
static inline void irq_sleep(void)
{
	__asm__ volatile("sti; hlt; cli" ::: "memory");
}
/* Leads a pin of the IOAPIC to @vector of processor @cpu. */
void ioapic_route(unsigned pin, uint8_t vector, bool level, bool active_low, unsigned cpu);
void ioapic_mask(unsigned pin);

/* By registers of the page at 0xFEE00000 or, where that is on, of x2APIC mode; @reg is the former's offset. */
uint32_t lapic_read(unsigned reg);
void lapic_write(unsigned reg, uint32_t value);
unsigned lapic_id(void);
/* Sends @command (delivery mode, vector) to the processor with APIC id @cpu and waits until it is sent. */
void lapic_send(unsigned cpu, uint32_t command);
/* What a device writes to interrupt @cpu: the address; the data is the vector. */
static inline uint64_t msi_address(unsigned cpu)
{
	return 0xfee00000ull | cpu << 12;
}

/* --- smp.c --- */

/* Starts every processor the MADT names; returns how many run, this one included. */
unsigned smp_start(void);
/* Runs @fn on all the others; smp_wait() waits until they have; smp_run() is both. */
void smp_kick(void (*fn)(unsigned cpu));
void smp_wait(void);
void smp_run(void (*fn)(unsigned cpu));
unsigned smp_madt_count(void);

/* --- time.c --- */

#define PM_TIMER_HZ 3579545u
uint32_t pm_timer(void); /* 24 bits */
void wait_us(uint64_t us);
/* Runs out @us from its making: for loops that wait for a device. */
struct deadline {
	uint64_t left; /* ticks */
	uint32_t last;
};
struct deadline deadline_in(uint64_t us);
bool deadline_over(struct deadline *d);
/* Waits at most @us until the condition holds; its value tells whether it does. */
#define WAIT_FOR(us, cond)                                                                                             \
	({                                                                                                             \
		struct deadline wait_ = deadline_in(us);                                                               \
		bool held_;                                                                                            \
		while (!(held_ = (cond)) && !deadline_over(&wait_))                                                    \
			relax();                                                                                       \
		held_ || (cond);                                                                                       \
	})

[[noreturn]] void power_off(void);
[[noreturn]] void reset_machine(void);

/* Numbers that are the same on every run with the same option seed=N. */
uint64_t random_next(void);

/* The program: guest_main() runs the tests that the command line names. */
void guest_main(void);

#endif
