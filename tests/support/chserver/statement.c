/* SPDX-License-Identifier: Apache-2.0 */
/* Just enough of SQL to find where the data of an INSERT begins, and what only reads. */
#include "chserver.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

struct scan {
    const char *text;
    size_t size;
    size_t at;
    int depth; /* of parentheses */
};

enum token { TOKEN_END, TOKEN_WORD, TOKEN_OTHER, TOKEN_CUT };

static bool word_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* Past a quoted text that begins at s->at; false when it does not end within the text. */
static bool skip_quoted(struct scan *s)
{
    char quote = s->text[s->at++];
    while (s->at < s->size) {
        char c = s->text[s->at++];
        if (c == '\\' && s->at < s->size)
            s->at++;
        else if (c == quote)
            return true;
    }
    return false;
}

/* Past blanks and comments; false when a comment does not end within the text. */
static bool skip_blank(struct scan *s)
{
    while (s->at < s->size) {
        const char *p = s->text + s->at;
        size_t left = s->size - s->at;
        if (isspace((unsigned char)*p)) {
            s->at++;
        } else if (left >= 2 && memcmp(p, "--", 2) == 0) {
            const char *end = memchr(p, '\n', left);
            s->at = end ? (size_t)(end - s->text) : s->size;
        } else if (left >= 2 && memcmp(p, "/*", 2) == 0) {
            const char *end = memmem(p + 2, left - 2, "*/", 2);
            if (!end)
                return false;
            s->at = (size_t)(end - s->text) + 2;
        } else {
            break;
        }
    }
    return true;
}

/* The next token; *word, *size its text where it is a word. */
static enum token next_token(struct scan *s, const char **word, size_t *size)
{
    if (!skip_blank(s))
        return TOKEN_CUT;
    if (s->at == s->size)
        return TOKEN_END;
    char c = s->text[s->at];
    if (c == '\'' || c == '"' || c == '`')
        return skip_quoted(s) ? TOKEN_OTHER : TOKEN_CUT;
    if (word_char(c)) {
        *word = s->text + s->at;
        while (s->at < s->size && word_char(s->text[s->at]))
            s->at++;
        *size = (size_t)(s->text + s->at - *word);
        return TOKEN_WORD;
    }
    s->depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    s->at++;
    return TOKEN_OTHER;
}

static bool word_is(const char *word, size_t size, const char *name)
{
    return strlen(name) == size && strncasecmp(word, name, size) == 0;
}

static bool word_reads_only(const char *word, size_t size)
{
    static const char *const NAMES[] = {"SELECT", "WITH",    "SHOW", "DESCRIBE", "DESC",
                                        "EXISTS", "EXPLAIN", "USE",  "SET",      "CHECK"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (word_is(word, size, NAMES[i]))
            return true;
    return false;
}

/*
 * At the end of the format's name. Data starts behind blanks and one newline; never skip more: the
 * next byte may be binary data that looks like a blank.
 */
static size_t data_start(const char *text, size_t size, size_t at)
{
    while (at < size && (text[at] == ' ' || text[at] == '\t' || text[at] == '\f'))
        at++;
    if (at + 1 < size && text[at] == '\r' && text[at + 1] == '\n')
        return at + 2;
    return at < size && text[at] == '\n' ? at + 1 : at;
}

void statement_read(const char *text, size_t size, bool end, struct statement *s)
{
    struct scan scan = {text, size, 0, 0};
    const char *word = "";
    size_t n = 0;
    memset(s, 0, sizeof *s);
    s->kind = end ? STATEMENT_WHOLE : STATEMENT_MORE;
    enum token token = next_token(&scan, &word, &n);
    if (token != TOKEN_WORD || (scan.at == size && !end))
        return;
    s->writes = !word_reads_only(word, n);
    if (!word_is(word, n, "INSERT")) {
        s->kind = STATEMENT_WHOLE;
        return;
    }
    while ((token = next_token(&scan, &word, &n)) != TOKEN_END && token != TOKEN_CUT) {
        if (token != TOKEN_WORD || scan.depth > 0)
            continue;
        if (scan.at == size && !end)
            return; /* the word may go on */
        if (word_is(word, n, "SELECT") || word_is(word, n, "VALUES") || word_is(word, n, "WITH") ||
            word_is(word, n, "INFILE")) {
            s->kind = STATEMENT_WHOLE;
            return;
        }
        if (!word_is(word, n, "FORMAT"))
            continue;
        s->size = (size_t)(word - text);
        token = next_token(&scan, &word, &n);
        /* One byte more, so that what parts the name from the data is there. */
        if (token != TOKEN_WORD || n >= sizeof s->format || (scan.at + 1 >= size && !end))
            return;
        memcpy(s->format, word, n);
        s->data_at = data_start(text, size, scan.at);
        s->kind = STATEMENT_INSERT;
        return;
    }
}

bool statement_kill(const char *text, size_t size, char *id, size_t id_size)
{
    static const char *const WORDS[] = {"KILL", "QUERY", "WHERE", "query_id"};
    struct scan scan = {text, size, 0, 0};
    const char *word = "";
    size_t n = 0;
    for (size_t i = 0; i < sizeof WORDS / sizeof WORDS[0]; i++)
        if (next_token(&scan, &word, &n) != TOKEN_WORD || !word_is(word, n, WORDS[i]))
            return false;
    if (next_token(&scan, &word, &n) != TOKEN_OTHER || !skip_blank(&scan) || scan.at == size ||
        text[scan.at] != '\'')
        return false;
    size_t start = scan.at + 1;
    if (!skip_quoted(&scan) || scan.at - 1 - start >= id_size)
        return false;
    memcpy(id, text + start, scan.at - 1 - start);
    id[scan.at - 1 - start] = '\0';
    return true;
}
