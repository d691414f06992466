/*
 * The real-time clock; see rtc.h.
 *
 * Nothing ticks. The time registers are computed from the host's clock when the guest looks at them, and a write of one
 * of them computes the offset anew. While the guest holds the clock (SET in register B, or the divider in reset) they
 * are plain bytes, and letting go adopts them.
 *
 * The three flags of register C are found the same way: `seen` is how far they are known, and looking again tells
 * whether a period, a second or the alarm lay between then and now. One host timer wakes us for the next of those that
 * the guest has enabled and not yet been told of, so a guest that does not answer costs nothing.
 *
 * Calendar arithmetic is our own: the C library's reads the time zone file, which a sandboxed process cannot.
 *
 * Touches: its line, one host timer.
 */
#include "vmm/devices/rtc.h"

#include "base/util.h"

#include <string.h>
#include <time.h>

#define SECOND 1000000ll /* of microseconds */
#define DAY    86400ll

enum {
	SECONDS,
	SECONDS_ALARM,
	MINUTES,
	MINUTES_ALARM,
	HOURS,
	HOURS_ALARM,
	WEEKDAY,
	MONTHDAY,
	MONTH,
	YEAR,
	REG_A,
	REG_B,
	REG_C,
	REG_D,
	CENTURY = 0x32,
};

#define A_UIP            0x80
#define A_RATE           0x0f
#define A_DIVIDER_32K    0x20
#define A_RESET          0x60 /* both bits: the divider chain is held */
#define B_SET            0x80
#define B_PIE            0x40
#define B_AIE            0x20
#define B_UIE            0x10
#define B_BINARY         0x04
#define B_24H            0x02
#define C_IRQF           0x80
#define C_PF             0x40
#define C_AF             0x20
#define C_UF             0x10
#define D_VALID          0x80
#define HOUR_PM          0x80
#define ALARM_ANY        0xc0          /* an alarm byte with both bits set matches everything */
#define UIP_MICROSECONDS 244           /* UIP rises this long before an update (data sheet, "update cycle") */
#define WAKE_MOST        (60 * SECOND) /* look again after this long: the host's clock may be stepped */
#define SOURCE           0

static int64_t realtime(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * SECOND + t.tv_nsec / 1000;
}

/* Division that rounds down, also before 1970. */
static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0);
}

/* Days from 1970-01-01 to a day of the Gregorian calendar; years are counted from March so that the leap day is last.
 */
static int64_t days_from_date(int64_t year, int64_t month, int64_t day)
{
	int64_t y = month <= 2 ? year - 1 : year;
	int64_t m = month <= 2 ? month + 9 : month - 3;

	return y * 365 + floor_div(y, 4) - floor_div(y, 100) + floor_div(y, 400) + (m * 153 + 2) / 5 + day - 1 - 719468;
}

static void date_from_days(int64_t days, int64_t *year, int64_t *month, int64_t *day)
{
	int64_t z = days + 719468; /* days since 0000-03-01 */
	int64_t era = floor_div(z, 146097);
	int64_t of_era = z - era * 146097;
	int64_t y = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	int64_t of_year = of_era - (y * 365 + y / 4 - y / 100);
	int64_t m = (of_year * 5 + 2) / 153;

	*day = of_year - (m * 153 + 2) / 5 + 1;
	*month = m < 10 ? m + 3 : m - 9;
	*year = era * 400 + y + (*month <= 2);
}

/* What follows runs with the lock held, unless it says otherwise. */

static uint8_t encode(const struct rtc *rtc, int64_t value)
{
	return (uint8_t)(rtc->cmos[REG_B] & B_BINARY ? value : value / 10 * 16 + value % 10);
}

static int64_t decode(const struct rtc *rtc, uint8_t byte)
{
	return rtc->cmos[REG_B] & B_BINARY ? byte : (byte >> 4) * 10 + (byte & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int64_t hour)
{
	if (rtc->cmos[REG_B] & B_24H)
		return encode(rtc, hour);
	return encode(rtc, (hour + 11) % 12 + 1) | (hour >= 12 ? HOUR_PM : 0);
}

static int64_t decode_hour(const struct rtc *rtc, uint8_t byte)
{
	if (rtc->cmos[REG_B] & B_24H)
		return decode(rtc, byte);
	return decode(rtc, byte & (uint8_t)~HOUR_PM) % 12 + (byte & HOUR_PM ? 12 : 0);
}

static bool held(const struct rtc *rtc)
{
	return (rtc->cmos[REG_B] & B_SET) || (rtc->cmos[REG_A] & A_RESET) == A_RESET;
}

static bool is_time(unsigned reg)
{
	return reg == SECONDS || reg == MINUTES || reg == HOURS || (reg >= WEEKDAY && reg <= YEAR) || reg == CENTURY;
}

/* Puts the present time into its registers. */
static void refresh(struct rtc *rtc, int64_t now)
{
	int64_t seconds = floor_div(now + rtc->offset, SECOND);
	int64_t days = floor_div(seconds, DAY), of_day = seconds - days * DAY;
	int64_t year, month, day;

	if (held(rtc))
		return;
	date_from_days(days, &year, &month, &day);
	rtc->cmos[SECONDS] = encode(rtc, of_day % 60);
	rtc->cmos[MINUTES] = encode(rtc, of_day / 60 % 60);
	rtc->cmos[HOURS] = encode_hour(rtc, of_day / 3600);
	/* 1970-01-01 was a Thursday; Sunday is 1. */
	rtc->cmos[WEEKDAY] = encode(rtc, (days + 4) - floor_div(days + 4, 7) * 7 + 1);
	rtc->cmos[MONTHDAY] = encode(rtc, day);
	rtc->cmos[MONTH] = encode(rtc, month);
	rtc->cmos[YEAR] = encode(rtc, year - floor_div(year, 100) * 100);
	rtc->cmos[CENTURY] = encode(rtc, floor_div(year, 100));
}

/*
 * Makes the registers the present time, @fraction microseconds into that second. Absurd bytes give an odd time, but
 * never leave the range that the arithmetic can hold: a byte is at most 255.
 */
static void adopt(struct rtc *rtc, int64_t now, int64_t fraction)
{
	const uint8_t *r = rtc->cmos;
	int64_t year = decode(rtc, r[CENTURY]) * 100 + decode(rtc, r[YEAR]);
	int64_t month = decode(rtc, r[MONTH]);
	int64_t days = days_from_date(year, month < 1 || month > 12 ? 1 : month, decode(rtc, r[MONTHDAY]));
	int64_t seconds =
		days * DAY + decode_hour(rtc, r[HOURS]) * 3600 + decode(rtc, r[MINUTES]) * 60 + decode(rtc, r[SECONDS]);

	rtc->offset = seconds * SECOND + fraction - now;
}

static bool alarm_part(const struct rtc *rtc, unsigned reg, int64_t value)
{
	uint8_t byte = rtc->cmos[reg];

	if ((byte & ALARM_ANY) == ALARM_ANY)
		return true;
	return value == (reg == HOURS_ALARM ? decode_hour(rtc, byte) : decode(rtc, byte));
}

/* The first second after @after (guest seconds) that the alarm matches, within a day; INT64_MAX when there is none. */
static int64_t next_alarm(const struct rtc *rtc, int64_t after)
{
	int64_t t = after + 1;

	while (t <= after + DAY) {
		int64_t of_day = t - floor_div(t, DAY) * DAY;
		if (!alarm_part(rtc, HOURS_ALARM, of_day / 3600))
			t += 3600 - of_day % 3600;
		else if (!alarm_part(rtc, MINUTES_ALARM, of_day / 60 % 60))
			t += 60 - of_day % 60;
		else if (!alarm_part(rtc, SECONDS_ALARM, of_day % 60))
			t++;
		else
			return t;
	}
	return INT64_MAX;
}

/* Ticks of the 32,768 Hz crystal until @now; and back, rounded up. */
static int64_t crystal(int64_t now)
{
	int64_t s = floor_div(now, SECOND);

	return s * 32768 + (now - s * SECOND) * 32768 / SECOND;
}

static int64_t crystal_time(int64_t tick)
{
	int64_t s = floor_div(tick, 32768);

	return s * SECOND + ((tick - s * 32768) * SECOND + 32767) / 32768;
}

/* Crystal ticks of the periodic interrupt, or 0: data sheet, table "periodic interrupt rate". */
static int64_t period(const struct rtc *rtc)
{
	unsigned rate = rtc->cmos[REG_A] & A_RATE;

	if (rate == 0 || (rtc->cmos[REG_A] & A_RESET) == A_RESET)
		return 0;
	return 1ll << ((rate <= 2 ? rate + 7 : rate) - 1);
}

/* Brings the flags of register C up to @now, and the line with them. */
static void catch_up(struct rtc *rtc, int64_t now)
{
	uint8_t *c = &rtc->cmos[REG_C];
	int64_t ticks = period(rtc);

	if (now > rtc->seen) {
		if (ticks && floor_div(crystal(now), ticks) != floor_div(crystal(rtc->seen), ticks))
			*c |= C_PF;
		int64_t from = floor_div(rtc->seen + rtc->offset, SECOND);
		int64_t to = floor_div(now + rtc->offset, SECOND);
		if (!held(rtc) && from != to)
			*c |= C_UF;
		if (!held(rtc) && next_alarm(rtc, from) <= to)
			*c |= C_AF;
	}
	rtc->seen = now;
	if (*c & rtc->cmos[REG_B] & (B_PIE | B_AIE | B_UIE)) /* the bits of enables and flags agree */
		*c |= C_IRQF;
	else
		*c &= (uint8_t)~C_IRQF;
	if (!rtc->paused)
		irq_line(rtc->irqs, RTC_GSI, SOURCE, *c & C_IRQF);
}

/* The host time of the next event the guest has asked to be told of and has not been; INT64_MAX when there is none. */
static int64_t next_event(const struct rtc *rtc, int64_t now)
{
	unsigned wanted = rtc->cmos[REG_B] & ~rtc->cmos[REG_C];
	int64_t next = INT64_MAX, ticks = period(rtc), second = floor_div(now + rtc->offset, SECOND);

	if (rtc->paused || (rtc->cmos[REG_C] & C_IRQF))
		return INT64_MAX;
	if ((wanted & B_PIE) && ticks)
		next = crystal_time((floor_div(crystal(now), ticks) + 1) * ticks);
	if ((wanted & B_UIE) && !held(rtc))
		next = MIN(next, (second + 1) * SECOND - rtc->offset);
	int64_t alarm = (wanted & B_AIE) && !held(rtc) ? next_alarm(rtc, second) : INT64_MAX;
	if (alarm != INT64_MAX)
		next = MIN(next, alarm * SECOND - rtc->offset);
	return next;
}

/* Looks at the clock and sets the timer. On the loop's thread, without the lock. */
static void wake(void *self)
{
	struct rtc *rtc = self;

	pthread_mutex_lock(&rtc->lock);
	int64_t now = rtc->now();
	if (!rtc->paused)
		catch_up(rtc, now);
	int64_t next = next_event(rtc, now);
	int64_t wait = next == INT64_MAX ? 0 : MIN(MAX(next - now, 1ll), WAKE_MOST);
	pthread_mutex_unlock(&rtc->lock);
	loop_timer_set(rtc->timer, (uint64_t)wait * 1000);
}

static uint8_t read_register(struct rtc *rtc, unsigned reg)
{
	int64_t now = rtc->now(), into_second = now + rtc->offset - floor_div(now + rtc->offset, SECOND) * SECOND;
	uint8_t value;

	if (is_time(reg))
		refresh(rtc, now);
	value = rtc->cmos[reg];
	if (reg == REG_A && !held(rtc) && into_second >= SECOND - UIP_MICROSECONDS)
		value |= A_UIP;
	if (reg == REG_C) {
		catch_up(rtc, now);
		value = rtc->cmos[REG_C];
		rtc->cmos[REG_C] = 0;
		irq_line(rtc->irqs, RTC_GSI, SOURCE, false);
	}
	return value;
}

/*
 * Registers A and B decide how the time registers are read and whether the clock runs: the time is put into them under
 * the old setting and, when the clock is let go, taken from them under the new. Leaving divider reset starts the first
 * second half way (data sheet, "divider control"); leaving SET alone does not touch the divider, so the phase stays.
 */
static void write_control(struct rtc *rtc, unsigned reg, uint8_t value)
{
	int64_t now = rtc->now(), phase = now + rtc->offset - floor_div(now + rtc->offset, SECOND) * SECOND;
	bool was_held = held(rtc), was_reset = (rtc->cmos[REG_A] & A_RESET) == A_RESET;

	refresh(rtc, now);
	if (reg == REG_A)
		value &= (uint8_t)~A_UIP;
	if (reg == REG_B && (value & B_SET))
		value &= (uint8_t)~B_UIE; /* data sheet, "SET": it clears UIE */
	rtc->cmos[reg] = value;
	if (was_held && !held(rtc))
		adopt(rtc, now, was_reset ? SECOND / 2 : phase);
	catch_up(rtc, now);
}

static void write_register(struct rtc *rtc, unsigned reg, uint8_t value)
{
	int64_t now = rtc->now();

	if (reg == REG_C || reg == REG_D)
		return;
	catch_up(rtc, now);
	if (reg == REG_A || reg == REG_B) {
		write_control(rtc, reg, value);
	} else if (is_time(reg) && !held(rtc)) {
		refresh(rtc, now);
		rtc->cmos[reg] = value;
		adopt(rtc, now, now + rtc->offset - floor_div(now + rtc->offset, SECOND) * SECOND);
	} else {
		rtc->cmos[reg] = value;
	}
}

static uint64_t port_read(void *self, uint64_t offset, unsigned size)
{
	struct rtc *rtc = self;

	if (size != 1 || offset == 0)
		return bus_all_ones(size); /* the index cannot be read back */
	pthread_mutex_lock(&rtc->lock);
	unsigned reg = rtc->index;
	uint8_t value = read_register(rtc, reg);
	bool again = reg == REG_C && (rtc->cmos[REG_B] & (B_PIE | B_AIE | B_UIE));
	pthread_mutex_unlock(&rtc->lock);
	if (again)
		loop_post(rtc->loop, wake, rtc);
	return value;
}

static void port_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct rtc *rtc = self;

	if (size == 2) {
		port_write(self, 0, value & 0xff, 1);
		port_write(self, 1, value >> 8, 1);
		return;
	}
	pthread_mutex_lock(&rtc->lock);
	bool again = false;
	if (offset == 0) {
		rtc->index = value & (RTC_BYTES - 1); /* bit 7 masks NMI, of which there are none */
	} else {
		write_register(rtc, rtc->index, (uint8_t)value);
		again = rtc->index <= REG_B || rtc->index == CENTURY;
	}
	pthread_mutex_unlock(&rtc->lock);
	if (again)
		loop_post(rtc->loop, wake, rtc);
}

static const struct bus_ops ops = {.read = port_read, .write = port_write};

static void put_size(struct rtc *rtc, unsigned reg, uint64_t units, uint64_t most)
{
	units = MIN(units, most);
	for (unsigned i = 0; most >> (8 * i); i++)
		rtc->cmos[reg + i] = (uint8_t)(units >> (8 * i));
}

struct error *rtc_init(struct rtc *rtc, struct bus *pio, struct irqs *irqs, struct loop *loop, uint64_t low,
		       uint64_t high)
{
	*rtc = (struct rtc){.irqs = irqs, .loop = loop, .now = realtime, .paused = true};
	pthread_mutex_init(&rtc->lock, NULL);
	rtc->cmos[REG_A] = A_DIVIDER_32K | 6; /* 1024 Hz, as firmware leaves it */
	rtc->cmos[REG_B] = B_24H;
	rtc->cmos[REG_D] = D_VALID;
	put_size(rtc, 0x15, 640, 0xffff);                               /* KiB of base memory */
	put_size(rtc, 0x17, low > MIB ? (low - MIB) / KIB : 0, 0xffff); /* KiB from 1 MiB */
	put_size(rtc, 0x30, low > MIB ? (low - MIB) / KIB : 0, 0xffff);
	put_size(rtc, 0x34, low > 16 * MIB ? (low - 16 * MIB) / (64 * KIB) : 0, 0xffff); /* 64 KiB from 16 MiB */
	put_size(rtc, 0x5b, high / (64 * KIB), 0xffffff);                                /* 64 KiB from 4 GiB */
	rtc->seen = rtc->now();
	TRY(loop_add_timer(loop, wake, rtc, &rtc->timer));
	return bus_add(pio, RTC_PORT, 2, &ops, rtc);
}

void rtc_destroy(struct rtc *rtc)
{
	loop_remove(rtc->timer);
	pthread_mutex_destroy(&rtc->lock);
}

/*
 * The offset to UTC is what travels: the guest's clock goes on over the move as far as the two hosts agree on the time,
 * and an alarm that fell due on the way is found by the first look.
 */
static void state(void *self, struct saved *s)
{
	struct rtc *rtc = self;
	uint64_t offset = (uint64_t)rtc->offset, seen = (uint64_t)rtc->seen;
	static const int64_t most = 1ll << 60; /* 36,000 years: no sum of these overflows */

	refresh(rtc, rtc->now());
	saved_u8(s, "index", &rtc->index);
	saved_require(s);
	saved_bytes(s, "cmos", rtc->cmos, sizeof(rtc->cmos));
	saved_require(s);
	saved_u64(s, "offset-us", &offset);
	saved_u64(s, "seen-us", &seen);
	if (!saved_loading(s))
		return;
	rtc->offset = (int64_t)offset;
	rtc->seen = (int64_t)seen;
	if (rtc->index >= RTC_BYTES)
		saved_fail(s, "index %u is past the end", rtc->index);
	else if (rtc->offset < -most || rtc->offset > most || rtc->seen < 0 || rtc->seen > most)
		saved_fail(s, "its time is beyond all calendars");
	rtc->cmos[REG_D] = D_VALID;
	rtc->cmos[REG_A] &= (uint8_t)~A_UIP;
	rtc->cmos[REG_C] &= C_IRQF | C_PF | C_AF | C_UF;
}

static struct error *restored(void *self)
{
	wake(self);
	return NULL;
}

static void set_paused(struct rtc *rtc, bool paused)
{
	pthread_mutex_lock(&rtc->lock);
	rtc->paused = paused;
	pthread_mutex_unlock(&rtc->lock);
	wake(rtc);
}

static void pause_unit(void *self)
{
	set_paused(self, true);
}

static void resume(void *self)
{
	set_paused(self, false);
}

/* The RESET pin: interrupts off. Time and memory are on the battery. */
static void power_on(void *self)
{
	struct rtc *rtc = self;

	pthread_mutex_lock(&rtc->lock);
	rtc->index = 0;
	rtc->cmos[REG_B] &= (uint8_t)~(B_PIE | B_AIE | B_UIE);
	rtc->cmos[REG_C] = 0;
	irq_line(rtc->irqs, RTC_GSI, SOURCE, false);
	pthread_mutex_unlock(&rtc->lock);
	wake(rtc);
}

const struct unit_ops rtc_unit = {
	.version = 1,
	.state = state,
	.restored = restored,
	.pause = pause_unit,
	.resume = resume,
	.reset = power_on,
};
