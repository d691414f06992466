/*
 * The bar; see bar.h. Touches standard error.
 */
#include "update/bar.h"

#include "base/util.h"

#include <stdio.h>
#include <unistd.h>

static void count(const struct blocks *m, size_t len)
{
	struct bar *bar = (struct bar *)(uintptr_t)m;

	if (!bar->on || !bar->what || bar->total == 0)
		return;
	bar->done = MIN(bar->done + len, bar->total);
	unsigned now = (unsigned)(bar->done * 100 / bar->total);
	if (now != bar->shown)
		fprintf(stderr, "\r%-10s %3u %%", bar->what, now);
	bar->shown = now;
}

static int bar_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	const struct bar *bar = (const struct bar *)m;

	count(m, len);
	return bar->below->read(bar->below, data, len, offset);
}

static int bar_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	const struct bar *bar = (const struct bar *)m;

	count(m, len);
	return bar->below->write(bar->below, data, len, offset);
}

static int bar_flush(const struct blocks *m)
{
	const struct bar *bar = (const struct bar *)m;

	return bar->below->flush(bar->below);
}

void bar_init(struct bar *bar, const struct blocks *below, bool quiet)
{
	*bar = (struct bar){.blocks = {bar_read, bar_write, bar_flush, below->size, below->name},
			    .below = below,
			    .on = !quiet && isatty(STDERR_FILENO)};
}

void bar_step(struct bar *bar, const char *what, uint64_t total)
{
	if (bar->on && bar->what)
		fprintf(stderr, "\r%16s\r", "");
	bar->what = what;
	bar->done = 0;
	bar->total = total;
	bar->shown = 101;
}
