/* Tests of what a person does to a machine: keyboard and mouse behind the 8042. */
#include "tests.h"

#define DATA    0x60
#define COMMAND 0x64
#define ESC     0x01

static volatile uint8_t seen[256], line[256];
static volatile uint8_t put;

static void take(void)
{
	uint8_t status = inb(COMMAND);

	if (!(status & 1))
		return;
	line[put] = status & 0x20 ? 12 : 1;
	seen[put] = inb(DATA);
	put++;
}

static uint8_t poll_byte(void)
{
	CHECK(WAIT_FOR(100000, inb(COMMAND) & 1), "the controller does not answer");
	return inb(DATA);
}

static void controller(uint8_t command)
{
	CHECK(!(inb(COMMAND) & 2), "the controller is busy");
	outb(COMMAND, command);
}

/* Says all bytes that come, until the escape key. */
void test_keyboard(void)
{
	uint8_t got = 0;

	controller(0xaa);
	CHECK(poll_byte() == 0x55, "self test");
	outb(DATA, 0xff);
	CHECK(poll_byte() == 0xfa, "keyboard reset");
	CHECK(poll_byte() == 0xaa, "keyboard self test");
	controller(0xd4);
	outb(DATA, 0xf4);
	CHECK(poll_byte() == 0xfa, "mouse enable");
	controller(0x60);
	outb(DATA, 0x47);
	on_interrupt[VECTOR_KEYS] = on_interrupt[VECTOR_MOUSE] = take;
	ioapic_route(1, VECTOR_KEYS, false, false, 0);
	ioapic_route(12, VECTOR_MOUSE, false, false, 0);
	print("KEYBOARD ready\n");
	for (;;) {
		while (got == put)
			irq_sleep();
		print("KEY %u %02x\n", line[got], seen[got]);
		if (line[got] == 1 && seen[got] == ESC)
			return;
		got++;
	}
}
