/*
 * Reading and writing with bounds and words; see medium.h. Touches the medium.
 */
#include "stick/blocks.h"

#include "base/util.h"

#include <errno.h>

static struct error *outside(const struct blocks *m, size_t len, uint64_t offset)
{
	return error_new(0, "%s: %zu bytes at %llu lie outside its %llu bytes", m->name, len,
			 (unsigned long long)offset, (unsigned long long)m->size);
}

struct error *blocks_read(const struct blocks *m, void *data, size_t len, uint64_t offset)
{
	if (!range_inside(offset, len, m->size))
		return outside(m, len, offset);
	int res = m->read(m, data, len, offset);
	return res < 0 ? error_new(-res, "read %s at %llu", m->name, (unsigned long long)offset) : NULL;
}

struct error *blocks_write(const struct blocks *m, const void *data, size_t len, uint64_t offset)
{
	if (!range_inside(offset, len, m->size))
		return outside(m, len, offset);
	int res = m->write(m, data, len, offset);
	return res < 0 ? error_new(-res, "write %s at %llu", m->name, (unsigned long long)offset) : NULL;
}

struct error *blocks_flush(const struct blocks *m)
{
	int res = m->flush(m);

	return res < 0 ? error_new(-res, "make %s durable", m->name) : NULL;
}
