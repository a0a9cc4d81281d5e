/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "spoolctl.h"

static void print_all(void)
{
    puts("usage: spoolctl [--spool DIR | --socket PATH] [--json] COMMAND\n\ncommands:");
    for (size_t i = 0; i < command_count; i++) {
        char left[48];
        snprintf(left, sizeof(left), "%s %s", commands[i].name, commands[i].synopsis);
        printf("  %-20s %s\n", left, commands[i].help);
    }
    puts("\noptions:");
    print_option_help(NULL);
    puts("\nWithout --spool and --socket the spoold behind " DEFAULT_SOCKET
         "\nis asked, or where none listens " DEFAULT_SPOOL
         " is read.\nExit: 0 fine, 1 found a problem, 2 wrong usage.");
}

static void print_one(const struct command *command)
{
    printf("usage: spoolctl [--spool DIR | --socket PATH] %s %s\n\n%s\n", command->name,
           command->synopsis, command->help);
    if (command->detail)
        printf("\n%s", command->detail);
    puts("\noptions:");
    print_option_help(command);
}

/* Commands of two words that share the first. False: there is none. */
static bool print_group(const char *name)
{
    size_t n = strlen(name);
    bool any = false;

    for (size_t i = 0; i < command_count; i++) {
        const struct command *c = &commands[i];
        if (strncmp(c->name, name, n) != 0 || c->name[n] != ' ')
            continue;
        if (!any)
            printf(
                "usage: spoolctl [--spool DIR | --socket PATH] [--json] %s COMMAND\n\ncommands:\n",
                name);
        printf("  %-20s %s\n", c->name, c->help);
        any = true;
    }
    if (any)
        printf("\n`spoolctl help %s COMMAND` tells more of one.\n", name);
    return any;
}

int command_help(const struct command *command, const struct arguments *args)
{
    char name[64];

    if (command && command->run != command_help) {
        print_one(command);
        return EXIT_FINE;
    }
    if (!args->word_count) {
        print_all();
        return EXIT_FINE;
    }
    snprintf(name, sizeof(name), "%s%s%s", args->words[0], args->word_count > 1 ? " " : "",
             args->word_count > 1 ? args->words[1] : "");
    for (size_t i = 0; i < command_count; i++)
        if (strcmp(commands[i].name, name) == 0) {
            print_one(&commands[i]);
            return EXIT_FINE;
        }
    if (args->word_count == 1 && print_group(name))
        return EXIT_FINE;
    return usage_error("unknown command '%s'", name);
}
