# Two images: `docker build --target edge .` runs ONNX files (no torch, no shell), `--target toolkit .` is the whole
# command line on CPU. Both run as a numeric user on a read-only root, and open no connection. See docs/edge.md.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/edge.txt requirements/edge.txt
RUN python -m pip install --no-cache-dir --disable-pip-version-check --no-compile --no-deps --only-binary :all: --require-hashes --target /packages --requirement requirements/edge.txt
COPY docker/rootfs.py docker/rootfs.py
COPY compresskit compresskit
RUN python docker/rootfs.py /rootfs --packages /packages --source compresskit

FROM scratch AS edge
COPY --from=build /rootfs /
ENV PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUTF8=1 \
    ORT_DISABLE_TELEMETRY=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/bin/python", "-m", "compresskit.serve.probe"]
ENTRYPOINT ["/bin/python", "-m", "compresskit"]
CMD ["--help"]

FROM ${BASE} AS toolkit-build
# Plain PyPI's torch for amd64 brings CUDA; this index has the same release for the CPU, for amd64 and arm64.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt constraints.txt
RUN python -m venv /opt/compresskit \
 && /opt/compresskit/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-compile --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY pyproject.toml README.md LICENSE ./
COPY compresskit compresskit
COPY recipes recipes
RUN /opt/compresskit/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-compile --constraint constraints.txt ".[hf,lora,factorize,images,demo,serve]"

FROM ${BASE} AS toolkit
COPY --from=toolkit-build /opt/compresskit /opt/compresskit
ENV PATH=/opt/compresskit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUTF8=1 \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1
USER 65532:65532
WORKDIR /work
ENTRYPOINT ["compresskit"]
CMD ["--help"]
