/*
 * The stream below the units: whole reads and writes, the running checksum, and the heads of records.
 *
 * One checksum runs over the whole stream, check fields left out; a check field holds its value at that point. So
 * each record is proven before it is used, in its place: one that is missing, repeated or moved fails as a damaged one
 * does. (Were the check fields counted in, a correct one would set the checksum to a constant and hide what is before.)
 *
 * Reading takes exactly the bytes that must be there, never more: whatever follows the end mark on a socket is left to
 * its reader.
 *
 * Touches the stream's descriptor, which must be a blocking one. Writing to a pipe or socket without a reader raises
 * SIGPIPE: programs ignore it and get the error.
 */
#include "saved/crc32c.h"
#include "saved/internal.h"

#include "base/util.h"

#include <errno.h>
#include <unistd.h>

/* Steps over @done bytes at the front of *iov. */
static void advance(struct iovec **iov, unsigned *count, size_t done)
{
	while (*count > 0 && done >= (*iov)->iov_len) {
		done -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (*count > 0) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + done;
		(*iov)->iov_len -= done;
	}
}

struct error *saved_write(struct saved *s, struct iovec *iov, unsigned count, const char *what)
{
	for (advance(&iov, &count, 0); count > 0;) {
		ssize_t n = writev(s->fd, iov, (int)count);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "write %s at byte %llu of the stream", what,
					 (unsigned long long)s->offset);
		s->offset += (uint64_t)n;
		advance(&iov, &count, (size_t)n);
	}
	return NULL;
}

struct error *saved_read(struct saved *s, struct iovec *iov, unsigned count, const char *what)
{
	for (advance(&iov, &count, 0); count > 0;) {
		ssize_t n = readv(s->fd, iov, (int)count);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_new(errno, "read %s at byte %llu of the stream", what,
					 (unsigned long long)s->offset);
		if (n == 0)
			return error_hint(error_new(0, "the stream ends at byte %llu, in %s",
						    (unsigned long long)s->offset, what),
					  "it was cut short: save it again, or copy it again from a whole one");
		s->offset += (uint64_t)n;
		advance(&iov, &count, (size_t)n);
	}
	return NULL;
}

void saved_sum(struct saved *s, const void *data, size_t len)
{
	s->sum = crc32c(s->sum, data, len);
}

bool saved_check(const struct saved *s, const void *at)
{
	return get_le32(at) == s->sum;
}

struct error *saved_damaged(const struct saved *s, const char *what)
{
	return error_hint(error_new(0, "the checksum of %s is wrong before byte %llu of the stream", what,
				    (unsigned long long)s->offset),
			  "the stream is damaged: use another copy of it");
}

bool saved_name_ok(const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (name[i] < 0x20 || name[i] > 0x7e)
			return false;
	}
	return len > 0 && len <= SAVED_NAME_MAX;
}

void saved_head_make(struct saved *s, const char *tag, const char *name, uint64_t length, uint32_t value,
		     uint8_t bytes[SAVED_HEAD_BYTES])
{
	memset(bytes, 0, SAVED_HEAD_BYTES);
	memcpy(bytes, tag, SAVED_TAG_BYTES);
	put_le64(bytes + SAVED_HEAD_LENGTH, length);
	memcpy(bytes + SAVED_HEAD_NAME, name, strnlen(name, SAVED_NAME_MAX));
	put_le32(bytes + SAVED_HEAD_VALUE, value);
	saved_sum(s, bytes, SAVED_HEAD_CHECK);
	put_le32(bytes + SAVED_HEAD_CHECK, s->sum);
}

/* Reads a head and proves it. A wrong magic is told apart from damage: people hand over the wrong file. */
struct error *saved_head_read(struct saved *s, struct saved_head *head)
{
	bool first = s->offset == 0;
	uint8_t bytes[SAVED_HEAD_BYTES];
	struct iovec iov = {bytes, sizeof(bytes)};

	TRY(saved_read(s, &iov, 1, first ? "the header" : "the head of a record"));
	if (first && memcmp(bytes, SAVED_TAG_HEADER, SAVED_TAG_BYTES) != 0)
		return error_hint(error_new(0, "it does not begin like the saved state of a machine"),
				  "give a file or stream that glint-vmm has saved");
	saved_sum(s, bytes, SAVED_HEAD_CHECK);
	if (!saved_check(s, bytes + SAVED_HEAD_CHECK))
		return saved_damaged(s, first ? "the header" : "the head of a record");
	memcpy(head->tag, bytes, SAVED_TAG_BYTES);
	head->tag[SAVED_TAG_BYTES] = '\0';
	head->length = get_le64(bytes + SAVED_HEAD_LENGTH);
	head->value = get_le32(bytes + SAVED_HEAD_VALUE);
	memcpy(head->name, bytes + SAVED_HEAD_NAME, sizeof(head->name));

	size_t name_len = strnlen(head->name, sizeof(head->name));
	bool padded = true;
	for (size_t i = name_len; i < sizeof(head->name); i++)
		padded = padded && head->name[i] == '\0';
	bool is_end = strcmp(head->tag, SAVED_TAG_END) == 0;
	if (!padded || !saved_name_ok(head->tag, SAVED_TAG_BYTES) ||
	    (is_end ? name_len != 0 : !saved_name_ok(head->name, name_len)))
		return error_new(0, "the head of a record before byte %llu of the stream makes no sense",
				 (unsigned long long)s->offset);
	return NULL;
}

struct error *saved_head_expect(struct saved *s, const char *tag, const char *name, struct saved_head *head)
{
	TRY(saved_head_read(s, head));
	if (strcmp(head->tag, tag) != 0 || strcmp(head->name, name) != 0)
		return error_hint(error_new(0, "the stream has %.*s '%s' where this machine has %.*s '%s'",
					    (int)strcspn(head->tag, " "), head->tag, head->name, (int)strcspn(tag, " "),
					    tag, name),
				  "load it into a machine with the same parts as the one that was saved");
	return NULL;
}
