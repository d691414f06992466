/*
 * glint image inspect: what is on a stick, or in the image of one. Opens it for reading, and trusts nothing in it: what
 * cannot be understood is a problem that is told, and the rest is told all the same.
 */
#include "cli/cli.h"
#include "cli/image.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "node/keeper/journal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COPY_BYTES ((size_t)MIB)

struct inspect_args {
	const char *file, *format;
	bool json, check;
};

struct inspect {
	const struct inspect_args *args;
	const struct blocks *m;
	struct gpt gpt;
	struct fat *fat;
	json_t *told, *slots, *guests, *problems;
	const char *folder; /* of the slot under way */
};

/* Consumes @err: it is told, and the rest goes on. */
static void problem(struct inspect *s, struct error *err)
{
	if (err)
		json_array_append_new(s->problems, json_string(error_text(err)));
	error_free(err);
}

/* --- partitions --- */

static const char *type_name(const struct guid *type)
{
	return guid_equal(type, &gpt_esp)     ? "esp"
	       : guid_equal(type, &gpt_state) ? "state"
	       : guid_equal(type, &gpt_guest) ? "guest"
					      : "other";
}

static json_t *partitions(const struct gpt *gpt)
{
	json_t *list = json_array();
	char id[37];

	for (unsigned i = 0; i < gpt->count; i++) {
		const struct gpt_partition *p = &gpt->partitions[i];
		json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:s}", "name", p->name, "type",
						      type_name(&p->type), "start", (json_int_t)p->start, "size",
						      (json_int_t)p->len, "id", guid_text(&p->id, id)));
	}
	return list;
}

/* --- the ESP --- */

static json_t *slot(const struct fat_entry *e)
{
	json_t *json = json_pack("{s:s, s:I}", "file", e->name, "size", (json_int_t)e->size);
	struct slot slot = {};

	if (!slot_parse(e->name, &slot))
		return json;
	json_object_set_new(json, "version", json_string(slot.version));
	if (slot.trial) {
		json_object_set_new(json, "tries-left", json_integer(slot.left));
		json_object_set_new(json, "tries-done", json_integer(slot.done));
	}
	return json;
}

static struct error *each_slot(void *arg, const struct fat_entry *e)
{
	struct inspect *s = arg;
	size_t len = strlen(e->name);

	if (!e->folder && len > 4 && strcasecmp(e->name + len - 4, ".efi") == 0 && json_array_size(s->slots) < 64)
		json_array_append_new(s->slots, slot(e));
	return NULL;
}

static struct error *inspect_config(struct inspect *s)
{
	cleanup_free char *text = NULL;
	size_t len;

	TRY(fat_read(s->fat, HOST_CONFIG_PATH, HOST_CONFIG_MAX, &text, &len));
	TRY(host_config_check(HOST_CONFIG_PATH, text, len));
	json_object_set_new(s->told, "host-config", json_stringn(text, len));
	return NULL;
}

static struct error *inspect_esp(struct inspect *s)
{
	const struct gpt_partition *esp = gpt_find(&s->gpt, &gpt_esp);

	if (!esp)
		return error_new(0, "%s: it has no ESP", s->m->name);
	TRY(fat_open(&s->fat, s->m, esp->start, esp->len, 0));
	problem(s, fat_list(s->fat, SLOTS_PATH, each_slot, s));
	if (json_array_size(s->slots) == 0)
		problem(s, error_new(0, "%s: there is no host in its ESP to boot", s->m->name));
	problem(s, inspect_config(s));
	fat_close(s->fat);
	return NULL;
}

/* --- STATE --- */

struct state_part {
	struct journal_io io; /* first */
	const struct blocks *m;
	uint64_t start;
};

static int state_read(const struct journal_io *io, void *data, size_t len, uint64_t offset)
{
	const struct state_part *p = (const struct state_part *)io;

	return range_inside(offset, len, io->size) ? p->m->read(p->m, data, len, p->start + offset) : -EIO;
}

/* Opening a journal writes nothing. */
static int state_write(const struct journal_io *io, const void *data, size_t len, uint64_t offset)
{
	return -EROFS;
}

static int state_flush(const struct journal_io *io)
{
	return -EROFS;
}

static struct error *count_bytes(void *arg, const struct journal_item *item)
{
	if (item->kind == JOURNAL_DATABASE)
		*(uint64_t *)arg += item->len;
	return NULL;
}

static struct error *inspect_state(struct inspect *s)
{
	static const char *const states[] = {"empty", "whole", "damaged"};
	static const uint8_t nobody[16];
	const struct gpt_partition *p = gpt_find(&s->gpt, &gpt_state);
	struct journal *journal;
	struct journal_info info;
	uint64_t bytes = 0;
	char stick[33];

	if (!p)
		return error_new(0, "%s: it has no STATE", s->m->name);
	struct state_part part = {
		.io = {state_read, state_write, state_flush, p->len, "STATE"}, .m = s->m, .start = p->start};
	TRY(journal_open(&journal, &part.io, nobody, count_bytes, &bytes));
	journal_info(journal, &info);
	journal_close(journal);
	for (unsigned i = 0; i < 16; i++)
		snprintf(stick + 2 * i, 3, "%02x", info.stick[i]);
	json_object_set_new(s->told, "state",
			    json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "state", states[info.state], "stick",
				      stick, "generation", (json_int_t)info.generation, "sequence",
				      (json_int_t)info.sequence, "changes", (json_int_t)info.changes, "torn",
				      (json_int_t)info.torn, "bytes", (json_int_t)bytes));
	return info.state == JOURNAL_DAMAGED ? error_new(0, "STATE: %s", info.damage) : NULL;
}

/* --- guests --- */

/* Its image as a file of its own, checked. */
static struct error *check_image(struct inspect *s, const struct gpt_partition *p, const struct guest *guest)
{
	cleanup_scratch struct scratch copy = {};
	cleanup_free uint8_t *buf = malloc(COPY_BYTES);

	if (!buf)
		return error_new(ENOMEM, "check guest %s", guest->name);
	TRY(scratch_init(&copy, scratch_folder()));
	TRY(scratch_resize(&copy, guest->image));
	for (uint64_t at = 0; at < guest->image; at += COPY_BYTES) {
		size_t n = MIN(COPY_BYTES, align_down(guest->image, SECTOR) - at);
		TRY(blocks_read(s->m, buf, n, p->start + at));
		/* What is zeroes stays a hole. */
		if (buf[0] != 0 || memcmp(buf, buf + 1, n - 1) != 0)
			TRY(blocks_write(&copy.medium, buf, n, at));
	}
	return error_wrap(check_whole(copy.fd, "its disk", "vhdx"), "guest %s", guest->name);
}

static struct error *inspect_guest(struct inspect *s, const struct gpt_partition *p)
{
	uint8_t tail[GUEST_TAIL], head[SECTOR];
	struct guest guest;

	if (p->len < GUEST_TAIL + GPT_ALIGN / 2)
		return error_new(0, "guest %s: its partition is too small", p->name);
	TRY(blocks_read(s->m, tail, GUEST_TAIL, p->start + p->len - GUEST_TAIL));
	TRY(error_wrap(guest_read(&guest, tail, p->len, p->name), "guest"));
	json_array_append_new(s->guests,
			      json_pack("{s:s, s:I, s:i, s:b, s:b, s:s, s:I}", "name", guest.name, "memory",
					(json_int_t)guest.memory, "cpus", (int)guest.cpus, "autostart",
					(int)guest.autostart, "console", (int)guest.console, "persist",
					guest.persist ? "stick" : "memory", "image", (json_int_t)guest.image));
	if (strcmp(guest.name, p->name) != 0)
		return error_new(0, "guest %s: its partition is called %s", guest.name, p->name);
	TRY(blocks_read(s->m, head, SECTOR, p->start));
	if (memcmp(head, "vhdxfile", 8) != 0)
		return error_new(0, "guest %s: its disk is damaged: it does not begin as VHDX does", guest.name);
	return s->args->check ? check_image(s, p, &guest) : NULL;
}

/* --- telling --- */

static void show_slots(const json_t *slots)
{
	size_t i;
	json_t *e;
	char size[32];

	json_array_foreach(slots, i, e)
	{
		json_t *left = json_object_get(e, "tries-left");
		const char *version = json_string_value(json_object_get(e, "version"));
		printf("host:       %s, %s", version ? version : json_string_value(json_object_get(e, "file")),
		       bytes_text((uint64_t)json_integer_value(json_object_get(e, "size")), size));
		if (left && json_integer_value(left) > 0)
			printf(", %d tries left", (int)json_integer_value(left));
		else
			printf(", %s", left ? "no tries left: it counts as bad" : "proven good");
		printf("\n");
	}
}

static void show_guests(const json_t *guests)
{
	size_t i;
	json_t *g;
	char memory[32], image[32];

	json_array_foreach(guests, i, g)
		printf("guest:      %s, memory %s, CPUs %d, %s, its disk %s%s%s\n",
		       json_string_value(json_object_get(g, "name")),
		       bytes_text((uint64_t)json_integer_value(json_object_get(g, "memory")), memory),
		       (int)json_integer_value(json_object_get(g, "cpus")),
		       strcmp(json_string_value(json_object_get(g, "persist")), "stick") == 0 ? "writes to the stick"
											      : "writes to memory",
		       bytes_text((uint64_t)json_integer_value(json_object_get(g, "image")), image),
		       json_is_true(json_object_get(g, "autostart")) ? ", started by the host" : "",
		       json_is_true(json_object_get(g, "console")) ? ", on the host's console" : "");
}

static void show(const struct inspect *s)
{
	json_t *state = json_object_get(s->told, "state"), *p;
	const char *config = json_string_value(json_object_get(s->told, "host-config"));
	char id[37], size[32], start[32];
	size_t i;

	printf("file:       %s\n", s->args->file);
	printf("disk:       %s, %s%s\n", guid_text(&s->gpt.disk, id), bytes_text(s->m->size, size),
	       s->gpt.from_backup ? ", by the copy of its table at the end" : "");
	for (i = 0; i < s->gpt.count; i++)
		printf("partition:  %s (%s), %s at %s\n", s->gpt.partitions[i].name,
		       type_name(&s->gpt.partitions[i].type), bytes_text(s->gpt.partitions[i].len, size),
		       bytes_text(s->gpt.partitions[i].start, start));
	show_slots(s->slots);
	if (config)
		printf("host.toml:  %zu bytes\n", strlen(config));
	if (state)
		printf("state:      %s, generation %lld, %lld changes, %s of database\n",
		       json_string_value(json_object_get(state, "state")),
		       (long long)json_integer_value(json_object_get(state, "generation")),
		       (long long)json_integer_value(json_object_get(state, "changes")),
		       bytes_text((uint64_t)json_integer_value(json_object_get(state, "bytes")), size));
	show_guests(s->guests);
	json_array_foreach(s->problems, i, p) printf("problem:    %s\n", json_string_value(p));
}

static struct error *look(struct inspect *s)
{
	char id[37];

	TRY(error_hint(gpt_read(s->m, &s->gpt), "it is not the image of a stick, or its beginning is lost"));
	if (!gpt_find(&s->gpt, &gpt_state) && !gpt_find(&s->gpt, &gpt_guest))
		return error_hint(error_new(0, "%s is not a stick of Glint: it has no partition STATE", s->m->name),
				  "name a stick, or the image of one");
	s->slots = json_array();
	s->guests = json_array();
	s->problems = json_array();
	s->told = json_pack("{s:s, s:I, s:s, s:b, s:o, s:O, s:O, s:O}", "file", s->args->file, "size",
			    (json_int_t)s->m->size, "disk", guid_text(&s->gpt.disk, id), "table-from-backup",
			    (int)s->gpt.from_backup, "partitions", partitions(&s->gpt), "slots", s->slots, "guests",
			    s->guests, "problems", s->problems);
	if (!s->told)
		return error_new(ENOMEM, "tell about it");
	if (s->gpt.from_backup)
		problem(s, error_new(0, "%s: its partition table is damaged, its copy is good", s->m->name));
	problem(s, inspect_esp(s));
	problem(s, inspect_state(s));
	for (unsigned i = 0; i < s->gpt.count; i++)
		if (guid_equal(&s->gpt.partitions[i].type, &gpt_guest))
			problem(s, inspect_guest(s, &s->gpt.partitions[i]));
	return NULL;
}

static struct error *run(void *args, int *status)
{
	const struct inspect_args *a = args;
	cleanup_opened struct opened o = {};
	cleanup_disk_medium struct disk_medium m = {};
	struct inspect s = {.args = a, .m = &m.medium};

	TRY(opened_open(&o, a->file, &(struct open_how){.format = a->format, .readonly = true, .alone = true}));
	TRY(disk_medium_init(&m, &o));
	struct error *err = look(&s);
	if (!err && a->json)
		err = print_json(json_incref(s.told));
	else if (!err)
		show(&s);
	*status = json_array_size(s.problems) > 0 ? 2 : 0;
	json_decref(s.told);
	json_decref(s.slots);
	json_decref(s.guests);
	json_decref(s.problems);
	return err;
}

static const struct option inspect_options[] = {
	{"file", OPTION_TEXT, offsetof(struct inspect_args, file), .value = "FILE|DEVICE", .min = 1,
	 .help = "the stick, or the image of one"},
	{"json", OPTION_FLAG, offsetof(struct inspect_args, json), .help = "for programs"},
	{"check", OPTION_FLAG, offsetof(struct inspect_args, check),
	 .help = "checks every structure of the guests' disks, too"},
	{"format", OPTION_TEXT, offsetof(struct inspect_args, format), .value = "FORMAT", .min = 1,
	 .help = "what the image is (default: what its contents say)"},
	{NULL},
};

const struct command image_inspect_command = {
	.group = "image",
	.name = "inspect",
	.summary = "Tells what is on a stick: hosts and their boot counters, configuration, state, guests",
	.more = "It ends with 0 when nothing is wrong, 1 when it is no stick or could not be read, 2 when something on "
		"it is "
		"damaged. Nothing is changed.",
	.options = inspect_options,
	.words = 1,
	.bytes = sizeof(struct inspect_args),
	.run = run,
};
