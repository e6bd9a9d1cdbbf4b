# serve.py on a CPU: docs/serving.md says how to run it.
FROM python:3.12-slim

WORKDIR /app
COPY requirements.txt requirements-serve.txt requirements-milvus.txt ./
# PyTorch from its own index, whose build for CPUs is a tenth of the default one.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision \
    && pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt -r requirements-milvus.txt
COPY serve.py ./
COPY model ./model
COPY datasets ./datasets
COPY utils ./utils
# Nothing is written at run time but models that are downloaded, and uploads in /tmp.
RUN python -m compileall -q . && useradd --uid 10001 service && install -d -o service /models
ENV TORCH_HOME=/models PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# The network of a container is its own: what is published of it, and to whom, is said by `docker run`.
ENTRYPOINT ["python", "serve.py", "--host=0.0.0.0", "--plain_http", "--device=cpu"]
CMD ["--index=/index"]
