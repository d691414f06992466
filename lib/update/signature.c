/*
 * Signatures; see signature.h. Touches nothing.
 *
 * Our own is the reading of the PE file, bounded, and the sum over it; PKCS #7 and the arithmetic are libcrypto's. The
 * order: the file's parts lie one behind the other, the last is the signature; the signature is the maker's and names a
 * sum; the sum is the file's.
 */
#include "update/signature.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <endian.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/pkcs7.h>
#include <openssl/x509.h>
#include <string.h>

/* Places in a PE file for 64 bits (PE format specification); those in the optional header count from its beginning. */
#define PE_AT          0x3cu
#define COFF_BYTES     24u
#define OPTIONAL_LEAST 152u /* with the entry of the certificate table */
#define PE32_PLUS      0x20bu
#define HEADERS_SIZE   60u
#define CHECKSUM       64u
#define DIRECTORIES    108u
#define CERTIFICATES   144u
#define SECTION_BYTES  40u
#define SECTIONS_MAX   96u

/* Among the directories. */
#define CERTIFICATE_ENTRY 4u

/* A certificate table's entry. */
#define CERT_HEADER   8u
#define CERT_REVISION 0x0200u
#define CERT_PKCS7    0x0002u

#define SUM_BYTES 32u

struct pe {
	const uint8_t *data;
	size_t len;
	size_t checksum, directory; /* where they are: not part of the sum */
	size_t end;                 /* of what is signed; the signature follows */
	const uint8_t *signature;
	size_t signature_len;
};

static uint32_t le32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint16_t le16_at(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

/* --- the file --- */

static struct error *no_program(const char *what)
{
	return error_hint(error_new(0, "%s is not a program for UEFI", what),
			  "name the UKI of a Glint release: it ends in .efi");
}

static struct error *not_whole(const char *what)
{
	return error_hint(error_new(0, "%s is not whole, or is damaged", what), "copy it anew");
}

/* The section that begins at @place and is not empty; NULL: there is none. @table: @count of them. */
static const uint8_t *section_at(const uint8_t *table, unsigned count, size_t place)
{
	for (unsigned i = 0; i < count; i++) {
		const uint8_t *s = table + (size_t)i * SECTION_BYTES;
		if (le32_at(s + 16) > 0 && le32_at(s + 20) == place)
			return s;
	}
	return NULL;
}

/* Sections lie one behind the other, the first at *end, which becomes the last one's end. */
static struct error *walk_sections(const struct pe *pe, const uint8_t *table, unsigned count, const char *what,
				   size_t *end)
{
	unsigned left = 0;

	for (unsigned i = 0; i < count; i++)
		left += le32_at(table + (size_t)i * SECTION_BYTES + 16) > 0;
	for (; left > 0; left--) {
		const uint8_t *s = section_at(table, count, *end);
		if (!s || !range_inside(*end, le32_at(s + 16), pe->len))
			return not_whole(what);
		*end += le32_at(s + 16);
	}
	return NULL;
}

/* One signature, and nothing behind it but zeroes up to a multiple of 8. */
static struct error *find_signature(struct pe *pe, const char *what)
{
	uint32_t place = le32_at(pe->data + pe->directory), size = le32_at(pe->data + pe->directory + 4);
	const uint8_t *entry = pe->data + place;

	if (size == 0)
		return error_hint(error_new(0, "%s is not signed", what), "take a release of the maker of this host");
	/* What is between the sections and the table is part of the sum. */
	if (place < pe->end || !range_inside(place, size, pe->len) || place + size != pe->len || size < CERT_HEADER ||
	    place % 8)
		return not_whole(what);
	uint32_t len = le32_at(entry);
	if (len <= CERT_HEADER || align_up(len, 8) != size || le16_at(entry + 4) != CERT_REVISION ||
	    le16_at(entry + 6) != CERT_PKCS7)
		return not_whole(what);
	pe->end = place;
	pe->signature = entry + CERT_HEADER;
	pe->signature_len = size - CERT_HEADER;
	return NULL;
}

static struct error *read_pe(struct pe *pe, const char *what)
{
	const uint8_t *data = pe->data;

	if (pe->len < PE_AT + 4 || data[0] != 'M' || data[1] != 'Z')
		return no_program(what);
	size_t at = le32_at(data + PE_AT);
	if (!range_inside(at, COFF_BYTES + OPTIONAL_LEAST, pe->len) || memcmp(data + at, "PE\0\0", 4) != 0)
		return no_program(what);
	unsigned count = le16_at(data + at + 6), optional_len = le16_at(data + at + 20);
	size_t optional = at + COFF_BYTES, table = optional + optional_len;
	if (le16_at(data + optional) != PE32_PLUS || optional_len < OPTIONAL_LEAST || count == 0 ||
	    count > SECTIONS_MAX || le32_at(data + optional + DIRECTORIES) <= CERTIFICATE_ENTRY)
		return no_program(what);
	size_t headers = le32_at(data + optional + HEADERS_SIZE);
	if (headers > pe->len || !range_inside(table, (size_t)count * SECTION_BYTES, headers))
		return not_whole(what);
	pe->checksum = optional + CHECKSUM;
	pe->directory = optional + CERTIFICATES;
	pe->end = headers;
	TRY(walk_sections(pe, data + table, count, what, &pe->end));
	return find_signature(pe, what);
}

/* --- the sums --- */

/* The one in the header, which no signature covers: the sum of all words of 16 bits but its own, and the length. */
static uint32_t header_sum(const struct pe *pe)
{
	uint64_t sum = 0;

	for (size_t at = 0; at < pe->len; at += 2)
		if (at < pe->checksum || at >= pe->checksum + 4)
			sum += at + 1 < pe->len ? le16_at(pe->data + at) : pe->data[at];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint32_t)sum + (uint32_t)pe->len;
}

static struct error *signed_sum(const struct pe *pe, uint8_t sum[SUM_BYTES])
{
	const size_t checksum_end = pe->checksum + 4, directory_end = pe->directory + 8;
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	bool good = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) && EVP_DigestUpdate(md, pe->data, pe->checksum) &&
		    EVP_DigestUpdate(md, pe->data + checksum_end, pe->directory - checksum_end) &&
		    EVP_DigestUpdate(md, pe->data + directory_end, pe->end - directory_end) &&
		    EVP_DigestFinal_ex(md, sum, NULL);

	EVP_MD_CTX_free(md);
	return good ? NULL : error_new(ENOMEM, "sum up the file");
}

/* --- the signature --- */

static void pkcs7_done(PKCS7 **p)
{
	PKCS7_free(*p);
}

static void x509_done(X509 **x)
{
	X509_free(*x);
}

static void bio_done(BIO **bio)
{
	BIO_free(*bio);
}

static struct error *read_certificate(const char *text, size_t len, X509 **certificate)
{
	BIO *bio __attribute__((cleanup(bio_done))) = BIO_new_mem_buf(text, (int)MIN(len, (size_t)MIB));

	*certificate = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	ERR_clear_error();
	return *certificate
		       ? NULL
		       : error_hint(error_new(0, "the maker's certificate cannot be read"), "it is a file in PEM form");
}

/* It is what it says by itself: read and written anew it is the same, and only zeroes are behind it. */
static PKCS7 *read_signature(const struct pe *pe)
{
	const uint8_t *at = pe->signature, *end = at + pe->signature_len;
	PKCS7 *p = d2i_PKCS7(NULL, &at, (long)pe->signature_len);
	uint8_t *again = NULL;
	int len = p ? i2d_PKCS7(p, &again) : -1;
	bool same =
		len > 0 && at == pe->signature + len && end - at < 8 && memcmp(again, pe->signature, (size_t)len) == 0;

	for (; same && at < end; at++)
		same = *at == 0;
	OPENSSL_free(again);
	if (same && PKCS7_type_is_signed(p))
		return p;
	PKCS7_free(p);
	return NULL;
}

/* What is signed, of a PKCS #7 that is verified: an SpcIndirectDataContent, at whose end is the sum. */
static bool signs_sum(const PKCS7 *p, const uint8_t sum[SUM_BYTES])
{
	static const uint8_t sha256[] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48,     0x01,
					 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, SUM_BYTES};
	const ASN1_STRING *content = p->d.sign->contents->d.other->value.sequence;
	const uint8_t *data = ASN1_STRING_get0_data(content);
	size_t len = (size_t)ASN1_STRING_length(content);

	return len > sizeof(sha256) + SUM_BYTES &&
	       memcmp(data + len - SUM_BYTES - sizeof(sha256), sha256, sizeof(sha256)) == 0 &&
	       memcmp(data + len - SUM_BYTES, sum, SUM_BYTES) == 0;
}

/* Its contents without their outer tag, which is what is signed (sections 4 and 7 of the format). NULL: there are none.
 */
static BIO *signed_contents(const PKCS7 *p)
{
	static const char spc_indirect_data[] = "1.3.6.1.4.1.311.2.1.4";
	const PKCS7 *contents = p->d.sign ? p->d.sign->contents : NULL;
	char type[64] = "";

	if (!contents || !contents->type)
		return NULL;
	OBJ_obj2txt(type, sizeof(type), contents->type, 1);
	if (strcmp(type, spc_indirect_data) != 0 || !contents->d.other || contents->d.other->type != V_ASN1_SEQUENCE)
		return NULL;
	const ASN1_STRING *sequence = contents->d.other->value.sequence;
	const uint8_t *at = ASN1_STRING_get0_data(sequence);
	int tag, class;
	long len;
	if (ASN1_get_object(&at, &len, &tag, &class, ASN1_STRING_length(sequence)) & 0x80)
		return NULL;
	return BIO_new_mem_buf(at, (int)len);
}

static struct error *check_signer(PKCS7 *p, X509 *maker, const char *what)
{
	STACK_OF(X509) *signers = PKCS7_get0_signers(p, NULL, 0);
	bool same = signers && sk_X509_num(signers) == 1 && X509_cmp(sk_X509_value(signers, 0), maker) == 0;
	char name[128] = "";

	sk_X509_free(signers);
	if (same)
		return NULL;
	X509_NAME_get_text_by_NID(X509_get_subject_name(maker), NID_commonName, name, sizeof(name));
	return error_hint(error_new(0, "%s is not signed by the maker of this host (%s)", what, name),
			  "take a release of the same maker");
}

struct error *signature_check(const void *data, size_t len, const char *what, const char *certificate,
			      size_t certificate_len)
{
	PKCS7 *p __attribute__((cleanup(pkcs7_done))) = NULL;
	X509 *maker __attribute__((cleanup(x509_done))) = NULL;
	BIO *contents __attribute__((cleanup(bio_done))) = NULL;
	struct pe pe = {.data = data, .len = len};
	uint8_t sum[SUM_BYTES];

	/* It reads no configuration: none may change what is good. */
	OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
	TRY(read_certificate(certificate, certificate_len, &maker));
	TRY(read_pe(&pe, what));
	p = read_signature(&pe);
	contents = p ? signed_contents(p) : NULL;
	ERR_clear_error();
	if (!contents)
		return not_whole(what);
	TRY(check_signer(p, maker, what));
	TRY(signed_sum(&pe, sum));
	bool good = PKCS7_verify(p, NULL, NULL, contents, NULL, PKCS7_NOVERIFY | PKCS7_BINARY) == 1 &&
		    signs_sum(p, sum) && le32_at(pe.data + pe.checksum) == header_sum(&pe);
	ERR_clear_error();
	return good ? NULL
		    : error_hint(error_new(0, "%s was changed after it was signed", what),
				 "copy it anew, from the maker");
}
