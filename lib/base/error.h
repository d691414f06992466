/*
 * The one error type of Glint.
 *
 * A function that can fail returns `struct error *`: NULL is success, anything else is an error the caller owns. It
 * is handed up as it is (TRY), wrapped in what the caller was doing (error_wrap), or ended (error_free, log_error).
 * A message reads from the outside in and says what was being done, to what, and why not; the hint says what the
 * person can do: "start VM: open disk /pool/a.raw: No such file or directory".
 *
 * Code on hot paths (a virtqueue, a block request) returns plain ints and makes no errors: making one allocates.
 */
#ifndef GLINT_BASE_ERROR_H
#define GLINT_BASE_ERROR_H

struct error;

/*
 * Makes an error. @errnum: an errno value that programs can act on and whose words are appended to the message, or 0
 * for none. Never returns NULL: when memory is out it returns a static error that says so.
 */
[[nodiscard, gnu::format(printf, 2, 3)]] struct error *error_new(int errnum, const char *fmt, ...);

/* Puts "context: " before the message of @e, which it consumes and returns. With NULL it returns NULL. */
[[nodiscard, gnu::format(printf, 2, 3)]] struct error *error_wrap(struct error *e, const char *fmt, ...);

/* Sets what the person can do about it (once: the innermost hint stays). Consumes and returns @e. */
[[nodiscard, gnu::format(printf, 2, 3)]] struct error *error_hint(struct error *e, const char *fmt, ...);

/* The whole message, without the hint. Valid as long as @e is. */
const char *error_text(const struct error *e);

/* The hint, or NULL. */
const char *error_hint_text(const struct error *e);

/* The errno value given to error_new, or 0. */
int error_errno(const struct error *e);

/* Frees @e; NULL is allowed. */
void error_free(struct error *e);

static inline void cleanup_error_fn(struct error **e)
{
	error_free(*e);
}
#define cleanup_error __attribute__((cleanup(cleanup_error_fn)))

/* Returns from the calling function with the error of @expr, if there is one. */
#define TRY(expr)                                                                                                      \
	do {                                                                                                           \
		struct error *try_err_ = (expr);                                                                       \
		if (try_err_)                                                                                          \
			return try_err_;                                                                               \
	} while (0)

#endif
