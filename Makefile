# berth: everything a person or CI does here. `make demo` and `make test` work on a fresh Debian 12 with Rust.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
TARGET := $(shell rustc --print host-tuple 2>/dev/null || rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(TARGET)/release

.PHONY: help build release packages test test-unit test-rootful demo bench fmt clippy deny clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 18

build: ## the program, for development
	cargo build --locked --workspace

release: ## the program, as shipped
	cargo build --locked --release

packages: ## Debian packages that the tests, the demo and the benchmarks use
	integration/packages.sh

test: packages ## every test, the rootful ones included (root)
	cargo test --locked --workspace --no-fail-fast -- --include-ignored

demo: packages ## a pod from a manifest to an answer over HTTP, and nothing left behind (root)
	cargo build --locked --release
	integration/demo.sh $(RELEASE)/berth

bench: packages ## side by side with runc, podman and the kernel's own floor (root)
	cargo build --locked --release --workspace
	$(RELEASE)/bench --berth $(RELEASE)/berth --floor $(RELEASE)/floor --output target/bench

fmt: ## formatting
	cargo fmt --all --check

clippy: ## lints, warnings denied
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny: ## licences and banned crates
	if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; \
	else cargo test --locked --test it licences::; fi

clean: ## build products
	cargo clean
