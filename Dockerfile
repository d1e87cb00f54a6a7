# One image for all processes: the command says which, for instance `docker run … sms-costcenter worker`.

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
# What is locked and nothing else; the hashes keep it what it was when it was locked.
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md ./
COPY protos protos
COPY infra infra
COPY costcenter costcenter
COPY smsgateway smsgateway
COPY workers workers
COPY smsbill smsbill
# The demo's texts and recipients, part of the package.
COPY examples examples
RUN /venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN groupadd --gid 10001 smsbill \
    && useradd --uid 10001 --gid smsbill --create-home smsbill
COPY --from=build /venv /venv
# Assertions stay on: no PYTHONOPTIMIZE.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/smsbill
# gRPC of the cost centre and of the gateway, the gateway's HTTP, metrics and health of the other processes.
EXPOSE 50051 50052 8080 9464
ENTRYPOINT ["smsbill"]
CMD ["--help"]
