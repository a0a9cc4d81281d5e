# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Variants: SANITIZE=1 (ASan+UBSan) or thread (TSan), FAILPOINTS=1 (test builds),
# ARCH=arm64 (base and codec only, cross-built).

PREFIX     ?= /usr/local
DESTDIR    ?=
ifeq ($(origin CC),default)
CC         := gcc
endif
# One that has pytest: Debian's, which python3-pytest goes with.
PYTHON     ?= /usr/bin/python3
SANITIZE   ?= 0
FAILPOINTS ?= 0
VERSION    := $(shell cat VERSION)

VARIANT := release
ifeq ($(SANITIZE),1)
VARIANT := sanitize
else ifeq ($(SANITIZE),thread)
VARIANT := sanitize-thread
endif
ifeq ($(FAILPOINTS),1)
VARIANT := $(VARIANT)-failpoints
endif
# Downloads for the tests; may point at another checkout's, to share them.
DEPS_DIR   ?= build/deps
ARM64_ROOT := $(DEPS_DIR)/arm64/root
ifeq ($(ARCH),arm64)
VARIANT  := arm64
CC       := aarch64-linux-gnu-gcc
CPPFLAGS += -isystem $(ARM64_ROOT)/usr/include
LDFLAGS  += -L$(ARM64_ROOT)/usr/lib/aarch64-linux-gnu
endif
B := build/$(VARIANT)
# So many at a time as an outer make was told (-j), else two.
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j2)

WARN   := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
CPPFLAGS += -Iinclude -Isrc -D_GNU_SOURCE -DSPOOLD_VERSION='"$(VERSION)"'
CFLAGS += -std=gnu17 -g $(WARN) -fno-common -fstack-protector-strong
LDFLAGS += -Wl,-z,relro,-z,now -Wl,--as-needed
ifeq ($(SANITIZE),1)
CFLAGS += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS += -fsanitize=address,undefined
else ifeq ($(SANITIZE),thread)
CFLAGS += -O1 -fno-omit-frame-pointer -fsanitize=thread
LDFLAGS += -fsanitize=thread
else
CFLAGS += -O2 -D_FORTIFY_SOURCE=2 -fPIE
LDFLAGS += -pie
endif
ifeq ($(FAILPOINTS),1)
CPPFLAGS += -DSPOOLD_FAILPOINTS
endif

LIBS_SPOOL  := -llmdb -llz4 -lzstd -lxxhash -lm
LIBS_DAEMON := -lrdkafka -lcurl -luv -lmicrohttpd -lcjson -lz
LIBS_TOOL   := -lcurl -lcjson

src_of = $(wildcard src/$(1)/*.c)
obj_of = $(patsubst %.c,$(B)/%.o,$(1))

SPOOL_SRC   := $(call src_of,base) $(call src_of,codec) $(call src_of,spool)
DAEMON_SRC  := $(call src_of,source) $(call src_of,sink) $(call src_of,pipeline) $(call src_of,daemon)
TOOL_SRC    := $(wildcard tools/spoolctl/*.c)
UNIT_SRC    := $(wildcard tests/unit/test_*.c)
# A program is tests/support/NAME.c or tests/support/NAME/*.c; preload_*.c are LD_PRELOAD libraries.
PRELOAD_SRC := $(wildcard tests/support/preload_*.c)
SUPPORT_SRC := $(filter-out $(PRELOAD_SRC),$(wildcard tests/support/*.c))
SUPPORT_DIR := $(patsubst tests/support/%/,%,$(sort $(dir $(wildcard tests/support/*/*.c))))

LIBSPOOL := $(B)/libspool.a
SPOOLD   := $(B)/spoold
SPOOLCTL := $(B)/spoolctl
UNIT     := $(patsubst tests/unit/%.c,$(B)/tests/%,$(UNIT_SRC))
SUPPORT  := $(addprefix $(B)/support/,$(SUPPORT_DIR)) $(patsubst tests/support/%.c,$(B)/support/%,$(SUPPORT_SRC)) \
	$(patsubst tests/support/%.c,$(B)/support/%.so,$(PRELOAD_SRC))

.PHONY: all
all: $(LIBSPOOL) $(SPOOLD) $(SPOOLCTL)  ## build libspool, spoold and spoolctl

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 16

# ---- what the machine must have -------------------------------------------------------------

KAFKA_VERSION := 4.1.1
LOG4J_VERSION := 2.24.3
CHDB_VERSION  := 26.7.3-stable.1
CHDB_PACKAGE  := @chdb/lib-linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)-gnu
KAFKA_JARS    := $(DEPS_DIR)/kafka-$(KAFKA_VERSION)/.complete
CHDB_LIB      := $(DEPS_DIR)/chdb-$(CHDB_VERSION)/.complete

.PHONY: deps deps-check deps-unit deps-servers deps-arm64 deps-test
deps:  ## install what the build needs and the machine lacks
	@.ci/deps build
deps-check:
	@.ci/deps build check unit
deps-unit:
	@.ci/deps build unit
deps-arm64:
	@.ci/deps build arm64
deps-servers:
	@.ci/deps build servers
	@$(MAKE) -s --no-print-directory $(KAFKA_JARS) || \
		echo "deps: no Kafka broker from Maven; librdkafka's mock cluster stands in for it"
deps-test:  ## install and fetch what all the tests need
	@.ci/deps build check unit servers engine arm64
	@$(MAKE) -s --no-print-directory $(KAFKA_JARS) $(CHDB_LIB)

$(KAFKA_JARS): tests/support/kafka-pom.xml
	@echo "deps: fetching Kafka $(KAFKA_VERSION) with mvn into $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@mvn -q -B -Dstyle.color=never -f $< -Dkafka.version=$(KAFKA_VERSION) -Dlog4j.version=$(LOG4J_VERSION) \
		dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(abspath $(@D)) \
		>$(@D)/mvn.log 2>&1 || { grep -m 1 ERROR $(@D)/mvn.log; echo "deps: more in $(@D)/mvn.log"; exit 1; }
	@touch $@

$(CHDB_LIB):
	@echo "deps: fetching the ClickHouse library $(CHDB_VERSION) with npm into $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@npm install --prefix $(@D) --no-audit --no-fund --ignore-scripts --prefer-offline \
		--loglevel=error --silent $(CHDB_PACKAGE)@$(CHDB_VERSION)
	@ln -sf node_modules/$(CHDB_PACKAGE)/libchdb.so $(@D)/libchdb.so
	@touch $@

# ---- building -------------------------------------------------------------------------------

.PHONY: lib
lib: $(LIBSPOOL)

$(B)/%.o: %.c | deps
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(LIBSPOOL): $(call obj_of,$(SPOOL_SRC))
	@rm -f $@
	$(AR) rcs $@ $^

# Everything of the daemon but main(), for the unit tests.
$(B)/libdaemon.a: $(filter-out %/main.o,$(call obj_of,$(DAEMON_SRC)))
	@mkdir -p $(@D) && rm -f $@
	$(AR) rcs $@ $^

ifeq ($(SANITIZE),thread)
$(SPOOLD): $(B)/tests/race/threads.o
$(SPOOLD): LDFLAGS += -rdynamic
endif
$(SPOOLD): $(B)/src/daemon/main.o $(B)/libdaemon.a $(LIBSPOOL)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_SPOOL)

$(SPOOLCTL): $(call obj_of,$(TOOL_SRC)) $(LIBSPOOL)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_TOOL) $(LIBS_SPOOL)

# A unit test links what it uses from the archives; -Wl,--as-needed drops the rest.
$(B)/tests/%: $(B)/tests/unit/%.o $(B)/libdaemon.a $(LIBSPOOL)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS_DAEMON) $(LIBS_SPOOL)

$(foreach p,$(SUPPORT_DIR),$(eval $(B)/support/$(p): $(call obj_of,$(wildcard tests/support/$(p)/*.c))))
$(B)/support/%: $(LIBSPOOL)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS_DAEMON) $(LIBS_SPOOL)
$(patsubst tests/support/%.c,$(B)/support/%,$(SUPPORT_SRC)): $(B)/support/%: $(B)/tests/support/%.o

$(B)/support/%.so: tests/support/%.c | deps
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(filter-out -fPIE,$(CFLAGS)) -fPIC -shared -o $@ $< -ldl

# The public library by itself: built, and run twice on one spool, with the unit tests.
$(B)/spool_example: $(B)/tools/example/spool_example.o $(LIBSPOOL)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_SPOOL)
.PHONY: example
example: $(B)/spool_example
	@rm -rf $(B)/example.spool
	@for run in 1 2; do $< $(B)/example.spool >$(B)/example.out || exit 1; done
	@grep -q "removed segment 1" $(B)/example.out

# What the benchmark runs: tests/bench/NAME.c, each one program.
BENCH := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/libdaemon.a $(LIBSPOOL)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_SPOOL)
.PHONY: bench-build
bench-build: $(BENCH)

.PRECIOUS: $(B)/%.o $(B)/tests/bench/%.o $(B)/tests/unit/%.o $(B)/tests/support/%.o

# ---- checking and testing -------------------------------------------------------------------

C_FILES = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')

.PHONY: check
check: deps-check  ## style, layers, warnings, static analysis
	@[ -n "$(C_FILES)" ] || { echo "check: git lists no sources here"; exit 1; }
	@echo "== clang-format"; clang-format --dry-run -Werror $(C_FILES)
	@echo "== style"; $(PYTHON) tests/support/check_style.py
	@echo "== layers"; $(PYTHON) tests/support/check_layers.py
	@echo "== docs"; $(PYTHON) tests/support/check_docs.py
	@echo "== every header alone"; printf '%s\n' $(filter %.h,$(C_FILES)) | xargs -P 2 -I{} \
		$(CC) $(CPPFLAGS) $(filter-out -D_FORTIFY_SOURCE=2,$(CFLAGS)) -x c -fsyntax-only -include {} /dev/null
	@echo "== warnings"; $(MAKE) --no-print-directory -s $(JOBS) all unit-build support
	@echo "== cppcheck"; mkdir -p build/cppcheck; cppcheck --quiet --error-exitcode=1 -j 2 \
		--cppcheck-build-dir=build/cppcheck --std=c11 --enable=warning,performance,portability \
		--inline-suppr --suppressions-list=tests/support/cppcheck.supp \
		-D'cJSON_ArrayForEach(item, array)=while ((item = array))' \
		-Iinclude -Isrc -D_GNU_SOURCE -DSPOOLD_VERSION='""' $(filter %.c,$(filter-out tests/unit/%,$(C_FILES)))
	@echo "check: ok"

.PHONY: unit-build unit unit-sanitize unit-valgrind
unit-build: $(UNIT)
unit: deps-unit unit-build example  ## unit tests (SANITIZE=1: under ASan and UBSan)
	@tests/support/run_units unit $(UNIT)

unit-sanitize:
	@$(MAKE) --no-print-directory -s SANITIZE=1 unit

unit-valgrind: deps-unit unit-build
	@EMULATOR="valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=definite,indirect \
		--errors-for-leak-kinds=definite" tests/support/run_units unit-valgrind $(UNIT)

# base and codec on another processor: the unit tests that include nothing above them, cross-built
# and run by qemu.
ifneq ($(filter unit-core,$(MAKECMDGOALS)),)
CORE_UNIT := $(shell for t in $(UNIT_SRC); do gcc -M $(CPPFLAGS) $$t | \
	grep -qE 'src/(spool|source|sink|pipeline|daemon)/|/spool\.h|/(lmdb|uv|curl|rdkafka)\.h' || echo $$t; done)
endif
CORE_UNIT := $(patsubst tests/unit/%.c,$(B)/core/%,$(CORE_UNIT))

$(B)/libcore.a: $(call obj_of,$(call src_of,base) $(call src_of,codec))
	@rm -f $@
	$(AR) rcs $@ $^

$(B)/core/%: $(B)/tests/unit/%.o $(B)/libcore.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka -lcjson -llz4 -lzstd -lxxhash -lm

.PHONY: unit-core unit-arm64
unit-core: $(CORE_UNIT)
	@EMULATOR="$(EMULATOR)" tests/support/run_units unit-core $(CORE_UNIT)

$(DEPS_DIR)/arm64/.complete:
	@.ci/sysroot-arm64 $(@D)
unit-arm64: deps-arm64  ## unit tests of base and codec on arm64, under qemu
ifeq ($(shell uname -m),aarch64)
	@$(MAKE) --no-print-directory -s unit-core
else
	@$(MAKE) --no-print-directory -s $(DEPS_DIR)/arm64/.complete
	@$(MAKE) --no-print-directory -s $(JOBS) ARCH=arm64 unit-core EMULATOR="qemu-aarch64 -L /usr/aarch64-linux-gnu \
		-E LD_LIBRARY_PATH=$(abspath $(ARM64_ROOT))/usr/lib/aarch64-linux-gnu"
endif

# Fuzzing: tests/fuzz/fuzz_NAME.c, each with what it reaches of the sources, by clang. Seeds stand in
# tests/data/fuzz/NAME; what a run finds beyond them is kept in build/fuzz/NAME, a failing input too.
FUZZ      := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
SECONDS   ?= 60
FZ        := build/fuzz
FUZZFLAGS := -std=gnu17 -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all
$(FZ)/obj/%.o: %.c | deps-unit
	@mkdir -p $(@D)
	clang $(CPPFLAGS) $(FUZZFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@
# No target reaches the pipeline.
$(FZ)/lib.a: $(patsubst %.c,$(FZ)/obj/%.o,$(filter-out src/pipeline/% %/main.c,$(SPOOL_SRC) $(DAEMON_SRC)))
	@rm -f $@
	$(AR) rcs $@ $^
$(FZ)/bin/%: $(FZ)/obj/tests/fuzz/%.o $(FZ)/lib.a
	@mkdir -p $(@D)
	clang $(FUZZFLAGS) -fsanitize=fuzzer -Wl,--as-needed -o $@ $^ $(LIBS_DAEMON) $(LIBS_SPOOL)
.PRECIOUS: $(FZ)/obj/%.o

.PHONY: fuzz fuzz-build
fuzz-build: $(addprefix $(FZ)/bin/,$(FUZZ))
fuzz:  ## every fuzz target for SECONDS=n seconds each, or RUNS=n inputs, under ASan and UBSan
	@$(MAKE) --no-print-directory -s $(JOBS) fuzz-build
	@RUNS=$(RUNS) tests/fuzz/run $(FZ) $(SECONDS) $(FUZZ)

.PHONY: support
support: $(SUPPORT)

# The lanes below drive the failpoint build of the daemon; servers and tools come from the plain one.
F := build/release-failpoints
# By env, and so without a shell: that would not pass on to pytest the signal that ends make.
TEST_ENV = env SPOOLD_BIN=$(abspath $(F)/spoold) SPOOLCTL_BIN=$(abspath build/release/spoolctl) \
	SUPPORT_DIR=$(abspath build/release/support) UNIT_DIR=$(abspath build/sanitize/tests) \
	DEPS_DIR=$(abspath $(DEPS_DIR)) KAFKA_DIR=$(abspath $(dir $(KAFKA_JARS))) CHDB_LIB=$(abspath $(dir $(CHDB_LIB)))/libchdb.so
PYTEST = $(TEST_ENV) $(PYTHON) -m pytest -p no:cacheprovider -ra -q $(PYTEST_FLAGS)
PYTEST_FLAGS ?=

.PHONY: lane-build
lane-build: deps-test
	@$(MAKE) --no-print-directory -s $(JOBS) SANITIZE=0 FAILPOINTS=0 all support
	@$(MAKE) --no-print-directory -s $(JOBS) SANITIZE=0 FAILPOINTS=1 all
	@$(MAKE) --no-print-directory -s $(JOBS) SANITIZE=1 FAILPOINTS=0 build/sanitize/tests/test_kafka_real

# A lane without test files is passed over, aloud.
lane = $(if $(wildcard tests/$(1)/test_*.py),$(PYTEST) -m '$(2)' tests/$(1),@echo "$(1): no tests yet")

.PHONY: integration fault crash
integration: lane-build  ## against a real broker, a real server, the modern engine
	$(call lane,integration,not long)
fault: lane-build  ## cut connections, failing writes, full disks
	$(call lane,fault,not long)
crash: lane-build  ## kill -9 and power cuts
	$(call lane,crash,not long)

# A daemon that ThreadSanitizer watches ends with 66 at the first race; it needs a fixed address space.
.PHONY: race
RACE_TESTS ?= $(addprefix tests/integration/test_,$(addsuffix .py,daemon dead_letters endpoints flow full \
	https kafka_source one_block outage ownership schema_life spoolctl_socket)) tests/fault tests/crash/test_kill.py
race: lane-build  ## the daemon under ThreadSanitizer, in the lanes' tests
	@$(MAKE) --no-print-directory -s $(JOBS) SANITIZE=thread FAILPOINTS=1 build/sanitize-thread-failpoints/spoold
	$(subst /release-failpoints/,/sanitize-thread-failpoints/,$(TEST_ENV)) \
	TSAN_OPTIONS="suppressions=$(abspath tests/race/suppressions) ignore_noninstrumented_modules=1 halt_on_error=1" \
	setarch -R $(PYTHON) -m pytest -p no:cacheprovider -ra -q $(PYTEST_FLAGS) -m 'not long' $(RACE_TESTS)

.PHONY: soak
MINUTES ?= 20
soak: lane-build  ## load for MINUTES=n with everything going wrong at random; counts, memory, descriptors
	@$(TEST_ENV) $(PYTHON) tests/soak/soak.py --minutes $(MINUTES) $(SOAK_FLAGS)

.PHONY: mutants mutants-unit
mutants: lane-build  ## promises broken on purpose, each of which a test must find; MUTANTS="tests/mutants/x.patch"
	@$(TEST_ENV) $(PYTHON) tests/support/run_mutants.py $(MUTANTS)
mutants-unit: lane-build
	@$(PYTHON) tests/support/run_mutants.py --unit

.PHONY: lanes
lanes: lane-build  ## integration, fault, crash and mutants-unit, two at a time
	@echo "lanes: two at a time; what each says comes when it has ended"
	@$(MAKE) --no-print-directory -j2 -O -o lane-build integration fault crash mutants-unit

.PHONY: test test-long
test: deps-test  ## check and every lane, the short form
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory SANITIZE=1 $(JOBS) -s unit-build
	@$(MAKE) --no-print-directory -j4 -O RUNS=3000 unit-sanitize fuzz unit-arm64 lane-build
	@$(MAKE) --no-print-directory lanes
	@echo "test: ok"

test-long: test  ## and the tests marked long, valgrind, races, all mutants; N=n kills on each server, and cuts
	@$(MAKE) --no-print-directory fuzz
	@$(MAKE) --no-print-directory unit-valgrind
	@$(MAKE) --no-print-directory race
	@$(MAKE) --no-print-directory mutants
	@$(if $(N),$(MAKE) --no-print-directory crash KILLS=$(N) CUTS=$(N),:)
	$(PYTEST) -m long tests/integration $(wildcard tests/fault tests/crash)
	SEED=random $(PYTEST) tests/integration/test_differential.py

.PHONY: bench demo
bench: deps-test  ## the figures, as ratios within one run; BENCH_FLAGS="cpu size" picks, BENCH_SHORT=1
	@$(MAKE) --no-print-directory -s $(JOBS) SANITIZE=0 FAILPOINTS=0 all support bench-build
	@$(TEST_ENV) SPOOLD_BIN=$(abspath build/release/spoold) BENCH_DIR=$(abspath build/release/bench) \
		$(PYTHON) tests/bench/bench.py $(BENCH_FLAGS)
demo: deps-servers  ## Kafka to ClickHouse through an outage; KEEP=1 leaves it running
	@$(MAKE) --no-print-directory -s $(JOBS) all support
	@$(TEST_ENV) SPOOLD_BIN=$(abspath $(SPOOLD)) KEEP=$(KEEP) $(PYTHON) tests/demo/demo.py

# ---- installing -----------------------------------------------------------------------------

.PHONY: install uninstall
install: all  ## to DESTDIR and PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include
	install -m 755 $(SPOOLD) $(SPOOLCTL) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(LIBSPOOL) $(DESTDIR)$(PREFIX)/lib
	install -m 644 $(wildcard include/*.h) $(DESTDIR)$(PREFIX)/include
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)/etc/spoold
	sed 's,/usr/bin/,$(PREFIX)/bin/,' packaging/systemd/spoold.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/spoold.service
	install -m 644 packaging/systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/spoold.conf
	[ -e $(DESTDIR)/etc/spoold/spoold.json ] || install -m 644 packaging/spoold.json $(DESTDIR)/etc/spoold
uninstall:  ## what install put there, but not /etc/spoold
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/spoold.service $(DESTDIR)$(PREFIX)/lib/sysusers.d/spoold.conf
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,spoold spoolctl) $(DESTDIR)$(PREFIX)/lib/libspool.a
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/include/,$(notdir $(wildcard include/*.h)))

.PHONY: clean
clean:  ## everything built, but not what deps fetched
	find build -mindepth 1 -maxdepth 1 ! -name deps -exec rm -rf {} + 2>/dev/null || true

# Not those that another make may be writing just then.
-include $(shell find $(if $(filter fuzz-build,$(MAKECMDGOALS)),$(FZ)/obj,$(B)) -name '*.d' 2>/dev/null)
