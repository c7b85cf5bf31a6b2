# walrust: build, test, measure. `make` alone prints the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

TARGET  ?= $(or $(CARGO_TARGET_DIR),target)
PREFIX  ?= /usr/local
CARGO   ?= cargo
# Debian's own python3: its sqlite3 module may load extensions, which most other builds of Python leave out.
PYTHON  ?= /usr/bin/python3
EXT     := $(if $(filter Darwin,$(shell uname -s)),dylib,so)
LIB     := libwalrust.$(EXT)
VENV    := $(TARGET)/venv
PY      := $(VENV)/bin/python
# Two test processes at a time: more than cores makes the timing tests lie.
JOBS    ?= 2
# Executions and seconds for each fuzz target in `make fuzz`. The readers are safe Rust, so no sanitizer is the rule: it costs more
# than half of the executions. FUZZ_SANITIZER=address watches the libraries below them.
FUZZ_RUNS ?= 10000000
FUZZ_SECONDS ?= 3600
FUZZ_SANITIZER ?= none
# The factor by which `make crash` multiplies the campaigns.
ROUNDS  ?= 50

# -- building -----------------------------------------------------------------------------------------------------------

.PHONY: loadable
loadable: ## Build the extension as users get it: dist/walrust.so
	@# Not `cargo build --lib`: asked for the rlib as well, cargo leaves the link-time optimization out (8.8 MB, not 7.1).
	$(CARGO) rustc --release --lib --crate-type cdylib --target-dir $(TARGET)
	@mkdir -p dist && install -m 755 $(TARGET)/release/$(LIB) dist/walrust.$(EXT) && ls -l dist/walrust.$(EXT)

.PHONY: quick
quick: ## Build the extension with a fast link, for work on the tests: dist/walrust.so
	$(CARGO) build --profile quick --lib --target-dir $(TARGET)
	@mkdir -p dist && install -m 755 $(TARGET)/quick/$(LIB) dist/walrust.$(EXT)

.PHONY: crash-lib
crash-lib: # the extension with named crash points, for tests only
	$(CARGO) build --profile quick --lib --features crash-points --target-dir $(TARGET)
	@mkdir -p dist && install -m 755 $(TARGET)/quick/$(LIB) dist/walrust-crash.$(EXT)

.PHONY: cli
cli: ## Build the operator's command line: dist/walrust
	$(CARGO) build --release --features cli --bin walrust --target-dir $(TARGET)
	@mkdir -p dist && install -m 755 $(TARGET)/release/walrust dist/walrust

.PHONY: quick-cli
quick-cli: # the command line with a fast link, for tests
	$(CARGO) build --profile quick --features cli --bin walrust --target-dir $(TARGET)
	@mkdir -p dist && install -m 755 $(TARGET)/quick/walrust dist/walrust

.PHONY: install
install: loadable cli ## Install both under PREFIX (default /usr/local)
	install -D -m 755 dist/walrust.$(EXT) $(DESTDIR)$(PREFIX)/lib/walrust.$(EXT)
	install -D -m 755 dist/walrust $(DESTDIR)$(PREFIX)/bin/walrust

# -- what tests and the demo need ---------------------------------------------------------------------------------------

.PHONY: system
system: # Debian packages, only those missing
	@tests/setup sqlite3 python3-venv build-essential

$(VENV)/.ready: tests/door/requirements.txt tests/door/ciphers.txt
	@tests/setup sqlite3 libsqlite3-dev python3-venv build-essential chromium age
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/door/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/ciphers -r tests/door/ciphers.txt
	@# Where there is no npm, the tests of the driver are skipped, and that of the page fails; where there is one, both fail without theirs.
	if command -v npm >/dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix $(VENV)/npm $$(sed -n 's/^# npm: //p' tests/door/requirements.txt tests/door/ciphers.txt); fi
	@touch $@

# -- testing ------------------------------------------------------------------------------------------------------------

.PHONY: test
test: test-rust test-door test-sqlite-wal ## Everything that must pass before a change lands (under 20 minutes on 2 cores)

.PHONY: test-rust
test-rust: $(VENV)/.ready ## Unit, property and integration tests of the crate
	export LITESTREAM=$(abspath $(VENV))/bin/litestream; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run --features cli,sim --target-dir $(TARGET); \
	else \
	  $(CARGO) test --features cli,sim --lib --bins --tests --target-dir $(TARGET); \
	fi

.PHONY: test-door
test-door: $(VENV)/.ready quick quick-cli crash-lib ## The extension through the stock shell, python3, apsw, S3 and Litestream (K=pattern picks)
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal --timeout 300 --durations 10 -r fE -p no:cacheprovider \
	  $(if $(K),-k "$(K)") tests/door

.PHONY: test-sqlite-wal
test-sqlite-wal: quick # SQLite's own tests of its WAL, with walrust loaded, and some over a VFS that is another's
	@tests/setup sqlite3 build-essential tcl-dev xz-utils
	$(PYTHON) tests/sqlite/run.py --work $(TARGET)/sqlite --so dist/walrust.$(EXT) --jobs $(JOBS) \
	  wal.test wal2.test wal3.test walmode.test walro.test walpersist.test walbak.test walcrash.test savepoint.test \
	  backup2.test oserror.test quota2.test
	$(PYTHON) tests/sqlite/run.py --work $(TARGET)/sqlite --so dist/walrust.$(EXT) --jobs $(JOBS) --only foreign \
	  wal.test wal2.test walmode.test

.PHONY: test-sqlite
test-sqlite: loadable ## SQLite's veryquick suite, mptester and threadtest3: stock, with walrust loaded, with every database streamed, and loaded over a VFS that is another's
	@tests/setup sqlite3 build-essential tcl-dev xz-utils
	$(PYTHON) tests/sqlite/run.py --work $(TARGET)/sqlite --so dist/walrust.$(EXT) --jobs $(JOBS) --stream --foreign --programs veryquick

.PHONY: test-hosts
test-hosts: crash-lib ## The extension in old SQLites: 3.24 to 3.39, built from released crates
	$(PYTHON) tests/hosts/run.py $(abspath dist/walrust-crash.$(EXT)) $(TARGET)/hosts

.PHONY: crash
crash: $(VENV)/.ready crash-lib loadable quick-cli ## The campaigns at length: kills, races, forks, outage, corruption (ROUNDS=50 times the test counts; K=pattern picks)
	WALRUST_ROUNDS=$(ROUNDS) $(PY) -m pytest -q -s -p no:cacheprovider -m "campaign" $(if $(K),-k "$(K)") tests/door

.PHONY: life
life: $(VENV)/.ready quick quick-cli ## Ten minutes of a small application's day: workers, cron, kills, outages, keys, clocks; every word is held against a restore (ROUNDS=15)
	WALRUST_ROUNDS=$(if $(filter 50,$(ROUNDS)),15,$(ROUNDS)) $(PY) -m pytest -q -s -p no:cacheprovider tests/door/test_life.py

.PHONY: sanitize
sanitize: crash-lib ## The shim and the capture path under valgrind's memcheck
	@tests/setup sqlite3 valgrind
	tests/sanitize/run dist/walrust-crash.$(EXT)

.PHONY: sanitizers
sanitizers: ## The library's tests under AddressSanitizer, then ThreadSanitizer (needs a nightly toolchain with rust-src)
	for s in address thread; do \
	  RUSTFLAGS=-Zsanitizer=$$s ASAN_OPTIONS=detect_leaks=0 $(CARGO) +nightly test -Zbuild-std --features cli --lib \
	    --target $$(rustc -vV | sed -n 's/host: //p') --target-dir $(TARGET)/$$s -- --test-threads 2 || exit 1; \
	done

.PHONY: damage
damage: $(VENV)/.ready loadable ## 500 random corruptions of a replica, 500 verifies of a live one: what walrust_verify finds
	WALRUST_ROUNDS=50 $(PY) -m pytest -q -s -p no:cacheprovider tests/door/test_verify.py -k Campaign

.PHONY: week
week: ## A week of commits in simulated time: how large the replica gets, that all of its window restores, and what three databases cost
	$(CARGO) test --features cli --lib --target-dir $(TARGET) a_week_of -- --nocapture

.PHONY: sim
sim: ## Simulate: STEPS=1000000 steps with faults, worlds SEED=1 and on; a failing one names itself
	SEED=$(or $(SEED),1) STEPS=$(or $(STEPS),1000000) \
	  $(CARGO) test --features sim --test sim --target-dir $(TARGET) -- --ignored --nocapture at_length

.PHONY: fuzz
fuzz: ## Fuzz every reader: FUZZ_RUNS executions each, or FUZZ_SECONDS if that is less (FUZZ=pattern picks; needs a nightly toolchain)
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --quiet cargo-fuzz
	$(CARGO) +nightly fuzz build --sanitizer $(FUZZ_SANITIZER)
	for target in fuzz/fuzz_targets/*.rs; do \
	  name=$$(basename $$target .rs); [[ $$name == $(or $(FUZZ),*) ]] || continue; mkdir -p fuzz/corpus/$$name; \
	  seeds=; for d in fuzz/seeds/$$name tests/vectors/$${name%%_*}; do [ -d $$d ] && seeds="$$seeds $$d"; done; \
	  $(CARGO) +nightly fuzz run --sanitizer $(FUZZ_SANITIZER) $$name fuzz/corpus/$$name $$seeds -- \
	    $$([[ $$name =~ ^(key_names|values)$$ ]] && echo -max_len=512 || true) \
	    -runs=$(FUZZ_RUNS) -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 2>&1 | grep -E 'panicked|ERROR|Done|SUMMARY|Test unit|artifact' | sed "s/^/$$name: /"; \
	done

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors; who imports whom
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features cli,sim --target-dir $(TARGET) -- -D warnings
	$(CARGO) test --features cli,sim --test rooms --target-dir $(TARGET)

# -- packages -----------------------------------------------------------------------------------------------------------

# For which platforms (packages/cross names them). One whose standard library is not here, nor to be built from source, is left out, with a line.
PACKAGE_TARGETS ?= linux-x64 linux-x64-musl linux-arm64 linux-arm64-musl

.PHONY: packages
packages: ## Build wheels, npm, deb, tar balls, gem, Go module into dist/packages (PACKAGE_TARGETS=... picks platforms; QUICK=1: this machine's, fast link)
	@tests/setup build-essential python3-venv ruby $$(command -v npm >/dev/null || echo npm)
ifdef QUICK
	$(MAKE) quick quick-cli
	@mkdir -p dist/targets/linux-x64
	strip -o dist/targets/linux-x64/walrust.so dist/walrust.$(EXT)
	strip -o dist/targets/linux-x64/walrust dist/walrust
else
	CARGO_TARGET_DIR=$(TARGET) packages/cross --where-possible $(PACKAGE_TARGETS)
endif
	rm -rf dist/packages
	$(PYTHON) packages/build.py

.PHONY: test-packages
test-packages: ## Install each package from its file into a clean prefix; stream, restore and verify there (after `make packages`; K=pattern picks)
	@tests/setup build-essential python3-venv sqlite3 libsqlite3-dev man-db
	$(PYTHON) -m unittest discover --start-directory packages/tests $(if $(K),-k "$(K)")

.PHONY: test-arm64
test-arm64: $(VENV)/.ready ## The door tests that tests/door/arm64.txt names, with arm64's extension in arm64's shell and Python under qemu (after `make packages`)
	@tests/setup qemu-user
	tests/door/arm64 $(TARGET)/arm64 $(PY) -m pytest -q -n $(JOBS) --dist worksteal --timeout 600 -r fE -p no:cacheprovider $(if $(K),-k "$(K)")

# -- measuring and showing ----------------------------------------------------------------------------------------------

.PHONY: bench
bench: $(VENV)/.ready loadable ## Commit cost with and without, memory, size, lag, outage; medians and ratios
	bench/run --target $(TARGET) --python $(PY)

.PHONY: bench-200k
bench-200k: $(VENV)/.ready loadable ## 200,000 commits from 4 connections, restored and compared
	bench/build $(TARGET)
	$(PY) bench/commits200k.py --so dist/walrust.$(EXT) --program $(TARGET)/bench/commits

.PHONY: bench-verify
bench-verify: $(VENV)/.ready loadable ## What a quick verify reads of a replica of 10,000 files, and how long it takes
	$(PY) bench/verify.py --so dist/walrust.$(EXT)

.PHONY: bench-restore
bench-restore: $(VENV)/.ready loadable ## A restore of 500 MB beside cp and Litestream, and one that takes the difference
	$(PY) bench/restore.py --so dist/walrust.$(EXT)

.PHONY: bench-read
bench-read: $(VENV)/.ready loadable ## A replica of 1 GB read in place, 20 ms a request: requests, round trips, bytes, memory, Litestream's VFS beside it; the past of a live 2 GB
	$(PY) bench/read.py --so dist/walrust.$(EXT)
	$(PY) bench/past.py --so dist/walrust.$(EXT)

.PHONY: bench-many
bench-many: $(VENV)/.ready loadable ## 1 to 10,000 databases in one process, with and without: opening, memory, descriptors, CPU at rest, one busy, all busy
	$(PY) bench/many.py --so dist/walrust.$(EXT)

.PHONY: bench-away
bench-away: $(VENV)/.ready loadable ## What a store that is away costs a program: 100 opens, writes and closes by 8 threads, of one database and of new ones, with and without
	$(PY) bench/away.py --so dist/walrust.$(EXT)

.PHONY: bench-age
bench-age: loadable ## What encryption costs: COMMITs, CPU and memory of the same writes without walrust, streamed in the clear, and encrypted
	$(PYTHON) bench/age.py --so dist/walrust.$(EXT)

# The documents' builder. Built without optimization: it is at work for a moment.
MDBOOK := $(TARGET)/mdbook/bin/mdbook
$(MDBOOK):
	$(CARGO) install --quiet --locked --debug --version 0.5.4 --no-default-features --features search --root $(TARGET)/mdbook --target-dir $(TARGET)/mdbook/build mdbook
	rm -rf $(TARGET)/mdbook/build

.PHONY: docs
docs: $(MDBOOK) ## The documents as a small site with search, every link and anchor followed: target/docs/html
	$(PYTHON) docs/site.py $(MDBOOK) $(TARGET)/docs

.PHONY: demo
demo: system loadable ## Stream a real database, kill its writer, delete it, restore it, prove it equal
	@demo/run dist/walrust.$(EXT)

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean --target-dir $(TARGET)
	rm -rf dist

.PHONY: help
help:
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
