/*
 * What a person in front of the host wants to know: one line for each fact.
 */
#ifndef GLINT_CONSOLE_FACTS_H
#define GLINT_CONSOLE_FACTS_H

#define FACT_BYTES 320

enum { FACT_NAME, FACT_ADDRESSES, FACT_HEALTH, FACT_STATE, FACT_CRASH, FACTS };

/* Reads them: a line each, printable whatever it is made from, without a line end; "" where nothing is known yet. */
void facts_read(char facts[FACTS][FACT_BYTES]);
/* How far the host is, and what it uses. */
void facts_use(char line[FACT_BYTES]);

#endif
