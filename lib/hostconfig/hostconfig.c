/*
 * From TOML to a configuration; see hostconfig.h. Each table of the file has a list of its keys; a key has a function
 * that reads its value into a field and tells what is wrong with it. What concerns several keys is looked at
 * afterwards.
 *
 * It touches memory only.
 */
#include "hostconfig/hostconfig.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "hostconfig/check.h"
#include "hostconfig/toml.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

struct reader {
	struct hostconfig *config;
	struct hostconfig_problems *problems;
};

typedef void read_fn(struct reader *r, const struct toml *value, void *field);

struct key {
	const char *name;
	read_fn *read;
	size_t offset; /* of the field */
	bool needed;
};

/* At the place of the value. */
#define tell(r, at, hint, ...) problem_add((r)->problems, (at)->line, (at)->column, hint, __VA_ARGS__)

/* --- tables --- */

/* How many letters differ between two short words; a swap of neighbours counts as two. */
static unsigned distance(const char *a, const char *b)
{
	unsigned row[40];
	size_t len = strlen(b);

	if (len >= ARRAY_SIZE(row) || strlen(a) >= ARRAY_SIZE(row))
		return 99;
	for (unsigned j = 0; j <= len; j++)
		row[j] = j;
	for (unsigned i = 1; a[i - 1]; i++) {
		unsigned corner = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= len; j++) {
			unsigned both = corner + (tolower((unsigned char)a[i - 1]) != b[j - 1]);
			corner = row[j];
			unsigned one = MIN(row[j], row[j - 1]) + 1;
			row[j] = MIN(both, one);
		}
	}
	return row[len];
}

static void tell_unknown(struct reader *r, const struct toml *member, const char *table, const struct key *keys)
{
	const char *nearest = "";
	unsigned least = 3;
	char hint[200];
	size_t at = 0;

	/* Two letters, and not all of them, may be wrong. */
	for (const struct key *k = keys; k->name; k++) {
		unsigned d = distance(member->key, k->name);
		if (d >= least || d >= strlen(k->name))
			continue;
		least = d;
		nearest = k->name;
	}
	if (*nearest) {
		snprintf(hint, sizeof(hint), "did you mean '%s'?", nearest);
	} else {
		at = (size_t)snprintf(hint, sizeof(hint), "%s has: ", table);
		for (const struct key *k = keys; k->name && at < sizeof(hint); k++)
			at += (size_t)snprintf(hint + at, sizeof(hint) - at, "%s%s", k == keys ? "" : ", ", k->name);
	}
	problem_add(r->problems, member->key_line, member->key_column, hint, "%s has no key '%s'", table, member->key);
}

static void read_table(struct reader *r, const struct toml *table, const char *name, const struct key *keys, void *base)
{
	for (const struct toml *m = table->first; m; m = m->next) {
		const struct key *k = keys;
		while (k->name && strcmp(k->name, m->key) != 0)
			k++;
		if (k->name)
			k->read(r, m, (char *)base + k->offset);
		else
			tell_unknown(r, m, name, keys);
	}
	for (const struct key *k = keys; k->name; k++)
		if (k->needed && !toml_member(table, k->name))
			tell(r, table, NULL, "%s lacks the key '%s'", name, k->name);
}

/* --- kinds of values --- */

static const char *text_of(struct reader *r, const struct toml *value)
{
	if (value->kind == TOML_TEXT)
		return value->text;
	tell(r, value, NULL, "text was expected here, in quotation marks");
	return NULL;
}

static void read_text(struct reader *r, const struct toml *value, const char **field,
		      const char *(*check)(const char *))
{
	const char *text = text_of(r, value), *wrong = text ? check(text) : NULL;

	if (wrong)
		tell(r, value, NULL, "'%.64s' %s", text, wrong);
	else
		*field = text;
}

static void read_number(struct reader *r, const struct toml *value, unsigned *field, unsigned min, unsigned max)
{
	if (value->kind != TOML_NUMBER || value->number < min || value->number > max)
		tell(r, value, NULL, "a whole number from %u to %u was expected here", min, max);
	else
		*field = (unsigned)value->number;
}

/* A value alone, or an array of such values: @read is called for each, as long as there is room. */
static void read_list(struct reader *r, const struct toml *value, size_t most, read_fn *read, void *field)
{
	size_t n = 0;

	if (value->kind != TOML_ARRAY) {
		read(r, value, field);
		return;
	}
	for (const struct toml *entry = value->first; entry; entry = entry->next, n++)
		if (n < most)
			read(r, entry, field);
	if (n > most)
		tell(r, value, NULL, "%zu entries are more than the %zu there may be", n, most);
}

static void add_text(struct reader *r, const struct toml *value, struct hostconfig_texts *texts,
		     const char *(*check)(const char *))
{
	const char *text = NULL;

	read_text(r, value, &text, check);
	for (size_t i = 0; text && i < texts->count; i++)
		if (strcasecmp(text, texts->list[i]) == 0) {
			tell(r, value, NULL, "'%.64s' is given twice", text);
			return;
		}
	if (!text || texts->count == HOSTCONFIG_LIST_MAX)
		return;
	texts->lines[texts->count] = value->line;
	texts->list[texts->count++] = text;
}

static void add_address(struct reader *r, const struct toml *value, struct hostconfig_addresses *list, bool with_prefix,
			int family)
{
	struct hostconfig_address address;
	const char *text = text_of(r, value), *wrong = text ? check_address(text, with_prefix, &address) : NULL;

	if (!text)
		return;
	if (!wrong && family && address.family != family)
		wrong = family == AF_INET ? "is no IPv4 address" : "is no IPv6 address";
	if (wrong)
		tell(r, value, NULL, "'%.64s' %s", text, wrong);
	else if (list->count < HOSTCONFIG_LIST_MAX)
		list->list[list->count++] = address;
}

/* --- keys --- */

static void read_host_name(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_host_name);
}

static void add_server(struct reader *r, const struct toml *value, void *field)
{
	struct hostconfig_address address;
	const char *text = value->kind == TOML_TEXT ? value->text : "";
	bool is_address = *text && strspn(text, "0123456789abcdefABCDEF:./") == strlen(text) &&
			  (strchr(text, ':') || isdigit((unsigned char)text[strlen(text) - 1]));

	if (is_address && check_address(text, false, &address))
		tell(r, value, NULL, "'%.64s' %s", text, check_address(text, false, &address));
	else if (is_address && address.family == AF_INET6)
		add_text(r, value, field, check_source);
	else
		add_text(r, value, field, check_domain);
}

static void read_servers(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, HOSTCONFIG_LIST_MAX, add_server, field);
}

static void read_name(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_name);
}

static void add_device(struct reader *r, const struct toml *value, void *field)
{
	add_text(r, value, field, check_device);
}

static void read_devices(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, HOSTCONFIG_LIST_MAX, add_device, field);
}

static void read_bond(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_bond);
}

static void read_bool(struct reader *r, const struct toml *value, void *field)
{
	if (value->kind == TOML_BOOL)
		*(bool *)field = value->number != 0;
	else
		tell(r, value, NULL, "true or false was expected here");
}

static void read_vlan(struct reader *r, const struct toml *value, void *field)
{
	read_number(r, value, field, 1, 4094);
}

static void read_mtu(struct reader *r, const struct toml *value, void *field)
{
	read_number(r, value, field, 1280, 9216);
}

static void add_ipv4(struct reader *r, const struct toml *value, void *field)
{
	add_address(r, value, field, true, AF_INET);
}

static void add_ipv6(struct reader *r, const struct toml *value, void *field)
{
	add_address(r, value, field, true, AF_INET6);
}

static void read_ip(struct reader *r, const struct toml *value, struct hostconfig_ip *ip, const char *automatic,
		    read_fn *add)
{
	const char *text = value->kind == TOML_TEXT ? value->text : "";

	ip->method = strcmp(text, automatic) == 0 ? HOSTCONFIG_AUTOMATIC
		     : strcmp(text, "none") == 0  ? HOSTCONFIG_NONE
						  : HOSTCONFIG_STATIC;
	if (value->kind == TOML_ARRAY && !value->first)
		tell(r, value, "leave the key out for the usual, or write \"none\"", "the list of addresses is empty");
	if (value->kind == TOML_TEXT && ip->method == HOSTCONFIG_STATIC && !strpbrk(text, ".:"))
		tell(r, value, NULL, "'%.64s' is neither \"%s\", nor \"none\", nor an address", text, automatic);
	else if (ip->method == HOSTCONFIG_STATIC)
		read_list(r, value, HOSTCONFIG_LIST_MAX, add, &ip->addresses);
}

static void read_ipv4(struct reader *r, const struct toml *value, void *field)
{
	read_ip(r, value, field, "dhcp", add_ipv4);
}

static void read_ipv6(struct reader *r, const struct toml *value, void *field)
{
	read_ip(r, value, field, "auto", add_ipv6);
}

static void add_plain_address(struct reader *r, const struct toml *value, void *field)
{
	add_address(r, value, field, false, 0);
}

static void read_gateways(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, 2, add_plain_address, field);
}

static void read_dns(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, HOSTCONFIG_LIST_MAX, add_plain_address, field);
}

static void add_domain(struct reader *r, const struct toml *value, void *field)
{
	add_text(r, value, field, check_domain);
}

static void read_search(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, HOSTCONFIG_LIST_MAX, add_domain, field);
}

static void read_person(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_person);
}

static void add_public_key(struct reader *r, const struct toml *value, void *field)
{
	add_text(r, value, field, check_public_key);
}

static void read_public_keys(struct reader *r, const struct toml *value, void *field)
{
	read_list(r, value, HOSTCONFIG_LIST_MAX, add_public_key, field);
}

static void read_pool_kind(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_pool_kind);
}

static void read_source(struct reader *r, const struct toml *value, void *field)
{
	read_text(r, value, field, check_source);
}

/* --- the tables of the file --- */

static const struct key host_keys[] = {{"name", read_host_name, offsetof(struct hostconfig, name)}, {}};

static const struct key time_keys[] = {{"servers", read_servers, offsetof(struct hostconfig, time_servers)}, {}};

static const struct key network_keys[] = {{"name", read_name, offsetof(struct hostconfig_network, name), true},
					  {"device", read_devices, offsetof(struct hostconfig_network, devices)},
					  {"on", read_name, offsetof(struct hostconfig_network, on)},
					  {"bond", read_bond, offsetof(struct hostconfig_network, bond)},
					  {"bridge", read_bool, offsetof(struct hostconfig_network, bridge)},
					  {"vlan", read_vlan, offsetof(struct hostconfig_network, vlan)},
					  {"mtu", read_mtu, offsetof(struct hostconfig_network, mtu)},
					  {"ipv4", read_ipv4, offsetof(struct hostconfig_network, ipv4)},
					  {"ipv6", read_ipv6, offsetof(struct hostconfig_network, ipv6)},
					  {"gateway", read_gateways, offsetof(struct hostconfig_network, gateways)},
					  {"dns", read_dns, offsetof(struct hostconfig_network, dns)},
					  {"search", read_search, offsetof(struct hostconfig_network, search)},
					  {}};

static const struct key admin_keys[] = {{"name", read_person, offsetof(struct hostconfig_admin, name), true},
					{"keys", read_public_keys, offsetof(struct hostconfig_admin, keys), true},
					{}};

static const struct key pool_keys[] = {{"name", read_name, offsetof(struct hostconfig_pool, name), true},
				       {"kind", read_pool_kind, offsetof(struct hostconfig_pool, kind), true},
				       {"source", read_source, offsetof(struct hostconfig_pool, source), true},
				       {}};

/* The key under which something was said, else the table: where to point. */
static const struct toml *place(const struct toml *table, const char *key)
{
	const struct toml *found = toml_member(table, key);

	return found ? found : table;
}

static void check_gateways(struct reader *r, const struct hostconfig_network *n, const struct toml *table)
{
	const struct toml *at = place(table, "gateway");

	for (size_t i = 0; i < n->gateways.count; i++) {
		const struct hostconfig_address *g = &n->gateways.list[i];
		const struct hostconfig_ip *ip = g->family == AF_INET ? &n->ipv4 : &n->ipv6;
		bool reached = g->family == AF_INET6 && g->bytes[0] == 0xfe && (g->bytes[1] & 0xc0) == 0x80;
		if (ip->method != HOSTCONFIG_STATIC) {
			tell(r, at, "a gateway goes with addresses; else DHCP or the router says it",
			     "the gateway %s, but no %s address", g->text, g->family == AF_INET ? "IPv4" : "IPv6");
			continue;
		}
		for (size_t j = 0; j < ip->addresses.count; j++)
			reached |= same_network(g, &ip->addresses.list[j], ip->addresses.list[j].prefix);
		/* An address that could not be read may have been the one. */
		if (!reached && ip->addresses.count > 0)
			tell(r, at, NULL, "the gateway %s is in none of the networks of the addresses", g->text);
	}
	if (n->gateways.count == 2 && n->gateways.list[0].family == n->gateways.list[1].family)
		tell(r, at, NULL, "two gateways: one for IPv4 and one for IPv6 there may be");
}

static bool several(const struct hostconfig_network *n)
{
	for (size_t i = 0; i < n->devices.count; i++)
		if (strpbrk(n->devices.list[i], "*?"))
			return true;
	return n->first || n->devices.count > 1;
}

static void check_network(struct reader *r, struct hostconfig_network *n, const struct toml *table)
{
	for (size_t i = 0; i < n->devices.count; i++)
		n->first |= strcmp(n->devices.list[i], "first") == 0;
	if (n->first && n->devices.count > 1)
		tell(r, place(table, "device"), NULL, "\"first\" means any device: it stands alone");
	if (n->on && toml_member(table, "device"))
		tell(r, place(table, "on"), NULL,
		     "'on' and 'device' are one too many: a network shares devices, or has its own");
	if (!n->on && !toml_member(table, "device"))
		n->first = true;
	if (n->on && !toml_member(table, "vlan"))
		tell(r, place(table, "on"), NULL, "a network on another needs a 'vlan'");
	if (n->on && (n->bond || n->bridge || n->mtu))
		tell(r, place(table, "on"), NULL, "'bond', 'bridge' and 'mtu' are those of the network this one is on");
	/* Several devices that carry one network are a bond: without one they were a loop. */
	if (!n->bond && several(n))
		n->bond = "active-backup";
	check_gateways(r, n, table);
}

static void read_network(struct reader *r, const struct toml *table)
{
	struct hostconfig *c = r->config;
	struct hostconfig_network *n = &c->networks[c->network_count];

	n->line = table->line;
	read_table(r, table, "a [[network]]", network_keys, n);
	check_network(r, n, table);
	for (size_t i = 0; n->name && i < c->network_count; i++)
		if (c->networks[i].name && strcmp(n->name, c->networks[i].name) == 0)
			tell(r, place(table, "name"), NULL, "a network '%s' is there already, on line %u", n->name,
			     c->networks[i].line);
	c->network_count++;
}

static void read_admin(struct reader *r, const struct toml *table)
{
	struct hostconfig_admin *a = &r->config->admins[r->config->admin_count++];

	read_table(r, table, "an [[administrator]]", admin_keys, a);
	if (a->keys.count == 0 && toml_member(table, "keys") && r->problems->count == 0)
		tell(r, place(table, "keys"), NULL, "an administrator without a key");
}

static void read_pool(struct reader *r, const struct toml *table)
{
	struct hostconfig *c = r->config;
	struct hostconfig_pool *p = &c->pools[c->pool_count];

	read_table(r, table, "a [[pool]]", pool_keys, p);
	for (size_t i = 0; p->name && i < c->pool_count; i++)
		if (c->pools[i].name && strcmp(p->name, c->pools[i].name) == 0)
			tell(r, place(table, "name"), NULL, "a pool '%s' is there already", p->name);
	c->pool_count++;
}

/* --- the file --- */

static void read_single(struct reader *r, const struct toml *value, const char *name, const struct key *keys)
{
	if (value->kind == TOML_TABLE)
		read_table(r, value, name, keys, r->config);
	else
		tell(r, value, NULL, "%s is a table", name);
}

static void read_each(struct reader *r, const struct toml *value, size_t most,
		      void (*read)(struct reader *r, const struct toml *table))
{
	size_t n = 0;
	char hint[80];

	snprintf(hint, sizeof(hint), "write [[%s]], in double brackets", value->key);
	if (value->kind != TOML_ARRAY) {
		tell(r, value, hint, "there may be more than one '%s'", value->key);
		return;
	}
	for (const struct toml *entry = value->first; entry; entry = entry->next, n++) {
		if (entry->kind != TOML_TABLE)
			tell(r, entry, hint, "a '%s' is a table", value->key);
		else if (n < most)
			read(r, entry);
		else if (n == most)
			tell(r, entry, NULL, "there may be %zu of '%s' at most", most, value->key);
	}
}

static void read_host(struct reader *r, const struct toml *value, void *)
{
	read_single(r, value, "[host]", host_keys);
}

static void read_time(struct reader *r, const struct toml *value, void *)
{
	read_single(r, value, "[time]", time_keys);
}

static void read_networks(struct reader *r, const struct toml *value, void *)
{
	read_each(r, value, HOSTCONFIG_LIST_MAX, read_network);
}

static void read_admins(struct reader *r, const struct toml *value, void *)
{
	read_each(r, value, HOSTCONFIG_ADMINS_MAX, read_admin);
}

static void read_pools(struct reader *r, const struct toml *value, void *)
{
	read_each(r, value, HOSTCONFIG_POOLS_MAX, read_pool);
}

static const struct key file_keys[] = {{"host", read_host},  {"network", read_networks},
				       {"time", read_time},  {"administrator", read_admins},
				       {"pool", read_pools}, {}};

/* --- what concerns several networks --- */

static void find_base(struct reader *r, struct hostconfig_network *n)
{
	struct hostconfig *c = r->config;

	for (size_t i = 0; i < c->network_count; i++)
		if (c->networks[i].name && strcmp(c->networks[i].name, n->on) == 0 && !c->networks[i].on)
			n->base = &c->networks[i];
	if (!n->base)
		problem_add(r->problems, n->line, 0, "'on' names a network that has devices of its own",
			    "the network '%s' is on '%s', which is none of the file's", n->name ? n->name : "?", n->on);
	else if (n->vlan && n->vlan == n->base->vlan)
		problem_add(r->problems, n->line, 0, NULL, "the network '%s' has the VLAN of the network '%s' it is on",
			    n->name ? n->name : "?", n->on);
}

static void check_shared(struct reader *r, const struct hostconfig_network *a, const struct hostconfig_network *b)
{
	if (a->on && b->on && strcmp(a->on, b->on) == 0 && a->vlan && a->vlan == b->vlan)
		problem_add(r->problems, b->line, 0, NULL, "VLAN %u of '%s' is the network's on line %u already",
			    b->vlan, b->on, a->line);
	if (a->on || b->on)
		return;
	if (a->first || b->first) {
		problem_add(r->problems, b->line, 0, "name the devices of each network",
			    "\"first\" takes every device: there is none for a second network (lines %u and %u)",
			    a->line, b->line);
		return;
	}
	for (size_t i = 0; i < a->devices.count; i++)
		for (size_t j = 0; j < b->devices.count; j++)
			if (strcasecmp(a->devices.list[i], b->devices.list[j]) == 0)
				problem_add(r->problems, b->devices.lines[j], 0,
					    "a second network on the same device: on = \"NAME\" and a vlan",
					    "the device '%s' belongs to the network of line %u", b->devices.list[j],
					    a->line);
}

static void check_whole(struct reader *r)
{
	struct hostconfig *c = r->config;

	for (size_t i = 0; i < c->network_count; i++) {
		if (c->networks[i].on)
			find_base(r, &c->networks[i]);
		for (size_t j = 0; j < i; j++)
			check_shared(r, &c->networks[j], &c->networks[i]);
	}
}

static int by_place(const void *a, const void *b)
{
	const struct hostconfig_problem *x = a, *y = b;

	return x->line != y->line ? (x->line > y->line) - (x->line < y->line)
				  : (x->column > y->column) - (x->column < y->column);
}

/* What can be told without parsing at all. */
static bool is_readable(const char *text, size_t len, struct hostconfig_problems *problems)
{
	if (len > HOSTCONFIG_TEXT_MAX)
		problem_add(problems, 0, 0, NULL, "the file is larger than %zu KiB", HOSTCONFIG_TEXT_MAX >> 10);
	else if (len >= 2 && (memcmp(text, "\xff\xfe", 2) == 0 || memcmp(text, "\xfe\xff", 2) == 0))
		problem_add(problems, 1, 1, "save the file as UTF-8", "the file is UTF-16");
	return problems->count == 0;
}

struct error *hostconfig_read(const char *text, size_t len, struct hostconfig **out,
			      struct hostconfig_problems *problems)
{
	struct toml_document *document;

	*out = NULL;
	*problems = (struct hostconfig_problems){};
	if (!is_readable(text, len, problems))
		return NULL;
	TRY(toml_parse(text, len, &document, problems));
	struct hostconfig *config = calloc(1, sizeof(*config));
	if (!config) {
		toml_free(document);
		return error_new(ENOMEM, "read the configuration");
	}
	config->document = document;
	struct reader r = {.config = config, .problems = problems};
	read_table(&r, toml_root(document), "the file", file_keys, config);
	check_whole(&r);
	qsort(problems->list, problems->count, sizeof(problems->list[0]), by_place);
	if (problems->count)
		hostconfig_free(config);
	else
		*out = config;
	return NULL;
}

void hostconfig_free(struct hostconfig *config)
{
	if (config)
		toml_free(config->document);
	free(config);
}
