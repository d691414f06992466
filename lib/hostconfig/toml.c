/*
 * The parser of TOML; see toml.h. It goes by statements: a header or a key with its value. One that cannot be read is
 * told, and the next begins on a line of its own.
 *
 * All memory is one piece, made at the start: a value takes a node, of which there are so many; text takes no more room
 * than in the file. It touches nothing else.
 */
#include "hostconfig/toml.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define NODES_MAX 4096u
#define DEPTH_MAX 8u

struct toml_document {
	struct toml nodes[NODES_MAX]; /* the first is the root */
	size_t count;
	char *pool; /* decoded text */
	size_t pool_used;
};

struct parser {
	const char *at, *end, *line_start;
	unsigned line, depth;
	unsigned key_column; /* of the part of a key that was read last */
	bool full;           /* no node is left: the rest is not read */
	struct toml *table;  /* keys go here */
	struct toml_document *document;
	struct hostconfig_problems *problems;
};

/* --- problems --- */

static void make_printable(char *text)
{
	for (unsigned char *c = (unsigned char *)text; *c; c++) {
		bool c1 = *c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0;
		if (*c < 0x20 || *c == 0x7f || c1)
			*c = '?';
		if (c1)
			c[1] = '?';
	}
}

/* A text that had no room for its end does not end in half a character. */
static void end_whole(char *text, size_t room)
{
	size_t len = strlen(text);

	if (len + 1 < room)
		return;
	while (len > 0 && ((unsigned char)text[len - 1] & 0xc0) == 0x80)
		len--;
	if (len > 0 && (unsigned char)text[len - 1] >= 0xc0)
		len--;
	text[len] = '\0';
}

void problem_add(struct hostconfig_problems *problems, unsigned line, unsigned column, const char *hint,
		 const char *fmt, ...)
{
	if (problems->count == ARRAY_SIZE(problems->list)) {
		problems->more++;
		return;
	}
	struct hostconfig_problem *problem = &problems->list[problems->count++];
	va_list args;
	problem->line = line;
	problem->column = column;
	va_start(args, fmt);
	vsnprintf(problem->message, sizeof(problem->message), fmt, args);
	va_end(args);
	snprintf(problem->hint, sizeof(problem->hint), "%s", hint ? hint : "");
	end_whole(problem->message, sizeof(problem->message));
	end_whole(problem->hint, sizeof(problem->hint));
	make_printable(problem->message);
	make_printable(problem->hint);
}

static unsigned column(const struct parser *p)
{
	unsigned n = 1;

	for (const char *c = p->line_start; c < p->at; c++)
		n += ((unsigned char)*c & 0xc0) != 0x80;
	return n;
}

#define fail(p, hint, ...) (problem_add((p)->problems, (p)->line, column(p), hint, __VA_ARGS__), false)

/* --- the tree --- */

static struct toml *node_new(struct parser *p, enum toml_kind kind, enum toml_origin origin)
{
	struct toml_document *d = p->document;

	if (d->count == NODES_MAX) {
		if (!p->full)
			(void)fail(p, NULL, "there are more than %u values in the file", NODES_MAX - 1);
		p->full = true;
		p->at = p->end;
		return NULL;
	}
	struct toml *node = &d->nodes[d->count++];
	*node = (struct toml){.kind = kind, .origin = origin, .line = p->line, .column = column(p)};
	return node;
}

static void append(struct toml *parent, struct toml *child)
{
	if (parent->last)
		parent->last->next = child;
	else
		parent->first = child;
	parent->last = child;
}

static struct toml *member(struct toml *table, const char *key)
{
	for (struct toml *node = table->first; node; node = node->next)
		if (strcmp(node->key, key) == 0)
			return node;
	return NULL;
}

const struct toml *toml_member(const struct toml *table, const char *key)
{
	for (const struct toml *node = table->first; node; node = node->next)
		if (strcmp(node->key, key) == 0)
			return node;
	return NULL;
}

/* --- characters --- */

static bool at_line_end(const struct parser *p)
{
	return p->at == p->end || *p->at == '\n' || (*p->at == '\r' && p->at + 1 < p->end && p->at[1] == '\n');
}

static bool take(struct parser *p, char c)
{
	if (p->at == p->end || *p->at != c)
		return false;
	p->at++;
	return true;
}

static void skip_blanks(struct parser *p)
{
	while (p->at < p->end && (*p->at == ' ' || *p->at == '\t'))
		p->at++;
}

static void skip_to_line_end(struct parser *p)
{
	while (!at_line_end(p))
		p->at++;
}

static void next_line(struct parser *p)
{
	take(p, '\r');
	if (!take(p, '\n'))
		return;
	p->line++;
	p->line_start = p->at;
}

/* Blanks, comments and line ends: between the entries of an array. */
static void skip_lines(struct parser *p)
{
	for (;;) {
		skip_blanks(p);
		if (p->at < p->end && *p->at == '#')
			skip_to_line_end(p);
		if (p->at == p->end || !at_line_end(p))
			return;
		next_line(p);
	}
}

static bool starts_with(const struct parser *p, const char *words)
{
	size_t len = strlen(words);

	return (size_t)(p->end - p->at) >= len && memcmp(p->at, words, len) == 0;
}

/* --- text --- */

static void put(struct parser *p, char c)
{
	p->document->pool[p->document->pool_used++] = c;
}

static void put_utf8(struct parser *p, unsigned code)
{
	if (code < 0x80) {
		put(p, (char)code);
		return;
	}
	if (code < 0x800) {
		put(p, (char)(0xc0 | code >> 6));
	} else {
		if (code < 0x10000) {
			put(p, (char)(0xe0 | code >> 12));
		} else {
			put(p, (char)(0xf0 | code >> 18));
			put(p, (char)(0x80 | (code >> 12 & 0x3f)));
		}
		put(p, (char)(0x80 | (code >> 6 & 0x3f)));
	}
	put(p, (char)(0x80 | (code & 0x3f)));
}

static bool unicode_escape(struct parser *p, unsigned digits)
{
	unsigned code = 0;

	for (unsigned i = 0; i < digits; i++, p->at++) {
		if (p->at == p->end || !isxdigit((unsigned char)*p->at))
			return fail(p, NULL, "\\%c is followed by %u hexadecimal digits", digits == 4 ? 'u' : 'U',
				    digits);
		int c = tolower((unsigned char)*p->at);
		code = code << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	/* What is zero would end the text early. */
	if (code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return fail(p, NULL, "\\u%04x is no character", code);
	put_utf8(p, code);
	return true;
}

static bool escape(struct parser *p)
{
	static const char from[] = "btnfre\"\\", to[] = "\b\t\n\f\r\033\"\\";
	const char *found = p->at < p->end && *p->at ? strchr(from, *p->at) : NULL;

	if (found && *found != 'e') {
		p->at++;
		put(p, to[found - from]);
		return true;
	}
	if (take(p, 'u'))
		return unicode_escape(p, 4);
	if (take(p, 'U'))
		return unicode_escape(p, 8);
	return fail(p, "between '...' a backslash is a plain character",
		    "a backslash with nothing that it could stand for");
}

/* Between quotes; @p is behind the first. */
static const char *text_between(struct parser *p, char quote)
{
	const char *text = p->document->pool + p->document->pool_used;

	for (;;) {
		if (at_line_end(p)) {
			(void)fail(p, "text ends on its own line", "the closing %c is missing", quote);
			return NULL;
		}
		char c = *p->at++;
		if (c == quote)
			break;
		if (c != '\\' || quote == '\'')
			put(p, c);
		else if (!escape(p))
			return NULL;
	}
	put(p, '\0');
	return text;
}

/* --- keys --- */

static bool is_bare(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '-';
}

/* One part of a key; NULL: it was told why not. */
static const char *key_part(struct parser *p)
{
	p->key_column = column(p);
	if (take(p, '"'))
		return text_between(p, '"');
	if (take(p, '\''))
		return text_between(p, '\'');
	const char *key = p->document->pool + p->document->pool_used;
	const char *start = p->at;
	while (p->at < p->end && (unsigned char)*p->at < 0x80 && is_bare(*p->at))
		put(p, *p->at++);
	if (p->at == start) {
		(void)fail(p, "a line is a comment (#), a [header], or key = value", "a key was expected here");
		return NULL;
	}
	put(p, '\0');
	return key;
}

static struct toml *add_member(struct parser *p, struct toml *table, const char *key, enum toml_kind kind,
			       enum toml_origin origin)
{
	struct toml *node = node_new(p, kind, origin);

	if (!node)
		return NULL;
	node->key = key;
	node->key_line = node->line;
	node->column = node->key_column = p->key_column;
	append(table, node);
	return node;
}

/* The table that @key of @table leads to, on the way to another. */
static struct toml *step(struct parser *p, struct toml *table, const char *key, bool header)
{
	struct toml *node = member(table, key);

	if (!node)
		return add_member(p, table, key, TOML_TABLE, header ? TOML_IMPLIED : TOML_DOTTED);
	if (header && node->kind == TOML_ARRAY && node->origin == TOML_HEADERS)
		return node->last;
	if (node->kind == TOML_TABLE && (header ? node->origin != TOML_VALUE : node->origin == TOML_DOTTED))
		return node;
	problem_add(p->problems, p->line, p->key_column, NULL, "'%s' was given on line %u and cannot be added to", key,
		    node->key_line);
	return NULL;
}

/* A key with dots: *table becomes the table of the last part, *last that part. */
static bool key_path(struct parser *p, struct toml **table, const char **last, bool header)
{
	for (unsigned parts = 0;; parts++) {
		skip_blanks(p);
		*last = key_part(p);
		if (!*last)
			return false;
		if (parts == DEPTH_MAX)
			return fail(p, NULL, "a key of more than %u parts", DEPTH_MAX);
		skip_blanks(p);
		if (!take(p, '.'))
			return true;
		*table = step(p, *table, *last, header);
		if (!*table)
			return false;
	}
}

/* --- values --- */

static bool value(struct parser *p, struct toml *node);

static bool whole_number(const char *word, int64_t *number)
{
	char digits[72];
	size_t n = 0;
	unsigned base = 10;
	const char *c = word;

	if (*c == '+' || *c == '-')
		digits[n++] = *c++;
	if (n == 0 && *c == '0' && c[1] && strchr("xob", c[1])) {
		base = c[1] == 'x' ? 16 : c[1] == 'o' ? 8 : 2;
		c += 2;
	} else if (*c == '0' && c[1]) {
		return false;
	}
	if (!isalnum((unsigned char)*c))
		return false;
	for (; *c && n < sizeof(digits) - 1; c++) {
		/* An underscore stands between digits. */
		if (*c != '_')
			digits[n++] = *c;
		else if (!isalnum((unsigned char)c[1]))
			return false;
	}
	digits[n] = '\0';
	char *end;
	errno = 0;
	long long parsed = strtoll(digits, &end, (int)base);
	*number = parsed;
	return !*c && !*end && errno == 0;
}

/* What stands without quotes: a number, true, false, or what should have had them. */
static bool word_value(struct parser *p, struct toml *node)
{
	char word[80];
	size_t n = 0;
	const char *at = p->at;

	while (at < p->end && n < sizeof(word) - 1 && *at > ' ' && *at < 0x7f && !strchr(",]}#=\"'", *at))
		word[n++] = *at++;
	word[n] = '\0';
	if (n == 0)
		return fail(p,
			    starts_with(p, "\u201c") || starts_with(p, "\u201d")
				    ? "typographic quotation marks do not count: use the plain \""
				    : "text stands in quotation marks, as in \"text\"",
			    "a value was expected here");
	node->kind = TOML_BOOL;
	node->number = strcmp(word, "true") == 0;
	if (!node->number && strcmp(word, "false") != 0) {
		char hint[sizeof(word) + 48];
		node->kind = TOML_NUMBER;
		snprintf(hint, sizeof(hint), "text stands in quotation marks: \"%s\"", word);
		if (!whole_number(word, &node->number))
			return fail(p, hint, "'%s' is neither text, nor a whole number, nor true or false", word);
	}
	p->at = at;
	return true;
}

static bool array(struct parser *p, struct toml *node)
{
	node->kind = TOML_ARRAY;
	for (;;) {
		skip_lines(p);
		if (take(p, ']'))
			return true;
		if (p->at == p->end)
			return fail(p, NULL, "the ] of the array of line %u is missing", node->line);
		struct toml *entry = node_new(p, TOML_TEXT, TOML_VALUE);
		if (!entry || !value(p, entry))
			return false;
		append(node, entry);
		skip_lines(p);
		if (!take(p, ',') && (p->at == p->end || *p->at != ']'))
			return fail(p, "entries of an array stand between commas",
				    "a , or the ] of the array of line %u is missing", node->line);
	}
}

static bool key_value(struct parser *p, struct toml *table);

static bool inline_table(struct parser *p, struct toml *node)
{
	node->kind = TOML_TABLE;
	skip_blanks(p);
	if (take(p, '}'))
		return true;
	for (;;) {
		if (!key_value(p, node))
			return false;
		skip_blanks(p);
		if (take(p, '}'))
			return true;
		if (!take(p, ','))
			return fail(p, "an inline table stands on one line", "a , or the } of the table is missing");
		skip_blanks(p);
	}
}

static bool text_value(struct parser *p, struct toml *node)
{
	if (starts_with(p, "\"\"\"") || starts_with(p, "'''"))
		return fail(p, NULL, "text over several lines is not used in this file");
	node->kind = TOML_TEXT;
	node->text = text_between(p, *p->at++);
	return node->text;
}

static bool nested(struct parser *p, struct toml *node)
{
	if (p->depth == DEPTH_MAX)
		return fail(p, NULL, "brackets are nested more than %u deep", DEPTH_MAX);
	p->depth++;
	/* Where it fails the depth stays: the statement is over, and recover() sees how deep it was. */
	if (!(*p->at++ == '[' ? array(p, node) : inline_table(p, node)))
		return false;
	p->depth--;
	return true;
}

static bool value(struct parser *p, struct toml *node)
{
	char c = p->at < p->end ? *p->at : '\n';

	node->line = p->line;
	node->column = column(p);
	if (c == '"' || c == '\'')
		return text_value(p, node);
	return c == '[' || c == '{' ? nested(p, node) : word_value(p, node);
}

/* --- statements --- */

static bool key_value(struct parser *p, struct toml *table)
{
	unsigned line = p->line, col = column(p);
	const char *key;

	if (!key_path(p, &table, &key, false))
		return false;
	if (!take(p, '='))
		return fail(p, NULL, "a = was expected behind the key '%s'", key);
	skip_blanks(p);
	struct toml *node = node_new(p, TOML_TEXT, TOML_VALUE);
	if (!node || !value(p, node))
		return false;
	const struct toml *before = member(table, key);
	if (before) {
		/* Told here, and no reason to skip anything. */
		problem_add(p->problems, line, col, NULL, "'%s' is given twice, first on line %u", key,
			    before->key_line);
		return true;
	}
	node->key = key;
	node->key_line = line;
	node->key_column = col;
	append(table, node);
	return true;
}

/* [[key]]: one more table of the array. */
static struct toml *one_more(struct parser *p, struct toml *table, const char *key)
{
	struct toml *list = member(table, key);

	if (!list)
		list = add_member(p, table, key, TOML_ARRAY, TOML_HEADERS);
	if (!list)
		return NULL;
	if (list->kind != TOML_ARRAY || list->origin != TOML_HEADERS) {
		problem_add(p->problems, p->line, p->key_column, NULL, "'%s' was given on line %u, and not as [[%s]]",
			    key, list->key_line, key);
		return NULL;
	}
	struct toml *entry = node_new(p, TOML_TABLE, TOML_HEADER);
	if (!entry)
		return NULL;
	entry->column = p->key_column;
	append(list, entry);
	return entry;
}

/* [key]: a table, once. */
static struct toml *the_one(struct parser *p, struct toml *table, const char *key)
{
	struct toml *node = member(table, key);

	if (!node)
		return add_member(p, table, key, TOML_TABLE, TOML_HEADER);
	if (node->kind == TOML_TABLE && node->origin == TOML_IMPLIED) {
		node->origin = TOML_HEADER;
		return node;
	}
	char hint[96] = "";
	if (node->kind == TOML_ARRAY && node->origin == TOML_HEADERS)
		snprintf(hint, sizeof(hint), "one more of them is [[%.60s]]", key);
	problem_add(p->problems, p->line, p->key_column, hint, "'%s' was given on line %u already", key,
		    node->key_line);
	return NULL;
}

static bool header(struct parser *p)
{
	struct toml *table = &p->document->nodes[0];
	const char *key;

	take(p, '[');
	bool more = take(p, '[');
	/* Until the header is known to be good, its keys go nowhere. */
	p->table = NULL;
	if (!key_path(p, &table, &key, true))
		return false;
	if (!take(p, ']') || (more && !take(p, ']')))
		return fail(p, NULL, "the %s of the header is missing", more ? "]]" : "]");
	p->table = more ? one_more(p, table, key) : the_one(p, table, key);
	return p->table;
}

static bool statement(struct parser *p)
{
	struct toml nowhere = {.kind = TOML_TABLE};
	bool good = *p->at == '[' ? header(p) : key_value(p, p->table ? p->table : &nowhere);

	if (!good)
		return false;
	skip_blanks(p);
	if (!at_line_end(p) && *p->at != '#')
		return fail(p, "one key = value a line", "the line goes on where it should end");
	return true;
}

/* Whether the line begins as a header or a key with its value does. */
static bool begins_statement(const struct parser *p)
{
	struct parser look = *p;

	skip_blanks(&look);
	if (take(&look, '['))
		return look.at < look.end && (*look.at == '[' || isalpha((unsigned char)*look.at));
	const char *start = look.at;
	while (look.at < look.end && (is_bare(*look.at) || *look.at == '.'))
		look.at++;
	bool key = look.at > start;
	skip_blanks(&look);
	return key && take(&look, '=');
}

/* Goes on behind a statement that could not be read: on the next line, or behind an array on the next but some. */
static void recover(struct parser *p)
{
	bool inside = p->depth > 0;

	p->depth = 0;
	do {
		skip_to_line_end(p);
		next_line(p);
	} while (inside && p->at < p->end && !begins_statement(p));
}

/* --- the whole --- */

/* The bytes of the character at @c, 0 where there is none. */
static size_t utf8_length(const unsigned char *c, size_t left)
{
	static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t n = *c < 0x80                 ? 1
		   : *c >= 0xc2 && *c < 0xe0 ? 2
		   : *c >= 0xe0 && *c < 0xf0 ? 3
		   : *c >= 0xf0 && *c < 0xf5 ? 4
					     : 0;
	unsigned code = n > 1 ? *c & (0x7fu >> n) : *c;

	if (n == 0 || n > left)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((c[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (c[i] & 0x3f);
	}
	return code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : n;
}

/* Tells of bytes that cannot be in a text, once a line, and puts question marks there. */
static void check_characters(struct parser *p, char *text)
{
	unsigned told = 0;

	while (p->at < p->end) {
		unsigned char c = (unsigned char)*p->at;
		size_t n = utf8_length((const unsigned char *)p->at, (size_t)(p->end - p->at));
		bool control = (c < 0x20 && c != '\t' && !at_line_end(p)) || c == 0x7f;
		if ((n == 0 || control) && told != p->line) {
			(void)fail(p, n == 0 ? "save the file as UTF-8" : NULL, "a byte that is no %s (0x%02x)",
				   n == 0 ? "UTF-8 text" : "printable character", c);
			told = p->line;
		}
		if (n == 0 || control)
			text[p->at - text] = '?';
		if (at_line_end(p))
			next_line(p);
		else
			p->at += MAX(n, 1u);
	}
}

static void parse(struct parser *p, char *text, size_t len)
{
	size_t bom = len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;

	*p = (struct parser){.at = text + bom,
			     .end = text + len,
			     .line_start = text + bom,
			     .line = 1,
			     .document = p->document,
			     .problems = p->problems};
	struct parser start = *p;
	check_characters(p, text);
	*p = start;
	p->table = node_new(p, TOML_TABLE, TOML_HEADER);
	while (p->at < p->end && !p->full) {
		skip_lines(p);
		if (p->at < p->end && !statement(p))
			recover(p);
		else
			skip_to_line_end(p);
	}
}

struct error *toml_parse(const char *text, size_t len, struct toml_document **out, struct hostconfig_problems *problems)
{
	struct toml_document *document = calloc(1, sizeof(*document));
	cleanup_free char *copy = malloc(len + 1);
	/* Each text has at least one more character in the file than its own; its NUL takes that place. */
	char *pool = malloc(2 * len + 1);

	*out = document;
	if (!document || !copy || !pool) {
		free(document);
		free(pool);
		*out = NULL;
		return error_new(ENOMEM, "read the configuration");
	}
	document->pool = pool;
	memcpy(copy, text, len);
	struct parser p = {.document = document, .problems = problems};
	parse(&p, copy, len);
	return NULL;
}

void toml_free(struct toml_document *document)
{
	if (document)
		free(document->pool);
	free(document);
}

const struct toml *toml_root(const struct toml_document *document)
{
	return &document->nodes[0];
}
