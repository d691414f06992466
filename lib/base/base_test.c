/*
 * lib/base as its users see it: errors, sizes and numbers, whole reads, ownership, logging, the event loop, and an
 * opener that is asked for what it must not give.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/opener.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <cmocka.h>

#define assert_ok(expr)                                                                                                \
	do {                                                                                                           \
		struct error *err_ = (expr);                                                                           \
		if (err_)                                                                                              \
			fail_msg("%s", error_text(err_));                                                              \
	} while (0)

/* There is an error, and its message has @words in it. */
#define assert_error(expr, words)                                                                                      \
	do {                                                                                                           \
		struct error *err_ = (expr);                                                                           \
		if (!err_)                                                                                             \
			fail_msg("no error, expected: %s", words);                                                     \
		if (!strstr(error_text(err_), words))                                                                  \
			fail_msg("error '%s' does not have '%s' in it", error_text(err_), words);                      \
		error_free(err_);                                                                                      \
	} while (0)

/* --- errors --- */

static void error_messages(void **state)
{
	struct error *e = error_new(ENOENT, "open disk %s", "/pool/a.raw");

	assert_string_equal(error_text(e), "open disk /pool/a.raw: No such file or directory");
	assert_int_equal(error_errno(e), ENOENT);
	assert_null(error_hint_text(e));
	e = error_hint(e, "make it with %s", "glint disk create");
	e = error_hint(e, "the innermost hint stays");
	e = error_wrap(e, "start VM %d", 7);
	assert_string_equal(error_text(e), "start VM 7: open disk /pool/a.raw: No such file or directory");
	assert_string_equal(error_hint_text(e), "make it with glint disk create");
	assert_int_equal(error_errno(e), ENOENT);
	error_free(e);

	e = error_new(0, "100%% full");
	assert_string_equal(error_text(e), "100% full");
	assert_int_equal(error_errno(e), 0);
	error_free(e);

	assert_null(error_wrap(NULL, "nothing"));
	assert_null(error_hint(NULL, "nothing"));
	error_free(NULL);
}

static struct error *tries(struct error *e, bool *went_on)
{
	TRY(e);
	*went_on = true;
	return NULL;
}

static void try_returns_errors(void **state)
{
	bool went_on = false;

	assert_error(tries(error_new(0, "stop"), &went_on), "stop");
	assert_false(went_on);
	assert_ok(tries(NULL, &went_on));
	assert_true(went_on);
}

/* --- ownership --- */

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static int open_and_return(bool steal, int *seen)
{
	cleanup_fd int fd = eventfd(0, EFD_CLOEXEC);

	*seen = fd;
	return steal ? steal_fd(&fd) : -1;
}

static void ownership(void **state)
{
	int seen;

	assert_int_equal(open_and_return(false, &seen), -1);
	assert_false(is_open(seen));
	int fd = open_and_return(true, &seen);
	assert_int_equal(fd, seen);
	assert_true(is_open(fd));
	close_fd(&fd);
	assert_int_equal(fd, -1);
	assert_false(is_open(seen));
	close_fd(&fd);

	char *text = strdup("text"), *original = text;
	cleanup_free char *stolen = steal_ptr(&text);
	assert_null(text);
	assert_ptr_equal(stolen, original);
	{
		cleanup_fd int none = -1;
		cleanup_file FILE *no_file = NULL;
		cleanup_dir DIR *no_dir = NULL;
		cleanup_error struct error *e = error_new(0, "ended by its cleanup");
		assert_int_equal(none, -1);
		assert_null(no_file);
		assert_null(no_dir);
		assert_non_null(e);
	}
}

/* --- arithmetic, sizes, numbers --- */

static void arithmetic(void **state)
{
	assert_int_equal(MIN(3, 5), 3);
	assert_int_equal(MAX(3, 5), 5);
	assert_int_equal(align_up(1, 4096), 4096);
	assert_int_equal(align_up(4096, 4096), 4096);
	assert_int_equal(align_down(8191, 4096), 4096);
	assert_true(is_aligned(8192, 4096));
	assert_false(is_aligned(8193, 4096));
	assert_true(range_inside(0, 0, 0));
	assert_true(range_inside(10, 0, 10));
	assert_true(range_inside(0, 10, 10));
	assert_false(range_inside(11, 0, 10));
	assert_false(range_inside(1, 10, 10));
	assert_false(range_inside(UINT64_MAX, 2, 10));
	assert_false(range_inside(2, UINT64_MAX, 10));
	assert_false(range_inside(UINT64_MAX, UINT64_MAX, UINT64_MAX));
	assert_true(range_inside(0, UINT64_MAX, UINT64_MAX));
}

static void sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {{"0", 0},
		    {"4096", 4096},
		    {"1B", 1},
		    {"64K", 64 * KIB},
		    {"64kb", 64 * KIB},
		    {"3KiB", 3 * KIB},
		    {"512M", 512 * MIB},
		    {"4G", 4 * GIB},
		    {"4gib", 4 * GIB},
		    {"64T", 64 * TIB},
		    {"18446744073709551615", UINT64_MAX},
		    {"16777215T", 16777215 * TIB}};
	static const char *const bad[] = {"",     "G",   "-1",  "+1",  " 1", "1 ", "1 G", "1.5G",
					  "0x10", "1e3", "1GG", "1Gi", "1P", "K1", "१",   "9999999999999999999999X"};
	static const char *const many[] = {"18446744073709551616", "16777216T", "99999999999999999999K"};
	uint64_t bytes;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_ok(parse_size(good[i].text, "memory", &bytes));
		assert_int_equal(bytes, good[i].bytes);
	}
	bytes = 42;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_error(parse_size(bad[i], "memory", &bytes), "is not a size");
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		assert_error(parse_size(many[i], "memory", &bytes), "is more than can be counted");
	assert_int_equal(bytes, 42);
	assert_error(parse_size("x", "--memory", &bytes), "--memory: 'x'");
}

static void numbers(void **state)
{
	static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "0x10", "1.0", "one", "1,000"};
	uint64_t n = 42;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_error(parse_number(bad[i], "CPUs", 0, UINT64_MAX, &n), "is not a whole number");
	assert_error(parse_number("0", "CPUs", 1, 256, &n), "CPUs: 0 is out of range");
	assert_error(parse_number("257", "CPUs", 1, 256, &n), "out of range");
	assert_error(parse_number("18446744073709551616", "CPUs", 0, UINT64_MAX, &n), "out of range");
	assert_int_equal(n, 42);
	assert_ok(parse_number("1", "CPUs", 1, 256, &n));
	assert_int_equal(n, 1);
	assert_ok(parse_number("00256", "CPUs", 1, 256, &n));
	assert_int_equal(n, 256);
	assert_ok(parse_number("18446744073709551615", "CPUs", 0, UINT64_MAX, &n));
	assert_true(n == UINT64_MAX);
	struct error *e = parse_number("0", "CPUs", 1, 256, &n);
	assert_string_equal(error_hint_text(e), "give a number from 1 to 256");
	error_free(e);
}

/* --- files --- */

static char dir_path[] = "/tmp/base_test.XXXXXX";
static int dir_fd = -1;

static const char *in_dir(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", dir_path, name);
	return path;
}

static void make_file(const char *name, const char *text)
{
	cleanup_fd int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_ok(write_all(fd, text, strlen(text), name));
}

static int make_dir(void **state)
{
	if (!mkdtemp(dir_path))
		return -1;
	dir_fd = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir_fd < 0 ? -1 : 0;
}

static int remove_dir(void **state)
{
	cleanup_free char *command = NULL;

	close_fd(&dir_fd);
	if (asprintf(&command, "rm -r '%s'", dir_path) < 0)
		return -1;
	return system(command);
}

static void whole_files(void **state)
{
	cleanup_free char *text = NULL, *empty = NULL;
	char *none = NULL;
	size_t len;

	make_file("text", "hello");
	assert_ok(read_file(in_dir("text"), 5, &text, &len));
	assert_int_equal(len, 5);
	assert_string_equal(text, "hello");
	assert_error(read_file(in_dir("text"), 4, &none, &len), "it has 5 bytes, the limit is 4");
	make_file("empty", "");
	assert_ok(read_file(in_dir("empty"), 0, &empty, &len));
	assert_int_equal(len, 0);
	assert_string_equal(empty, "");
	assert_error(read_file(in_dir("absent"), 10, &none, &len), "No such file or directory");
	assert_error(read_file(dir_path, 10, &none, &len), "it is not a regular file");
	assert_error(read_file("/dev/zero", 10, &none, &len), "it is not a regular file");
	/* Without a writer, an open that waits would hang here. */
	assert_int_equal(mkfifoat(dir_fd, "fifo", 0600), 0);
	assert_error(read_file(in_dir("fifo"), 10, &none, &len), "it is not a regular file");
	assert_null(none);
}

static void whole_reads(void **state)
{
	char buf[8] = "";

	make_file("eight", "12345678");
	cleanup_fd int fd = openat(dir_fd, "eight", O_RDWR | O_CLOEXEC);
	assert_ok(read_all(fd, buf, 6, "eight"));
	assert_error(read_all(fd, buf, 3, "eight"), "read eight: it ends after 2 of 3 bytes");
	assert_ok(pread_all(fd, buf, 8, 0, "eight"));
	assert_memory_equal(buf, "12345678", 8);
	assert_error(pread_all(fd, buf, 8, 1, "eight"), "it ends after 7 of 8 bytes");
	assert_ok(pwrite_all(fd, "xy", 2, 7, "eight"));
	assert_ok(pread_all(fd, buf, 8, 1, "eight"));
	assert_memory_equal(buf, "234567xy", 8);
	assert_error(write_all(-1, "x", 1, "nothing"), "write nothing: Bad file descriptor");
	assert_error(read_all(-1, buf, 1, "nothing"), "read nothing: Bad file descriptor");
}

static void *slow_writer(void *arg)
{
	int fd = *(int *)arg;

	for (int i = 0; i < 64; i++) {
		char byte = (char)i;
		if (write(fd, &byte, 1) != 1)
			break;
		sched_yield();
	}
	close(fd);
	return NULL;
}

static void reads_go_on_after_short_ones(void **state)
{
	int fds[2];
	char buf[64];
	pthread_t thread;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&thread, NULL, slow_writer, &fds[1]), 0);
	assert_ok(read_all(fds[0], buf, sizeof(buf), "pipe"));
	for (int i = 0; i < 64; i++)
		assert_int_equal(buf[i], i);
	pthread_join(thread, NULL);
	close(fds[0]);
}

/* --- logging --- */

static void logging(void **state)
{
	int fds[2], old = dup(STDERR_FILENO);
	char buf[8192], *longest = calloc(1, 5001);

	if (pipe2(fds, O_CLOEXEC) < 0 || old < 0)
		fail();
	dup2(fds[1], STDERR_FILENO);
	memset(longest, 'x', 5000);
	unsetenv("JOURNAL_STREAM");
	log_init("test", LOG_LEVEL_WARNING);
	log_info("not important enough");
	log_warn("number %d", 5);
	log_error(NULL);
	log_error(error_hint(error_new(0, "what"), "how"));
	setenv("JOURNAL_STREAM", "1:2", 1);
	log_init("test", LOG_LEVEL_DEBUG);
	log_debug("small");
	log_err("%s", longest);
	unsetenv("JOURNAL_STREAM");
	log_init("base_test", LOG_LEVEL_INFO);
	dup2(old, STDERR_FILENO);
	close(old);
	close(fds[1]);
	free(longest);

	ssize_t n = read(fds[0], buf, sizeof(buf) - 1);
	close(fds[0]);
	assert_true(n > 0);
	buf[n] = '\0';
	static const char want[] = "test: number 5\ntest: what\ntest: hint: how\n<7>small\n<3>xxx";
	assert_memory_equal(buf, want, sizeof(want) - 1);
	assert_int_equal(buf[n - 1], '\n');
	assert_in_range(n, 1500, 4000);
}

/* --- the event loop --- */

struct watch {
	struct loop *loop;
	struct loop_source *source, *other;
	int calls;
	uint32_t events;
};

static void quit_on_data(void *arg, int fd, uint32_t events)
{
	struct watch *w = arg;
	uint64_t count;

	w->calls++;
	w->events = events;
	assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
	loop_quit(w->loop);
}

static void quit_now(void *arg)
{
	struct watch *w = arg;

	w->calls++;
	loop_quit(w->loop);
}

static int ready_fd(void)
{
	int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_true(fd >= 0);
	return fd;
}

static void loop_descriptors(void **state)
{
	struct watch w = {0};
	cleanup_fd int fd = ready_fd();

	assert_ok(loop_new(&w.loop));
	assert_ok(loop_add_fd(w.loop, fd, EPOLLIN, quit_on_data, &w, &w.source));
	assert_ok(loop_run(w.loop));
	assert_int_equal(w.calls, 1);
	assert_int_equal(w.events, EPOLLIN);
	assert_error(loop_add_fd(w.loop, -1, EPOLLIN, quit_on_data, &w, NULL), "Bad file descriptor");
	assert_error(loop_add_fd(w.loop, fd, EPOLLIN, quit_on_data, &w, NULL), "File exists");
	loop_free(w.loop);
	assert_true(is_open(fd));
	loop_free(NULL);
	loop_remove(NULL);
}

/* A source at rest stays silent, whatever happens to its descriptor; a timer ends the wait. */
static void loop_rest(void **state)
{
	struct watch w = {0};
	struct watch timer = {0};
	cleanup_fd int fd = ready_fd();

	assert_ok(loop_new(&w.loop));
	timer.loop = w.loop;
	assert_ok(loop_add_fd(w.loop, fd, EPOLLIN, quit_on_data, &w, &w.source));
	assert_ok(loop_add_timer(w.loop, quit_now, &timer, &timer.source));
	assert_ok(loop_set_events(w.source, 0));
	loop_timer_set(timer.source, 5000000);
	assert_ok(loop_run(w.loop));
	assert_int_equal(w.calls, 0);
	assert_int_equal(timer.calls, 1);
	assert_ok(loop_set_events(w.source, EPOLLIN));
	assert_ok(loop_run(w.loop));
	assert_int_equal(w.calls, 1);
	loop_free(w.loop);
}

/* A hang-up is no event for a source that rests: epoll would report it over and over. */
static void loop_rest_with_a_gone_peer(void **state)
{
	struct watch w = {0}, timer = {0};
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	close(ends[1]);
	assert_ok(loop_new(&w.loop));
	timer.loop = w.loop;
	assert_ok(loop_add_fd(w.loop, ends[0], EPOLLIN, quit_on_data, &w, &w.source));
	assert_ok(loop_set_events(w.source, 0));
	assert_ok(loop_set_events(w.source, 0));
	assert_ok(loop_add_timer(w.loop, quit_now, &timer, &timer.source));
	loop_timer_set(timer.source, 5000000);
	assert_ok(loop_run(w.loop));
	assert_int_equal(w.calls, 0);
	loop_remove(w.source);
	loop_free(w.loop);
	close(ends[0]);
}

/* A timer fires once, and a disarmed one not at all. */
static void loop_timers(void **state)
{
	struct watch late = {0}, disarmed = {0}, once = {0};
	struct loop *loop;

	assert_ok(loop_new(&loop));
	late.loop = disarmed.loop = once.loop = loop;
	assert_ok(loop_add_timer(loop, quit_now, &disarmed, &disarmed.source));
	assert_ok(loop_add_timer(loop, quit_now, &once, &once.source));
	assert_ok(loop_add_timer(loop, quit_now, &late, &late.source));
	loop_timer_set(disarmed.source, 1);
	loop_timer_set(disarmed.source, 0);
	loop_timer_set(once.source, 1);
	assert_ok(loop_run(loop));
	assert_int_equal(once.calls, 1);
	loop_timer_set(late.source, 20000000);
	assert_ok(loop_run(loop));
	assert_int_equal(once.calls, 1);
	assert_int_equal(late.calls, 1);
	assert_int_equal(disarmed.calls, 0);
	loop_free(loop);
}

static void remove_both(void *arg, int fd, uint32_t events)
{
	struct watch *w = arg;

	w->calls++;
	loop_remove(w->source);
	loop_remove(w->other);
	loop_remove(w->other);
}

/* Both are ready in one batch; the first to run ends both, so that the second never does. */
static void loop_removal_in_a_handler(void **state)
{
	struct watch w[2] = {0};
	struct watch timer = {0};
	cleanup_fd int a = ready_fd();
	cleanup_fd int b = ready_fd();
	struct loop *loop;

	assert_ok(loop_new(&loop));
	timer.loop = w[0].loop = w[1].loop = loop;
	assert_ok(loop_add_fd(loop, a, EPOLLIN, remove_both, &w[0], &w[0].source));
	assert_ok(loop_add_fd(loop, b, EPOLLIN, remove_both, &w[1], &w[1].source));
	w[0].other = w[1].source;
	w[1].other = w[0].source;
	assert_ok(loop_add_timer(loop, quit_now, &timer, &timer.source));
	loop_timer_set(timer.source, 5000000);
	assert_ok(loop_run(loop));
	assert_int_equal(w[0].calls + w[1].calls, 1);
	loop_free(loop);
}

struct poster {
	struct loop *loop;
	pthread_t loop_thread;
	int posts;
};

static void posted(void *arg)
{
	struct poster *p = arg;

	assert_true(pthread_equal(pthread_self(), p->loop_thread));
	p->posts++;
}

static void posted_last(void *arg)
{
	struct poster *p = arg;

	loop_quit(p->loop);
}

static void *post_many(void *arg)
{
	struct poster *p = arg;

	for (int i = 0; i < 10000; i++)
		loop_post(p->loop, posted, p);
	loop_post(p->loop, posted_last, p);
	return NULL;
}

/* Posts arrive in the loop's thread; equal ones that wait are one, and the last is never lost. */
static void loop_posts(void **state)
{
	struct poster p = {.loop_thread = pthread_self()};
	pthread_t thread;

	assert_ok(loop_new(&p.loop));
	assert_int_equal(pthread_create(&thread, NULL, post_many, &p), 0);
	assert_ok(loop_run(p.loop));
	pthread_join(thread, NULL);
	assert_in_range(p.posts, 1, 10000);
	p.posts = 0;
	for (int i = 0; i < 100; i++)
		loop_post(p.loop, posted, &p);
	loop_post(p.loop, posted_last, &p);
	assert_ok(loop_run(p.loop));
	assert_int_equal(p.posts, 1);
	loop_free(p.loop);
}

/* --- the opener --- */

static struct error *try_open(const char *locator, int flags)
{
	struct opener_dir opener;
	int fd = -1;

	opener_dir_init(&opener, dir_fd);
	struct error *err = opener.opener.open(&opener.opener, locator, flags, &fd);
	if (err)
		assert_int_equal(fd, -1);
	else
		close(fd);
	return err;
}

static void opener_opens_files(void **state)
{
	struct opener_dir opener;
	char buf[5];
	int fd;

	assert_int_equal(mkdirat(dir_fd, "vm1", 0700), 0);
	make_file("vm1/disk", "hello");
	opener_dir_init(&opener, dir_fd);
	assert_ok(opener.opener.open(&opener.opener, "vm1/disk", O_RDWR, &fd));
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
	assert_ok(pwrite_all(fd, "H", 1, 0, "disk"));
	assert_ok(pread_all(fd, buf, 5, 0, "disk"));
	assert_memory_equal(buf, "Hello", 5);
	close(fd);
	assert_ok(opener.opener.open(&opener.opener, "./vm1//disk", O_RDONLY, &fd));
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(write(fd, "x", 1), -1);
	close(fd);
	make_file("..dots..", "");
	assert_ok(try_open("..dots..", O_RDONLY));
	assert_error(try_open("absent", O_RDONLY), "No such file or directory");
	assert_error(try_open("absent", O_RDWR | O_CREAT), "flags");
	assert_error(try_open("vm1/disk", O_RDWR | O_TRUNC), "flags");
	assert_error(try_open("vm1/disk", O_WRONLY), "flags");
	assert_int_equal(faccessat(dir_fd, "absent", F_OK, 0), -1);
	struct error *err = opener.opener.open(&opener.opener, "vm1/disk", O_RDWR | O_DIRECT, &fd);
	if (err) { /* not every file system has it */
		assert_int_equal(error_errno(err), EINVAL);
		error_free(err);
	} else {
		assert_true(fcntl(fd, F_GETFL) & O_DIRECT);
		close(fd);
	}
}

static void opener_stays_inside(void **state)
{
	cleanup_free char *absolute = strdup(in_dir("inside"));
	char longest[PATH_MAX + 10];

	make_file("inside", "x");
	assert_ok(try_open("inside", O_RDONLY));
	assert_error(try_open(absolute, O_RDONLY), "open '/tmp/");
	assert_error(try_open("/etc/passwd", O_RDONLY), "open '/etc/passwd'");
	assert_error(try_open("..", O_RDONLY), "'..' is not allowed");
	assert_error(try_open("../../etc/passwd", O_RDONLY), "'..' is not allowed");
	assert_error(try_open("vm1/../inside", O_RDONLY), "'..' is not allowed");
	assert_error(try_open("vm1/..", O_RDONLY), "'..' is not allowed");
	assert_int_equal(symlinkat("inside", dir_fd, "link"), 0);
	assert_int_equal(symlinkat("/etc", dir_fd, "etc"), 0);
	assert_int_equal(symlinkat(".", dir_fd, "here"), 0);
	assert_error(try_open("link", O_RDONLY), "Too many levels of symbolic links");
	assert_error(try_open("etc/passwd", O_RDONLY), "Too many levels of symbolic links");
	assert_error(try_open("here/inside", O_RDONLY), "Too many levels of symbolic links");
	assert_error(try_open("", O_RDONLY), "the locator is empty");
	assert_error(try_open("in\nside", O_RDONLY), "control character");
	assert_error(try_open("\033[2Jinside", O_RDONLY), "control character");
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_error(try_open(longest, O_RDONLY), "the locator has more than 4095 bytes");
	longest[300] = '\0';
	assert_error(try_open(longest, O_RDONLY), "File name too long");
}

/* /proc/self/fd of a directory that was reached without a link: its entries lead anywhere. */
static void opener_refuses_magic_links(void **state)
{
	struct opener_dir opener;
	cleanup_fd int proc = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int file = openat(dir_fd, "inside", O_RDONLY | O_CLOEXEC);
	char locator[32];
	int fd = -1;

	if (proc < 0 || file < 0)
		fail();
	snprintf(locator, sizeof(locator), "fd/%d", file);
	opener_dir_init(&opener, proc);
	assert_int_equal(faccessat(proc, locator, R_OK, 0), 0);
	assert_error(opener.opener.open(&opener.opener, locator, O_RDONLY, &fd), "Too many levels");
	assert_error(opener.opener.open(&opener.opener, "exe", O_RDONLY, &fd), "Too many levels");
	assert_int_equal(fd, -1);
}

static void opener_refuses_what_is_no_disk(void **state)
{
	static const char why[] = "neither a regular file nor a block device";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	cleanup_fd int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		fail();
	/* Opening a FIFO without a writer would hang. */
	assert_int_equal(mkfifoat(dir_fd, "pipe", 0600), 0);
	assert_error(try_open("pipe", O_RDONLY), why);
	assert_error(try_open("pipe", O_RDWR), why);
	assert_error(try_open("vm1", O_RDONLY), why);
	assert_error(try_open(".", O_RDONLY), why);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", dir_path);
	assert_int_equal(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_error(try_open("sock", O_RDWR), why);
	if (mknodat(dir_fd, "null", S_IFCHR | 0600, makedev(1, 3)) == 0)
		assert_error(try_open("null", O_RDWR), why);
	else
		print_message("cannot make a device here: not tried\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_messages),
		cmocka_unit_test(try_returns_errors),
		cmocka_unit_test(ownership),
		cmocka_unit_test(arithmetic),
		cmocka_unit_test(sizes),
		cmocka_unit_test(numbers),
		cmocka_unit_test(whole_files),
		cmocka_unit_test(whole_reads),
		cmocka_unit_test(reads_go_on_after_short_ones),
		cmocka_unit_test(logging),
		cmocka_unit_test(loop_descriptors),
		cmocka_unit_test(loop_rest),
		cmocka_unit_test(loop_rest_with_a_gone_peer),
		cmocka_unit_test(loop_timers),
		cmocka_unit_test(loop_removal_in_a_handler),
		cmocka_unit_test(loop_posts),
		cmocka_unit_test(opener_opens_files),
		cmocka_unit_test(opener_stays_inside),
		cmocka_unit_test(opener_refuses_magic_links),
		cmocka_unit_test(opener_refuses_what_is_no_disk),
	};

	return cmocka_run_group_tests_name("base", tests, make_dir, remove_dir);
}
