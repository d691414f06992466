/*
 * The keeper; see keeper.h. One thread runs the loop, and each stick has its own.
 *
 * Changes are numbered as they are read from the database's file, from 1, which is the state at the start. Who asks for
 * `sync` after the server told him of his transaction waits for the newest number there is then: his is not newer.
 *
 * It touches: the folder it is given, the sticks, and the server's control socket.
 */
#include "node/keeper/keeper.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "node/keeper/database.h"
#include "node/keeper/health.h"
#include "node/keeper/identity.h"
#include "node/keeper/schema.h"
#include "node/keeper/stick.h"
#include "vmm/control/control.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define STICKS_MAX 4u
/* How long the host waits for what is on its stick when it starts, beyond the time that the stick has to come. */
#define FIRST_OPEN_S 60
#define SECOND_NS    1000000000ull
#define SCHEMA_MAX   (256 * KIB)
#define IDENTITY_MAX (64 * KIB)
/* Below this a database is not worth compacting before a snapshot. */
#define COMPACT_FROM (64 * KIB)
#define DATABASE     "Glint"

struct waiter {
	struct control_later *call; /* NULL: a free place */
	uint64_t number;
	time_t until;
};

struct keeper {
	struct loop *loop;
	struct keeper_options options;
	char file[PATH_MAX];
	struct database *database;
	struct loop_source *follower;
	struct buffer identity;
	struct stick *sticks[STICKS_MAX];
	struct stick_mark marks[STICKS_MAX]; /* as they were written down last */
	unsigned stick_count;
	uint64_t number; /* of the newest change */
	bool missed;     /* a change was not handed on: the sticks need a snapshot */
	bool live;       /* the state was in memory already: what changed before is not known */
	bool detached;   /* the server was told to let go of the database, and not yet to take it again */
	struct control *control;
	struct loop_source *tick;
	struct waiter waiters[CONTROL_LATER_MAX];

	/* How the state is kept, as it was found last. */
	bool kept;
	char why[256];
	time_t since, behind_until;
	char *told; /* the health file's text */
};

/* Seconds since the kernel's start. */
static time_t now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return t.tv_sec;
}

/* --- files of the folder --- */

static struct error *path_in(const struct keeper *k, const char *name, char path[PATH_MAX])
{
	return snprintf(path, PATH_MAX, "%s/%s", k->options.folder, name) < PATH_MAX
		       ? NULL
		       : error_new(ENAMETOOLONG, "use %s", k->options.folder);
}

static struct error *mark_path(const struct keeper *k, unsigned stick, char path[PATH_MAX])
{
	char name[32];

	snprintf(name, sizeof(name), "keeper.mark%u", stick);
	return path_in(k, name, path);
}

static void save_marks(struct keeper *k)
{
	for (unsigned i = 0; i < k->stick_count; i++) {
		struct stick_mark mark;
		char path[PATH_MAX];
		stick_mark(k->sticks[i], &mark);
		if (memcmp(&mark, &k->marks[i], sizeof(mark)) == 0)
			continue;
		k->marks[i] = mark;
		struct error *err = mark_path(k, i, path);
		log_error(err ? err : put_file(AT_FDCWD, path, &mark, sizeof(mark), 0600));
	}
}

/* --- sticks --- */

static struct error *give_snapshot(struct keeper *k, struct stick *stick)
{
	cleanup_buffer struct buffer whole = {};

	TRY(database_whole(k->database, &whole));
	return stick_snapshot(stick, &whole, &k->identity, k->number);
}

/* Takes from the database's file what came, and hands it to the sticks. */
static struct error *follow(struct keeper *k)
{
	cleanup_buffer struct buffer more = {};
	unsigned changes = 0;
	bool lost;

	struct error *err = database_follow(k->database, &more, &changes, &lost);
	k->missed |= lost || err;
	if (err || (more.len == 0 && !k->missed))
		return err;
	k->number++;
	for (unsigned i = 0; i < k->stick_count; i++)
		err = error_first(err, k->missed ? give_snapshot(k, k->sticks[i])
						 : stick_append(k->sticks[i], &more, changes, k->number));
	k->missed = err != NULL;
	return err;
}

static struct error *whole_size(struct keeper *k, size_t *len)
{
	cleanup_buffer struct buffer whole = {};

	TRY(database_whole(k->database, &whole));
	*len = whole.len;
	return NULL;
}

/* A snapshot is of the smallest file there is. */
static struct error *compact(struct keeper *k)
{
	size_t len;

	TRY(whole_size(k, &len));
	if (k->options.server && len > COMPACT_FROM) {
		struct error *err = database_ask(k->options.server, "ovsdb-server/compact", DATABASE);
		if (err)
			log_warn("%s; the snapshot is larger than it could be", error_text(err));
		error_free(err);
	}
	return follow(k);
}

static void answer_waiters(struct keeper *k);
static void consider(struct keeper *k, struct stick *stick);
static void look_at_health(struct keeper *k, bool all);

static void sticks_changed(void *arg)
{
	struct keeper *k = arg;
	struct stick_status status;

	for (unsigned i = 0; i < k->stick_count && k->database; i++) {
		stick_status(k->sticks[i], &status);
		if (status.offers)
			consider(k, k->sticks[i]);
		stick_status(k->sticks[i], &status);
		if (!status.wants_snapshot)
			continue;
		struct error *err = compact(k);
		log_error(err ? err : give_snapshot(k, k->sticks[i]));
	}
	save_marks(k);
	answer_waiters(k);
	look_at_health(k, false);
}

static void database_ready(void *arg, int fd, uint32_t events)
{
	log_error(follow(arg));
}

/* --- calls --- */

/* Whether a change is on a stick, or (with *hope) may be in a moment; else *why not. */
static bool is_kept(struct keeper *k, uint64_t number, bool *hope, char why[256])
{
	struct stick_status status;

	*hope = false;
	snprintf(why, 256, "there is no stick");
	for (unsigned i = 0; i < k->stick_count; i++) {
		stick_status(k->sticks[i], &status);
		if (status.state == STICK_KEPT && status.durable >= number)
			return true;
		*hope |= status.state == STICK_KEPT || status.state == STICK_OPENING;
		snprintf(why, 256, "%s", status.why[0] ? status.why : "the stick does not answer");
	}
	return false;
}

static json_t *health(struct keeper *k)
{
	cleanup_free char *id = NULL;
	struct error *err = identity_id(&k->identity, &id);
	struct health h = {.host = err ? "" : id,
			   .change = k->number,
			   .kept = k->kept,
			   .why = k->why,
			   .since_s = (uint64_t)k->since,
			   .sticks = k->sticks,
			   .stick_count = k->stick_count};

	error_free(err);
	return health_json(&h);
}

/*
 * A change on its way to a stick that has the ones before counts as kept, for as long as somebody would wait for it; a
 * stick that gets all there is, for the first time or once more, keeps it when it has it.
 */
static bool find_out(struct keeper *k)
{
	char why[256];
	struct stick_status status;
	bool hope, kept = is_kept(k, k->number, &hope, why);

	/* What is only offered by a stick keeps nothing. */
	hope = false;
	for (unsigned i = 0; i < k->stick_count; i++) {
		stick_status(k->sticks[i], &status);
		hope |= status.state == STICK_KEPT;
	}
	if (kept || !hope)
		k->behind_until = 0;
	else if (!k->behind_until)
		k->behind_until = now_s() + (time_t)k->options.patience_s;
	bool soon = hope && now_s() < k->behind_until;
	if (!kept && soon)
		snprintf(why, sizeof(why), "it is being written");
	kept |= soon && k->kept;
	if (kept)
		why[0] = '\0';
	if (k->told && kept == k->kept && strcmp(why, k->why) == 0)
		return false;
	k->kept = kept;
	snprintf(k->why, sizeof(k->why), "%s", why);
	k->since = now_s();
	return true;
}

static struct error *write_health(struct keeper *k, char *text)
{
	char path[PATH_MAX];

	TRY(path_in(k, "health.json", path));
	return put_file(AT_FDCWD, path, text, strlen(text), 0644);
}

/* What changed about durability is told at once, figures once a second. */
static void look_at_health(struct keeper *k, bool all)
{
	if (!find_out(k) && !all)
		return;
	json_t *json = health(k);
	cleanup_free char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
	json_decref(json);
	if (!text || (k->told && strcmp(text, k->told) == 0))
		return;
	struct error *err = write_health(k, text);
	if (!err) {
		free(k->told);
		k->told = steal_ptr(&text);
	}
	log_error(err);
}

static void answer_waiters(struct keeper *k)
{
	char why[256];
	bool hope;

	for (unsigned i = 0; i < ARRAY_SIZE(k->waiters); i++) {
		struct waiter *w = &k->waiters[i];
		if (!w->call)
			continue;
		bool kept = is_kept(k, w->number, &hope, why);
		if (!kept && hope && now_s() < w->until)
			continue;
		json_t *result = json_pack("{s:s, s:I}", "durability", kept ? "stick" : "memory", "change",
					   (json_int_t)w->number);
		if (!kept)
			json_object_set_new(result, "why", json_string(why));
		struct control_later *call = steal_ptr(&w->call);
		control_answer(call, NULL, result);
	}
}

static struct error *attach_server(struct keeper *k)
{
	struct error *err = database_ask(k->options.server, "ovsdb-server/add-db", k->file);

	/* A server that was started again has it from its command line. */
	if (err && !strstr(error_text(err), "already open"))
		return err;
	error_free(err);
	k->detached = false;
	return NULL;
}

static void tick(void *arg)
{
	struct keeper *k = arg;

	loop_timer_set(k->tick, SECOND_NS);
	if (k->missed)
		log_error(follow(k));
	if (k->detached)
		log_error(attach_server(k));
	for (unsigned i = 0; i < k->stick_count; i++)
		stick_look(k->sticks[i]);
	sticks_changed(k);
	look_at_health(k, true);
}

static struct error *call_sync(void *self, struct control_call *call, json_t **result)
{
	struct keeper *k = self;
	struct waiter *w = k->waiters;

	TRY(control_params(call, "{}"));
	TRY(follow(k));
	while (w < k->waiters + ARRAY_SIZE(k->waiters) && w->call)
		w++;
	if (w == k->waiters + ARRAY_SIZE(k->waiters))
		return error_new(EBUSY, "wait: too many wait already");
	TRY(control_defer(call, &w->call));
	w->number = k->number;
	w->until = now_s() + (time_t)k->options.patience_s;
	answer_waiters(k);
	return NULL;
}

static struct error *call_status(void *self, struct control_call *call, json_t **result)
{
	struct keeper *k = self;

	TRY(control_params(call, "{}"));
	find_out(k);
	*result = health(k);
	return NULL;
}

static struct error *call_adopt(void *self, struct control_call *call, json_t **result)
{
	struct keeper *k = self;
	const char *path;

	TRY(control_params(call, "{s:s}", "path", &path));
	for (unsigned i = 0; i < k->stick_count; i++) {
		if (!stick_has_path(k->sticks[i], path))
			continue;
		stick_adopt(k->sticks[i], strcmp(stick_path(k->sticks[i]), path) != 0 ? path : NULL);
		return NULL;
	}
	return error_new(EINVAL, "adopt %s: it is not among the sticks", path);
}

static const struct control_method methods[] = {
	{"sync", call_sync}, {"status", call_status}, {"adopt", call_adopt}, {}};

static struct error *listen_at(const struct keeper *k, int *fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char path[PATH_MAX];

	TRY(path_in(k, "keeper.sock", path));
	if (strlen(path) >= sizeof(address.sun_path))
		return error_new(ENAMETOOLONG, "listen at %s", path);
	strcpy(address.sun_path, path);
	unlink(path);
	*fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (*fd < 0 || bind(*fd, (struct sockaddr *)&address, sizeof(address)) < 0 || chmod(path, 0660) < 0 ||
	    listen(*fd, 8) < 0)
		return error_new(errno, "listen at %s", path);
	return NULL;
}

/* --- the start --- */

/* The state that a stick holds, as this Glint on this hardware has it. */
static struct error *restore_from(struct keeper *k, struct stick *stick, const struct stick_contents *c,
				  struct buffer *database, struct buffer *identity)
{
	cleanup_free char *from = NULL;
	struct stick_status status;
	bool noted;

	size_t len = database_records(c->database.data, c->database.len, NULL);
	if (len == 0 || c->identity.len == 0)
		return error_new(ENODATA, "it holds no whole state of a host");
	TRY(buffer_add(database, c->database.data, len));
	TRY(buffer_add(identity, c->identity.data, c->identity.len));
	TRY(schema_convert(database, k->options.schema, k->options.folder, &from));
	TRY(identity_note_hardware(identity, database, k->options.hardware, &noted));
	stick_status(stick, &status);
	log_info("state of %llu changes since a snapshot restored from %s", (unsigned long long)c->info.changes,
		 status.device);
	if (from)
		log_info("the database was converted from schema %s", from);
	return NULL;
}

/* The state of a host that starts: from the first stick that has one, else new. *source: the stick, or -1. */
static struct error *restore(struct keeper *k, struct stick_contents *contents, struct buffer *database, int *source)
{
	cleanup_free char *schema = NULL;
	size_t len;

	for (unsigned i = 0; i < k->stick_count && *source < 0; i++) {
		if (contents[i].database.len == 0)
			continue;
		struct error *err = restore_from(k, k->sticks[i], &contents[i], database, &k->identity);
		if (!err) {
			*source = (int)i;
			return NULL;
		}
		stick_refuse(k->sticks[i], error_text(err));
		error_free(err);
		database->len = k->identity.len = 0;
	}
	TRY(read_file(k->options.schema, SCHEMA_MAX, &schema, &len));
	log_info("no state is there: this is the host's first boot");
	return identity_new(&k->identity, database, schema, k->options.hardware);
}

/* Whether what a stick holds is a beginning of the present state: then what it lacks can be appended. */
static bool is_beginning(const struct keeper *k, const struct stick_contents *c, const struct buffer *database)
{
	return c->database.len > 0 && c->database.len <= database->len && c->identity.len == k->identity.len &&
	       memcmp(c->identity.data, k->identity.data, c->identity.len) == 0 &&
	       memcmp(c->database.data, database->data, c->database.len) == 0;
}

/* Gives a stick what it lacks of the state at the start. @own: the state came from it, or it is known again. */
static struct error *begin_stick(struct keeper *k, struct stick *stick, const struct stick_contents *c,
				 const struct buffer *database, bool own)
{
	size_t held = c->database.len;

	if (!is_beginning(k, c, database)) {
		if (own || c->info.state == JOURNAL_EMPTY)
			return give_snapshot(k, stick);
		stick_refuse(stick, "it holds another state than the stick that the host started from");
		return NULL;
	}
	if (held == database->len) {
		stick_is_current(stick, k->number);
		return NULL;
	}
	struct buffer rest = {.data = database->data + held, .len = database->len - held};
	unsigned changes = 0;
	database_records(rest.data, rest.len, &changes);
	return stick_append(stick, &rest, changes, k->number);
}

/* What a keeper that is started again finds in memory. */
static struct error *find_state(struct keeper *k, struct buffer *database)
{
	cleanup_free char *text = NULL;
	char path[PATH_MAX];
	unsigned changes = 0;
	bool lost;
	size_t len;

	TRY(path_in(k, "keeper.identity", path));
	TRY(read_file(path, IDENTITY_MAX, &text, &len));
	TRY(buffer_add(&k->identity, text, len));
	TRY(database_open(&k->database, k->file, 0));
	/* Should the keeper before have ended between telling the server to let go and to take it again. */
	if (k->options.server)
		error_free(attach_server(k));
	TRY(database_follow(k->database, database, &changes, &lost));
	if (!lost)
		return NULL;
	/* The file was replaced this very moment. */
	database->len = 0;
	return database_whole(k->database, database);
}

/* Makes what the server and the host's daemons start from, and follows it. */
static struct error *put_state(struct keeper *k, const struct buffer *database)
{
	char folder[PATH_MAX], path[PATH_MAX];
	cleanup_free char *id = NULL;

	TRY(path_in(k, "keeper.identity", path));
	TRY(put_file(AT_FDCWD, path, k->identity.data, k->identity.len, 0600));
	TRY(path_in(k, "identity", folder));
	TRY(identity_publish(&k->identity, folder));
	/* The last: from here on the state is live. */
	TRY(put_file(AT_FDCWD, k->file, database->data, database->len, 0660));
	TRY(identity_id(&k->identity, &id));
	log_info("this host is %s", id);
	database_free(steal_ptr(&k->database));
	return database_open(&k->database, k->file, database->len);
}

static struct error *watch_database(struct keeper *k)
{
	return loop_add_fd(k->loop, database_fd(k->database), EPOLLIN, database_ready, k, &k->follower);
}

/* --- a stick that comes to a host without one --- */

/* Whether the host has been on a stick since it was booted. */
static bool has_stick(const struct keeper *k)
{
	static const uint8_t none[16];
	struct stick_mark mark;

	for (unsigned i = 0; i < k->stick_count; i++) {
		stick_mark(k->sticks[i], &mark);
		if (memcmp(mark.stick, none, sizeof(none)) != 0)
			return true;
	}
	return false;
}

/* The host's own state gives way: it is that of a first boot, to which nobody has added anything. */
static struct error *give_way(struct keeper *k, struct stick *stick)
{
	cleanup_buffer struct buffer database = {}, identity = {};
	struct stick_contents held = {};

	struct error *err = restore_from(k, stick, stick_offer(stick), &database, &identity);
	if (err) {
		stick_refuse(stick, error_text(err));
		error_free(err);
		return NULL;
	}
	buffer_free(&k->identity);
	k->identity = identity;
	identity = (struct buffer){};
	loop_remove(steal_ptr(&k->follower));
	TRY(put_state(k, &database));
	TRY(watch_database(k));
	stick_take(stick, &held);
	err = begin_stick(k, stick, &held, &database, true);
	stick_contents_free(&held);
	return err;
}

/* Goes over to the state of a stick that came late. The server lets go of the database meanwhile. */
static struct error *take_up(struct keeper *k, struct stick *stick)
{
	struct error *err = database_ask(k->options.server, "ovsdb-server/remove-db", DATABASE);

	if (err && (error_errno(err) == ENOENT || error_errno(err) == ECONNREFUSED)) {
		/* It is about to start: once more in a second. */
		error_free(err);
		return NULL;
	}
	TRY(err);
	k->detached = true;
	/* What came before it let go. */
	err = follow(k);
	if (!err && k->number == 1)
		err = give_way(k, stick);
	return error_first(err, attach_server(k));
}

/* Nothing of such a host is on a stick: what it was told is kept in memory, and was said to be. */
static void consider(struct keeper *k, struct stick *stick)
{
	bool empty = stick_offer(stick)->info.state == JOURNAL_EMPTY;
	struct stick_contents nothing;

	log_error(follow(k));
	if (has_stick(k))
		stick_refuse(stick, empty ? "it is empty: adopt it, or put the host's stick back"
					  : "it is another stick: adopt it, or put the host's stick back");
	else if (empty && k->options.adopt_empty)
		stick_take(stick, &nothing);
	else if (empty)
		stick_refuse(stick, "it is empty: adopt it");
	else if (k->live || k->number > 1 || !k->options.server)
		stick_refuse(stick,
			     "the host started without it, and may have been changed since: adopt it (what is on it "
			     "is lost), or restart the host (what was changed since is lost)");
	else
		log_error(take_up(k, stick));
}

static struct error *start_sticks(struct keeper *k, bool live)
{
	uint8_t writer[16];

	if (getrandom(writer, sizeof(writer), 0) != sizeof(writer))
		return error_new(errno, "draw the keeper's mark");
	for (unsigned i = 0; i < k->options.stick_count; i++) {
		struct stick_options options = {.path = k->options.sticks[i],
						.booted = k->options.booted,
						.wait_s = k->options.wait_s,
						.live = live,
						.adopt_empty = k->options.adopt_empty && !live,
						.changed = sticks_changed,
						.arg = k};
		cleanup_free char *text = NULL;
		char path[PATH_MAX];
		size_t len = 0;
		memcpy(options.mark.our_writer, writer, sizeof(writer));
		TRY(mark_path(k, i, path));
		if (live) {
			TRY(read_file(path, sizeof(options.mark), &text, &len));
			if (len != sizeof(options.mark))
				return error_new(EBADMSG, "read %s", path);
			memcpy(&options.mark, text, len);
		} else {
			TRY(put_file(AT_FDCWD, path, &options.mark, sizeof(options.mark), 0600));
		}
		k->marks[i] = options.mark;
		TRY(stick_new(&k->sticks[i], k->loop, &options));
		k->stick_count++;
	}
	return NULL;
}

static struct error *begin(struct keeper *k, struct stick_contents contents[STICKS_MAX])
{
	char path[PATH_MAX];
	cleanup_buffer struct buffer database = {};
	int fd = -1, source = -1;

	if (k->options.stick_count > STICKS_MAX)
		return error_new(EINVAL, "keep %u sticks: %u are the most", k->options.stick_count, STICKS_MAX);
	TRY(path_in(k, "database", path));
	if (mkdir(path, 0770) < 0 && errno != EEXIST)
		return error_new(errno, "make %s", path);
	TRY(path_in(k, "database/glint.db", k->file));
	k->live = access(k->file, F_OK) == 0;
	TRY(start_sticks(k, k->live));
	for (unsigned i = 0; i < k->stick_count; i++)
		stick_contents(k->sticks[i], k->options.wait_s + FIRST_OPEN_S, &contents[i]);
	if (k->live) {
		TRY(find_state(k, &database));
	} else {
		TRY(restore(k, contents, &database, &source));
		TRY(put_state(k, &database));
	}
	k->number = 1;
	for (unsigned i = 0; i < k->stick_count; i++)
		TRY(begin_stick(k, k->sticks[i], &contents[i], &database, k->live || source == (int)i));
	TRY(watch_database(k));
	TRY(loop_add_timer(k->loop, tick, k, &k->tick));
	loop_timer_set(k->tick, SECOND_NS);
	/* What came while the file was read. */
	TRY(follow(k));
	struct error *err = listen_at(k, &fd);
	if (err) {
		close_fd(&fd);
		return err;
	}
	return control_new(&k->control, k->loop, fd, -1, methods, k);
}

struct error *keeper_new(struct keeper **out, struct loop *loop, const struct keeper_options *options)
{
	struct stick_contents contents[STICKS_MAX] = {};
	struct keeper *k = calloc(1, sizeof(*k));

	if (!k)
		return error_new(ENOMEM, "start the keeper");
	k->loop = loop;
	k->options = *options;
	struct error *err = begin(k, contents);
	for (unsigned i = 0; i < STICKS_MAX; i++)
		stick_contents_free(&contents[i]);
	if (err) {
		keeper_free(k);
		return error_wrap(err, "start the keeper");
	}
	save_marks(k);
	look_at_health(k, true);
	*out = k;
	return NULL;
}

void keeper_free(struct keeper *k)
{
	if (!k)
		return;
	/* What was committed and not asked for yet; the sticks finish what they were given. */
	if (k->control)
		log_error(follow(k));
	for (unsigned i = 0; i < ARRAY_SIZE(k->waiters); i++)
		if (k->waiters[i].call)
			control_answer(k->waiters[i].call, error_new(ESHUTDOWN, "wait: the keeper ends"), NULL);
	for (unsigned i = 0; i < k->stick_count; i++)
		stick_free(k->sticks[i]);
	control_free(k->control);
	database_free(k->database);
	buffer_free(&k->identity);
	/* Nobody keeps anything from here on. */
	char path[PATH_MAX];
	struct error *err = path_in(k, "health.json", path);
	if (!err)
		unlink(path);
	error_free(err);
	free(k->told);
	free(k);
}
