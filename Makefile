# What there is to make: `make` lists it. docs/testing.md tells more.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 30s

# Results of make test, one file of events for each group of tests.
RESULTS  := out/results
TALLY    := bin/tally

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the static binary, bin/gdbserver-xen
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags='-s -w -X main.stamp=$(VERSION)' -o bin/gdbserver-xen ./cmd/gdbserver-xen

.PHONY: demo
demo: build bin/xenlab ## gdb on a live guest on real Xen, in QEMU
	bin/xenlab demo

.PHONY: lab
lab: build bin/xenlab ## leave real Xen with a guest up until Ctrl-C, to try things on
	bin/xenlab up

.PHONY: bench
bench: build bin/xenlab bin/bench-client bin/gdbserver-xen-profiled ## the server beside gdbsx and QEMU's stub, some 5 minutes; writes docs/benchmarks.md
	bin/xenlab bench

# The groups run one after the other, whatever fails; the report comes last and
# is what fails. Tests that need real Xen are skipped in the group unit and run
# in the group lab.
.PHONY: test
test: ## all checks and tests, those on real Xen too
	@.ci/tools
	@$(MAKE) --no-print-directory clean-results $(TALLY) build checks unit lab-tests
	@$(TALLY) report -minimum internal/tally/minimum.txt $(RESULTS)/checks.json $(RESULTS)/unit.json $(RESULTS)/lab.json

.PHONY: test-unit
test-unit: ## checks and tests without real Xen, in about a minute
	@$(MAKE) --no-print-directory clean-results $(TALLY) checks unit
	@$(TALLY) report $(RESULTS)/checks.json $(RESULTS)/unit.json

.PHONY: clean-results
clean-results:
	@rm -rf $(RESULTS) && mkdir -p $(RESULTS)

CHECK = $(TALLY) check -o $(RESULTS)/checks.json -name

.PHONY: checks
checks: $(TALLY)
	@mkdir -p $(RESULTS)
	@$(CHECK) gofmt .ci/gofmt
	@$(CHECK) vet $(GO) vet ./...
	@$(CHECK) staticcheck $(GO) tool staticcheck ./...
	@$(CHECK) govulncheck .ci/govulncheck

.PHONY: unit
unit: $(TALLY)
	@mkdir -p $(RESULTS)
	@race=; if command -v gcc >/dev/null; then race=-race; fi; \
	$(TALLY) run -o $(RESULTS)/unit.json env -u GDBSERVER_XEN_LAB $(GO) test -json $$race -timeout 5m ./...

# Packages whose tests ask for real Xen, one after the other: a host takes both
# of two cores.
.PHONY: lab-tests
lab-tests: $(TALLY) bin/xenlab
	@bin/xenlab prepare --gdbsx || true # the tests fail with the same words
	@$(TALLY) run -o $(RESULTS)/lab.json -again 'this machine is broken' -flaky 3 \
	env GDBSERVER_XEN_LAB=1 $(GO) test -json -count=1 -p 1 -timeout 75m \
	$$($(GO) list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | awk '/lab\/labtest/ { print $$1 }')

.PHONY: matrix
matrix: bin/xenlab $(TALLY) ## all guests on all releases of Xen, an hour or so; writes docs/support.md
	@.ci/tools
	@rm -rf $(RESULTS)/matrix.json && mkdir -p $(RESULTS)
	@$(TALLY) run -o $(RESULTS)/matrix.json \
	env GDBSERVER_XEN_LAB=1 GDBSERVER_XEN_LAB_ALL=1 GDBSERVER_XEN_SUPPORT=$(CURDIR)/docs/support.md \
	$(GO) test -json -count=1 -timeout 120m -run 'TestMatrix|TestMemoryEqualsDumpCore' ./lab/e2e
	@$(TALLY) report $(RESULTS)/matrix.json
	@cat docs/support.md

# What run control has to stand: each test as often as it is meant to, with every
# engine, on all releases of Xen.
SOAK = TestSoak|TestKilledInRunControl|TestHits|TestSteps|TestFalseCondition|TestRunControl|TestGDBStacks|TestBacktrace

.PHONY: soak
soak: bin/xenlab $(TALLY) ## 20,000 hits and steps, 200 kills, 1,000 stacks and so on, on all releases of Xen: most of a day
	@.ci/tools
	@rm -rf $(RESULTS)/soak.json && mkdir -p $(RESULTS)
	@$(TALLY) run -o $(RESULTS)/soak.json \
	env GDBSERVER_XEN_LAB=1 GDBSERVER_XEN_LAB_ALL=1 GDBSERVER_XEN_SOAK=20000 \
	$(GO) test -json -count=1 -timeout 24h -run '$(SOAK)' ./lab/e2e
	@$(TALLY) report $(RESULTS)/soak.json

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME=30s
	@for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done

.PHONY: generate
generate: ## write anew what is made from the sources: docs/man, docs/packets.md
	$(GO) generate ./...

.PHONY: clean
clean: ## remove what was built (the lab's downloads stay in their cache)
	rm -rf bin out

.PHONY: $(TALLY) bin/xenlab bin/bench-client bin/gdbserver-xen-profiled
$(TALLY):
	@$(GO) build -o $@ ./internal/tally
bin/xenlab:
	@$(GO) build -o $@ ./lab/xenlab
bin/bench-client:
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags='-s -w' -o $@ ./lab/bench/client
bin/gdbserver-xen-profiled:
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags profile -o $@ ./cmd/gdbserver-xen
