/*
 * The schema of a database that comes from a stick: an older one is converted to this Glint's by ovsdb-tool(1), before
 * the server sees it; a newer one is refused, for what it has beyond ours would be lost. Versions are compared, so a
 * schema that changes gets another version. What is on the stick is not touched: it stays whole until the snapshot of
 * what was converted is.
 */
#ifndef GLINT_KEEPER_SCHEMA_H
#define GLINT_KEEPER_SCHEMA_H

#include "node/keeper/database.h"

/*
 * Makes the database in @database (its file's bytes) one of the schema in the file @schema. *from is the version it
 * had where it was converted, else NULL; malloc'ed, the caller's. @folder, on a tmpfs, has the files meanwhile.
 */
[[nodiscard]] struct error *schema_convert(struct buffer *database, const char *schema, const char *folder,
					   char **from);

#endif
