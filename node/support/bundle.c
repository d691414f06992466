/*
 * The archive: tar (POSIX.1-2017, pax, "ustar Interchange Format") through zstd; see support.h. It touches its memfd.
 */
#include "node/support/support.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#define TAR_BLOCK 512u

struct bundle {
	ZSTD_CCtx *zstd;
	int fd; /* the caller's */
	uint64_t written;
	long long when;
	void *out;
	size_t out_len;
};

/* Numbers are octal. */
struct tar_header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6],
		version[2], owner[32], group[32], major[8], minor[8], prefix[155], padding[12];
};
static_assert(sizeof(struct tar_header) == TAR_BLOCK);

static struct error *compress(struct bundle *b, const void *data, size_t len, ZSTD_EndDirective how)
{
	ZSTD_inBuffer in = {data, len, 0};
	size_t left;

	do {
		ZSTD_outBuffer out = {b->out, b->out_len, 0};
		left = ZSTD_compressStream2(b->zstd, &out, &in, how);
		if (ZSTD_isError(left))
			return error_new(0, "compress the bundle: %s", ZSTD_getErrorName(left));
		TRY(write_all(b->fd, b->out, out.pos, "the bundle"));
		b->written += out.pos;
	} while (in.pos < in.size || (how == ZSTD_e_end && left > 0));
	return NULL;
}

/* A name of more than 100 bytes is divided at a slash. */
static bool put_name(struct tar_header *h, const char *name)
{
	size_t len = strlen(name);
	const char *cut = name;

	if (len > sizeof(h->name)) {
		cut = strchr(name + len - sizeof(h->name) - 1, '/');
		if (!cut || (size_t)(cut - name) > sizeof(h->prefix))
			return false;
		memcpy(h->prefix, name, (size_t)(cut - name));
		cut++;
	}
	memcpy(h->name, cut, strlen(cut));
	return true;
}

struct error *bundle_add(struct bundle *b, const char *name, const void *data, size_t len)
{
	static const uint8_t zeroes[TAR_BLOCK];
	struct tar_header h = {.type = '0', .magic = "ustar", .version = {'0', '0'}};
	cleanup_free char *full = NULL;
	unsigned sum = 0;

	if (asprintf(&full, BUNDLE_NAME "/%s", name) < 0)
		return error_new(ENOMEM, "add %s", name);
	if (!put_name(&h, full))
		return error_new(ENAMETOOLONG, "add %s", name);
	snprintf(h.mode, sizeof(h.mode), "%07o", 0644);
	snprintf(h.uid, sizeof(h.uid), "%07o", 0);
	snprintf(h.gid, sizeof(h.gid), "%07o", 0);
	snprintf(h.size, sizeof(h.size), "%011zo", len);
	snprintf(h.mtime, sizeof(h.mtime), "%011llo", b->when);
	memset(h.checksum, ' ', sizeof(h.checksum)); /* counts as spaces */
	for (size_t i = 0; i < sizeof(h); i++)
		sum += ((const uint8_t *)&h)[i];
	snprintf(h.checksum, sizeof(h.checksum), "%06o", sum);
	TRY(compress(b, &h, sizeof(h), ZSTD_e_continue));
	TRY(compress(b, data, len, ZSTD_e_continue));
	return compress(b, zeroes, -len % TAR_BLOCK, ZSTD_e_continue);
}

struct error *bundle_new(struct bundle **out, int *fd)
{
	struct bundle *b = calloc(1, sizeof(*b));

	if (!b)
		return error_new(ENOMEM, "begin the bundle");
	*b = (struct bundle){.zstd = ZSTD_createCCtx(), .out_len = ZSTD_CStreamOutSize(), .when = time(NULL)};
	b->out = malloc(b->out_len);
	b->fd = memfd_create(BUNDLE_NAME, MFD_CLOEXEC);
	if (!b->zstd || !b->out || b->fd < 0) {
		struct error *err = error_new(b->fd < 0 ? errno : ENOMEM, "begin the bundle");
		close_fd(&b->fd);
		bundle_free(b);
		return err;
	}
	*fd = b->fd;
	*out = b;
	return NULL;
}

bool bundle_is_full(const struct bundle *b)
{
	return b->written >= BUNDLE_BYTES_MAX;
}

struct error *bundle_finish(struct bundle *b)
{
	static const uint8_t end[2 * TAR_BLOCK];

	return compress(b, end, sizeof(end), ZSTD_e_end);
}

void bundle_free(struct bundle *b)
{
	if (!b)
		return;
	ZSTD_freeCCtx(b->zstd);
	free(b->out);
	free(b);
}
