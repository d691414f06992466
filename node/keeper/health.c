/*
 * Saying how the state is kept; see health.h. It touches nothing.
 */
#include "node/keeper/health.h"

#include <stdio.h>

static const char *const state_names[] = {[STICK_OPENING] = "opening",
					  [STICK_ABSENT] = "absent",
					  [STICK_KEPT] = "kept",
					  [STICK_REFUSED] = "refused",
					  [STICK_FAILED] = "failed"};

static json_t *hex(const uint8_t data[16])
{
	char text[33];

	for (unsigned i = 0; i < 16; i++)
		snprintf(text + 2 * i, 3, "%02x", data[i]);
	return json_string(text);
}

static json_t *one_stick(const struct stick *stick, const struct stick_status *s)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I}", "path", stick_path(stick), "device",
			 s->device, "state", state_names[s->state], "why", s->why, "stick", hex(s->info.stick),
			 "durable", (json_int_t)s->durable, "generation", (json_int_t)s->info.generation, "sequence",
			 (json_int_t)s->info.sequence, "written", (json_int_t)s->info.written, "flushes",
			 (json_int_t)s->info.flushes);
}

static void add_alert(json_t *alerts, const char *what, const char *about, const char *words)
{
	json_array_append_new(alerts, json_pack("{s:s, s:s, s:s}", "alert", what, "about", about, "words", words));
}

json_t *health_json(const struct health *h)
{
	json_t *sticks = json_array(), *alerts = json_array();
	struct stick_status status;

	if (!h->kept)
		add_alert(alerts, "state-in-memory", "state", h->why);
	for (unsigned i = 0; i < h->stick_count; i++) {
		stick_status(h->sticks[i], &status);
		json_array_append_new(sticks, one_stick(h->sticks[i], &status));
		char alert[32];
		snprintf(alert, sizeof(alert), "stick-%s", state_names[status.state]);
		if (status.state != STICK_KEPT && status.state != STICK_OPENING)
			add_alert(alerts, alert, status.device[0] ? status.device : stick_path(h->sticks[i]),
				  status.why);
	}
	return json_pack("{s:i, s:s, s:I, s:s, s:s, s:I, s:o, s:o}", "version", HEALTH_VERSION, "host", h->host,
			 "change", (json_int_t)h->change, "durability", h->kept ? "stick" : "memory", "why",
			 h->kept ? "" : h->why, "since", (json_int_t)h->since_s, "sticks", sticks, "alerts", alerts);
}
