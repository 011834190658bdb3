# The commands of this project; `make help` lists them. Whatever they fetch or build goes below the target directory.

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
TOOLS := $(TARGET)/tools
VM := $(TARGET)/vm
CARGO_DENY_VERSION := 0.20.2
CARGO_DEB_VERSION := 3.8.0
DENY := $(or $(shell command -v cargo-deny 2>/dev/null),$(TOOLS)/bin/cargo-deny)
DEB := $(or $(shell command -v cargo-deb 2>/dev/null),$(TOOLS)/bin/cargo-deb)

# Where the tests and the benchmark find the nats-server that `make tools` fetched.
export MACHINES_TOOLS := $(TOOLS)

# How many times as often as the normal suite `make soak` does what may go wrong only sometimes.
SOAK ?= 20
# `make soak` runs the tests that count: their files and names.
SOAKED := --test crash --test exec_escape

.DEFAULT_GOAL := help
.PHONY: help dev tools test lint fmt clippy docs deny advisories bench attack soak deb test-vm

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf 'make %-12s%s\n' "$$name" "$$text"; done

dev: ## everything on this machine, explained while it runs: keys, archive, specification, daemon
	$(CARGO) run --release --bin machinesd -- dev

tools: ## fetch the pinned nats-server that the tests and the benchmark run
	packager/tools/fetch-nats-server $(TOOLS)

test: tools ## run all tests, against the real nats-server
	$(CARGO) test --lib --bins --tests

lint: fmt clippy docs deny ## formatting, clippy, documentation, and licences, bans and sources of dependencies

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --lib

deny: $(DENY)
	$(DENY) check bans licenses sources

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install cargo-deny --locked --version $(CARGO_DENY_VERSION) --root $(TOOLS) --target-dir $(TOOLS)/build

advisories: $(DENY) ## ask the RustSec database about the dependencies; needs the network
	$(DENY) check advisories

bench: tools ## measure the budgets against the real binaries, as a table
	$(CARGO) bench --bench budgets

attack: tools ## attack the real daemon and print what it stood; BASE=path/to/machinesd to compare with another build
	MACHINES_ATTACK_BASE='$(if $(BASE),$(abspath $(BASE)))' $(CARGO) bench --bench attack

soak: tools ## the tests that kill, race and mutate, SOAK=20 times as long
	MACHINES_SOAK=$(SOAK) $(CARGO) test $(SOAKED) -- --nocapture
	MACHINES_SOAK=$(SOAK) $(CARGO) test --lib no_mutated -- --nocapture

deb: $(DEB) ## build the Debian package
	$(CARGO) build --release
	$(DEB) --no-build --output $(TARGET)/machines.deb

test-vm: $(if $(PACKAGE),,deb) ## the package in a small guest with systemd; as root; ONLY=word for some tests, PACKAGE=a.deb
	packager/vm/test $(or $(PACKAGE),$(TARGET)/machines.deb) $(VM)

$(TOOLS)/bin/cargo-deb:
	$(CARGO) install cargo-deb --locked --version $(CARGO_DEB_VERSION) --no-default-features --features gzip --debug \
		--root $(TOOLS) --target-dir $(TOOLS)/build
