/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "spoolctl.h"

static void print_all(void)
{
    puts("usage: spoolctl [--spool DIR | --socket PATH] [--json] COMMAND\n\ncommands:");
    for (size_t i = 0; i < command_count; i++) {
        char left[48];
        snprintf(left, sizeof(left), "%s %s", commands[i].name, commands[i].synopsis);
        printf("  %-18s %s\n", left, commands[i].help);
    }
    puts("\noptions:");
    print_option_help(NULL);
    puts("\nWithout --spool and --socket the spoold behind " DEFAULT_SOCKET
         "\nis asked, or where none listens " DEFAULT_SPOOL
         " is read.\nExit: 0 fine, 1 found a problem, 2 wrong usage.");
}

static void print_one(const struct command *command)
{
    printf("usage: spoolctl [--spool DIR | --socket PATH] %s %s\n\n%s\n\noptions:\n", command->name,
           command->synopsis, command->help);
    print_option_help(command);
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
    return usage_error("unknown command '%s'", name);
}
