# sebench with what its benchmarks need; without a command it runs the demo.
#
#   docker build -t sebench --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker run --rm --ipc host -v "$PWD:/work" sebench                 # demo/report/report.html
#   docker run --rm --ipc host -v "$PWD:/work" -v sebench-cache:/cache --gpus all sebench run study.yaml -o runs
#
# Commands run in /work; /cache keeps downloaded weights and evaluation crops. Reading processes share images through
# shared memory, of which Docker gives 64 MB unless --ipc or --shm-size says more. With --user, files get that owner.
FROM python:3.11-slim-bookworm

# g++ is for torch.compile, the two libraries are OpenCV's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*

# PyPI's torch has CUDA in it (5 GB). Without: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=detection,openmmlab,tensorboard,corruptions,energy,ray,slurm
ENV PATH=/opt/sebench/bin:$PATH

WORKDIR /opt/source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY backbones backbones
COPY classification classification
COPY scene scene
COPY detection detection
COPY tools tools
RUN python3 -m venv /opt/sebench \
 && /opt/sebench/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]" \
 && /opt/sebench/bin/python -m tools.install_detectron2 \
 && /opt/sebench/bin/python -m pip check \
 && mkdir -m 1777 /work /cache

# Records name the commit of the source.
ARG COMMIT
ENV SEBENCH_COMMIT=$COMMIT XDG_CACHE_HOME=/cache
WORKDIR /work
ENTRYPOINT ["sebench"]
CMD ["demo"]
