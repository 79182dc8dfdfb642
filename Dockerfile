# One image for both planes: `shardctl` for pipelines, `python -m consumer` for pods. Build it from this folder:
#   docker build --tag europe-docker.pkg.dev/PROJECT/shardctl/consumer:VERSION .
# The digest decides; the tag before it is for people. Dependabot raises both.
ARG BASE=python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Wheels alone, each with the hash it had when the lock was written: nothing is compiled, and nothing can be swapped.
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/shardctl \
 && python -m pip --python /opt/shardctl/bin/python install --require-hashes --only-binary :all: -r requirements/runtime.txt \
 && python -m pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY templates templates
COPY shardctl shardctl
COPY consumer consumer
RUN python -m hatchling build --target wheel \
 && python -m pip --python /opt/shardctl/bin/python install --no-deps --no-index dist/*.whl

FROM ${BASE}
COPY --from=build /opt/shardctl /opt/shardctl
# Bytecode was compiled above; at run time nothing is written but to /tmp, so the root file system may be read-only.
ENV PATH=/opt/shardctl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /fleet
# A number, so that Kubernetes can tell it isn't root; over 10000, so that it is nobody's on the node.
USER 65532:65532
EXPOSE 8080
CMD ["shardctl", "--help"]
