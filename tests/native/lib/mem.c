/* Memory: the C library's few functions, memory to take, page tables for what lies high, and numbers at random. */
#include "guest.h"

extern uint64_t boot_pdpt[512];
extern char _end[];

static uint64_t low_next, high_next;

void *memcpy(void *to, const void *from, size_t n)
{
	void *result = to;
	size_t words = n / 8, rest = n % 8;

	__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest) : : "memory");
	return result;
}

void *memset(void *to, int c, size_t n)
{
	void *result = to;
	size_t words = n / 8, rest = n % 8;
	uint64_t value = (uint8_t)c * 0x0101010101010101u;

	__asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(value) : "memory");
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(value) : "memory");
	return result;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < n; i++)
		if (x[i] != y[i])
			return x[i] - y[i];
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (uint8_t)*a - (uint8_t)*b;
}

static void *take(uint64_t *next, uint64_t end, size_t bytes, size_t align)
{
	uint64_t at = (*next + align - 1) & ~(uint64_t)(align - 1);

	if (at + bytes > end)
		return NULL;
	*next = at + bytes;
	return (void *)at;
}

void *alloc(size_t bytes, size_t align)
{
	if (!low_next)
		low_next = (uint64_t)_end;
	void *p = take(&low_next, ram_low_end, bytes, align);
	CHECK(p, "out of memory: %lu bytes of %lu", (uint64_t)bytes, ram_low_end);
	return p;
}

void *alloc_high(size_t bytes, size_t align)
{
	if (!ram_high_end)
		return NULL;
	if (!high_next)
		high_next = 1ull << 32;
	map(high_next, bytes + align);
	return take(&high_next, ram_high_end, bytes, align);
}

uint64_t map(uint64_t addr, uint64_t len)
{
	const uint64_t large = 2ull << 20;

	CHECK(addr + len <= 512ull << 30, "map %lx: beyond 512 GiB", addr);
	for (uint64_t at = addr & ~(large - 1); at < addr + len; at += large) {
		uint64_t *slot = &boot_pdpt[at >> 30];
		if (!*slot)
			*slot = (uint64_t)memset(alloc(PAGE, PAGE), 0, PAGE) | 3;
		((uint64_t *)(*slot & ~0xfffull))[at >> 21 & 511] = at | 0x83;
	}
	__asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" ::: "rax", "memory");
	return addr;
}

uint64_t random_next(void)
{
	static uint64_t state;

	if (!state)
		state = option_number("seed", 1) * 0x9e3779b97f4a7c15 + 1;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}
