/* Tests of the serial port: a 16550A at 0x3F8, IRQ 4. */
#include "tests.h"

#define COM1 0x3f8
enum { RBR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

/* Says back every line until it is "end". */
void test_serial_echo(void)
{
	char line[256];

	print("ECHO ready\n");
	for (;;) {
		unsigned n = 0;
		for (;;) {
			int c = serial_get();
			if (c == '\n')
				break;
			if (c >= 0 && n < sizeof(line) - 1)
				line[n++] = (char)c;
		}
		line[n] = '\0';
		print("ECHO %u %s\n", n, line);
		if (strcmp(line, "end") == 0)
			return;
	}
}

void test_serial_loopback(void)
{
	CHECK(WAIT_FOR(1000000, inb(COM1 + LSR) & 0x40), "the transmitter never empties");
	outb(COM1 + SCR, 0xa5);
	CHECK(inb(COM1 + SCR) == 0xa5, "the scratch register holds %x", inb(COM1 + SCR));
	outb(COM1 + FCR, 7);
	CHECK((inb(COM1 + IIR) & 0xc0) == 0xc0, "not a 16550A: IIR %x", inb(COM1 + IIR));
	/* DLAB gives the divisor in place of data and interrupt enable. */
	outb(COM1 + LCR, 0x83);
	outb(COM1, 12);
	outb(COM1 + 1, 1);
	CHECK(inb(COM1) == 12 && inb(COM1 + 1) == 1, "divisor %x %x", inb(COM1), inb(COM1 + 1));
	outb(COM1 + LCR, 3);
	/* In loopback modem outputs come back as inputs, and data as data. */
	outb(COM1 + MCR, 0x1f);
	uint8_t msr = inb(COM1 + MSR) >> 4;
	outb(COM1 + MCR, 0x10);
	uint8_t msr_off = inb(COM1 + MSR) >> 4;
	uint8_t got[16], n = 0;
	for (unsigned i = 0; i < 16; i++)
		outb(COM1, (uint8_t)(0x80 + i));
	for (; n < 16 && WAIT_FOR(1000000, inb(COM1 + LSR) & 1); n++)
		got[n] = inb(COM1);
	uint8_t lsr = inb(COM1 + LSR);
	outb(COM1 + MCR, 0x0b);
	CHECK(msr == 0xf && msr_off == 0, "modem status %x with outputs on, %x with them off", msr, msr_off);
	CHECK(n == 16 && !(lsr & 1), "%u bytes came back of 16, line status %x", n, lsr);
	for (unsigned i = 0; i < 16; i++)
		CHECK(got[i] == 0x80 + i, "byte %u is %x", i, got[i]);
}

static char received[64];
static volatile unsigned count, transmits;

static void serial_interrupt(void)
{
	for (;;) {
		uint8_t iir = inb(COM1 + IIR) & 0xf;
		if (iir & 1)
			return;
		if (iir == 2)
			transmits++; /* reading IIR took it down */
		else if (iir == 4 || iir == 0xc)
			while (inb(COM1 + LSR) & 1)
				received[count++ % sizeof(received)] = (char)inb(COM1);
		else
			inb(COM1 + LSR);
	}
}

/* Receives a line by interrupts alone. */
void test_serial_irq(void)
{
	CHECK(WAIT_FOR(1000000, inb(COM1 + LSR) & 0x40), "the transmitter never empties");
	on_interrupt[VECTOR_SERIAL] = serial_interrupt;
	ioapic_route(4, VECTOR_SERIAL, false, false, lapic_id());
	outb(COM1 + FCR, 7);
	outb(COM1 + MCR, 0x0b);
	irq_on();
	outb(COM1 + IER, 2); /* the transmitter is empty: at once */
	CHECK(WAIT_FOR(1000000, transmits == 1), "%u transmitter interrupts", transmits);
	outb(COM1 + IER, 1);
	irq_off();
	print("IRQ ready\n");
	while (count == 0 || received[(count - 1) % sizeof(received)] != '\n')
		irq_sleep();
	outb(COM1 + IER, 0);
	received[(count - 1) % sizeof(received)] = '\0';
	CHECK(count <= sizeof(received), "%u characters", count);
	print("IRQ %u %s\n", count, received);
	ioapic_mask(4);
}
