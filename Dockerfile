# An image with `gpt2-recipes`; docs/getting-started.md tells how to build and run it, docs/clusters.md
# how Kubernetes does.
FROM python:3.11-slim

# torch.compile needs a C++ compiler. As the first process of a container, a program that is still
# starting would ignore SIGTERM: tini passes it on, and returns the exit code.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/*

# Packages of torch: for CPUs, or for a version of CUDA such as https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX}

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY pipelines pipelines
COPY recipes recipes
COPY accelerate_configs accelerate_configs
RUN python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e .

ENV PATH=/src/.venv/bin:${PATH} HF_HOME=/cache
WORKDIR /workspace
ENTRYPOINT ["tini", "--", "gpt2-recipes"]
CMD ["--help"]
