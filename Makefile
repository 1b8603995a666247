# make demo, make test, make bench, make lint, make typecheck: each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(wildcard csrc/*.?pp csrc/*.inl csrc/*/*.?pp csrc/*/*.inl)
NATIVE := CMakeLists.txt setup.py $(filter-out csrc/tests/%,$(CORE))

.PHONY: demo test native-tests bench bench-backends bench-cpu bench-precision bench-methods bench-eval bench-quality gpu-parity \
  gpu-latency gpu-engines gpu-train lint typecheck wheel examples format clean
.DELETE_ON_ERROR:

demo: $(VENV)/native
	$(BIN)/pyflow demo

test: $(VENV)/native
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(VENV)/native
	$(BIN)/python -m pytest benchmarks -q -s --benchmark-enable --benchmark-columns=median,iqr,rounds

# Every backend beside the others; half an hour.
bench-backends: $(VENV)/native
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/backends.py

# What the lower precisions cost, after `make demo`. CIFAR10=FOLDER, of its parquet files, adds runs/cifar/teacher.
bench-precision: $(VENV)/native
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/precision.py \
	  --subject 'digits teacher' runs/demo/teacher runs/demo/classifier digits \
	  --subject 'digits student' runs/demo/student runs/demo/classifier digits \
	  $(if $(CIFAR10),--subject 'CIFAR-10 teacher' runs/cifar/teacher runs/cifar/classifier '$(CIFAR10)')

# Every method at a reduced size from the teacher of `make demo`, a few minutes each; CIFAR10=FOLDER: from runs/cifar's. There
# most times lie near 0 and 1, as between these lies the jump of one call: psd-midpoint's distance was 13 to 15 with even times.
ENDS := times=u-shaped warmup=0.1 half_lives=0.1
MAPS := steps=700 diagonal=0.5 learned_weight=false $(ENDS)
ON_CIFAR10 := --batch 24 --steps 400 --runs runs/methods-cifar --own ddpm steps=1600 batch=64 prediction=v \
  --own meanflow steps=600 $(ENDS) --own improved-meanflow steps=600 $(ENDS) --own lsd $(MAPS) steps=600 \
  --own psd-midpoint $(MAPS) --own psd-uniform $(MAPS) --own esd steps=450 learning_rate=5e-4 $(ENDS) \
  --own consistency steps=300 batch=48 learning_rate=1e-4 gap=0.1 $(ENDS)
bench-methods: $(VENV)/native
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/methods.py \
	  $(if $(CIFAR10),--data '$(CIFAR10)' --teacher runs/cifar/teacher --judge runs/cifar/classifier $(ON_CIFAR10), \
	  --teacher runs/demo/teacher --judge runs/demo/classifier)

# Where the time of an evaluation goes, and its memory; some minutes.
bench-eval: $(VENV)/native
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/evaluation.py

# The demo's teacher and student, judged and timed, as the page report/quality; a quarter of an hour on a machine that is idle.
QUALITY := benchmarks/results/quality-digits
JUDGED := --data digits --features classifier:runs/demo/classifier --num-samples 500 --threads 1
bench-quality: $(VENV)/native
	mkdir -p $(QUALITY)
	$(BIN)/pyflow eval runs/demo/teacher.engine $(JUDGED) --guidance 2 --steps 1,2,4,8,50,200 --out $(QUALITY)/teacher.json
	$(BIN)/pyflow eval runs/demo/student.engine $(JUDGED) --steps 1,2,4,8 --out $(QUALITY)/student.json \
	  --against runs/demo/teacher.engine --against-steps 200 --against-guidance 2
	$(BIN)/pyflow bench runs/demo/teacher.engine --threads 1 --guidance 2 --json $(QUALITY)/teacher-times.json
	$(BIN)/pyflow bench runs/demo/student.engine --threads 1 --json $(QUALITY)/student-times.json
	$(BIN)/pyflow report $(QUALITY)/*.json --out report/quality
	cp report/quality/quality-latency.png report/quality/same-seeds.png $(QUALITY)/

# The native engine beside the fastest runtimes; half an hour, and a quarter more when their files are made first.
bench-cpu: $(VENV)/native
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/cpu.py

# On a machine with an NVIDIA GPU; each ends in under nine minutes.
gpu-parity gpu-latency gpu-engines: $(VENV)/native
	$(BIN)/python benchmarks/gpu/$(@:gpu-%=%).py --out benchmarks/results

# A teacher and its students of CIFAR10=FOLDER, of its parquet files; call it again until it says that all is done.
gpu-train: $(VENV)/native
	$(BIN)/python benchmarks/gpu/train.py --out benchmarks/results --models models $(if $(CIFAR10),--data '$(CIFAR10)')

examples: $(VENV)/native
	for example in examples/*.py; do echo "== $$example"; OMP_WAIT_POLICY=PASSIVE $(BIN)/python $$example || exit 1; done

lint: $(VENV)/packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CORE)

format: $(VENV)/packages
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CORE)

# The core's own tests, plain and with sanitizers, and FUZZ_SECONDS of spoiled network files.
native-tests: $(VENV)/packages
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/test_native.sh

# mypy does not follow the package map of setup.py, so it reads the packages where they are installed.
typecheck: $(VENV)/packages
	rm -rf build/types && mkdir -p build/types
	cp -r pyflow build/types/pyflow && cp -r kernels build/types/pyflow/kernels && cp -r training build/types/pyflow/training
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pyflow

# The wheel as a user gets it: built from the sdist, run outside the tree in an environment with nothing but its needs.
wheel: $(VENV)/native
	tools/test_wheel.sh $(BIN)/python

$(VENV)/packages: pyproject.toml constraints.txt tools/install_torch.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyflow needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V): make PYTHON=python3.12 ..."; exit 1; }
	@command -v c++ >/dev/null || { echo "pyflow needs a C++17 compiler and found no c++: install g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	tools/install_torch.sh $(VENV)
	$(BIN)/pip install -q -c constraints.txt setuptools pybind11 cmake ninja
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[demo,data,logs,diffusers,openvino,tensorrt,triton,test,dev]'
	# torchvision, which it asks for, does not import beside the CPU torch; what is used of it needs none.
	$(BIN)/pip install -q --no-deps -c constraints.txt clean-fid
	touch $@

$(VENV)/native: $(VENV)/packages $(NATIVE)
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info pyflow/_C.*.so
