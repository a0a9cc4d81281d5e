# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Variants: SANITIZE=1 (ASan+UBSan), FAILPOINTS=1 (test builds).

PREFIX     ?= /usr/local
DESTDIR    ?=
CC         ?= gcc
PYTHON     ?= python3
SANITIZE   ?= 0
FAILPOINTS ?= 0
VERSION    := $(shell cat VERSION)

VARIANT := release
ifeq ($(SANITIZE),1)
VARIANT := sanitize
endif
ifeq ($(FAILPOINTS),1)
VARIANT := $(VARIANT)-failpoints
endif
B := build/$(VARIANT)

WARN   := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
CPPFLAGS += -Iinclude -Isrc -D_GNU_SOURCE -DSPOOLD_VERSION='"$(VERSION)"'
CFLAGS += -std=gnu17 -g $(WARN) -fno-common -fstack-protector-strong
LDFLAGS += -Wl,-z,relro,-z,now -Wl,--as-needed
ifeq ($(SANITIZE),1)
CFLAGS += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS += -fsanitize=address,undefined
else
CFLAGS += -O2 -D_FORTIFY_SOURCE=2 -fPIE
LDFLAGS += -pie
endif
ifeq ($(FAILPOINTS),1)
CPPFLAGS += -DSPOOLD_FAILPOINTS
endif

LIBS_SPOOL  := -llmdb -llz4 -lzstd -lxxhash -lm
LIBS_DAEMON := -lrdkafka -lcurl -luv -lmicrohttpd -lcjson
LIBS_TOOL   := -lcurl -lcjson

src_of = $(wildcard src/$(1)/*.c)
obj_of = $(patsubst %.c,$(B)/%.o,$(1))

SPOOL_SRC  := $(call src_of,base) $(call src_of,codec) $(call src_of,spool)
DAEMON_SRC := $(call src_of,source) $(call src_of,sink) $(call src_of,pipeline) $(call src_of,daemon)
TOOL_SRC   := $(wildcard tools/spoolctl/*.c)
UNIT_SRC   := $(wildcard tests/unit/test_*.c)
ALL_SRC    := $(SPOOL_SRC) $(DAEMON_SRC) $(TOOL_SRC)

LIBSPOOL := $(B)/libspool.a
SPOOLD   := $(B)/spoold
SPOOLCTL := $(B)/spoolctl
UNIT     := $(patsubst tests/unit/%.c,$(B)/tests/%,$(UNIT_SRC))

.PHONY: all help clean lib
all: $(LIBSPOOL) $(SPOOLD) $(SPOOLCTL)
lib: $(LIBSPOOL)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(LIBSPOOL): $(call obj_of,$(SPOOL_SRC))
	@rm -f $@
	$(AR) rcs $@ $^

# Everything of the daemon but main(), for the unit tests.
$(B)/libdaemon.a: $(filter-out %/main.o,$(call obj_of,$(DAEMON_SRC)))
	@rm -f $@
	$(AR) rcs $@ $^

$(SPOOLD): $(B)/src/daemon/main.o $(B)/libdaemon.a $(LIBSPOOL)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_SPOOL)

$(SPOOLCTL): $(call obj_of,$(TOOL_SRC)) $(LIBSPOOL)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_TOOL) $(LIBS_SPOOL)

# A unit test links what it uses from the archives; -Wl,--as-needed drops the rest.
$(B)/tests/%: $(B)/tests/unit/%.o $(B)/libdaemon.a $(LIBSPOOL)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS_DAEMON) $(LIBS_SPOOL)

.PRECIOUS: $(B)/%.o $(B)/tests/unit/%.o

.PHONY: unit
unit: $(UNIT)
	@for t in $(UNIT); do echo "== $$t"; $$t || exit 1; done

clean:
	rm -rf build

-include $(shell find $(B) -name '*.d' 2>/dev/null)
