/*
 * Unit tests of the real-time clock, on a clock of their own that moves when told to.
 */
#include "base/util.h"
#include "vmm/devices/rtc.h"
#include "vmm/devices/test_bench.h"

#include <time.h>

#define SECOND 1000000ll

struct clock {
	struct bench bench;
	struct rtc rtc;
};

static int64_t host; /* microseconds since 1970 */

static int64_t fake_now(void)
{
	return host;
}

/* The clock of the host: 2026-11-22 21:58:59.25, a Sunday. */
#define START (1795384739 * SECOND + SECOND / 4)

static void start(struct clock *c)
{
	host = START;
	bench_init(&c->bench);
	assert_ok(rtc_init(&c->rtc, &c->bench.pio, &c->bench.irqs, c->bench.loop, 2 * GIB, 6 * GIB));
	c->rtc.now = fake_now;
	c->rtc.seen = host;
	rtc_unit.resume(&c->rtc);
}

static void stop(struct clock *c)
{
	rtc_destroy(&c->rtc);
	bench_destroy(&c->bench);
}

static int setup(void **state)
{
	static struct clock clock;

	start(&clock);
	*state = &clock;
	return 0;
}

static int teardown(void **state)
{
	stop(*state);
	return 0;
}

static uint8_t get(struct clock *c, uint8_t reg)
{
	out8(&c->bench, 0x70, reg);
	return in8(&c->bench, 0x71);
}

static void set(struct clock *c, uint8_t reg, uint8_t value)
{
	out8(&c->bench, 0x70, reg);
	out8(&c->bench, 0x71, value);
}

/* Century and year, month, day, weekday, hour, minute, second: as they stand in the registers. */
static void assert_time(struct clock *c, unsigned date, unsigned weekday, unsigned time)
{
	unsigned d = (unsigned)get(c, 0x32) << 24 | (unsigned)get(c, 9) << 16 | (unsigned)get(c, 8) << 8 | get(c, 7);
	unsigned t = (unsigned)get(c, 4) << 16 | (unsigned)get(c, 2) << 8 | get(c, 0);

	assert_int_equal(d, date);
	assert_int_equal(get(c, 6), weekday);
	assert_int_equal(t, time);
}

static void set_time(struct clock *c, unsigned date, unsigned time)
{
	uint8_t b = get(c, 0x0b);

	set(c, 0x0b, b | 0x80);
	set(c, 0x32, (uint8_t)(date >> 24));
	set(c, 9, (uint8_t)(date >> 16));
	set(c, 8, (uint8_t)(date >> 8));
	set(c, 7, (uint8_t)date);
	set(c, 4, (uint8_t)(time >> 16));
	set(c, 2, (uint8_t)(time >> 8));
	set(c, 0, (uint8_t)time);
	set(c, 0x0b, b);
}

static bool line(const struct clock *c)
{
	return c->bench.irqs.sources[RTC_GSI] != 0;
}

static void time_is_the_hosts(void **state)
{
	struct clock *c = *state;

	assert_time(c, 0x20261122, 1, 0x215859);
	host += 1 * SECOND;
	assert_time(c, 0x20261122, 1, 0x215900);
	host += 2 * 3600 * SECOND + 60 * SECOND;
	assert_time(c, 0x20261123, 2, 0x000000);
	assert_int_equal(get(c, 0x0d), 0x80);
	assert_int_equal(in8(&c->bench, 0x70), 0xff);
}

static void dates_roll_over(void **state)
{
	static const struct {
		unsigned before, after, weekday;
	} rolls[] = {
		{0x20261231, 0x20270101, 6}, {0x20240228, 0x20240229, 5}, {0x20250228, 0x20250301, 7},
		{0x20000228, 0x20000229, 3}, {0x21000228, 0x21000301, 2}, {0x19991231, 0x20000101, 7},
		{0x20380118, 0x20380119, 3}, {0x19691231, 0x19700101, 5}, {0x99991230, 0x99991231, 6},
	};
	struct clock *c = *state;

	for (size_t i = 0; i < ARRAY_SIZE(rolls); i++) {
		set_time(c, rolls[i].before, 0x235959);
		host += SECOND;
		assert_time(c, rolls[i].after, rolls[i].weekday, 0x000000);
	}
}

static void every_day_of_four_centuries_is_there(void **state)
{
	static const unsigned days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	struct clock *c = *state;
	unsigned weekday = 7; /* 2000-01-01 was a Saturday */

	set(c, 0x0b, 0x06); /* binary */
	set_time(c, 20 << 24 | 0 << 16 | 1 << 8 | 1, 0);
	for (unsigned year = 2000; year < 2400; year++) {
		for (unsigned month = 1; month <= 12; month++) {
			bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
			for (unsigned day = 1; day <= days[month - 1] + (month == 2 && leap); day++) {
				assert_time(c, (year / 100) << 24 | (year % 100) << 16 | month << 8 | day, weekday, 0);
				weekday = weekday % 7 + 1;
				host += 86400 * SECOND;
			}
		}
	}
}

static void formats_are_four(void **state)
{
	struct clock *c = *state;

	set(c, 0x0b, 0x04); /* binary, 12 hours */
	assert_time(c, 20 << 24 | 26 << 16 | 11 << 8 | 22, 1, 0x89 << 16 | 58 << 8 | 59);
	set(c, 0x0b, 0x00); /* BCD, 12 hours */
	assert_time(c, 0x20261122, 1, 0x895859);
	set_time(c, 0x20261122, 0x120000); /* midnight */
	set(c, 0x0b, 0x02);
	assert_time(c, 0x20261122, 1, 0x000000);
	set(c, 0x0b, 0x00);
	set_time(c, 0x20261122, 0x920000); /* noon */
	set(c, 0x0b, 0x06);
	assert_time(c, 20 << 24 | 26 << 16 | 11 << 8 | 22, 1, 12 << 16);
}

static void the_guest_sets_its_clock(void **state)
{
	struct clock *c = *state;

	set(c, 0x0b, 0x82);
	set(c, 0, 0x11);
	host += 5 * SECOND; /* held: it does not move */
	assert_int_equal(get(c, 0), 0x11);
	set(c, 0x0b, 0x02);
	assert_time(c, 0x20261122, 1, 0x215811);
	set(c, 9, 0x30); /* one register, the clock running */
	assert_time(c, 0x20301122, 6, 0x215811);
	host += SECOND;
	assert_int_equal(get(c, 0), 0x12);
	for (unsigned reg = 0; reg < 10; reg++) /* nonsense is held, and let go without harm */
		set(c, (uint8_t)reg, 0xff);
	set(c, 0x32, 0xff);
	get(c, 7);
	host += 400ll * 365 * 86400 * SECOND;
	get(c, 7);
}

static void divider_reset_starts_half_a_second_in(void **state)
{
	struct clock *c = *state;

	set(c, 0x0a, 0x76);
	host += 3 * SECOND;
	assert_time(c, 0x20261122, 1, 0x215859);
	set(c, 0x0a, 0x26);
	host += SECOND / 2 - 1;
	assert_int_equal(get(c, 0), 0x59);
	assert_int_equal(get(c, 0x0a), 0xa6); /* UIP: an update is near */
	host += 1;
	assert_int_equal(get(c, 0), 0x00);
	assert_int_equal(get(c, 0x0a), 0x26);
}

static void memory_and_sizes(void **state)
{
	struct clock *c = *state;

	set(c, 0x8f, 0x0a); /* bit 7 masks NMI: the same register */
	assert_int_equal(get(c, 0x0f), 0x0a);
	set(c, 0x7f, 0x55);
	assert_int_equal(get(c, 0x7f), 0x55);
	set(c, 0x0d, 0);
	assert_int_equal(get(c, 0x0d), 0x80);
	assert_int_equal(get(c, 0x15) | get(c, 0x16) << 8, 640);
	assert_int_equal(get(c, 0x17) | get(c, 0x18) << 8, 0xffff);
	assert_int_equal(get(c, 0x34) | get(c, 0x35) << 8, (2 * GIB - 16 * MIB) / (64 * KIB));
	assert_int_equal(get(c, 0x5b) | get(c, 0x5c) << 8 | get(c, 0x5d) << 16, 6 * GIB / (64 * KIB));
	bus_write(&c->bench.pio, 0x70, 0x5b7e, 2);
	assert_int_equal(get(c, 0x7e), 0x5b);
	assert_int_equal(bus_read(&c->bench.pio, 0x70, 2), 0xffff);
}

static void flags_rise_by_themselves(void **state)
{
	struct clock *c = *state;

	set(c, 0x0a, 0x26); /* 1024 Hz */
	get(c, 0x0c);
	host += 100;
	assert_int_equal(get(c, 0x0c), 0);
	host += 1000;
	assert_int_equal(get(c, 0x0c), 0x40);
	set(c, 0x0a, 0x20); /* no rate */
	host += SECOND;
	assert_int_equal(get(c, 0x0c), 0x10);
	assert_int_equal(get(c, 0x0c), 0);
	set(c, 1, 0x05); /* alarm at 21:59:05 */
	set(c, 3, 0x59);
	set(c, 5, 0x21);
	host += 4 * SECOND;
	assert_int_equal(get(c, 0x0c), 0x10);
	host += SECOND;
	assert_int_equal(get(c, 0x0c), 0x30);
	assert_false(line(c)); /* none was asked for */
}

static void alarms_know_wildcards(void **state)
{
	struct clock *c = *state;

	set(c, 0x0a, 0x20);
	set(c, 1, 0x00);
	set(c, 3, 0xff); /* every minute, every hour */
	set(c, 5, 0xc0);
	get(c, 0x0c);
	for (unsigned i = 0; i < 3; i++) {
		host += 30 * SECOND;
		unsigned first = get(c, 0x0c) & 0x20;
		host += 30 * SECOND;
		assert_int_equal(first | (get(c, 0x0c) & 0x20), 0x20);
	}
	set(c, 5, 0x47); /* no such hour */
	get(c, 0x0c);
	host += 3 * 86400 * SECOND;
	assert_int_equal(get(c, 0x0c) & 0x20, 0);
	set(c, 0x0b, 0x00); /* 12 hours: 9 PM, 59 minutes */
	set(c, 5, 0x89);
	set(c, 3, 0x59);
	set_time(c, 0x20261122, 0x895858);
	get(c, 0x0c);
	host += SECOND;
	assert_int_equal(get(c, 0x0c) & 0x20, 0);
	host += 2 * SECOND;
	assert_int_equal(get(c, 0x0c) & 0x20, 0x20);
}

static void interrupts_are_raised_once_until_told_of(void **state)
{
	struct clock *c = *state;

	set(c, 0x0a, 0x20);
	set(c, 0x0b, 0x12);                   /* update interrupts */
	host = START + SECOND * 3 / 4 - 1000; /* its timer waits for 750 ms of the real clock */
	bench_run(&c->bench, 1);
	assert_false(line(c));
	set(c, 0x0b, 0x12); /* looks again: 1 ms to go */
	bench_run(&c->bench, 1);
	assert_false(line(c));
	host += 1000;
	bench_run(&c->bench, 20);
	assert_true(line(c));
	assert_int_equal(get(c, 0x0c), 0x90);
	assert_false(line(c));
	host += 10 * SECOND;
	set(c, 0x0b, 0x02);
	assert_int_equal(get(c, 0x0c), 0x10); /* no IRQF: nobody asked */
	set(c, 0x0b, 0x12);
	bench_run(&c->bench, 1);
	host += SECOND;
	bench_run(&c->bench, 20);
	assert_false(line(c)); /* its timer is the real clock's */
	set(c, 0x0b, 0x12);
	assert_true(line(c));
	set(c, 0x0b, 0x02);
	assert_false(line(c));
}

static int64_t real_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return START + (int64_t)t.tv_sec * SECOND + t.tv_nsec / 1000;
}

static void periodic_interrupts_come_in_real_time(void **state)
{
	struct clock *c = *state;
	unsigned told = 0;

	c->rtc.now = real_now;
	c->rtc.seen = real_now();
	set(c, 0x0a, 0x2a); /* 64 Hz */
	set(c, 0x0b, 0x42);
	get(c, 0x0c);
	int64_t from = real_now();
	while (told < 16) {
		bench_run(&c->bench, 1);
		if (!line(c))
			continue;
		assert_int_equal(get(c, 0x0c) & 0xc0, 0xc0);
		told++;
	}
	int64_t took = real_now() - from;
	assert_true(took >= 15 * SECOND / 64); /* never early; late is the scheduler's affair */
}

static void state_moves_and_time_goes_on(void **state)
{
	struct clock *c = *state;
	static struct clock other;

	set_time(c, 0x20400101, 0x000000);
	set(c, 0x0a, 0x20);
	set(c, 1, 0x00); /* an alarm that falls due on the way */
	set(c, 3, 0x01);
	set(c, 5, 0x00);
	set(c, 0x0b, 0x22);
	get(c, 0x0c);
	set(c, 0x7f, 0x99);
	out8(&c->bench, 0x70, 0x7f);
	rtc_unit.pause(&c->rtc);
	cleanup_fd int fd = bench_save(&rtc_unit, &c->rtc);

	int64_t then = host + 90 * SECOND;
	start(&other);
	rtc_unit.pause(&other.rtc);
	host = then;
	other.rtc.seen = then;
	assert_ok(bench_load(&rtc_unit, &other.rtc, fd));
	assert_false(line(&other)); /* not before it runs */
	rtc_unit.resume(&other.rtc);
	assert_true(line(&other));
	assert_int_equal(in8(&other.bench, 0x71), 0x99);
	assert_time(&other, 0x20400101, 1, 0x000130);
	assert_int_equal(get(&other, 0x0c), 0xb0);
	stop(&other);
}

static void absurd_state_is_refused(void **state)
{
	struct clock *c = *state;
	int64_t offset = c->rtc.offset;

	c->rtc.offset = INT64_MAX / 2 + 12345;
	rtc_unit.pause(&c->rtc);
	set(c, 0x0b, 0x82); /* held, so that saving does not compute with it */
	c->rtc.offset = INT64_MAX / 2 + 12345;
	cleanup_fd int fd = bench_save(&rtc_unit, &c->rtc);
	assert_error(bench_load(&rtc_unit, &c->rtc, fd), "beyond all calendars");
	c->rtc.offset = offset;
}

static void reset_stops_interrupts_and_keeps_time(void **state)
{
	struct clock *c = *state;

	set_time(c, 0x20400101, 0x000000);
	set(c, 0x0b, 0x52);
	host += SECOND;
	set(c, 0x0b, 0x52);
	assert_true(line(c));
	rtc_unit.pause(&c->rtc);
	rtc_unit.reset(&c->rtc);
	rtc_unit.resume(&c->rtc);
	assert_false(line(c));
	assert_int_equal(get(c, 0x0b), 0x02);
	assert_int_equal(get(c, 0x0c), 0x00);
	assert_time(c, 0x20400101, 1, 0x000001);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(time_is_the_hosts),
		TEST(dates_roll_over),
		TEST(every_day_of_four_centuries_is_there),
		TEST(formats_are_four),
		TEST(the_guest_sets_its_clock),
		TEST(divider_reset_starts_half_a_second_in),
		TEST(memory_and_sizes),
		TEST(flags_rise_by_themselves),
		TEST(alarms_know_wildcards),
		TEST(interrupts_are_raised_once_until_told_of),
		TEST(periodic_interrupts_come_in_real_time),
		TEST(state_moves_and_time_goes_on),
		TEST(absurd_state_is_refused),
		TEST(reset_stops_interrupts_and_keeps_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
