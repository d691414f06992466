/*
 * Versions; see version.h. Touches nothing.
 *
 * Both are read from left to right in pieces. '~' is older than the end, then come the end, '-', '^', '.', in this
 * order; then numbers count as numbers, and letters by the alphabet, capitals first.
 */
#include "stick/version.h"

#include <ctype.h>
#include <stddef.h>
#include <string.h>

static const char *skip(const char *s)
{
	while (*s && !isalnum((unsigned char)*s) && !strchr("~-^.", *s))
		s++;
	return s;
}

static size_t count(const char *s, int (*is)(int))
{
	size_t n = 0;

	while (is((unsigned char)s[n]))
		n++;
	return n;
}

/* Whichever begins with @mark alone is older; *equal: both do, or none. */
static int by_mark(const char *a, const char *b, char mark, bool *equal)
{
	*equal = (*a == mark) == (*b == mark);
	return *a == mark ? -1 : 1;
}

static int by_numbers(const char **a, const char **b)
{
	size_t n = count(*a, isdigit), m = count(*b, isdigit);

	if (n == 0 || m == 0)
		return (n > 0) - (m > 0);
	while (**a == '0' && n > 0)
		++*a, n--;
	while (**b == '0' && m > 0)
		++*b, m--;
	int order = n != m ? (n > m) - (n < m) : memcmp(*a, *b, n);
	*a += n;
	*b += m;
	return order;
}

static int by_letters(const char **a, const char **b)
{
	size_t n = count(*a, isalpha), m = count(*b, isalpha);
	int order = memcmp(*a, *b, n < m ? n : m);

	*a += n;
	*b += m;
	return order ? order : (n > m) - (n < m);
}

int version_compare(const char *a, const char *b)
{
	static const char marks[] = "~-^.";

	for (;;) {
		bool equal;
		a = skip(a);
		b = skip(b);
		int order = by_mark(a, b, '~', &equal);
		if (!equal)
			return order;
		if (*a != '~' && (!*a || !*b))
			return (*a != 0) - (*b != 0);
		for (const char *mark = marks + 1; *mark; mark++) {
			order = by_mark(a, b, *mark, &equal);
			if (!equal)
				return order;
		}
		if (strchr(marks, *a)) {
			a++;
			b++;
			continue;
		}
		order = isdigit((unsigned char)*a) || isdigit((unsigned char)*b) ? by_numbers(&a, &b)
										 : by_letters(&a, &b);
		if (order)
			return order;
	}
}
