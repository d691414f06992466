/*
 * The host's identity; see identity.h. It touches the folder it is published in.
 */
#include "node/keeper/identity.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

static inline void cleanup_json_fn(json_t **json)
{
	json_decref(*json);
}
#define cleanup_json __attribute__((cleanup(cleanup_json_fn)))

/* The words of a memory BIO, malloc'ed. */
static char *words_of(BIO *bio)
{
	char *data;
	long len = BIO_get_mem_data(bio, &data);

	return len > 0 ? strndup(data, (size_t)len) : NULL;
}

static struct error *new_key(char **secret, char **public)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	BIO *bio = BIO_new(BIO_s_mem()), *public_bio = BIO_new(BIO_s_mem());

	*secret = *public = NULL;
	if (key && bio && public_bio && PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) &&
	    PEM_write_bio_PUBKEY(public_bio, key)) {
		*secret = words_of(bio);
		*public = words_of(public_bio);
	}
	BIO_free(bio);
	BIO_free(public_bio);
	EVP_PKEY_free(key);
	return *secret && *public ? NULL : error_new(0, "make the host's key: libcrypto fails");
}

/* A random UUID: RFC 9562, version 4. */
static struct error *new_id(char id[37])
{
	uint8_t b[16];

	if (getrandom(b, sizeof(b), 0) != sizeof(b))
		return error_new(errno, "make the host's id");
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	snprintf(id, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
		 b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
	return NULL;
}

static struct error *replace(struct buffer *to, const json_t *json)
{
	cleanup_free char *text = json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS);

	if (!text)
		return error_new(ENOMEM, "hold the host's identity");
	to->len = 0;
	return buffer_add(to, text, strlen(text));
}

/* A transaction that sets columns of the host's row, as the server would have written it. Consumes @columns. */
static struct error *add_transaction(struct buffer *database, const char *id, json_t *columns, const char *comment)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	json_int_t ms = (json_int_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	cleanup_json json_t *json =
		json_pack("{s:I, s:s, s:{s:o}}", "_date", ms, "_comment", comment, "Host", id, columns);
	cleanup_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	if (!text)
		return error_new(ENOMEM, "make the host's row");
	return database_record(database, text);
}

struct error *identity_new(struct buffer *identity, struct buffer *database, const char *schema, const char *hardware)
{
	cleanup_free char *secret = NULL, *public = NULL, *compact = NULL;
	char id[37], name[16];
	json_error_t where;
	cleanup_json json_t *parsed = json_loads(schema, 0, &where);

	if (!parsed || !(compact = json_dumps(parsed, JSON_COMPACT)))
		return error_new(EINVAL, "read the schema: %s, line %d", where.text, where.line);
	TRY(new_id(id));
	TRY(new_key(&secret, &public));
	json_int_t now = time(NULL);
	cleanup_json json_t *json =
		json_pack("{s:s, s:s, s:s, s:I}", "id", id, "key", secret, "hardware", hardware, "created", now);
	if (!json)
		return error_new(EINVAL, "make the host's identity: its hardware is called '%s'", hardware);
	TRY(replace(identity, json));
	TRY(database_record(database, compact));
	snprintf(name, sizeof(name), "glint-%.6s", id);
	return add_transaction(database, id,
			       json_pack("{s:s, s:s, s:s, s:I}", "name", name, "public_key", public, "hardware",
					 hardware, "created", now),
			       "first boot");
}

static struct error *parse(const struct buffer *identity, json_t **json)
{
	*json = json_loadb((const char *)identity->data, identity->len, 0, NULL);
	if (!json_string_value(json_object_get(*json, "id")) || !json_string_value(json_object_get(*json, "key"))) {
		json_decref(*json);
		*json = NULL;
		return error_new(EBADMSG, "read the host's identity: no id and key are in it");
	}
	return NULL;
}

struct error *identity_note_hardware(struct buffer *identity, struct buffer *database, const char *hardware,
				     bool *changed)
{
	cleanup_json json_t *json = NULL;

	*changed = false;
	TRY(parse(identity, &json));
	const char *known = json_string_value(json_object_get(json, "hardware"));
	if (!*hardware || (known && strcmp(known, hardware) == 0))
		return NULL;
	if (json_object_set_new(json, "hardware", json_string(hardware)) < 0)
		return error_new(EINVAL, "note the hardware '%s'", hardware);
	TRY(replace(identity, json));
	*changed = true;
	return add_transaction(database, json_string_value(json_object_get(json, "id")),
			       json_pack("{s:s}", "hardware", hardware), "other hardware");
}

struct error *identity_id(const struct buffer *identity, char **id)
{
	cleanup_json json_t *json = NULL;

	TRY(parse(identity, &json));
	*id = strdup(json_string_value(json_object_get(json, "id")));
	return *id ? NULL : error_new(ENOMEM, "read the host's identity");
}

static struct error *publish(const char *folder, const char *name, const char *text, mode_t mode)
{
	cleanup_free char *path = NULL;

	if (asprintf(&path, "%s/%s", folder, name) < 0)
		return error_new(ENOMEM, "publish the host's identity");
	return put_file(AT_FDCWD, path, text, strlen(text), mode);
}

struct error *identity_publish(const struct buffer *identity, const char *folder)
{
	cleanup_json json_t *json = NULL;

	TRY(parse(identity, &json));
	if (mkdir(folder, 0755) < 0 && errno != EEXIST)
		return error_new(errno, "make %s", folder);
	TRY(publish(folder, "id", json_string_value(json_object_get(json, "id")), 0644));
	return publish(folder, "key.pem", json_string_value(json_object_get(json, "key")), 0600);
}
