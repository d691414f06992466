/*
 * host.toml: what is good is read as it stands, what is wrong is told, all of it, each by its line.
 */
#include "hostconfig/hostconfig.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define KEY "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ada@desk"

static struct hostconfig_problems problems;

static struct hostconfig *read_text(const char *text, size_t len)
{
	struct hostconfig *config;

	assert_null(hostconfig_read(text, len, &config, &problems));
	assert_int_equal(config == NULL, problems.count > 0);
	return config;
}

static struct hostconfig *read_good(const char *text)
{
	struct hostconfig *config = read_text(text, strlen(text));

	if (!config)
		fail_msg("line %u: %s", problems.list[0].line, problems.list[0].message);
	return config;
}

static const char full[] = "# all of it\n"
			   "host.name = 'glint-1'\n"
			   "[time]\n"
			   "servers = [\"ntp.example.org\", # one\n"
			   "  \"192.0.2.123\",\n"
			   "  \"2001:db8::123\", ]\n"
			   "[[network]]\n"
			   "name = \"lan\"\n"
			   "device = [\"52:54:00:12:34:56\", \"en\\u006f1\"]\n"
			   "bond = \"802.3ad\"\n"
			   "bridge = true\n"
			   "vlan = 1_0\n"
			   "mtu = 0x2328\n"
			   "ipv4 = [\"192.0.2.10/24\", \"198.51.100.1/31\"]\n"
			   "ipv6 = \"2001:DB8::10/64\"\n"
			   "gateway = [\"192.0.2.1\", \"fe80::1\"]\n"
			   "dns = [\"192.0.2.53\", \"2001:db8::53\"]\n"
			   "search = \"example.org\"\n"
			   "[[network]]\n"
			   "name = \"store\"\n"
			   "on = \"lan\"\n"
			   "vlan = 20\n"
			   "ipv6 = \"none\"\n"
			   "[[administrator]]\n"
			   "name = \"Ada L\u00f6velace\"\n"
			   "keys = \"" KEY "\"\n"
			   "[[pool]]\n"
			   "kind = \"nfs\"\n"
			   "source = \"nas:/vms\"\n"
			   "name = \"vms\"\n";

static void test_full(void **)
{
	struct hostconfig *c = read_good(full);
	const struct hostconfig_network *n = &c->networks[0];

	assert_string_equal(c->name, "glint-1");
	assert_int_equal(c->time_servers.count, 3);
	assert_string_equal(c->time_servers.list[2], "2001:db8::123");
	assert_int_equal(c->network_count, 2);
	assert_string_equal(n->devices.list[1], "eno1");
	assert_int_equal(n->devices.lines[1], 9);
	assert_true(hostconfig_is_mac(n->devices.list[0]) && !hostconfig_is_mac(n->devices.list[1]));
	assert_string_equal(n->bond, "802.3ad");
	assert_true(n->bridge && !n->first);
	assert_int_equal(n->vlan, 10);
	assert_int_equal(n->mtu, 9000);
	assert_int_equal(n->ipv4.method, HOSTCONFIG_STATIC);
	assert_int_equal(n->ipv4.addresses.count, 2);
	assert_string_equal(n->ipv6.addresses.list[0].text, "2001:db8::10");
	assert_int_equal(n->ipv6.addresses.list[0].prefix, 64);
	assert_int_equal(n->gateways.count, 2);
	assert_int_equal(n->dns.count, 2);
	assert_string_equal(n->search.list[0], "example.org");
	assert_ptr_equal(n[1].base, n);
	assert_int_equal(n[1].ipv4.method, HOSTCONFIG_AUTOMATIC);
	assert_int_equal(n[1].ipv6.method, HOSTCONFIG_NONE);
	assert_string_equal(c->admins[0].name, "Ada L\u00f6velace");
	assert_string_equal(c->admins[0].keys.list[0], KEY);
	assert_string_equal(c->pools[0].source, "nas:/vms");
	hostconfig_free(c);
}

/* As Windows writes files: a mark at the start, both line ends; and the last line without one. */
static void test_windows(void **)
{
	struct hostconfig *c =
		read_good("\xef\xbb\xbf[host]\r\nname = \"a\" # b\r\n\r\n[time]\r\nservers = [\r\n \"x\"\r\n]\r\n"
			  "[[network]]\r\nname = 'n'");

	assert_string_equal(c->name, "a");
	assert_string_equal(c->time_servers.list[0], "x");
	assert_true(c->networks[0].first);
	assert_string_equal(c->networks[0].bond, "active-backup");
	hostconfig_free(c);
	static const char utf16[] = "\xff\xfe[\0h\0";
	assert_null(read_text(utf16, sizeof(utf16) - 1));
	assert_string_equal(problems.list[0].message, "the file is UTF-16");
}

static void test_nothing(void **)
{
	struct hostconfig *c = read_good("");

	assert_null(c->name);
	assert_int_equal(c->network_count, 0);
	hostconfig_free(c);
}

/* The file that lies on a new stick; and with every example in it taken for real. */
static void test_example(void **)
{
	cleanup_free char *text = NULL;
	size_t len, to = 0;

	assert_null(read_file(HOST_TOML, HOSTCONFIG_TEXT_MAX, &text, &len));
	hostconfig_free(read_good(text));
	for (size_t i = 0; i < len; i++) {
		bool start = i == 0 || text[i - 1] == '\n';
		if (start && text[i] == '#' &&
		    (strncmp(text + i, "# [[", 4) == 0 || strstr(text + i, " = ") < strchr(text + i, '\n')))
			i += 2;
		text[to++] = text[i];
	}
	text[to] = '\0';
	struct hostconfig *c = read_text(text, to);
	/* DHCP and a gateway do not go together, a shortened key is none: all else is right. */
	assert_null(c);
	assert_int_equal(problems.count, 3);
	for (size_t i = 0; i < problems.count; i++)
		assert_true(strstr(problems.list[i].message, "gateway") || strstr(problems.list[i].message, "AAAA..."));
}

static const struct {
	const char *text;
	unsigned line, column;
	const char *message, *hint; /* parts of them */
} wrong[] = {
	/* what is no TOML */
	{"name", 1, 5, "= was expected behind the key 'name'", ""},
	{"\n [host\nname = \"a\"", 2, 7, "] of the header is missing", ""},
	{"[host]\nname = glint", 2, 8, "'glint' is neither text", "in quotation marks: \"glint\""},
	{"[host]\nname = \u201cglint\u201d", 2, 8, "a value was expected", "typographic"},
	{"[host]\nname =", 2, 7, "a value was expected", ""},
	{"[host]\nname = \"a", 2, 10, "closing \" is missing", ""},
	{"[host]\nname = \"a\" \"b\"", 2, 12, "goes on", ""},
	{"[host]\nname = \"\\q\"", 2, 10, "backslash", ""},
	{"[host]\nname = \"\\ud800\"", 2, 15, "is no character", ""},
	{"[host]\nname = \"\\u0000\"", 2, 15, "is no character", ""},
	{"[host]\nname = \"\"\"a\"\"\"", 2, 8, "several lines", ""},
	{"[host]\nname = \"a\"\nname = \"b\"", 3, 1, "'name' is given twice, first on line 2", ""},
	{"[host]\n[host]", 2, 2, "given on line 1 already", ""},
	{"[[network]]\nname='a'\n[network]", 3, 2, "given on line 1 already", "[[network]]"},
	{"host = {}\n[host.a]", 2, 2, "cannot be added to", ""},
	{"[[network]]\nname='a'\nvlan = 1.5", 3, 8, "'1.5' is neither", ""},
	{"[[network]]\nname='a'\nvlan = 010", 3, 8, "'010' is neither", ""},
	{"[[network]]\nname='a'\nvlan = 1__0", 3, 8, "'1__0' is neither", ""},
	{"[[network]]\nname='a'\nvlan = 99999999999999999999", 3, 8, "is neither", ""},
	{"[time]\nservers = [\"a\"", 2, 15, "] of the array of line 2", ""},
	{"[time]\nservers = [\"a\" \"b\"]", 2, 16, "a , or the ]", "commas"},
	{"[time]\nservers = [[[[[[[[[[]]]]]]]]]]", 2, 19, "nested more than 8", ""},
	{"[host]\nname = \"\xff\"", 2, 9, "no UTF-8 text (0xff)", "UTF-8"},
	{"# \x1b[31m", 1, 3, "no printable character (0x1b)", ""},
	{"[host]\rname = 1", 1, 7, "0x0d", ""},
	/* keys */
	{"[hots]", 1, 2, "no key 'hots'", "did you mean 'host'?"},
	{"[host]\nnmae = \"a\"", 2, 1, "no key 'nmae'", "did you mean 'name'?"},
	{"[[network]]\nname='a'\naddress = 1", 3, 1, "no key 'address'", "has: name, device"},
	{"[[network]]\nname='a'\nGateway = 1", 3, 1, "no key 'Gateway'", "'gateway'"},
	{"[network]\nname='a'", 1, 2, "more than one", "[[network]]"},
	{"host = 1", 1, 8, "is a table", ""},
	{"network = [1]", 1, 12, "is a table", ""},
	{"[[network]]", 1, 3, "lacks the key 'name'", ""},
	/* values */
	{"[host]\nname = 1", 2, 8, "text was expected", ""},
	{"[host]\nname = \"a b\"", 2, 8, "'a b' is no name of a host", ""},
	{"[host]\nname = \"a.b\"", 2, 8, "leave its domain out", ""},
	{"[host]\nname = \"-a\"", 2, 8, "is no name of a host", ""},
	{"[host]\nname = \"\\u001b[2J\"", 2, 8, "'?[2J' is no name", ""},
	{"[time]\nservers = [\"a\", \"1.2.3.400\"]", 2, 17, "'1.2.3.400' is no IP address", ""},
	{"[time]\nservers = [\"a\", \"A\"]", 2, 17, "twice", ""},
	{"[time]\nservers = ['a','b','c','d','e','f','g','h','i']", 2, 11, "9 entries", ""},
	{"[[network]]\nname='eth0'", 2, 6, "looks like the name of a device", ""},
	{"[[network]]\nname='much-too-long'", 2, 6, "is no name", ""},
	{"[[network]]\nname='a'\ndevice='52-54-00-12-34-56'", 3, 8, "colons", ""},
	{"[[network]]\nname='a'\ndevice='01:00:5e:00:00:01'", 3, 8, "multicast", ""},
	{"[[network]]\nname='a'\ndevice='a b'", 3, 8, "neither a MAC address", ""},
	{"[[network]]\nname='a'\ndevice=['first', 'eno1']", 3, 8, "stands alone", ""},
	{"[[network]]\nname='a'\nbond='lacp'", 3, 6, "no mode of a bond", ""},
	{"[[network]]\nname='a'\nbridge='yes'", 3, 8, "true or false", ""},
	{"[[network]]\nname='a'\nvlan=4095", 3, 6, "from 1 to 4094", ""},
	{"[[network]]\nname='a'\nmtu=-1", 3, 5, "from 1280", ""},
	{"[[network]]\nname='a'\nipv4='static'", 3, 6, "neither \"dhcp\"", ""},
	{"[[network]]\nname='a'\nipv4=[]", 3, 6, "empty", ""},
	{"[[network]]\nname='a'\nipv4='192.0.2.10'", 3, 6, "lacks the length", ""},
	{"[[network]]\nname='a'\nipv4='192.0.2.0/24'", 3, 6, "network itself", ""},
	{"[[network]]\nname='a'\nipv4='192.0.2.255/24'", 3, 6, "broadcast", ""},
	{"[[network]]\nname='a'\nipv4='192.0.2.1/33'", 3, 6, "between 1 and 32", ""},
	{"[[network]]\nname='a'\nipv4='127.0.0.1/8'", 3, 6, "no host can have", ""},
	{"[[network]]\nname='a'\nipv4='2001:db8::1/64'", 3, 6, "is no IPv4 address", ""},
	{"[[network]]\nname='a'\nipv6='192.0.2.1/24'", 3, 6, "is no IPv6 address", ""},
	{"[[network]]\nname='a'\ngateway='192.0.2.1'", 3, 9, "but no IPv4 address", "DHCP"},
	{"[[network]]\nname='a'\nipv4='192.0.2.9/24'\ngateway='192.0.3.1'", 4, 9, "in none of the networks", ""},
	{"[[network]]\nname='a'\nipv4='192.0.2.9/24'\ngateway=['192.0.2.1','192.0.2.2']", 4, 9, "two gateways", ""},
	{"[[network]]\nname='a'\ndns='192.0.2.1/24'", 3, 5, "address alone", ""},
	{"[[network]]\nname='a'\nsearch='a..b'", 3, 8, "is no name", ""},
	{"[[network]]\nname='a'\n[[network]]\nname='a'\ndevice='eno1'", 4, 6, "there already, on line 1", ""},
	{"[[network]]\nname='a'\n[[network]]\nname='b'", 3, 0, "takes every device", ""},
	{"[[network]]\nname='a'\ndevice='eno1'\n[[network]]\nname='b'\ndevice='ENO1'", 6, 0,
	 "belongs to the network of line 1", "on ="},
	{"[[network]]\nname='a'\n[[network]]\nname='b'\non='c'\nvlan=2", 3, 0, "none of the file's", ""},
	{"[[network]]\nname='a'\n[[network]]\nname='b'\non='a'", 5, 4, "needs a 'vlan'", ""},
	{"[[network]]\nname='a'\n[[network]]\nname='b'\non='a'\nvlan=2\nbridge=true", 5, 4, "'bridge'", ""},
	{"[[network]]\nname='a'\nvlan=2\n[[network]]\nname='b'\non='a'\nvlan=2", 4, 0, "has the VLAN", ""},
	{"[[administrator]]\nname='a'\nkeys=[]", 3, 6, "without a key", ""},
	{"[[administrator]]\nname='a'\nkeys='ssh-ed25519 AAAA'", 3, 6, "cut short", ""},
	{"[[administrator]]\nname='a'\nkeys='AAAA'", 3, 6, "no public key", ""},
	{"[[administrator]]\nname='a'\nkeys='-----BEGIN OPENSSH PRIVATE KEY-----'", 3, 6, "private key", ""},
	{"[[pool]]\nname='a'\nkind='zfs'\nsource='b'", 3, 6, "no kind of pool", ""},
};

static bool was_told(unsigned line, unsigned column, const char *message, const char *hint)
{
	for (size_t i = 0; i < problems.count; i++) {
		const struct hostconfig_problem *p = &problems.list[i];
		if (p->line == line && p->column == column && strstr(p->message, message) && strstr(p->hint, hint))
			return true;
	}
	return false;
}

static void test_wrong(void **)
{
	unsigned missed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_null(read_text(wrong[i].text, strlen(wrong[i].text)));
		if (was_told(wrong[i].line, wrong[i].column, wrong[i].message, wrong[i].hint))
			continue;
		missed++;
		print_message("%s\n  wanted %u:%u: %s (%s)\n", wrong[i].text, wrong[i].line, wrong[i].column,
			      wrong[i].message, wrong[i].hint);
		for (const struct hostconfig_problem *p = problems.list; p < problems.list + problems.count; p++)
			print_message("  told   %u:%u: %s (%s)\n", p->line, p->column, p->message, p->hint);
	}
	assert_int_equal(missed, 0);
}

/* One run tells all, in the file's order; what was mended is not told again; a mistake does not make others. */
static void test_all_at_once(void **)
{
	static const char text[] = "[host]\n"
				   "name = my host\n"
				   "[time]\n"
				   "servers = [\n"
				   "  \"a\"\n"
				   "  \"b\",\n"
				   "  \"c\",\n"
				   "]\n"
				   "[[network]\n"
				   "name = \"no\"\n"
				   "[[network]]\n"
				   "name = \"lan\"\n"
				   "devise = \"eno1\"\n"
				   "vlan = \"10\"\n"
				   "ipv4 = \"192.0.2.10\"\n";
	static const unsigned lines[] = {2, 6, 9, 13, 14, 15};

	assert_null(read_text(text, strlen(text)));
	for (size_t i = 0; i < problems.count; i++)
		print_message("%u:%u: %s\n", problems.list[i].line, problems.list[i].column, problems.list[i].message);
	assert_int_equal(problems.count, ARRAY_SIZE(lines));
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		assert_int_equal(problems.list[i].line, lines[i]);
}

static void test_bounds(void **)
{
	static const char *const parts[] = {"a=[", "[[network]]\n", "[a]\n"};
	cleanup_free char *text = malloc(HOSTCONFIG_TEXT_MAX + 1);

	memset(text, '\n', HOSTCONFIG_TEXT_MAX + 1);
	hostconfig_free(read_text(text, HOSTCONFIG_TEXT_MAX));
	assert_int_equal(problems.count, 0);
	assert_null(read_text(text, HOSTCONFIG_TEXT_MAX + 1));
	assert_string_equal(problems.list[0].message, "the file is larger than 64 KiB");
	/* More mistakes than there is room for are counted. */
	memset(text, 'x', HOSTCONFIG_TEXT_MAX);
	for (size_t i = 1; i < HOSTCONFIG_TEXT_MAX; i += 2)
		text[i] = '\n';
	assert_null(read_text(text, HOSTCONFIG_TEXT_MAX));
	assert_int_equal(problems.count + problems.more, HOSTCONFIG_TEXT_MAX / 2);
	/* More values than there is room for, too: a nested array, a long list, many tables. */
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		size_t len = strlen(parts[i]), n = 0;
		while (n + len <= HOSTCONFIG_TEXT_MAX) {
			memcpy(text + n, parts[i], len);
			n += len;
		}
		assert_null(read_text(text, n));
	}
	memset(text, ' ', HOSTCONFIG_TEXT_MAX);
	memcpy(text, "a=[", 3);
	for (size_t i = 3; i + 1 < HOSTCONFIG_TEXT_MAX; i += 2)
		memcpy(text + i, "1,", 2);
	assert_null(read_text(text, HOSTCONFIG_TEXT_MAX));
	bool found = false;
	for (size_t i = 0; i < problems.count; i++)
		found |= strstr(problems.list[i].message, "more than 4095 values") != NULL;
	assert_true(found);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full),    cmocka_unit_test(test_windows), cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_example), cmocka_unit_test(test_wrong),   cmocka_unit_test(test_all_at_once),
		cmocka_unit_test(test_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
