# Everything runs in .venv, which is made when it is needed: Python 3.11 to 3.13 and make are all a machine must have.
# uv does the installing where it is there, else pip.

PYTHONS = $(addprefix build/python3.,11 12 13)
.PHONY: help train test newest oldest pythons audit long notebook readme clean build/README.md $(PYTHONS)
.DELETE_ON_ERROR:
B = .venv/bin
AS_INSTALLED = $(patsubst %,tests/test_%.py,cli fastai going_on resume)
NB_TEST = OMP_NUM_THREADS=1 MPLBACKEND=Agg $(B)/nbdev_test --path nbs --n_workers 1 --do_print --timing

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1: /p' Makefile

train: .venv/.installed ## train on the embedded scenes of shapes; the result lies in runs/shapes
	MPLBACKEND=Agg $(B)/caption_train --data shapes --out runs/shapes

test: .venv/.installed build/README.md ## all checks: export and README are up to date, the notebooks run, the tests pass; where CI is set, `make oldest` too
	$(B)/ruff check -q --isolated --no-cache --target-version py311 --select F,B,PLE --ignore F403,F405,B008,B023,B028,B905 nbs tests
	@sed -n '/^dev_/!s/^[a-z_]*requirements *= *//p' settings.ini | tr ' ' '\n' > build/requirements.txt
	$(B)/deptry caption_fastai -rf build/requirements.txt -kf caption_fastai -pri DEP002=tensorboard
	@rm -rf build/before && mkdir -p build/before && cp -R nbs caption_fastai build/before
	$(B)/nbdev_export
	@for d in nbs caption_fastai; do diff -rq -x __pycache__ -x .ipynb_checkpoints build/before/$$d $$d || \
	  { echo "nbdev_export changed $$d: the notebooks are the source, look at the change and commit it" >&2; exit 1; }; done
	@diff README.md build/README.md || { echo 'README.md is not what nbs/index.ipynb gives: run make readme' >&2; exit 1; }
	@export TMPDIR=$$(mktemp -d); $(NB_TEST) --file_re '^(14|20)' & p=$$!; $(NB_TEST) --skip_file_re '^([_.]|14|20)'; r=$$?; wait $$p || r=1; \
	  rm -rf $$TMPDIR; exit $$r   # two halves side by side
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(B)/python -m pytest tests $(addprefix --ignore ,$(AS_INSTALLED)) -n 2 -m 'not long'   # these: in newest
	@$(MAKE) --no-print-directory -j2 newest $(if $(CI),oldest)

# The package as pip installs it, in an environment of its own: $(1) its name, $(2) its Python, $(3) what else is installed, $(4) what is done before
define installed
	@rm -rf build/$(1) && $(2) -m venv build/$(1) && $(4)
	@mkdir build/$(1)/source && cp -R setup.py settings.ini README.md LICENSE caption_fastai build/$(1)/source   # so that two can be made at once
	build/$(1)/bin/python -m pip install -q build/$(1)/source $(3) 2>build/$(1)/log || { cat build/$(1)/log >&2; exit 1; }
	@cd build/$(1) && bin/python -c 'import caption_fastai, fastai, torch, sys; print("Python", *sys.version_info[:3], "fastai", fastai.__version__, "torch", torch.__version__); assert "build/$(1)" in caption_fastai.__file__'
	cd build/$(1) && OMP_NUM_THREADS=1 MPLBACKEND=Agg bin/python -m pytest -q $(addprefix ../../,$(AS_INSTALLED)) -n 2 -m 'not long'
endef
WHERE = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
OLDEST = $(shell sed -n 's/^requirements *= *//p' settings.ini | tr ' ' '\n' | sed -n -e 's/,.*//' -e 's/>=/==/p')

newest: .venv/.installed ## tests of the commands, of resuming and of fastai's ways with the newest fastai and PyTorch; what .venv has in its newest version is taken from there
	$(call installed,newest,$(B)/python,-U fastai fastcore torch torchvision,$(B)/python $(WHERE) > "$$(build/newest/bin/python $(WHERE))/rest.pth")

oldest: .venv/.installed ## the same with the oldest fastai and PyTorch that settings.ini admits (some GB in build/oldest)
	$(call installed,oldest,$(B)/python,$(OLDEST) 'fastcore<2' 'plum-dispatch<2.10' pytest pytest-xdist,:)
	$(if $(CI),rm -rf build/oldest)

pythons: ## the same with each Python that is here (some GB in build for each)
	@for p in $(notdir $(PYTHONS)); do if $$p -c pass >/dev/null 2>&1; then $(MAKE) --no-print-directory build/$$p || exit 1; else echo "no $$p here"; fi; done
$(PYTHONS): build/python3.%:
	$(call installed,$(@F),$(@F),pytest pytest-xdist,:)

audit: .venv/.installed ## known vulnerabilities of the packages in .venv, as osv.dev lists them
	@$(B)/python -m venv build/audit && build/audit/bin/python -m pip install -q pip-audit
	build/audit/bin/pip-audit -s osv --path "$$($(B)/python $(WHERE))"

long: .venv/.installed ## the tests that take long; where FLICKR8K names its folder, all cells of the notebooks too (GLOVE: vectors, FLICKR8K_RUN and SYSTEMS_RUN: what 21 and 22 train)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(B)/python -m pytest tests -n 2 -m long
	$(if $(FLICKR8K),@export TMPDIR=$$(mktemp -d); $(NB_TEST) --flags slow; r=$$?; rm -rf $$TMPDIR; exit $$r)

notebook: .venv/.installed ## open the notebooks in Jupyter
	$(B)/jupyter-lab --notebook-dir=nbs $$([ "$$(id -u)" != 0 ] || echo --allow-root)

readme: build/README.md ## make README.md from nbs/index.ipynb
	cp build/README.md README.md

# Cells that begin with hide, export or default_exp are not for the reader; of others only the directive lines go
build/README.md: .venv/.installed
	@mkdir -p build
	@$(B)/jupyter-nbconvert --to markdown --stdout --log-level ERROR \
	  --RegexRemovePreprocessor.patterns='.[|] *(hide|export|default_exp)' nbs/index.ipynb > build/index.md
	@awk '/^#[|]/ {next} /^```/ && (code = !code) && $$0=="```" {$$0 = "```python"} \
	  {gsub("[(][.][.]/", "("); print}' build/index.md > $@

clean: ## remove caches and what was built; .venv and runs stay
	rm -rf build dist _docs
	find caption_fastai nbs tests \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache \) -prune -exec rm -rf {} +

# A Python counts only if it runs: the shims of pyenv are there for versions that are not
.venv/.installed: settings.ini setup.py
	@fits() { "$$1" -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' >/dev/null 2>&1; }; \
	uv=; if uv --version >/dev/null 2>&1; then uv=uv; fi; \
	if ! fits .venv/bin/python; then \
	  py=; for p in python3 python3.13 python3.12 python3.11; do if fits $$p; then py=$$p; break; fi; done; \
	  if [ -z "$$py" ]; then echo 'No Python 3.11, 3.12 or 3.13 runs here: install one and put it on the PATH' >&2; exit 1; fi; \
	  py=$$($$py -c 'import sys; print(sys.executable)'); rm -rf .venv; echo "making .venv with $$py"; \
	  if [ -n "$$uv" ]; then uv venv -q --python "$$py" .venv; else "$$py" -m venv .venv; fi || { rm -rf .venv; exit 1; }; \
	fi; \
	echo 'installing into .venv, this takes some minutes the first time'; \
	if [ -n "$$uv" ]; then uv pip install -q --python .venv/bin/python -e '.[dev]'; \
	else .venv/bin/python -m pip install -q -e '.[dev]'; fi
	@touch $@
