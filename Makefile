# The two commands of README.md are `make demo` and `make test`; both set up what they need.
PRESET ?= cpu-release
BUILD  := build/$(PRESET)

.PHONY: help setup configure build programs demo serve test gpu-build gpu-test gpu-sanitize multi-gpu-test bench asan tsan format clean

help:
	@echo "make demo      install, build the programs, start router + worker on loopback, stream one completion, stop"
	@echo "make serve     the same, but stay up and print endpoints, an API key and example commands"
	@echo "make test      install, build, run every test that needs no GPU"
	@echo "make gpu-test  build and run the tests that need a GPU (CUDA Toolkit 13, Hopper); gRPC is not needed"
	@echo "make multi-gpu-test  those that need several GPUs of one node"
	@echo "make gpu-sanitize  the small ones of them under compute-sanitizer: memcheck and racecheck"
	@echo "make bench     decode speed of the bundled model beside its bounds"
	@echo "make asan tsan run the tests under AddressSanitizer + UBSan, or ThreadSanitizer (without the heavy ones)"
	@echo "make format    clang-format over our sources"
	@echo "make clean     remove build/"

setup:
	@scripts/setup.sh

configure: setup
	@cmake --preset $(PRESET) >$(PRESET).configure.log 2>&1 || (cat $(PRESET).configure.log; exit 1)
	@rm -f $(PRESET).configure.log

build: configure
	cmake --build --preset $(PRESET)

programs: configure
	cmake --build --preset $(PRESET) --target programs

demo: programs
	@scripts/demo.sh $(BUILD)

serve: programs
	@scripts/demo.sh $(BUILD) --stay

test: build
	@scripts/run_tests.sh $(BUILD) -LE gpu

gpu-build:
	cmake --preset cuda-release
	cmake --build --preset cuda-release --target gpu_tests

gpu-test: gpu-build
	@scripts/run_tests.sh --no-skips build/cuda-release -L '^gpu$$'

multi-gpu-test:
	cmake --preset cuda-release
	cmake --build --preset cuda-release --target multi_gpu_tests
	@scripts/run_tests.sh --no-skips build/cuda-release -L multi-gpu

gpu-sanitize: gpu-build
	@scripts/gpu_sanitize.sh build/cuda-release

asan:
	@$(MAKE) test PRESET=cpu-asan

tsan:
	@$(MAKE) build PRESET=cpu-tsan
	@scripts/run_tests.sh build/cpu-tsan -LE 'gpu|heavy'

bench: programs
	$(BUILD)/bin/ultraspeed-bench decode --model models/tiny-mimo --device cpu --prompts held-out

format:
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build
