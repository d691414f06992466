/*
 * The file of ovsdb-server, followed: ovsdb(5), "standalone format". The file is a log of records; each is a line
 * "OVSDB JSON LENGTH SHA1" and so many bytes of JSON; the first is the schema, each other one a committed transaction.
 * The server has written a transaction here before it tells its client, so what a client was told is in the file.
 *
 * Now and then the server puts a new file in place of the old one: the schema and one transaction with all rows. What
 * follows goes on from the same state, so who has the old file's records goes on with those behind the first two.
 *
 * The file lies on a tmpfs. It is read, and made before the server starts; the server alone writes it afterwards.
 */
#ifndef GLINT_KEEPER_DATABASE_H
#define GLINT_KEEPER_DATABASE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct buffer {
	uint8_t *data; /* owned; NULL when empty */
	size_t len, room;
};
[[nodiscard]] struct error *buffer_add(struct buffer *buffer, const void *data, size_t len);
void buffer_free(struct buffer *buffer);
#define cleanup_buffer __attribute__((cleanup(buffer_free)))

/* Appends a record of the file with @json (text). */
[[nodiscard]] struct error *database_record(struct buffer *to, const char *json);

/* The length of the whole, valid record at the beginning of @data, or 0. */
size_t database_record_len(const uint8_t *data, size_t len);

/* The length of the whole, valid records at the beginning of @data, and (unless NULL) how many they are. */
size_t database_records(const uint8_t *data, size_t len, unsigned *count);

struct database;

/*
 * Follows the file at @path, whose first @at bytes, whole records, are known. Its descriptor (database_fd) is readable
 * when something may have happened.
 */
[[nodiscard]] struct error *database_open(struct database **out, const char *path, uint64_t at);
void database_free(struct database *database);
int database_fd(const struct database *database);

/*
 * Appends the records that came since to @to, and adds their number to *changes. *lost: they do not follow what was
 * known (a new schema, a file that was missed): the whole file is to be taken instead.
 */
[[nodiscard]] struct error *database_follow(struct database *database, struct buffer *to, unsigned *changes,
					    bool *lost);

/* All that is known so far, as one file: what is followed next comes behind it. */
[[nodiscard]] struct error *database_whole(struct database *database, struct buffer *to);

/*
 * Asks the server for something by its control socket (ovs-appctl(8)), and waits for it, two seconds at most. Fails
 * with ENOENT or ECONNREFUSED where there is no server.
 */
[[nodiscard]] struct error *database_ask(const char *control, const char *method, const char *parameter);

#endif
