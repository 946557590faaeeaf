# open-bench in a container, at work as a user without rights:
#   docker build --tag open-bench .
#   docker build --tag open-bench --build-arg EXTRAS=cuda12 .    # for docker run --gpus all
#   docker run --rm --volume "$PWD:/study" open-bench compare quick
FROM python:3.11-slim-bookworm

COPY pyproject.toml requirements.lock README.md LICENSE /source/
COPY open_bench /source/open_bench
COPY configs /source/configs
COPY baselines /source/baselines
WORKDIR /source
# Extras of pyproject.toml, such as cuda12,craftax,wandb; CUDA's libraries come with theirs.
ARG EXTRAS=""
RUN pip install --no-cache-dir --constraint requirements.lock ".${EXTRAS:+[$EXTRAS]}"

# Whom files in the mounted folder belong to: --build-arg UID="$(id -u)".
ARG UID=1000
RUN useradd --no-log-init --create-home --uid "$UID" bench && install --directory --owner bench /study
USER $UID
WORKDIR /study
# Weights that are imported or evolved stay beside the results.
ENV OPEN_BENCH_WEIGHTS=/study/weights
ENTRYPOINT ["openbench"]
CMD ["--help"]
