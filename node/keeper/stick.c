/*
 * A stick's thread; see stick.h. The loop's thread leaves work under the mutex and reads status there; the thread does
 * all that touches the device without the mutex.
 */
#include "node/keeper/stick.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Between two tries of a stick that failed; each is twice as long as the one before. */
#define RETRY_FIRST_S 1u
#define RETRY_LAST_S  1024u
#define LEAVE_S       10

/* How often is looked for one that comes; at the start, and how long none may come before one is chosen. */
#define LOOK_MS       1000u
#define LOOK_FIRST_MS 200u
#define SETTLE_MS     3000u

/* What may wait for a stick that does not answer; more is dropped, and made good by a snapshot. */
#define WORK_MAX (8 * MIB)

struct work {
	bool snapshot;
	struct buffer database, identity;
	unsigned changes;
	uint64_t number;
};

struct stick {
	struct loop *loop;
	struct stick_options options;
	char path[256];
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wake, opened;

	/* Under the mutex. */
	struct stick_status status;
	struct stick_mark mark;
	struct stick_contents contents;
	struct work work;
	bool has_work, adopt, leave, left;
	bool first_done;               /* the host has its state: from here on only the stick of the mark is its own */
	char adopted[CHOOSE_PATH_MAX]; /* with adopt: which one, or empty */
	uint64_t arrival;              /* of status.device */

	/* The thread's. */
	uint64_t arrivals; /* when it was looked at last */
	unsigned retry_s;  /* until a stick that failed is tried again */
	struct timespec retry_at;
	char device[CHOOSE_PATH_MAX]; /* what was opened last */
	int fd;
	struct journal_file file;
	struct journal *journal;
};

static void tell(void *arg)
{
	struct stick *s = arg;

	s->options.changed(s->options.arg);
}

/* --- the thread --- */

static struct timespec after_ms(unsigned ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_nsec += (long)(ms % 1000) * 1000000;
	t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	return t;
}

static void set_retry(struct stick *s)
{
	s->retry_s = s->retry_s ? MIN(2 * s->retry_s, RETRY_LAST_S) : RETRY_FIRST_S;
	s->retry_at = after_ms(s->retry_s * 1000);
}

static struct error *take(void *arg, const struct journal_item *item)
{
	struct stick_contents *c = arg;

	if (item->kind == JOURNAL_DATABASE)
		return buffer_add(&c->database, item->data, item->len);
	c->identity.len = 0;
	return buffer_add(&c->identity, item->data, item->len);
}

void stick_contents_free(struct stick_contents *c)
{
	buffer_free(&c->database);
	buffer_free(&c->identity);
}
#define cleanup_contents __attribute__((cleanup(stick_contents_free)))

static void detach(struct stick *s)
{
	journal_close(s->journal);
	s->journal = NULL;
	close_fd(&s->fd);
}

static struct error *attach(struct stick *s, const char *device, struct stick_contents *contents)
{
	detach(s);
	s->fd = open(device, O_RDWR | O_CLOEXEC | O_DIRECT);
	/* Some file systems, of a stick that is a file, do not have it. */
	if (s->fd < 0 && errno == EINVAL)
		s->fd = open(device, O_RDWR | O_CLOEXEC);
	if (s->fd < 0)
		return error_new(errno, "open %s", device);
	snprintf(s->device, sizeof(s->device), "%s", device);
	TRY(journal_file_init(&s->file, s->fd, s->device));
	TRY(journal_open(&s->journal, &s->file.io, s->mark.our_writer, take, contents));
	journal_info(s->journal, &contents->info);
	return NULL;
}

static bool is_unchanged(const struct stick_mark *mark, const struct journal_info *info)
{
	return memcmp(mark->our_writer, info->writer, 16) == 0 ||
	       (memcmp(mark->stick, info->stick, 16) == 0 && memcmp(mark->seen_writer, info->writer, 16) == 0 &&
		mark->seen_sequence == info->sequence);
}

static bool is_marked(const struct stick_mark *mark)
{
	static const uint8_t none[sizeof(mark->stick)];

	return memcmp(mark->stick, none, sizeof(none)) != 0;
}

/* What becomes of a stick that could be opened. STICK_OPENING: the host has none, this one is offered to it. */
static enum stick_state judge(const struct stick *s, const struct journal_info *info, const char **why)
{
	bool running = s->options.live || s->first_done;

	*why = "";
	if (running && info->state != JOURNAL_DAMAGED && !is_marked(&s->mark))
		return STICK_OPENING;
	if (info->state == JOURNAL_EMPTY) {
		if (s->options.adopt_empty && !running)
			return STICK_KEPT;
		*why = "it is empty: adopt it, or put the host's stick back";
		return STICK_REFUSED;
	}
	if (running && is_marked(&s->mark) && !is_unchanged(&s->mark, info)) {
		*why = memcmp(s->mark.stick, info->stick, 16) != 0
			       ? "it is another stick: adopt it, or put the host's stick back"
			       : "it was changed elsewhere meanwhile: adopt it, or start the host from it";
		return STICK_REFUSED;
	}
	if (info->state == JOURNAL_DAMAGED) {
		*why = info->damage;
		return STICK_REFUSED;
	}
	return STICK_KEPT;
}

static enum stick_state state_of(const struct error *err)
{
	switch (error_errno(err)) {
	case ENOENT:
	case ENXIO:
	case ENOMEDIUM:
		return STICK_ABSENT;
	/* These may pass. */
	case EACCES:
	case EBUSY:
	case EIO:
	case ENOMEM:
	case EPERM:
		return STICK_FAILED;
	default:
		return STICK_REFUSED;
	}
}

/* The stick that has this on it is the host's own. */
static void remember(struct stick *s, const struct journal_info *info)
{
	memcpy(s->mark.stick, info->stick, 16);
	memcpy(s->mark.seen_writer, info->writer, 16);
	s->mark.seen_sequence = info->sequence;
}

/* The stick by name: the one of the folder, where it is known. */
static const char *name(const struct stick *s)
{
	return s->status.device[0] ? s->status.device : s->path;
}

static void set_state(struct stick *s, enum stick_state state, const char *why)
{
	if (s->status.state != state || strcmp(s->status.why, why) != 0) {
		if (state == STICK_KEPT)
			log_info("%s: %s", name(s), s->first_done ? "is the host's, gets what it lacks" : "opened");
		else if (state == STICK_OPENING)
			log_info("%s: came to a host that has no stick", name(s));
		else
			log_warn("%s: %s; changes are in memory only", name(s), why);
	}
	s->status.state = state;
	snprintf(s->status.why, sizeof(s->status.why), "%s", why);
}

/* What was looked at is remembered, so that it is looked at once. */
static struct error *find(struct stick *s, const char *adopted, char device[CHOOSE_PATH_MAX])
{
	struct stick_mark mark;

	stick_mark(s, &mark);
	s->arrivals = choose_arrivals(s->path, s->options.booted, mark.stick);
	if (!adopted[0])
		return choose_stick(s->path, s->options.booted, mark.stick, device);
	strcpy(device, adopted);
	return NULL;
}

/* Under the mutex. */
static void settle(struct stick *s, enum stick_state state, const char *why, struct stick_contents *contents)
{
	/* The host starts from what is proven good of a damaged one, too. */
	bool starts = !s->first_done && !s->options.live;

	if (contents->info.state != JOURNAL_EMPTY && (state == STICK_KEPT || starts))
		remember(s, &contents->info);
	set_state(s, state, why);
	s->status.info = contents->info;
	s->status.offers = state == STICK_OPENING;
	/* What was handed over while it was away is not all that it missed. */
	s->status.wants_snapshot = state == STICK_KEPT && s->first_done;
	if (!s->first_done || s->status.offers) {
		stick_contents_free(&s->contents);
		s->contents = *contents;
		*contents = (struct stick_contents){};
	}
	s->first_done = true;
}

/* Opens the stick and says what is to become of it. What it holds is kept for a host that has no state, or no stick. */
static void try_open(struct stick *s, bool adopt, const char *adopted)
{
	cleanup_contents struct stick_contents contents = {};
	char device[CHOOSE_PATH_MAX] = "";
	const char *why = "";
	struct error *err = find(s, adopted, device);
	uint64_t arrival = choose_arrival(device);

	if (!err)
		err = attach(s, device, &contents);
	/* The beginning of what cannot be read is nothing to start from. */
	if (err)
		stick_contents_free(&contents);
	pthread_mutex_lock(&s->mutex);
	enum stick_state state = err ? state_of(err) : judge(s, &contents.info, &why);
	if (!err && adopt && state != STICK_KEPT) {
		journal_accept_loss(s->journal);
		state = STICK_KEPT;
		why = "";
	}
	if (state == STICK_FAILED)
		set_retry(s);
	s->arrival = arrival;
	snprintf(s->status.device, sizeof(s->status.device), "%s", arrival ? device : "");
	settle(s, state, err ? error_text(err) : why, &contents);
	bool keep = state == STICK_KEPT || s->status.offers;
	pthread_cond_broadcast(&s->opened);
	pthread_mutex_unlock(&s->mutex);
	if (!keep)
		detach(s);
	error_free(err);
	loop_post(s->loop, tell, s);
}

static struct error *carry(struct stick *s, const struct work *w, bool *too_large)
{
	struct journal_item items[2] = {{JOURNAL_DATABASE, w->database.data, w->database.len},
					{JOURNAL_IDENTITY, w->identity.data, w->identity.len}};

	*too_large = false;
	if (w->snapshot)
		return journal_snapshot(s->journal, items, 2);
	if (!journal_fits(s->journal, w->database.len, 1)) {
		*too_large = true;
		return NULL;
	}
	return journal_append(s->journal, items, 1, w->changes);
}

static void work_free(struct work *w)
{
	buffer_free(&w->database);
	buffer_free(&w->identity);
	*w = (struct work){};
}

static void do_work(struct stick *s, struct work *w)
{
	bool too_large;
	struct error *err = carry(s, w, &too_large);

	pthread_mutex_lock(&s->mutex);
	journal_info(s->journal, &s->status.info);
	if (err) {
		s->status.state = STICK_FAILED;
		set_retry(s);
		snprintf(s->status.why, sizeof(s->status.why), "%s", error_text(err));
		log_err("%s; changes are in memory only", error_text(err));
	} else if (too_large) {
		/* What came meanwhile does not follow what is on the stick; the snapshot has it. */
		if (!s->work.snapshot) {
			work_free(&s->work);
			s->has_work = false;
			s->status.wants_snapshot = true;
		}
	} else {
		s->status.durable = w->number;
		if (w->snapshot)
			log_info("%s: holds the host's state (generation %llu)", name(s),
				 (unsigned long long)s->status.info.generation);
		memcpy(s->mark.stick, s->status.info.stick, 16);
		s->retry_s = 0;
	}
	pthread_mutex_unlock(&s->mutex);
	error_free(err);
	loop_post(s->loop, tell, s);
}

static bool is_over(const struct timespec *until)
{
	struct timespec now = after_ms(0);

	return now.tv_sec > until->tv_sec || (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec);
}

/* Whether a stick that is not kept is to be opened: another one came, or the one that failed had its time. */
static bool is_due(struct stick *s)
{
	uint64_t arrivals = choose_arrivals(s->path, s->options.booted, s->mark.stick);

	if (arrivals != s->arrivals) {
		s->retry_s = 0;
		return true;
	}
	return s->status.state == STICK_FAILED && s->retry_s && is_over(&s->retry_at);
}

/* Waits for something to do; true when that is to open the stick. Under the mutex, as all that follows. */
static bool wait_for_work(struct stick *s)
{
	while (!s->leave && !s->adopt && !s->has_work) {
		struct timespec until = after_ms(LOOK_MS);
		if (s->status.state == STICK_KEPT || s->status.offers)
			pthread_cond_wait(&s->wake, &s->mutex);
		else if (pthread_cond_timedwait(&s->wake, &s->mutex, &until) == ETIMEDOUT && is_due(s))
			return true;
	}
	return s->adopt && !s->leave;
}

/*
 * A slow stick is worth waiting for: a host that starts without it makes a state of its own. Of several the first to
 * come is not the right one for that.
 */
static void wait_for_first(struct stick *s)
{
	struct timespec until = after_ms(s->options.live ? 0 : s->options.wait_s * 1000), settled = after_ms(SETTLE_MS);
	uint64_t before = 0;

	while (!s->leave && !is_over(&until)) {
		struct timespec next = after_ms(LOOK_FIRST_MS);
		uint64_t arrivals = choose_arrivals(s->path, s->options.booted, s->mark.stick);
		if (arrivals && !choose_is_folder(s->path))
			return;
		if (arrivals != before)
			settled = after_ms(SETTLE_MS);
		before = arrivals;
		if (arrivals && is_over(&settled))
			return;
		pthread_cond_timedwait(&s->wake, &s->mutex, &next);
	}
}

static void *run(void *arg)
{
	struct stick *s = arg;

	pthread_mutex_lock(&s->mutex);
	wait_for_first(s);
	pthread_mutex_unlock(&s->mutex);
	try_open(s, false, "");
	pthread_mutex_lock(&s->mutex);
	for (;;) {
		bool due = wait_for_work(s);
		if (s->has_work && s->status.state == STICK_KEPT) {
			struct work w = s->work;
			s->work = (struct work){};
			s->has_work = false;
			pthread_mutex_unlock(&s->mutex);
			do_work(s, &w);
			work_free(&w);
			pthread_mutex_lock(&s->mutex);
			continue;
		}
		work_free(&s->work);
		s->has_work = false;
		if (s->leave)
			break;
		if (!due)
			continue;
		char adopted[CHOOSE_PATH_MAX];
		bool adopt = s->adopt;
		strcpy(adopted, adopt ? s->adopted : "");
		s->adopt = false;
		pthread_mutex_unlock(&s->mutex);
		try_open(s, adopt, adopted);
		pthread_mutex_lock(&s->mutex);
	}
	s->left = true;
	pthread_cond_broadcast(&s->opened);
	pthread_mutex_unlock(&s->mutex);
	return NULL;
}

/* --- the loop's thread --- */

static struct timespec in_seconds(unsigned seconds)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += seconds;
	return t;
}

struct error *stick_new(struct stick **out, struct loop *loop, const struct stick_options *options)
{
	struct stick *s = calloc(1, sizeof(*s));
	pthread_condattr_t monotonic;

	if (!s)
		return error_new(ENOMEM, "keep %s", options->path);
	s->loop = loop;
	s->options = *options;
	s->fd = -1;
	snprintf(s->path, sizeof(s->path), "%s", options->path);
	s->options.path = s->path;
	s->mark = options->mark;
	pthread_mutex_init(&s->mutex, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&s->wake, &monotonic);
	pthread_cond_init(&s->opened, &monotonic);
	int res = pthread_create(&s->thread, NULL, run, s);
	if (res) {
		free(s);
		return error_new(res, "start the thread of %s", options->path);
	}
	*out = s;
	return NULL;
}

void stick_free(struct stick *s)
{
	if (!s)
		return;
	struct timespec until = in_seconds(LEAVE_S);
	pthread_mutex_lock(&s->mutex);
	s->leave = true;
	pthread_cond_signal(&s->wake);
	while (!s->left && pthread_cond_timedwait(&s->opened, &s->mutex, &until) == 0)
		;
	bool left = s->left;
	pthread_mutex_unlock(&s->mutex);
	if (!left) {
		/* The device never answered: it keeps its thread, and what that needs. */
		log_warn("%s: does not answer, is left behind", s->path);
		return;
	}
	pthread_join(s->thread, NULL);
	detach(s);
	stick_contents_free(&s->contents);
	work_free(&s->work);
	free(s);
}

const char *stick_path(const struct stick *s)
{
	return s->path;
}

void stick_contents(struct stick *s, unsigned seconds, struct stick_contents *contents)
{
	struct timespec until = in_seconds(seconds);

	pthread_mutex_lock(&s->mutex);
	while (!s->first_done && pthread_cond_timedwait(&s->opened, &s->mutex, &until) == 0)
		;
	/* Too late for the host to start from it: what comes to light on it later is another's. */
	s->first_done = true;
	*contents = (struct stick_contents){};
	/* What is offered is not handed over before it is taken. */
	if (!s->status.offers) {
		*contents = s->contents;
		s->contents = (struct stick_contents){};
	}
	pthread_mutex_unlock(&s->mutex);
}

void stick_status(struct stick *s, struct stick_status *status)
{
	pthread_mutex_lock(&s->mutex);
	*status = s->status;
	pthread_mutex_unlock(&s->mutex);
}

void stick_mark(struct stick *s, struct stick_mark *mark)
{
	pthread_mutex_lock(&s->mutex);
	*mark = s->mark;
	pthread_mutex_unlock(&s->mutex);
}

void stick_refuse(struct stick *s, const char *why)
{
	pthread_mutex_lock(&s->mutex);
	if (s->status.state == STICK_KEPT || s->status.offers)
		set_state(s, STICK_REFUSED, why);
	s->status.offers = false;
	stick_contents_free(&s->contents);
	/* Nor is it the host's own later. */
	memset(s->mark.stick, 0, 16);
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->mutex);
}

void stick_is_current(struct stick *s, uint64_t number)
{
	pthread_mutex_lock(&s->mutex);
	s->status.durable = number;
	pthread_mutex_unlock(&s->mutex);
}

struct error *stick_append(struct stick *s, const struct buffer *database, unsigned changes, uint64_t number)
{
	struct error *err = NULL;

	pthread_mutex_lock(&s->mutex);
	/* Where a snapshot is due it will have this too. */
	if (s->status.state == STICK_KEPT && !s->status.wants_snapshot) {
		err = buffer_add(&s->work.database, database->data, database->len);
		s->work.changes += changes;
		s->work.number = number;
		s->has_work = true;
		/* A change that is missing can only be made good by a snapshot. */
		if (err || s->work.database.len > WORK_MAX) {
			work_free(&s->work);
			s->has_work = false;
			s->status.wants_snapshot = true;
		}
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->mutex);
	return error_wrap(err, "hand a change to %s", s->path);
}

struct error *stick_snapshot(struct stick *s, const struct buffer *database, const struct buffer *identity,
			     uint64_t number)
{
	struct work work = {.snapshot = true, .number = number};
	struct error *err = buffer_add(&work.database, database->data, database->len);

	if (!err)
		err = buffer_add(&work.identity, identity->data, identity->len);
	if (err) {
		work_free(&work);
		return error_wrap(err, "hand a snapshot to %s", s->path);
	}
	pthread_mutex_lock(&s->mutex);
	if (s->status.state == STICK_KEPT) {
		work_free(&s->work);
		s->work = work;
		work = (struct work){};
		s->has_work = true;
		s->status.wants_snapshot = false;
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->mutex);
	work_free(&work);
	return NULL;
}

const struct stick_contents *stick_offer(struct stick *s)
{
	pthread_mutex_lock(&s->mutex);
	/* While it is offered the thread waits for a word. */
	bool offers = s->status.offers;
	pthread_mutex_unlock(&s->mutex);
	return offers ? &s->contents : NULL;
}

void stick_take(struct stick *s, struct stick_contents *contents)
{
	pthread_mutex_lock(&s->mutex);
	*contents = s->contents;
	s->contents = (struct stick_contents){};
	if (s->status.offers) {
		s->status.wants_snapshot = contents->info.state == JOURNAL_EMPTY;
		if (!s->status.wants_snapshot)
			remember(s, &contents->info);
		set_state(s, STICK_KEPT, "");
		s->status.offers = false;
	}
	pthread_mutex_unlock(&s->mutex);
}

void stick_look(struct stick *s)
{
	pthread_mutex_lock(&s->mutex);
	bool open = s->status.state == STICK_KEPT || s->status.offers;
	/* The name is udev's: to look at it is not to touch the device. Another device behind it is another stick. */
	if (open && choose_arrival(s->status.device) != s->arrival) {
		set_state(s, STICK_ABSENT, "it was pulled");
		s->status.offers = false;
		stick_contents_free(&s->contents);
		/* Whatever is there now is to be looked at. */
		s->arrivals = 0;
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->mutex);
}

void stick_adopt(struct stick *s, const char *device)
{
	pthread_mutex_lock(&s->mutex);
	s->adopt = s->status.state != STICK_KEPT;
	snprintf(s->adopted, sizeof(s->adopted), "%s", device ? device : "");
	s->status.offers = false;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->mutex);
}

bool stick_has_path(const struct stick *s, const char *path)
{
	size_t len = strlen(s->path);

	return strncmp(path, s->path, len) == 0 &&
	       (path[len] == '\0' || (path[len] == '/' && !strchr(path + len + 1, '/')));
}
