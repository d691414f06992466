/*
 * The host's identity: an id, which is also its row in table Host, and a key (P-256), both made at its first boot and
 * kept for good; and the hardware it was last seen on. It is JSON of its own in the journal, never in the database:
 * that is served to others, and the key is secret.
 */
#ifndef GLINT_KEEPER_IDENTITY_H
#define GLINT_KEEPER_IDENTITY_H

#include "node/keeper/database.h"

/* Appends a new identity (JSON) to @identity, and to @database the file of a database with @schema and the host's row.
 */
[[nodiscard]] struct error *identity_new(struct buffer *identity, struct buffer *database, const char *schema,
					 const char *hardware);

/*
 * Where the hardware is not @hardware, notes it: replaces @identity, and appends the change to @database. *changed
 * tells.
 */
[[nodiscard]] struct error *identity_note_hardware(struct buffer *identity, struct buffer *database,
						   const char *hardware, bool *changed);

/* Writes the identity for the host's daemons: @folder/id, and @folder/key.pem for the owner's eyes only. */
[[nodiscard]] struct error *identity_publish(const struct buffer *identity, const char *folder);

/* The host's id; malloc'ed, the caller's. */
[[nodiscard]] struct error *identity_id(const struct buffer *identity, char **id);

#endif
