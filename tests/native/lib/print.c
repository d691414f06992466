/* The serial port by polling, and formatted lines on it. */
#include "guest.h"

#include <stdarg.h>

#define COM1 0x3f8

static void put(char c)
{
	while (!(inb(COM1 + 5) & 0x20))
		relax();
	outb(COM1, (uint8_t)c);
}

int serial_get(void)
{
	return inb(COM1 + 5) & 1 ? inb(COM1) : -1;
}

static void put_number(uint64_t value, unsigned base, unsigned width, char pad)
{
	char digits[24];
	unsigned n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (n < width && n < sizeof(digits))
		digits[n++] = pad;
	while (n)
		put(digits[--n]);
}

static void print_args(const char *fmt, va_list args)
{
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		char pad = *++fmt == '0' ? '0' : ' ';
		unsigned width = 0, longs = 0;
		for (; *fmt >= '0' && *fmt <= '9'; fmt++)
			width = width * 10 + (unsigned)(*fmt - '0');
		for (; *fmt == 'l'; fmt++)
			longs++;
		int64_t number;
		switch (*fmt) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(args, int));
			break;
		case 'd':
			number = longs ? va_arg(args, int64_t) : va_arg(args, int);
			if (number < 0)
				put('-');
			put_number((uint64_t)(number < 0 ? -number : number), 10, width, pad);
			break;
		case 'u':
		case 'x':
			put_number(longs ? va_arg(args, uint64_t) : va_arg(args, uint32_t), *fmt == 'u' ? 10 : 16,
				   width, pad);
			break;
		default:
			put(*fmt);
		}
	}
}

void print(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	print_args(fmt, args);
	va_end(args);
}

void fail(const char *fmt, ...)
{
	extern const char *current_test;
	va_list args;

	irq_off();
	print("TEST %s FAIL ", current_test);
	va_start(args, fmt);
	print_args(fmt, args);
	va_end(args);
	print("\n");
	power_off();
}
