/*
 * What the two halves of FAT32 share: fat.c has the table of clusters and the file system's life, fat_file.c folders
 * and files.
 */
#ifndef GLINT_STICK_FAT_INTERNAL_H
#define GLINT_STICK_FAT_INTERNAL_H

#include "stick/fat.h"

#define END       0x0fffffffu
#define END_LEAST 0x0ffffff8u
#define ENTRY     32u

enum { READ_ONLY = 1, LABEL = 8, FOLDER = 0x10, ARCHIVE = 0x20, LONG = 0x0f };

struct entry {
	char name[11];
	uint8_t attributes, zero, tenths;
	uint16_t made_time, made_date, read_date, cluster_high, time, date, cluster_low;
	uint32_t size;
} __attribute__((packed));
static_assert(sizeof(struct entry) == ENTRY);

struct fat {
	const struct blocks *m;
	uint64_t start, data; /* bytes of the medium: where it begins, where cluster 2 is */
	uint32_t cluster;     /* bytes */
	uint32_t table_sectors, tables, reserved, root;
	uint32_t end; /* the first number that no cluster has */
	uint32_t *table;
	uint8_t *changed; /* by sector of the table */
	uint32_t next;    /* where to look for a free cluster */
	uint16_t time, date;
};

/* "its file system is damaged": why. */
struct error *fat_damaged(const struct fat *fat, const char *why);
struct error *fat_no_memory(const struct fat *fat);
/* Where a cluster is, in bytes of the medium. */
uint64_t fat_place(const struct fat *fat, uint32_t cluster);
bool fat_is_cluster(const struct fat *fat, uint32_t cluster);
/* A cluster's word in the table, and another one for it. */
uint32_t fat_get(const struct fat *fat, uint32_t cluster);
void fat_set(struct fat *fat, uint32_t cluster, uint32_t value);
/* Takes @count clusters as one chain, its first in *first; 0 for none. */
[[nodiscard]] struct error *fat_allocate(struct fat *fat, uint32_t count, uint32_t *first);
void fat_give_back(struct fat *fat, uint32_t cluster);
/* Makes durable what has changed of the table, and what was written before. */
[[nodiscard]] struct error *fat_write_table(struct fat *fat);
/* What other systems take as a hint: how much is free. */
[[nodiscard]] struct error *fat_write_info(struct fat *fat);
void fat_fill_entry(const struct fat *fat, struct entry *e, const char name[11], uint8_t attributes, uint32_t cluster,
		    uint32_t size);

#endif
