/* A guest agent of sorts on console port 1, which answers QEMU's protocol by looking for words. */
#include "tests.h"

#define LINE_MAX 512u

static bool mute;
static unsigned frozen;

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

/* Where @word ends in @line, or NULL. */
static const char *behind(const char *line, const char *word)
{
	size_t n = length(word);

	for (; *line; line++)
		if (length(line) >= n && memcmp(line, word, n) == 0)
			return line + n;
	return NULL;
}

static bool say(const char *text)
{
	return console_send(text, (uint32_t)length(text));
}

/* A byte 0xFF, and the number that @digits begins with. */
static bool answer_sync(const char *digits)
{
	char text[64] = "\xff{\"return\": ";
	size_t n = length(text);

	while (*digits >= '0' && *digits <= '9' && n < 50)
		text[n++] = *digits++;
	text[n++] = '}';
	text[n++] = '\n';
	return console_send(text, (uint32_t)n);
}

static bool freeze(bool on)
{
	unsigned before = frozen;

	frozen = on;
	print("AGENT %s\n", on ? "frozen" : "thawed");
	return say(on || before ? "{\"return\": 1}\n" : "{\"return\": 0}\n");
}

/* False: told to end meanwhile. */
static bool hear(const char *line)
{
	static const struct {
		const char *command, *answer;
	} known[] = {
		{"guest-ping", "{\"return\": {}}\n"},
		{"guest-get-osinfo", "{\"return\": {\"id\": \"none\"}}\n"},
		{"guest-get-host-name", "{\"return\": {\"host-name\": \"tiny\"}}\n"},
		{"guest-network-get-interfaces", "{\"return\": [{\"name\": \"lo\", \"ip-addresses\": "
						 "[{\"ip-address\": \"127.0.0.1\", \"prefix\": 8}]}]}\n"},
	};

	if (mute) {
		print("AGENT heard %s\n", behind(line, "sync-delimited") ? "guest-sync-delimited" : "something");
		return true;
	}
	if (behind(line, "guest-sync-delimited"))
		return answer_sync(behind(line, "\"id\":"));
	for (unsigned i = 0; i < COUNT(known); i++)
		if (behind(line, known[i].command))
			return say(known[i].answer);
	if (behind(line, "fsfreeze-freeze"))
		return freeze(true);
	if (behind(line, "fsfreeze-thaw"))
		return freeze(false);
	return say("{\"error\": {\"desc\": \"unknown\"}}\n");
}

/* False: told to end. */
static bool hear_all(void)
{
	static char line[LINE_MAX + 1];
	static unsigned at;
	uint32_t len;
	uint8_t *buffer = console_get(&len);
	bool on = true;

	for (uint32_t i = 0; buffer && i < len && on; i++) {
		if (buffer[i] != '\n') {
			CHECK(at < LINE_MAX, "a command is too long");
			line[at++] = (char)buffer[i];
			continue;
		}
		line[at] = '\0';
		at = 0;
		on = hear(line);
	}
	if (buffer)
		console_give_back(buffer);
	return on;
}

/*
 * Serves until a key comes in on the serial port; over moves too. With mute=1 it only reads, with flood=1 it only
 * writes.
 */
void test_agent(void)
{
	static char flood[4096];
	bool floods = option("flood", NULL);

	mute = option("mute", NULL);
	memset(flood, '\xff', sizeof(flood));
	console_open();
	print("AGENT ready\n");
	if (floods)
		while (console_send(flood, sizeof(flood)))
			;
	else
		while (hear_all() && serial_get() < 0)
			console_listen();
	console_close();
}
