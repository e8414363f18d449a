# loramerge in an image: no root, no compiler, no torch.
#   docker build -t loramerge .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" loramerge combine a.safetensors b.safetensors
FROM python:3.13-slim AS build
COPY . /source
RUN python -m venv /opt/loramerge
RUN /opt/loramerge/bin/pip install --no-cache-dir /source

FROM python:3.13-slim
COPY --from=build /opt/loramerge /opt/loramerge
ENV PATH=/opt/loramerge/bin:$PATH HF_HOME=/data/.cache
RUN useradd --create-home loramerge
USER loramerge
WORKDIR /data
ENTRYPOINT ["loramerge"]
